"""A column of tool definitions → the tools of each conversation, a JSON list of objects."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.json_cells import filled_cells, query_frames
from curate.ingest.shapes.shape import PROBLEMS, TOOLS, Field, problem_rows, shorten_expr
from curate.ingest.shapes.tool_calls import wrap_in_list

TOOLS_FIELD = Field(("tools", "functions", "available_tools"))


def parse_tools(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tools (`row`, `tools`), a JSON list of objects in its original text, and the problems of other cells."""
    filled = filled_cells(cells).filter(~pl.col("cell").is_in(["[]", "{}"]))
    if filled.is_empty():
        return pl.DataFrame(schema=TOOLS), pl.DataFrame(schema=PROBLEMS)
    valid = query_frames("SELECT row FROM filled WHERE json_valid(cell)", filled=filled)
    is_sound = pl.col("row").is_in(valid["row"].implode()) & pl.col("cell").str.contains(r"^\[?\s*\{")
    reason = pl.format("The tools are not a JSON list of objects: {}", shorten_expr(pl.col("cell")))
    sound = filled.filter(is_sound).select("row", wrap_in_list(pl.col("cell")).alias("tools"))
    return sound, problem_rows(filled.filter(~is_sound), "broken-tools", reason)
