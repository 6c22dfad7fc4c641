"""A system text that stands in a column of its own, beside the turns."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.shape import PROBLEMS, problem


def with_system(turns: pl.DataFrame, cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns behind their system text, and the problems of rows whose list begins with another system text."""
    blank = pl.DataFrame(schema=PROBLEMS)
    if cells.null_count() == cells.len():
        return turns, blank
    texts = pl.DataFrame({"system": cells}).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    first = turns.filter(pl.col("row") != pl.col("row").shift(1, fill_value=-1))
    texts = texts.filter(pl.col("system").str.strip_chars() != "").join(first, on="row", maintain_order="left")
    has_one = pl.col("from").fill_null("") == "system"
    doubled = problem(
        texts.filter(has_one & (pl.col("value") != pl.col("system"))),
        "two-system-texts",
        "The system column and the first turn of the list are two different system texts.",
    )
    added = texts.filter(~has_one).select(
        "row",
        pl.lit("system").alias("from"),
        pl.col("system").alias("value"),
        pl.lit(True).alias("train"),
        pl.lit(None, pl.String).alias("tool_call_id"),
    )
    return pl.concat([added, turns]).sort("row", maintain_order=True), doubled
