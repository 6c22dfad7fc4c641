"""Turns and tools → the turns that violate the rules of tool calls, tools and reasoning, by the code of the rule.

These rules parse JSON or look at several turns; `validation.py` describes them.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import is_nonstandard

_CALLS = """
    SELECT * EXCLUDE (entries), len(entries) AS calls,
        calls = 0 OR list_bool_or([
            coalesce(json_type(c, '$.name') <> 'VARCHAR' OR json_type(c, '$.arguments') <> 'OBJECT', true)
            FOR c IN entries
        ]) AS broken,
        [c ->> '$.id' FOR c IN entries IF c ->> '$.id' IS NOT NULL] AS ids,
        [c ->> '$.name' FOR c IN entries] AS names
    FROM (
        SELECT *, CASE
            WHEN NOT json_valid(value) THEN []
            WHEN json_type(value::JSON) = 'ARRAY' THEN CAST(value::JSON AS JSON[])
            ELSE [value::JSON] END AS entries
        FROM call_turns
    )
"""

_TOOL_NAMES = """
    SELECT tools, [coalesce(t ->> '$.function.name', t ->> '$.name') FOR t IN CAST(tools::JSON AS JSON[])] AS declared
    FROM distinct_tools WHERE json_valid(tools) AND json_type(tools::JSON) = 'ARRAY'
"""


def check_calls(context: pl.DataFrame, tools: pl.DataFrame | None) -> dict[str, pl.DataFrame]:
    """The turns with invalid tool calls, those whose results do not match the calls, and those of unknown tools."""
    call_turns = context.filter(pl.col("role") == "function_call")
    if call_turns.is_empty():
        return {}
    calls = query_frames(_CALLS, call_turns=call_turns)
    calls = calls.with_columns(broken=calls["broken"] | is_nonstandard(calls["value"]))
    call_index = pl.when(pl.col("role") == "function_call").then("index").forward_fill()
    numbered = context.select("row", "role", "tool_call_id", call_index.alias("index"))
    results = numbered.filter(pl.col("role") == "observation")
    by_call = results.group_by("row", "index").agg(results=pl.len(), result_ids=pl.col("tool_call_id").drop_nulls())
    mismatched = calls.filter(~pl.col("broken")).join(by_call, on=["row", "index"]).filter(_is_mismatched())
    found = {"broken-tool-call": calls.filter("broken"), "mismatched-results": mismatched.sort("index")}
    return found if tools is None else found | _unknown_tools(calls, tools)


def _is_mismatched() -> pl.Expr:
    """Whether the results that follow a tool call do not match it.

    Several calls without ids may have one result that contains all of theirs, as in ShareGPT files.
    """
    ids, result_ids = pl.col("ids").list.len(), pl.col("result_ids").list.len()
    all_have_ids = (ids == pl.col("calls")) & (result_ids == pl.col("results"))
    others = pl.col("ids").list.set_symmetric_difference("result_ids").list.len() > 0
    in_one = (pl.col("results") == 1) & (ids + result_ids == 0)
    return ((pl.col("results") != pl.col("calls")) & ~in_one) | (all_have_ids & others)


def check_tools(tools: pl.DataFrame | None) -> dict[str, pl.DataFrame]:
    """The rows whose tools are not a JSON list of objects, by code."""
    if tools is None or tools.is_empty():
        return {}
    cells = tools.with_columns(nonstandard=is_nonstandard(tools["tools"]))
    query = """
        SELECT row, tools AS value FROM cells
        WHERE nonstandard OR NOT json_valid(tools) OR json_type(tools::JSON) <> 'ARRAY'
            OR list_bool_or([json_type(t) <> 'OBJECT' FOR t IN CAST(tools::JSON AS JSON[])])
    """
    return {"broken-tools": query_frames(query, cells=cells)}


def _unknown_tools(calls: pl.DataFrame, tools: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The turns that call a tool that is not defined, by code, with the `name` of the first such tool."""
    named = calls.explode("names").drop_nulls("names").rename({"names": "name"})
    named = named.join(_tool_names(tools), on="row", how="left", maintain_order="left").sort(
        "index", maintain_order=True
    )
    undeclared = pl.col("declared").is_not_null() & ~pl.col("name").is_in(pl.col("declared"))
    return {
        "undeclared-tool": named.filter(undeclared),
        "calls-without-tools": named.filter(pl.col("declared").is_null()),
    }


def _tool_names(tools: pl.DataFrame) -> pl.DataFrame:
    """The names of the tools of each row: `row`, `declared`. Conversations of a file often have the same tools."""
    if tools.is_empty():
        return pl.DataFrame(schema={"row": pl.Int64, "declared": pl.List(pl.String)})
    distinct = tools.select(pl.col("tools").unique())
    return tools.join(query_frames(_TOOL_NAMES, distinct_tools=distinct), on="tools").select("row", "declared")


def check_reasoning(context: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The answers that consist of reasoning only; reasoning before a tool call is not an answer and may end there."""
    calls_next = ~pl.col("last") & (pl.col("role").shift(-1) == "function_call")
    turns = context.with_columns(calls_next=calls_next.fill_null(False)).filter("marked")
    turns = turns.filter(pl.col("value").str.contains(r"^\s*<think>"))
    if turns.is_empty():
        return {}
    rest = pl.col("value").str.replace_all(r"(?s)<think>.*?(?:</think>|$)", "").str.strip_chars()
    return {"only-reasoning": turns.filter((pl.col("role") == "gpt") & ~pl.col("calls_next") & (rest == ""))}
