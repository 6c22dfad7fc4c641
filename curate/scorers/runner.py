"""Conversations in the store → one value per scorer and conversation in `scores`.

Computes missing values only: of new conversations, new scorers and changed parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.scorers.features import compute_features
from curate.scorers.plan import PlannedScorer, plan_scorers
from curate.scorers.summary import summarise
from schemas.conversation import PRESENT_SQL
from schemas.errors import StoreError
from schemas.recipe import Recipe
from schemas.store import reading, writing
from schemas.timing import timed

SLICE_ROWS = 65_536
"""Conversations that are read from the store at a time; with the words of their parts they need about 300 MB."""

PART_ROWS = 8_192
"""Conversations that are scored at a time. Their n-gram tables fit in the CPU cache: finding duplicates takes 20 to
30 ns per word, and 90 ns with 100,000 conversations."""

Progress = Callable[[int, int], None]
"""Called with the number of conversations that are done, and of all."""


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The number of conversations, how many values were computed per column, and a summary of each column."""

    conversations: int
    computed: dict[str, int]
    summaries: list[dict[str, Any]]


def score_store(
    store: Path,
    recipe: Recipe,
    only: Sequence[str] = (),
    *,
    again: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ScoreReport:
    """Compute the missing scores of a store in one transaction, and summarise them.

    `only` selects scorers, which are run with their dependencies; `again` computes existing values anew; `dry_run` only
    counts the missing values. Raises `RecipeError` for an unknown scorer or parameter before anything is computed.
    """
    scorers = plan_scorers(recipe.score, only)
    check_not_empty(store)
    with writing(store, dry_run=dry_run) as connection:
        _drop_outdated(connection, scorers, again=again)
        if dry_run:
            return ScoreReport(_count_present(connection), _count_missing(connection, scorers), [])
        computed = _compute_missing(connection, scorers, progress)
        stored = stored_columns(connection)
        summaries = summarise(connection, {scorer.column: stored[scorer.column] for scorer in scorers})
        return ScoreReport(_count_present(connection), computed, summaries)


def _count_present(connection: DuckDBPyConnection) -> int:
    ((count,),) = connection.sql(f"SELECT count(*) FROM conversations c WHERE {PRESENT_SQL}").fetchall()
    return int(count)


def _count_missing(connection: DuckDBPyConnection, scorers: Sequence[PlannedScorer]) -> dict[str, int]:
    """Column of each scorer -> its missing values."""
    missing = dict.fromkeys((scorer.column for scorer in scorers), 0)
    for slice_ in _find_missing(connection, scorers):
        missing |= {scorer.column: missing[scorer.column] + slice_.rows for scorer in slice_.missing}
    return missing


def check_not_empty(store: Path) -> None:
    """Raise `StoreError` if the store has no conversations or does not exist. Does not create the file."""
    with reading(store) as connection:
        if not connection.sql(f"SELECT 1 FROM conversations c WHERE {PRESENT_SQL} LIMIT 1").fetchall():
            raise StoreError(f"There are no conversations in {store} yet.", "curate import FILE")


@timed("computing scores")
def score_frame(conversations: pl.DataFrame, scorers: Sequence[PlannedScorer]) -> pl.DataFrame:
    """The ids and scores of a conversations frame, one column per scorer, under the scorers' names.

    The scores of a row do not depend on other rows. `conversations` may contain columns of scores that `scorers` depend
    on. Works in parts of `PART_ROWS` rows on all cores.
    """
    parts = list(conversations.iter_slices(PART_ROWS)) or [conversations]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pl.concat(pool.map(lambda part: _score_part(part, scorers), parts))


def _score_part(conversations: pl.DataFrame, scorers: Sequence[PlannedScorer]) -> pl.DataFrame:
    frame = compute_features(conversations)
    for scorer in scorers:
        frame = frame.with_columns(scorer.run(frame))
    return frame.select("id", *(scorer.name for scorer in scorers))


def _drop_outdated(connection: DuckDBPyConnection, scorers: Sequence[PlannedScorer], *, again: bool) -> None:
    """Drop the columns that must be computed again: those of an older formula, or all with `again`."""
    for scorer in scorers:
        digests = connection.execute('SELECT digest FROM scorers WHERE "column" = ?', [scorer.column]).fetchall()
        if digests and (again or digests[0][0] != scorer.digest):
            connection.execute(f'ALTER TABLE scores DROP COLUMN "{scorer.column}"')
            connection.execute('DELETE FROM scorers WHERE "column" = ?', [scorer.column])


@dataclass(frozen=True, slots=True)
class _Slice:
    """Up to `SLICE_ROWS` conversations, numbered `first` to `last`, without the scores of the same scorers."""

    new: bool
    missing: tuple[PlannedScorer, ...]
    mask: list[bool]
    first: int
    last: int
    rows: int


def _compute_missing(
    connection: DuckDBPyConnection, scorers: Sequence[PlannedScorer], progress: Progress | None
) -> dict[str, int]:
    """Compute and write the missing values; returns the number of computed values per column."""
    slices = list(_find_missing(connection, scorers))
    total, done = sum(slice_.rows for slice_ in slices), 0
    computed = {scorer.column: 0 for scorer in scorers}
    for slice_ in slices:
        scores = score_frame(_read(connection, slice_, scorers), slice_.missing)
        _write(connection, slice_, scores.rename({scorer.name: scorer.column for scorer in slice_.missing}))
        computed |= {scorer.column: computed[scorer.column] + slice_.rows for scorer in slice_.missing}
        done += slice_.rows
        if progress:
            progress(done, total)
    connection.executemany(
        'INSERT OR REPLACE INTO scorers ("column", scorer, parameters, digest) VALUES (?, ?, ?, ?)',
        [[scorer.column, scorer.name, scorer.parameters_json, scorer.digest] for scorer in scorers],
    )
    return computed


def _find_missing(connection: DuckDBPyConnection, scorers: Sequence[PlannedScorer]) -> Iterator[_Slice]:
    """The conversations without scores, grouped by the scorers that are missing, in the order of the store."""
    stored = stored_columns(connection)
    lacks = [f's."{scorer.column}" IS NULL' if scorer.column in stored else "true" for scorer in scorers]
    connection.execute(f"""
        CREATE OR REPLACE TEMP TABLE missing AS
        SELECT *, (row_number() OVER (PARTITION BY new, lacks ORDER BY number) - 1) // {SLICE_ROWS} AS slice
        FROM (SELECT c.rowid AS number, s.conversation IS NULL AS new, [{", ".join(lacks)}] AS lacks
              FROM conversations c LEFT JOIN scores s ON s.conversation = c.id
              WHERE {PRESENT_SQL})
        WHERE list_bool_or(lacks)""")
    rows = connection.sql("""
        SELECT new, lacks, min(number), max(number), count(*) FROM missing
        GROUP BY new, lacks, slice ORDER BY new DESC, lacks, slice""").fetchall()
    for new, mask, first, last, count in rows:
        missing = tuple(scorer for scorer, lacking in zip(scorers, mask, strict=True) if lacking)
        yield _Slice(new, missing, mask, first, last, count)


@timed("reading conversations to score")
def _read(connection: DuckDBPyConnection, slice_: _Slice, scorers: Sequence[PlannedScorer]) -> pl.DataFrame:
    """The conversations of a slice, with the stored scores that the missing scorers depend on.

    A score is read from the column of its parameters in this recipe, and is named after its scorer.
    """
    columns = {scorer.name: scorer.column for scorer in scorers}
    missing = {scorer.name for scorer in slice_.missing}
    needs = sorted({need for scorer in slice_.missing for need in scorer.needs} - missing)
    scores = "".join(f', s."{columns[need]}" AS "{need}"' for need in needs)
    frame: pl.DataFrame = connection.sql(
        f"""SELECT c.id, c.conversations, c.tools{scores}
            FROM conversations c JOIN missing m ON m.number = c.rowid LEFT JOIN scores s ON s.conversation = c.id
            WHERE c.rowid BETWEEN $first AND $last AND m.new = $new AND m.lacks = $mask""",
        params={"first": slice_.first, "last": slice_.last, "new": slice_.new, "mask": slice_.mask},
    ).pl()
    return frame


@timed("writing scores")
def _write(connection: DuckDBPyConnection, slice_: _Slice, scores: pl.DataFrame) -> None:
    """Insert the scores as new rows, or update the existing rows."""
    stored = stored_columns(connection)
    for column in scores.columns[1:]:
        if column not in stored:
            connection.execute(
                f'ALTER TABLE scores ADD COLUMN "{column}" {_SQL_TYPES[scores[column].dtype.base_type()]}'
            )
    connection.register("new_scores", scores.rename({"id": "conversation"}))
    if slice_.new:
        connection.execute("INSERT INTO scores BY NAME SELECT * FROM new_scores")
    else:
        changes = ", ".join(f'"{column}" = n."{column}"' for column in scores.columns[1:])
        connection.execute(f"UPDATE scores SET {changes} FROM new_scores n WHERE n.conversation = scores.conversation")
    connection.unregister("new_scores")


_SQL_TYPES = {pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Boolean: "BOOLEAN", pl.String: "VARCHAR"}


def stored_columns(connection: DuckDBPyConnection) -> dict[str, str]:
    """The score columns of the table `scores`, with their DuckDB types."""
    rows = connection.sql(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'scores' ORDER BY column_index"
    ).fetchall()
    return {column: type for column, type in rows if column != "conversation"}
