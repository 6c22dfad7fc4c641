"""Earlier turns in one cell, a JSON list of [question, answer] pairs as in Alpaca files → turns."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import list_cells
from curate.ingest.shapes.shape import TURNS, complete_turns, problem_rows

_PAIRS = """
    SELECT row, unnest(pairs) AS pair, generate_subscripts(pairs, 1) AS position
    FROM (SELECT row, from_json(cell, '[["VARCHAR"]]') AS pairs FROM cells)
"""


def parse_history(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns of the pairs, and the problems of cells that are not a list of pairs. A blank cell has no turns."""
    found, problems = list_cells(cells)
    if found.is_empty():
        return pl.DataFrame(schema=TURNS), problems
    pairs = query_frames(_PAIRS, cells=found).sort("row", "position")
    bad = pairs.filter(pl.col("pair").list.len().fill_null(0) != 2).unique("row", maintain_order=True)
    reason = pl.format("Entry {} of the history is not a pair of question and answer.", "position")
    return _turns(pairs.filter(pl.col("pair").list.len() == 2)), pl.concat(
        [problems, problem_rows(bad, "broken-history", reason)]
    )


def _turns(pairs: pl.DataFrame) -> pl.DataFrame:
    roles = pl.lit(pl.Series([["human", "gpt"]])).first()
    turns = pairs.select("row", roles.alias("from"), pl.col("pair").alias("value")).explode("from", "value")
    return complete_turns(turns)
