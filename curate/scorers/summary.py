"""The table `scores` → a summary per column, and the explanation of one conversation's quality score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.scorers.plan import plan_scorers
from curate.scorers.quality import Penalty
from schemas.errors import VersionError
from schemas.recipe import Recipe
from schemas.store import reading
from schemas.timing import timed

_PRESENT = "conversation NOT IN (SELECT conversation FROM removed_conversations)"


@timed("summarising scores")
def summarise(connection: DuckDBPyConnection, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per column of `columns` (name -> DuckDB type).

    For numbers: `min`, `median`, `p95`, `max`, and the ids with the `lowest` and `highest` values; for booleans and
    strings: the most frequent `values` with their counts and example ids.
    """
    return [
        {"column": column} | (_summarise_numbers if type in ("BIGINT", "DOUBLE") else _count_values)(connection, column)
        for column, type in columns.items()
    ]


def _summarise_numbers(connection: DuckDBPyConnection, column: str) -> dict[str, Any]:
    low, median, p95, high, lowest, highest = connection.sql(f"""
        SELECT min("{column}"), median("{column}"), quantile_disc("{column}", 0.95), max("{column}"),
            arg_min(conversation, "{column}", 3), arg_max(conversation, "{column}", 3) FROM scores
        WHERE {_PRESENT}""").fetchall()[0]
    return {"min": low, "median": median, "p95": p95, "max": high, "lowest": lowest or [], "highest": highest or []}


def _count_values(connection: DuckDBPyConnection, column: str) -> dict[str, Any]:
    rows = connection.sql(f"""
        SELECT "{column}" AS value, count(*) AS conversations, arg_min(conversation, conversation, 3) AS examples
        FROM scores WHERE {_PRESENT} GROUP BY value ORDER BY conversations DESC, value LIMIT 8""").fetchall()
    return {"values": [{"value": value, "conversations": count, "examples": ids} for value, count, ids in rows]}


def explain_quality(store: Path, recipe: Recipe, prefix: str) -> dict[str, Any]:
    """The scores of the conversation whose id begins with `prefix`, and each penalty of its quality score.

    Raises `VersionError` if no id or several begin with `prefix`.
    """
    scorers = {scorer.name: scorer for scorer in plan_scorers(recipe.score)}
    with reading(store) as connection:
        row = _find_scores(connection, prefix)
    penalties: Mapping[str, Penalty] = scorers["quality"].parameters["penalties"]
    scores = {name: row[scorer.column] for name, scorer in scorers.items() if scorer.column in row}
    frame = pl.DataFrame([{name: scores.get(name) for name in penalties}])
    subtracted = frame.select(penalty.expression(name).alias(name) for name, penalty in penalties.items())
    return {
        "conversation": row["conversation"],
        "scores": scores,
        "penalties": [
            {
                "score": name,
                "value": scores.get(name),
                **penalty.model_dump(),
                "penalty": round(subtracted[name].item(), 4),
            }
            for name, penalty in penalties.items()
        ],
    }


def _find_scores(connection: DuckDBPyConnection, prefix: str) -> dict[str, Any]:
    if not prefix:
        raise VersionError("The id is empty.", "curate sql 'SELECT conversation FROM scores LIMIT 5' lists some ids.")
    rows = connection.sql("SELECT * FROM scores WHERE starts_with(conversation, ?) LIMIT 2", params=[prefix]).pl()
    if rows.height == 1:
        row: dict[str, Any] = rows.row(0, named=True)
        return row
    if rows.height:
        raise VersionError(f"Several conversation ids begin with {prefix}.", "Give more digits.")
    raise VersionError(f"No scored conversation has an id that begins with {prefix}.", "curate score, or check the id.")
