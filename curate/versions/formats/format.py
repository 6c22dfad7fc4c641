"""The type of an export format, and conversations → JSON texts, which all formats are written as.

A format converts conversations to *cells*: one column per key of its records, each cell a JSON text, or null if a
record does not have the key. JSON Lines and Parquet are both written from the cells, so their content is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from schemas.conversation import ASSISTANT_ROLES

UNFIT = {"id": pl.String, "reason": pl.String}


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """How to write a format, which conversations it cannot represent, and the shape for `curate import`.

    `to_cells` takes conversations (`id`, `conversations`, `tools`, and `tools_are_canonical`: whether all tools of the
    version are spelled as DuckDB's JSON reader returns lists) and their turns, as returned by
    `schemas.conversation.unfold`, and returns one row per conversation, in order. `find_unfit` takes the same and
    returns `id`, `reason`. `columns` are the types of the cells in a Parquet file.
    """

    name: str
    shape: str
    columns: Mapping[str, pl.DataType | type[pl.DataType]]
    to_cells: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
    find_unfit: Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame] = lambda _, turns: find_unsupported_flags(turns)
    restorable: bool = True


def json_string(column: str | pl.Expr) -> pl.Expr:
    r"""The texts of a column as JSON strings; null for null.

    >>> pl.DataFrame({"a": ['say "hi"\n', None]}).select(json_string("a")).to_series().to_list()
    ['"say \\"hi\\"\\n"', None]
    """
    text = pl.col(column) if isinstance(column, str) else column
    encoded = pl.struct(text.alias("v")).struct.json_encode()
    return pl.when(text.is_not_null()).then(encoded.str.strip_prefix('{"v":').str.strip_suffix("}"))


def json_member(key: str, value: pl.Expr) -> pl.Expr:
    """`, "key": value` as a part of an object; an empty text if the value is null."""
    return pl.when(value.is_null()).then(pl.lit("")).otherwise(pl.concat_str(pl.lit(f', "{key}": '), value))


def json_lists(turns: pl.DataFrame, texts: pl.Expr, conversations: pl.DataFrame) -> pl.Series:
    """The JSON list of the `texts` of each conversation's turns, in the order of `conversations`."""
    texts_by_id = turns.select("id", texts.alias("text")).group_by("id", maintain_order=True).agg(pl.col("text"))
    json_list = pl.concat_str(pl.lit("["), pl.col("text").list.join(", "), pl.lit("]"))
    ordered = conversations.select("id").join(texts_by_id, on="id", how="left", maintain_order="left")
    return ordered.select(json_list.fill_null("[]").alias("text")).to_series()


def to_json_lines(cells: pl.DataFrame) -> pl.Series:
    """Each row of cells as one JSON object on a line; the first column must not be null."""
    first, *others = cells.columns
    parts = [pl.lit(f'{{"{first}": '), pl.col(first), *(json_member(key, pl.col(key)) for key in others), pl.lit("}")]
    return cells.select(pl.concat_str(parts).alias("line")).to_series()


def to_table(cells: pl.DataFrame, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """The cells as typed columns. In a text column, JSON that is not a string, such as a list of tools, stays text."""
    return cells.select(_typed(name, columns[name]) for name in cells.columns)


def first_reasons(*unfit: pl.DataFrame) -> pl.DataFrame:
    """The first reason of each conversation: `id`, `reason`."""
    return pl.concat([pl.DataFrame(schema=UNFIT), *unfit]).unique("id", keep="first", maintain_order=True)


def with_reason(turns: pl.DataFrame, condition: pl.Expr, reason: str) -> pl.DataFrame:
    """The conversations with a turn that meets `condition`, and the reason: `id`, `reason`."""
    return turns.filter(condition).select("id", pl.lit(reason).alias("reason")).unique("id", maintain_order=True)


def find_unsupported_flags(turns: pl.DataFrame) -> pl.DataFrame:
    """The conversations with flags that no format can represent, on turns of other roles than usual."""
    excluded = ~pl.col("train") & ~pl.col("from").is_in(ASSISTANT_ROLES)
    stray_id = pl.col("tool_call_id").is_not_null() & (pl.col("from") != "observation")
    return first_reasons(
        with_reason(turns, excluded, "a turn of another role than assistant is excluded from the loss"),
        with_reason(turns, stray_id, "a turn that is not a tool result has a tool_call_id"),
    )


def _typed(name: str, dtype: pl.DataType | type[pl.DataType]) -> pl.Expr:
    cell = pl.col(name)
    if dtype != pl.String:
        return cell.str.json_decode(dtype)
    return pl.when(cell.str.starts_with('"')).then(cell).str.json_decode(pl.String).fill_null(cell).alias(name)
