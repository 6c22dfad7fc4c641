"""A question, the tools, and the calls that answer it, one per row, as in xLAM and ToolBench → human, function_call."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.json_cells import list_cells
from curate.ingest.shapes.pairs import QUESTION_NAMES, interleave
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    fits_json,
    is_plain_text,
    number_cells,
    problem_rows,
)
from curate.ingest.shapes.system_prompt import SYSTEM, add_system_turns
from curate.ingest.shapes.tool_calls import format_calls, wrap_in_list
from curate.ingest.shapes.tools import TOOLS_FIELD, parse_tools


@fits_json()
def _are_calls(cells: pl.Series) -> pl.Series:
    """Whether each cell is a tool call or a list of them."""
    is_named = cells.str.contains(r'[{,]\s*"name"\s*:\s*"') & cells.str.contains(
        r'"(?:arguments|parameters)"\s*:\s*["{]'
    )
    return cells.str.contains(r"^\s*(?:\[\s*)?\{") & is_named


FIELDS = {
    "calls": Field(
        ("answers", "answer", "tool_calls", "function_calls", "calls", "output", "response"),
        required=True,
        fits=_are_calls,
    ),
    "question": Field(QUESTION_NAMES, required=True, fits=is_plain_text),
    "tools": Field(TOOLS_FIELD.names, required=True),
    "system": SYSTEM,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of questions and calls. Calls that are not valid are left to validation."""
    cells = mapping.column(table, "calls").to_frame("cell").select(wrap_in_list(pl.col("cell").str.strip_chars()))
    lists, problems = list_cells(cells.to_series())
    calls = format_calls(lists.select("row", pl.lit(1, pl.Int64).alias("position"), calls="cell"))
    values = number_cells(cells.to_series()).join(calls, on="row", how="left", maintain_order="left")["value"]
    turns = interleave({"human": mapping.column(table, "question").fill_null(""), "function_call": values})
    turns, contradicting = add_system_turns(turns, mapping.column(table, "system"))
    missing = number_cells(values, "value").filter(pl.col("value").is_null())
    no_call = problem_rows(missing.join(problems, on="row", how="anti"), "no-answer", "The row has no tool call.")
    tools, broken_tools = parse_tools(mapping.column(table, "tools"))
    return ParsedTable(turns, tools).reject(problems, no_call, contradicting, broken_tools)
