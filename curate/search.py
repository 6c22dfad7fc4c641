"""Words or a regular expression → the conversations that contain them, each with the first place of a match."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
from duckdb import DuckDBPyConnection

from curate.rule_columns import matching_query
from schemas.conversation import ROLES
from schemas.errors import RecipeError, nearest
from schemas.recipe import Recipe
from schemas.text import shorten
from schemas.timing import timed

EXCERPT_CHARACTERS = 60
"""Characters of context on each side of a match."""

MATCH_CHARACTERS = 200
"""Characters of a match that are shown."""

TIME_LIMIT = 60.0
"""Seconds after which an expression is given up. RE2 is linear in the text, but also in the size of the expanded
repetitions: one million rows take 0.6 s for most expressions, several minutes for `(.{1,30}){1,30}z`."""


@dataclass(frozen=True, slots=True)
class Match:
    """The first match in a conversation: the turn (from 1), its role, and the text before, in and after the match."""

    id: str
    turn: int
    role: str
    before: str
    match: str
    after: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How many conversations match, and the first of them in the order of import."""

    conversations: int
    matches: list[Match]


@timed("searching")
def search(
    connection: DuckDBPyConnection,
    text: str,
    recipe: Recipe,
    *,
    regex: bool = False,
    role: str | None = None,
    where: str | None = None,
    limit: int = 20,
) -> SearchResult:
    """The conversations that contain every word of `text`, in any turn and any case, or that match it as an expression.

    `role` limits the search to the turns of one role, `where` to imported conversations that meet a rule. Expressions
    have the syntax of RE2 (https://github.com/google/re2/wiki/Syntax), whose time is linear in the text for every
    pattern; they are case-sensitive unless they start with `(?i)`. Raises `RecipeError` for an empty text, an invalid
    expression, one that takes longer than `TIME_LIMIT`, an unknown role, and for an invalid rule.
    """
    patterns = [_check_expression(connection, text)] if regex else _word_patterns(text)
    if role is not None and role not in ROLES:
        raise RecipeError(
            f"--role is {role!r}, which is not a role{nearest(role, ROLES)}", f"Roles: {', '.join(ROLES)}."
        )
    conditions = [f"({_any_turn(pattern, role)})" for pattern in patterns]
    conditions.append("id NOT IN (SELECT conversation FROM removed_conversations)")
    if where is not None:
        conditions.append(f"id IN ({matching_query(connection, recipe, where)})")
    with _time_limit(connection, text):
        found = connection.execute(f"""
            SELECT id, count(*) OVER () AS total FROM conversations WHERE {" AND ".join(conditions)}
            ORDER BY rowid LIMIT {limit}""").fetchall()
    ids = [id_ for id_, _ in found]
    return SearchResult(found[0][1] if found else 0, _first_matches(connection, ids, "|".join(patterns), role))


def _word_patterns(text: str) -> list[str]:
    """An expression for each word: its characters as they are, in any case."""
    words = list(dict.fromkeys(text.split()))
    if not words:
        raise RecipeError("The text to search for is empty.", 'For example: curate search "refund late"')
    return [f"(?i:{re.escape(word)})" for word in words]


def _check_expression(connection: DuckDBPyConnection, pattern: str) -> str:
    """The pattern. Raises `RecipeError` if it is empty or RE2 does not accept it."""
    if not pattern:
        raise RecipeError("The expression to search for is empty.", "For example: curate search --regex 'order [0-9]+'")
    try:
        connection.execute("SELECT regexp_matches('', ?)", [pattern]).fetchall()
    except duckdb.Error as error:
        message = str(error).splitlines()[0].partition("Error: ")[2]
        raise RecipeError(
            f"{shorten(pattern, 80)!r} is not a valid regular expression: {shorten(message, 160)}.",
            "Expressions have RE2 syntax, without look-around and back-references; omit --regex to search for words.",
        ) from error
    return pattern


@contextmanager
def _time_limit(connection: DuckDBPyConnection, text: str) -> Iterator[None]:
    """Interrupt the query of the block after `TIME_LIMIT`, and raise `RecipeError`."""
    timer = threading.Timer(TIME_LIMIT, connection.interrupt)
    timer.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise RecipeError(
            f"The search for {shorten(text, 80)!r} was stopped after {TIME_LIMIT:.0f} s.",
            "Write an expression with smaller repetitions than {1,30}, or search for its words without --regex.",
        ) from error
    finally:
        timer.cancel()


def _any_turn(pattern: str, role: str | None) -> str:
    """SQL: whether a turn of a row of `conversations` matches. The nested list is read as one column of texts."""
    of_role = "" if role is None else f""" AND turn."from" = {_quote(role)}"""
    matches = f"regexp_matches(turn.value, {_quote(pattern)}){of_role}"
    return f"list_contains(list_transform(conversations, lambda turn: {matches}), true)"


def _first_matches(connection: DuckDBPyConnection, ids: Sequence[str], pattern: str, role: str | None) -> list[Match]:
    """The first match in each of the conversations, in their order."""
    of_role = "" if role is None else f"""AND turn."from" = {_quote(role)}"""
    rows = connection.execute(
        f"""
        WITH turns AS (
            SELECT id, unnest(conversations) AS turn, generate_subscripts(conversations, 1) AS number
            FROM conversations WHERE id IN (SELECT unnest($ids))
        ), matches AS (
            SELECT id, number, turn."from" AS role, turn.value AS text,
                length(regexp_extract(text, {_quote(f"^((?s:.*?))(?:{pattern})")}, 1)) AS start,
                regexp_extract(text, {_quote(f"^(?s:.*?)({pattern})")}, 1) AS match
            FROM turns WHERE regexp_matches(turn.value, {_quote(pattern)}) {of_role}
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY number) = 1
        )
        SELECT id, number, role,
            if(start > $context, '…', '') || substr(text, greatest(start - $context, 0) + 1, least(start, $context)),
            if(length(match) > $most, left(match, $most) || '…', match),
            substr(text, start + length(match) + 1, $context)
                || if(length(text) > start + length(match) + $context, '…', '')
        FROM matches""",
        {"ids": list(ids), "context": EXCERPT_CHARACTERS, "most": MATCH_CHARACTERS},
    ).fetchall()
    matches = {row[0]: Match(*row) for row in rows}
    return [matches[id_] for id_ in ids]


def _quote(text: str) -> str:
    """The text as a literal of SQL: an expression that is a constant is compiled once, a parameter for every row."""
    return "'" + text.replace("'", "''") + "'"
