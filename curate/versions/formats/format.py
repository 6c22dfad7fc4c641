"""What an export format is, and the JSON text that all of them are written in.

A format turns conversations into *cells*: one column per key of its records, each cell a JSON text, null where a
record does not have the key. JSON Lines and Parquet are both written from the cells, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

UNFIT = {"id": pl.String, "reason": pl.String}


@dataclass(frozen=True, slots=True)
class Exporter:
    """A format: what it writes, what it cannot say, and the shape under which `curate import` reads it back.

    `cells` gets conversations (`id`, `conversations`, `tools`, and `tools_plain`: whether all tools of the version
    are spelt as a reader of JSON hands on a list) and their turns as `schemas.conversation.unfold` gives
    them; it returns one row per conversation, in order. `unfit` gets the same and returns `id`, `reason`. `columns`
    are the types of the cells in a Parquet file.
    """

    name: str
    shape: str
    columns: Mapping[str, pl.DataType | type[pl.DataType]]
    cells: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
    unfit: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
    restorable: bool = True


def quoted(column: str | pl.Expr) -> pl.Expr:
    r"""The texts of a column as JSON strings; null stays null.

    >>> pl.DataFrame({"a": ['say "hi"\n', None]}).select(quoted("a")).to_series().to_list()
    ['"say \\"hi\\"\\n"', None]
    """
    text = pl.col(column) if isinstance(column, str) else column
    encoded = pl.struct(text.alias("v")).struct.json_encode()
    return pl.when(text.is_not_null()).then(encoded.str.strip_prefix('{"v":').str.strip_suffix("}"))


def member(key: str, value: pl.Expr) -> pl.Expr:
    """`, "key": value` for an object under construction; nothing where the value is null."""
    return pl.when(value.is_null()).then(pl.lit("")).otherwise(pl.concat_str(pl.lit(f', "{key}": '), value))


def joined(turns: pl.DataFrame, texts: pl.Expr, conversations: pl.DataFrame) -> pl.Series:
    """The JSON list of `texts`, one per turn, of each conversation, in the order of `conversations`."""
    lists = turns.select("id", texts.alias("text")).group_by("id", maintain_order=True).agg(pl.col("text"))
    listed = pl.concat_str(pl.lit("["), pl.col("text").list.join(", "), pl.lit("]"))
    together = conversations.select("id").join(lists, on="id", how="left", maintain_order="left")
    return together.select(listed.fill_null("[]").alias("text")).to_series()


def as_lines(cells: pl.DataFrame) -> pl.Series:
    """Each row of cells as one JSON object on a line; the first column is in every one of them."""
    first, *others = cells.columns
    parts = [pl.lit(f'{{"{first}": '), pl.col(first), *(member(key, pl.col(key)) for key in others), pl.lit("}")]
    return cells.select(pl.concat_str(parts).alias("line")).to_series()


def as_table(cells: pl.DataFrame, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """The cells as typed columns. A text column keeps a cell that is no JSON string, such as a list of tools."""
    return cells.select(_typed(name, columns[name]) for name in cells.columns)


def reasons(unfit: list[pl.DataFrame]) -> pl.DataFrame:
    """The first reason of each conversation that does not fit."""
    return pl.concat([pl.DataFrame(schema=UNFIT), *unfit]).unique("id", keep="first", maintain_order=True)


def misfits(turns: pl.DataFrame, condition: pl.Expr, reason: str) -> pl.DataFrame:
    """The conversations one of whose turns meets `condition`, with the reason."""
    return turns.filter(condition).select("id", pl.lit(reason).alias("reason")).unique("id", maintain_order=True)


def marks_nobody_reads(turns: pl.DataFrame) -> list[pl.DataFrame]:
    """What none of the formats says: a turn of somebody else marked as not learned, a call's id outside a result."""
    silent = ~pl.col("train") & ~pl.col("from").is_in(["gpt", "function_call"])
    stray = pl.col("tool_call_id").is_not_null() & (pl.col("from") != "observation")
    return [
        misfits(turns, silent, "a turn that is not the assistant's is marked as not learned"),
        misfits(turns, stray, "a turn that is no tool result has a tool_call_id"),
    ]


def _typed(name: str, dtype: pl.DataType | type[pl.DataType]) -> pl.Expr:
    cell = pl.col(name)
    if dtype != pl.String:
        return cell.str.json_decode(dtype)
    return pl.when(cell.str.starts_with('"')).then(cell).str.json_decode(pl.String).fill_null(cell).alias(name)
