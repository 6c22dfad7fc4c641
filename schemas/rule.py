"""The text of a rule, such as `quality >= 0.6 and not refusal` → a parsed and checked SQL expression.

DuckDB's parser returns a tree. Everything that is not a plain condition on columns (a subquery, an aggregate, a window
function, a function that is not listed, a second statement) is rejected by name. The SQL that runs is generated from
the tree, not from the text, so that nothing outside the expression can run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from schemas.errors import RecipeError, nearest
from schemas.text import shorten

Node = dict[str, Any]

FUNCTIONS = frozenset((
    "+", "-", "*", "/", "//", "%", "**", "||", "~~", "!~~", "~~*", "!~~*", "abs", "ceil", "floor", "round", "sign",
    "sqrt", "ln", "log", "exp", "pow", "mod", "greatest", "least", "ifnull", "nullif", "lower", "upper", "trim",
    "ltrim", "rtrim", "length", "len", "strlen", "contains", "prefix", "suffix", "starts_with", "ends_with", "left",
    "right", "substr", "substring", "replace", "reverse", "concat", "instr", "position", "strpos", "split_part",
    "regexp_matches", "regexp_extract", "regexp_replace", "like_escape", "not_like_escape", "ilike_escape",
    "not_ilike_escape", "isnan", "isfinite",
))  # fmt: skip
"""Scalar functions that a rule may call. In DuckDB, operators such as `LIKE` (`~~`) are functions."""

_OPERATORS = {
    *("OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE", "OPERATOR_NULLIF"),
    *("COMPARE_IN", "COMPARE_NOT_IN"),
}
_CLASSES = {
    "COMPARISON",
    "CONJUNCTION",
    "OPERATOR",
    "BETWEEN",
    "CASE",
    "CAST",
    "CONSTANT",
    "COLUMN_REF",
    "FUNCTION",
    "TYPE",
}
_ORDER_COMPARISONS = {
    *("COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO", "COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO"),
    "COMPARE_BETWEEN",
}
MAX_DEPTH = 254
"""Maximum nesting of dictionaries and lists in a tree. DuckDB serialises at most 256, including the statement."""

_NAMES = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "LAMBDA": "a lambda",
    "STAR": "a star",
    "PARAMETER": "a parameter",
    "COLLATE": "a collation",
}


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked condition of columns, constants and listed functions."""

    where: str
    text: str
    tree: Node

    @classmethod
    def read(cls, text: str, where: str) -> Expression:
        """The expression in `text`; `where` names it in messages (the key in the recipe).

        Raises `RecipeError` for anything that is not one plain expression.

        >>> Expression.read("quality >= 0.6 and not refusal", "rule good").names
        (('quality',), ('refusal',))
        """
        tree = _parse(text, where)
        if _depth(tree) > MAX_DEPTH:
            raise _too_deep(text, where)
        for node in _nodes(tree):
            _check(node, text, where)
        return cls(where, text, tree)

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The columns it reads, in order, without repetition; `meta.rating` has two parts."""
        columns = (tuple(node["column_names"]) for node in _nodes(self.tree) if node["class"] == "COLUMN_REF")
        return tuple(dict.fromkeys(columns))

    @property
    def quoted_numbers(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """The columns that are compared by order with a number in quotes, and the number.

        >>> Expression.read("score > '4' and topic = '4'", "rule good").quoted_numbers
        ((('score',), '4'),)
        """
        orders = [node for node in _nodes(self.tree) if node["type"] in _ORDER_COMPARISONS]
        parts = [list(_children(node)) for node in orders]
        return tuple(
            (tuple(column["column_names"]), constant["literal"]["text"])
            for children in parts
            for column in children
            for constant in children
            if column["class"] == "COLUMN_REF" and _is_quoted_number(constant)
        )

    def sql(self, column: Callable[[tuple[str, ...], bool], str]) -> str:
        """The expression as SQL text, with each column replaced by `column(name, as_number)`.

        `as_number` is true if the column is compared with a number: `meta.rating >= 4`.
        """
        tree = _rename_columns(self.tree, column, as_number=False)
        statement = _to_tree(_as_where_clause("true"))
        statement["statements"][0]["node"]["where_clause"] = tree
        query = duckdb.execute("SELECT json_deserialize_sql(?)", [json.dumps(statement)]).fetchall()[0][0]
        return str(query).removeprefix("SELECT 1 WHERE ")


def _as_where_clause(text: str) -> str:
    return f"SELECT 1 WHERE (\n{text}\n)"  # line breaks end a comment in the text


def _to_tree(query: str) -> Node:
    found: Node = json.loads(duckdb.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    return found


def _parse(text: str, where: str) -> Node:
    """The tree of the one expression in `text`."""
    if not text.strip():
        raise RecipeError(f"{where}: the rule is empty.", _EXAMPLE)
    try:
        found, alone, frame = (
            _to_tree(_as_where_clause(text)),
            _to_tree(f"SELECT 1 WHERE\n{text}"),
            _to_tree(_as_where_clause("true")),
        )
    except RecursionError as error:
        raise _too_deep(text, where) from error
    for parsed in (found, alone):  # alone: brackets in the text must not close those of the frame
        if parsed["error"]:
            message = shorten(parsed["error_message"])
            raise RecipeError(f"{where}: {shorten(text)!r} is not an SQL expression: {message}.", _EXAMPLE)
    node = found["statements"][0]["node"]
    tree: Node | None = node.get("where_clause")
    found["statements"][0]["node"] = {**node, "where_clause": None}
    frame["statements"][0]["node"]["where_clause"] = None
    if tree is None or _without_locations(found) != _without_locations(frame):
        raise RecipeError(f"{where}: {shorten(text)!r} is more than one expression.", _EXAMPLE)
    return tree


def _too_deep(text: str, where: str) -> RecipeError:
    return RecipeError(
        f"{where}: {shorten(text)!r} is nested too deep.", "Split it into several rules; all of them must hold."
    )


def _depth(tree: Node) -> int:
    """Nesting depth of dictionaries and lists."""
    depth = 0
    level: list[dict[str, Any] | list[Any]] = [tree]
    while level:
        parts = (part for one in level for part in (one.values() if isinstance(one, dict) else one))
        level = [part for part in parts if isinstance(part, dict | list)]
        depth += 1
    return depth


_EXAMPLE = 'A rule is one condition, such as "quality >= 0.6 and not refusal".'


def _without_locations(value: Any) -> Any:
    """`value` without locations in the text, which depend on its length."""
    if isinstance(value, dict):
        return {key: _without_locations(part) for key, part in value.items() if not key.startswith("query_location")}
    return [_without_locations(part) for part in value] if isinstance(value, list) else value


def _nodes(value: Any) -> Iterator[Node]:
    """All expressions in a tree, outer before inner."""
    if isinstance(value, dict):
        if "class" in value:
            yield value
        for part in value.values():
            yield from _nodes(part)
    elif isinstance(value, list):
        for part in value:
            yield from _nodes(part)


def _check(node: Node, text: str, where: str) -> None:
    """Raise `RecipeError` for a node that is not allowed in a condition."""
    kind = node["class"]
    if kind not in _CLASSES or (kind == "OPERATOR" and node["type"] not in _OPERATORS):
        what = _NAMES.get(kind, node["type"].lower().replace("_", " "))
        raise RecipeError(f"{where}: {shorten(text)!r} contains {what}, which is not allowed in a rule.", _EXAMPLE)
    if kind == "FUNCTION":
        name = node["function_name"]
        plain = len(node["qualified_name"]["path"]) == 1 and not (node.get("filter") or node.get("distinct"))
        if name not in FUNCTIONS or not plain:
            near = nearest(name, FUNCTIONS - {name}, cutoff=0.75)
            raise RecipeError(
                f"{where}: {shorten(text)!r} calls {name}, which is not allowed in a rule{near}", _EXAMPLE
            )


def _rename_columns(value: Any, column: Callable[[tuple[str, ...], bool], str], *, as_number: bool) -> Any:
    """A copy of the tree with renamed columns."""
    if isinstance(value, list):
        return [_rename_columns(part, column, as_number=as_number) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("class") == "COLUMN_REF":
        return {**value, "column_names": [column(tuple(value["column_names"]), as_number)]}
    if "class" in value:
        as_number = value["class"] != "CONJUNCTION" and any(_is_number(part) for part in _children(value))
    return {key: _rename_columns(part, column, as_number=as_number) for key, part in value.items()}


def _children(node: Node) -> Iterator[Node]:
    """The direct child expressions of a node."""
    for value in node.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                inner = part.get("expression", part)
                if isinstance(inner, dict) and "class" in inner:
                    yield inner


def _is_quoted_number(node: Node) -> bool:
    literal = node.get("literal", {})
    return literal.get("kind") == "STRING" and re.fullmatch(_NUMBER, literal["text"].strip()) is not None


_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


def _is_number(node: Node) -> bool:
    if node["class"] == "FUNCTION" and node["function_name"] == "-":
        return any(_is_number(part) for part in _children(node))
    return node["class"] == "CONSTANT" and node.get("literal", {}).get("kind") in ("INTEGER", "NUMERIC")
