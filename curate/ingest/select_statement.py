"""The text of `--sql` → a checked SELECT over the table `rows`, which cannot read anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from schemas.errors import RecipeError
from schemas.text import shorten

ROWS = "rows"
ROW_NUMBER = "row_number"

_TABLES = {"BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "EXPRESSION_LIST", "TABLE_FUNCTION"}
"""Kinds of tables in a FROM clause; others, such as DESCRIBE, show the database."""

_TABLE_FUNCTIONS = {"unnest", "range", "generate_series"}
_UNREPEATABLE = {
    "random",
    "setseed",
    "uuid",
    "uuidv4",
    "uuidv7",
    "gen_random_uuid",
    "now",
    "current_timestamp",
    "today",
}
_EXAMPLE = f"For example: --sql \"SELECT * FROM {ROWS} WHERE lang = 'en'\""


def check_select(text: str) -> None:
    """Raise `RecipeError` unless `text` is one SELECT over `rows` that gives the same result every time."""
    found = json.loads(duckdb.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0])
    if found["error"]:
        raise RecipeError(f"--sql {shorten(text)!r}: {shorten(found['error_message'])}", _EXAMPLE)
    if len(found["statements"]) != 1:
        raise RecipeError(f"--sql has {len(found['statements'])} statements; one SELECT is expected.", _EXAMPLE)
    nodes = list(_nodes(found["statements"][0]))
    tables = {ROWS, *(entry["key"].lower() for node in nodes for entry in (node.get("cte_map") or {}).get("map", ()))}
    for node in nodes:
        if problem := _problem(node, tables):
            raise RecipeError(f"--sql {shorten(text)!r} {problem}.", _EXAMPLE)


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
    if node.get("class") == "FUNCTION" and (name := node["function_name"]) in _UNREPEATABLE:
        return f"calls {name}, so that another import of the file has another result"
    sample = node.get("sample")
    if isinstance(sample, dict) and sample["seed"] == -1:
        return "samples without a seed; add REPEATABLE (42) after USING SAMPLE reservoir(100 ROWS)"
    return None


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in the tree of a statement."""
    if isinstance(value, dict):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _nodes(part)
