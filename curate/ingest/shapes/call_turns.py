"""Tool calls of assistant elements and `function_call` turns → turns with calls in one notation."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import is_too_deep
from curate.ingest.shapes.tool_calls import format_calls, has_object_arguments, is_other_notation, wrap_in_list
from curate.ingest.shapes.turn_elements import original_elements


def element_calls(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """The assistant elements with tool calls: `row`, `position`, `calls` with arguments in their original text."""
    has_calls = pl.col("calls").is_not_null() & (pl.col("from") == "gpt")
    calls = elements.filter(has_calls).select("row", "position", "calls")
    objects = calls.filter(has_object_arguments(pl.col("calls"))).select("row", "position")
    if objects.is_empty():
        return calls
    originals = [
        (row, position, element.get("tool_calls") or f"[{element['function_call']}]")
        for row, position, element in original_elements(objects, lists)
    ]
    frame = pl.DataFrame(originals, schema={**objects.schema, "original": pl.String}, orient="row")
    joined = calls.join(frame, on=["row", "position"], how="left", maintain_order="left")
    return joined.select("row", "position", pl.coalesce("original", "calls").alias("calls"))


def add_call_turns(turns: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The turns with a `function_call` turn after each element with tool calls; its own turn is dropped if empty."""
    if calls.is_empty():
        return turns
    texts = format_calls(calls)
    both = turns.join(texts, on=["row", "position"], how="left", suffix="_call", maintain_order="left")
    own_turns = both.filter(pl.col("value_call").is_null() | (pl.col("value").str.strip_chars() != ""))
    call_turns = both.filter(pl.col("value_call").is_not_null()).with_columns(
        pl.lit("function_call").alias("from"), pl.col("value_call").alias("value")
    )
    ranked = pl.concat([own_turns.with_columns(rank=0), call_turns.with_columns(rank=1)])
    return ranked.sort("row", "position", "rank").drop("value_call", "rank")


def normalise_calls(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with all `function_call` texts in one notation; invalid ones stay and are left to validation."""
    other = turns.filter((pl.col("from") == "function_call") & is_other_notation(pl.col("value")))
    if other.is_empty():
        return turns
    valid = query_frames("SELECT row, position, value FROM other WHERE json_valid(value)", other=other)
    valid = valid.filter(~is_too_deep(valid["value"]))
    calls = valid.select("row", "position", wrap_in_list(pl.col("value")).alias("calls"))
    texts = format_calls(calls)
    joined = turns.join(texts, on=["row", "position"], how="left", suffix="_call", maintain_order="left")
    is_call = pl.col("from") == "function_call"
    return joined.with_columns(
        pl.when(is_call).then(pl.coalesce("value_call", "value")).otherwise("value").alias("value")
    )


def drop_empty_announcements(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns without empty assistant texts directly before a tool call: both are one message."""
    if not (turns["from"] == "function_call").any():
        return turns
    calls_next = (pl.col("from").shift(-1) == "function_call") & (pl.col("row").shift(-1) == pl.col("row"))
    empty = (pl.col("from") == "gpt") & (pl.col("value").str.strip_chars() == "")
    return turns.filter(~(empty & calls_next).fill_null(False))


def join_parallel_calls(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with consecutive calls as one turn, a list of calls; calls with different training flags stay apart."""
    is_call = turns["from"] == "function_call"
    if not (is_call & is_call.shift(1)).any():
        return turns
    same = [pl.col(name) == pl.col(name).shift(1) for name in ("row", "from", "train")]
    joins = pl.all_horizontal(*same, pl.col("from") == "function_call").fill_null(False)
    numbered = turns.with_columns(joins.not_().cum_sum().alias("turn"), inner=_without_brackets(pl.col("value")))
    groups = numbered.group_by("turn", maintain_order=True)
    joined = groups.agg(pl.exclude("inner", "value").first(), pl.col("value").first(), pl.col("inner"))
    as_list = pl.concat_str(pl.lit("["), pl.col("inner").list.join(", "), pl.lit("]"))
    value = pl.when(pl.col("inner").list.len() > 1).then(as_list).otherwise("value").alias("value")
    return joined.with_columns(value).select(turns.columns)


def _without_brackets(text: pl.Expr) -> pl.Expr:
    plain = text.str.strip_chars()
    is_list = plain.str.starts_with("[") & plain.str.ends_with("]")
    return pl.when(is_list).then(plain.str.slice(1).str.head(-1).str.strip_chars()).otherwise(plain)
