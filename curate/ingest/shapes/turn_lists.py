"""Cells with a JSON list of turns → turns and problems; shared by ShareGPT and OpenAI messages."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.block_messages import expand_lists
from curate.ingest.shapes.call_turns import (
    add_call_turns,
    drop_empty_announcements,
    element_calls,
    join_parallel_calls,
    normalise_calls,
)
from curate.ingest.shapes.json_cells import list_cells
from curate.ingest.shapes.shape import TURNS, ColumnMapping, ParsedTable, number_cells, problem_rows
from curate.ingest.shapes.system_prompt import add_system_turns
from curate.ingest.shapes.tools import parse_tools
from curate.ingest.shapes.turn_elements import FALSE_FLAGS, element_problems, find_duplicate_keys, read_elements
from curate.ingest.shapes.turn_keys import missing_texts, rename_keys
from schemas.conversation import ASSISTANT_ROLES

SHAREGPT, MESSAGES = "sharegpt", "messages"
_FIRST_KEYS = {"from": SHAREGPT, "value": SHAREGPT, "speaker": SHAREGPT, "role": MESSAGES, "content": MESSAGES}


def is_family(cells: pl.Series, name: str) -> pl.Series:
    """Whether each cell contains a list of turns of the family `SHAREGPT` or `MESSAGES`.

    The first key decides, or a later one if the first is unknown. Quotes in a text are escaped in JSON, so a key that
    occurs in a text is not mistaken for one.
    """
    cells = cells.str.strip_chars_start()
    if not cells.str.starts_with("[").any():
        return pl.repeat(False, cells.len(), eager=True)
    key = pl.col("cell").str.extract(r'^\[\s*\{\s*"([^"]*)"')
    later = pl.when(_has_key("role")).then(pl.lit(MESSAGES)).when(_has_key("from")).then(pl.lit(SHAREGPT))
    first = key.replace_strict(_FIRST_KEYS, default=None, return_dtype=pl.String)
    is_named = pl.when(key.is_not_null()).then(pl.coalesce(first, later)).eq(name).fill_null(False)
    return pl.DataFrame({"cell": cells}).select(is_named).to_series()


def _has_key(key: str) -> pl.Expr:
    return pl.col("cell").str.contains(rf'"{key}"\s*:\s*"')


def parse(table: pl.DataFrame, mapping: ColumnMapping, name: str) -> ParsedTable:
    """The conversations in the column of the field `name`, with the columns of the fields `system` and `tools`."""
    cells = _append_completion(mapping.column(table, name), mapping.column(table, "completion"))
    lists, invalid = list_cells(cells)
    lists = rename_keys(lists, mapping.keys)
    elements = read_elements(lists, mapping.roles)
    empty, duplicates = _empty_rows(cells, elements), find_duplicate_keys(elements, lists)
    unnamed = missing_texts(elements, lists)
    expanded, no_text = expand_lists(elements, lists)
    if expanded.height:
        lists = pl.concat([lists.join(expanded, on="row", how="anti"), expanded]).sort("row")
        others, read = elements.join(expanded, on="row", how="anti"), read_elements(expanded, mapping.roles)
        elements = pl.concat([others, read], how="diagonal").sort("row", "position")
    turns, contradicting = add_system_turns(_turns(elements, lists), mapping.column(table, "system"))
    tools, broken_tools = parse_tools(mapping.column(table, "tools"))
    problems = [invalid, empty, duplicates, no_text, *element_problems(elements, mapping.keys.get("role"))]
    blank = elements.filter((pl.col("text").fill_null("") == "") & pl.col("calls").is_null())["row"]
    problems += [unnamed.filter(pl.col("row").is_in(blank.implode())), contradicting, broken_tools]
    return ParsedTable(turns, tools).reject(*problems)


def _append_completion(cells: pl.Series, completion: pl.Series) -> pl.Series:
    """Each list concatenated with its completion: a list of turns, or a single turn."""
    if completion.null_count() == completion.len():
        return cells
    pair = pl.DataFrame({"cell": cells.str.strip_chars(), "completion": completion.str.strip_chars()})
    single = pl.col("completion").str.starts_with("{") & pl.col("completion").str.ends_with("}")
    pair = pair.with_columns(
        pl.when(single).then(pl.format("[{}]", "completion")).otherwise("completion").alias("completion")
    )
    both_lists = pl.all_horizontal(pl.all().str.contains(r"^\[\s*\{") & pl.all().str.ends_with("]"))
    text = pl.concat_str(pl.col("cell").str.head(-1), pl.lit(", "), pl.col("completion").str.slice(1))
    return pair.select(pl.when(both_lists).then(text).otherwise("cell")).to_series()


def _empty_rows(cells: pl.Series, elements: pl.DataFrame) -> pl.DataFrame:
    """Problems of rows without turns: a blank cell, or an empty list."""
    empty = number_cells(cells.fill_null("").str.strip_chars()).join(
        elements, on="row", how="anti", maintain_order="left"
    )
    blank = pl.col("cell").is_in(["", "null"])
    return pl.concat(
        [
            problem_rows(empty.filter(blank), "missing-conversation", "The column with the turns is empty."),
            problem_rows(empty.filter(~blank), "empty-conversation", "The list has no turns."),
        ]
    )


def _turns(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """The turns of all elements. The tool calls of an assistant become a separate turn after its text."""
    excluded = pl.col("trains").str.to_lowercase().is_in(FALSE_FLAGS).fill_null(False)
    turns = elements.select(
        "row",
        "position",
        pl.col("from"),
        _text_with_reasoning().alias("value"),
        (~(excluded & pl.col("from").is_in(ASSISTANT_ROLES))).alias("train"),
        pl.when(pl.col("from") == "observation").then("tool_call_id").alias("tool_call_id"),
    )
    turns = add_call_turns(turns, element_calls(elements, lists))
    return join_parallel_calls(drop_empty_announcements(normalise_calls(turns))).select(*TURNS)


def _text_with_reasoning() -> pl.Expr:
    """The text of a turn, preceded by its reasoning in the notation of open reasoning models.

    The chat templates of Qwen3 and DeepSeek-R1 extract `<think>…</think>` from the text again.
    """
    text, reasoning = pl.col("text").fill_null(""), pl.col("reasoning")
    has_reasoning = (reasoning.str.strip_chars() != "") & (pl.col("from") == "gpt")
    return pl.when(has_reasoning).then(pl.format("<think>\n{}\n</think>\n\n{}", reasoning, text)).otherwise(text)
