"""The text of `--sql` → a checked SELECT over the table `rows`, which cannot read anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import duckdb

from schemas.errors import RecipeError
from schemas.text import shorten

ROWS = "rows"
ROW_NUMBER = "row_number"

_TABLES = {"BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "EXPRESSION_LIST", "TABLE_FUNCTION"}
"""Kinds of tables in a FROM clause; others, such as DESCRIBE, show the database."""

_TABLE_FUNCTIONS = {"unnest", "range", "generate_series"}
_UNREPEATABLE = {"ago", "current_catalog", "get_block_size", "index_key", "json_serialize_plan", "version"}
"""Functions that DuckDB calls consistent, or macros, that read the clock, the database or DuckDB's version."""

_UNREPEATABLE_NAMES = {
    *("current_catalog", "current_date", "current_schema", "current_time", "current_timestamp"),
    *("localtime", "localtimestamp"),
}
"""Functions that are called without parentheses."""

_EXAMPLE = f"For example: --sql \"SELECT * FROM {ROWS} WHERE lang = 'en'\""


def check_select(text: str) -> None:
    """Raise `RecipeError` unless `text` is one SELECT over `rows` that gives the same result every time."""
    found = json.loads(duckdb.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0])
    if found["error"]:
        raise RecipeError(f"--sql {shorten(text)!r}: {shorten(found['error_message'])}", _EXAMPLE)
    if len(found["statements"]) != 1:
        raise RecipeError(f"--sql has {len(found['statements'])} statements; one SELECT is expected.", _EXAMPLE)
    nodes = list(_nodes(found["statements"][0]))
    defined = {entry["key"].lower() for node in nodes for entry in (node.get("cte_map") or {}).get("map", ())}
    if hidden := sorted(defined & _tables_of_duckdb()):  # elsewhere in the statement, the name would be that table
        raise RecipeError(f"--sql {shorten(text)!r} defines {hidden[0]}, a table of DuckDB; rename it.", _EXAMPLE)
    tables = {ROWS, *defined}
    for node in nodes:
        if problem := _problem(node, tables):
            raise RecipeError(f"--sql {shorten(text)!r} {problem}.", _EXAMPLE)


def without_end(query: str) -> str:
    """The statement without its semicolon and what follows: spaces, comments and further semicolons."""
    text = query.encode()
    tokens = duckdb.tokenize(query)
    ends = [start for start, kind in tokens if kind == duckdb.token_type.operator and text[start : start + 1] == b";"]
    return text[: min(ends, default=len(text))].decode()


def is_ordered(text: str) -> bool:
    """Whether the SELECT orders its result."""
    tree = json.loads(duckdb.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0])
    return any(modifier["type"] == "ORDER_MODIFIER" for modifier in tree["statements"][0]["node"]["modifiers"])


def _problem(node: dict[str, Any], tables: set[str]) -> str | None:
    """Why a node of the statement is not allowed; None if it is."""
    for table in (node.get(side) for side in ("from_table", "left", "right")):
        if isinstance(table, dict) and "sample" in table and table["type"] not in _TABLES:
            return f"reads {table['type'].lower()}; only the table {ROWS} can be read"
    if node.get("type") == "BASE_TABLE" and (node["table_name"].lower() not in tables or node["schema_name"]):
        return f"reads {node['table_name']}; only the table {ROWS} can be read"
    if node.get("type") == "TABLE_FUNCTION" and (name := node["function"]["function_name"]) not in _TABLE_FUNCTIONS:
        return f"calls {name} as a table; only {', '.join(sorted(_TABLE_FUNCTIONS))} are allowed"
    if name := _unrepeatable_call(node):
        return f"calls {name}, so that another import of the file can have another result"
    sample = node.get("sample")
    if isinstance(sample, dict) and sample["seed"] == -1:
        return "samples without a seed; add REPEATABLE (42) after USING SAMPLE reservoir(100 ROWS)"
    return None


def _unrepeatable_call(node: dict[str, Any]) -> str | None:
    """The function that a node calls, if its result depends on more than its arguments."""
    if node.get("class") == "COLUMN_REF" and len(node["column_names"]) == 1:
        name: str = node["column_names"][0]
        is_unrepeatable = name.lower() in _UNREPEATABLE_NAMES
    elif node.get("class") == "FUNCTION":
        name = node["function_name"]
        since_today = name.lower() == "age" and len(node["arguments"]) == 1
        is_unrepeatable = since_today or name.lower() in _unrepeatable_functions()
    else:
        return None
    return name if is_unrepeatable else None


@cache
def _tables_of_duckdb() -> set[str]:
    """Tables and views of every database that are found without their schema."""
    rows = duckdb.execute("""
        SELECT view_name FROM duckdb_views() WHERE internal AND schema_name IN (SELECT unnest(current_schemas(true)))
    """).fetchall()
    return {name for (name,) in rows}


@cache
def _unrepeatable_functions() -> set[str]:
    """All functions except those that DuckDB lists as consistent for some types, and its macros of general use."""
    rows = duckdb.execute("""
        SELECT function_name FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro')
        GROUP BY ALL HAVING NOT bool_or(
            coalesce(stability = 'CONSISTENT', function_type = 'macro' AND schema_name = 'main'))
    """).fetchall()
    return _UNREPEATABLE | {name for (name,) in rows}


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in the tree of a statement."""
    if isinstance(value, dict):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _nodes(part)
