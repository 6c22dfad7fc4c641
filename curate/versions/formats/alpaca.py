"""Alpaca: `instruction`, `output`, `system`, and earlier turns as `history`. Tools and marks on turns do not fit."""

from __future__ import annotations

import polars as pl

from curate.versions.formats.format import Exporter, joined, marks_nobody_reads, misfits, quoted, reasons

LETTERS = {"system": "s", "human": "h", "gpt": "g", "function_call": "f", "observation": "o"}


def cells(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """`id`, `instruction`, `input` (always empty: it is part of the instruction), `output`, `system`, `history`.

    The last question is the instruction, what was said before it the history, a list of [question, answer] pairs.
    """
    spoken = turns.filter(pl.col("from") != "system").with_columns(
        left=pl.len().over("id") - pl.int_range(pl.len()).over("id")
    )
    earlier = spoken.filter(pl.col("left") > 2).with_columns(answer=pl.col("value").shift(-1))
    asked = earlier.filter(pl.col("from") == "human")
    pair = pl.concat_str(pl.lit("["), quoted("value"), pl.lit(", "), quoted("answer"), pl.lit("]"))
    said = {
        "instruction": spoken.filter(pl.col("left") == 2),
        "output": spoken.filter(pl.col("left") == 1),
        "system": turns.filter(pl.col("from") == "system"),
    }
    columns = conversations.select("id").with_columns(joined(asked, pair, conversations).alias("history"))
    for name, rows in said.items():
        columns = columns.join(
            rows.select("id", pl.col("value").alias(name)), on="id", how="left", maintain_order="left"
        )
    history = pl.when(pl.col("history") != "[]").then("history")
    return columns.select(
        quoted("id").alias("id"),
        quoted("instruction").alias("instruction"),
        pl.lit('""').alias("input"),
        quoted("output").alias("output"),
        quoted("system").alias("system"),
        history.alias("history"),
    )


def unfit(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The conversations that have tools, marks on turns, or other turns than questions and answers."""
    with_tools = conversations.filter(pl.col("tools").is_not_null())
    letters = turns.with_columns(pl.col("from").replace_strict(LETTERS).alias("letter"))
    orders = letters.group_by("id", maintain_order=True).agg(pl.col("letter").str.join("").alias("order"))
    blank_system = (pl.col("from") == "system") & (pl.col("value").str.strip_chars() == "")
    return reasons(
        [
            with_tools.select("id", pl.lit("it has tools").alias("reason")),
            misfits(turns, pl.col("from").is_in(["function_call", "observation"]), "it calls tools"),
            misfits(turns, ~pl.col("train"), "a turn is marked as not learned"),
            *marks_nobody_reads(turns),
            misfits(turns, blank_system, "its system text is blank"),
            misfits(
                orders, ~pl.col("order").str.contains("^s?(hg)+$"), "its turns are no pairs of question and answer"
            ),
        ]
    )


EXPORTER = Exporter(
    name="alpaca",
    shape="alpaca",
    columns={
        "id": pl.String,
        "instruction": pl.String,
        "input": pl.String,
        "output": pl.String,
        "system": pl.String,
        "history": pl.List(pl.List(pl.String)),
    },
    cells=cells,
    unfit=unfit,
    restorable=False,
)
