"""Alpaca: `instruction`, `output`, `system`, and earlier turns as `history`; no tools and no turns without loss."""

from __future__ import annotations

import polars as pl

from curate.versions.formats.format import (
    ExportFormat,
    find_unsupported_flags,
    first_reasons,
    json_lists,
    json_string,
    with_reason,
)

LETTERS = {"system": "s", "human": "h", "gpt": "g", "function_call": "f", "observation": "o"}


def to_cells(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """`id`, `instruction`, `input` (always empty), `output`, `system`, `history`.

    The last question is the instruction, the turns before it are the history, a list of [question, answer] pairs.
    """
    dialogue = turns.filter(pl.col("from") != "system").with_columns(
        remaining=pl.len().over("id") - pl.int_range(pl.len()).over("id")
    )
    earlier = dialogue.filter(pl.col("remaining") > 2).with_columns(answer=pl.col("value").shift(-1))
    questions = earlier.filter(pl.col("from") == "human")
    pair = pl.concat_str(pl.lit("["), json_string("value"), pl.lit(", "), json_string("answer"), pl.lit("]"))
    parts = {
        "instruction": dialogue.filter(pl.col("remaining") == 2),
        "output": dialogue.filter(pl.col("remaining") == 1),
        "system": turns.filter(pl.col("from") == "system"),
    }
    columns = conversations.select("id").with_columns(json_lists(questions, pair, conversations).alias("history"))
    for name, rows in parts.items():
        columns = columns.join(
            rows.select("id", pl.col("value").alias(name)), on="id", how="left", maintain_order="left"
        )
    return columns.select(
        id=json_string("id"),
        instruction=json_string("instruction"),
        input=pl.lit('""'),
        output=json_string("output"),
        system=json_string("system"),
        history=pl.when(pl.col("history") != "[]").then("history"),
    )


def find_unfit(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The conversations with tools, turns without loss, a blank system prompt, or turns that are not in pairs."""
    with_tools = conversations.filter(pl.col("tools").is_not_null())
    letters = turns.with_columns(pl.col("from").replace_strict(LETTERS).alias("letter"))
    orders = letters.group_by("id", maintain_order=True).agg(pl.col("letter").str.join("").alias("order"))
    blank_system = (pl.col("from") == "system") & (pl.col("value").str.strip_chars() == "")
    is_dialogue = pl.col("order").str.contains("^s?(hg)+$")
    return first_reasons(
        with_tools.select("id", pl.lit("it has tools").alias("reason")),
        with_reason(turns, pl.col("from").is_in(["function_call", "observation"]), "it calls tools"),
        with_reason(turns, ~pl.col("train"), "a turn is excluded from the loss"),
        find_unsupported_flags(turns),
        with_reason(turns, blank_system, "its system prompt is blank"),
        with_reason(orders, ~is_dialogue, "its turns are not pairs of question and answer"),
    )


FORMAT = ExportFormat(
    name="alpaca",
    shape="alpaca",
    columns={
        **dict.fromkeys(("id", "instruction", "input", "output", "system"), pl.String),
        "history": pl.List(pl.List(pl.String)),
    },
    to_cells=to_cells,
    find_unfit=find_unfit,
    restorable=False,
)
