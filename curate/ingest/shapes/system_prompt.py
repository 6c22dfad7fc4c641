"""A column of system prompts → turns that start with them."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.shape import PROBLEMS, complete_turns, number_cells, problem_rows


def add_system_turns(turns: pl.DataFrame, cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns with their system prompts first, and the problems of rows with two different system prompts."""
    if cells.null_count() == cells.len():
        return turns, pl.DataFrame(schema=PROBLEMS)
    prompts = number_cells(cells, "system").filter(pl.col("system").str.strip_chars() != "")
    first = turns.filter(pl.col("row") != pl.col("row").shift(1, fill_value=-1))
    prompts = prompts.join(first, on="row", maintain_order="left")
    has_one = pl.col("from").fill_null("") == "system"
    contradicting = problem_rows(
        prompts.filter(has_one & (pl.col("value") != pl.col("system"))),
        "two-system-texts",
        "The system column and the first turn of the list are two different system prompts.",
    )
    added = prompts.filter(~has_one).select("row", pl.lit("system").alias("from"), pl.col("system").alias("value"))
    return pl.concat([complete_turns(added), turns]).sort("row", maintain_order=True), contradicting
