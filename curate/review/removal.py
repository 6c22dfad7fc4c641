"""An annotator, or conversations of a set → removed from the review: answers stay stored, and verdicts follow.

The answers that an annotator gave before the removal no longer count. Conversations that leave a set are not offered
any more; answers to them count as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.pull import pull, resolve_store
from curate.review.sets import StoredSet, load_set
from curate.review.verdicts import LATEST_SQL, write_verdicts
from curate.rule_columns import find_matching
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection
from schemas.review import RemoteSet, ReviewServer
from schemas.store import reading, writing
from schemas.text import join_names, plural

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class AnnotatorRemoval:
    """The consequences of a removal.

    `sets` has `set` and `answers` that no longer count; `verdicts` has `conversation`, `before` and `after`, which is
    null if rules decide again. `account`: whether there was one on the server, which was deleted.
    """

    annotator: str
    sets: Rows
    verdicts: Rows
    account: bool


@dataclass(frozen=True, slots=True)
class MemberRemoval:
    """The number of conversations that left a set: answered, with too few answers, unanswered; verdicts as above."""

    review_set: str
    conversations: int
    answered: int
    partial: int
    unanswered: int
    verdicts: Rows


def remove_annotator(
    store: Path, section: ReviewSection, server: ReviewServer | None, name: str, *, dry_run: bool = False
) -> AnnotatorRemoval:
    """Delete the account `name` of the server and stop counting its answers, which are pulled first.

    A dry run pulls and changes nothing. Raises `ReviewError` if nobody has this name, or if the account has answers in
    sets that this store does not have, because they would be lost.
    """
    with reading(store) as connection:
        sets = _load_pushed_sets(connection)
        known = {one for (one,) in connection.execute("SELECT DISTINCT reviewer FROM reviews").fetchall()}
    accounts = server.accounts() if server else frozenset()
    if name not in known | accounts:
        raise ReviewError(f"There is no annotator {name}.", f"Names: {join_names(sorted(known | accounts), 20)}.")
    if server and name in accounts:
        _check_no_answers_elsewhere(server, name, sets)
        if not dry_run:
            for review_set in sets:
                if server.find_set(review_set):
                    pull(store, section, server, review_set)
    with writing(store, dry_run=dry_run) as connection:
        counts = connection.sql(
            """SELECT dataset AS "set", count(*) AS answers FROM latest_reviews
               WHERE reviewer = ? AND status = 'submitted' GROUP BY 1 ORDER BY 1""",
            params=[name],
        )
        rows: Rows = counts.pl().to_dicts()
        connection.execute("INSERT INTO removed_annotators (reviewer) VALUES (?)", [name])
        verdicts = _change_verdicts(connection, section, f"users remove {name}")
    if server and name in accounts and not dry_run:
        server.delete_account(name)
    return AnnotatorRemoval(name, rows, verdicts, name in accounts)


def remove_members(
    store: Path,
    recipe: Recipe,
    server: ReviewServer | None,
    name: str,
    *,
    ids: Sequence[str] = (),
    where: str | None = None,
    dry_run: bool = False,
) -> MemberRemoval:
    """Take the conversations with these ids, or those that meet `where`, out of the set `name`.

    Answers on the server are pulled first and stay stored; then the records are deleted there. Raises `ReviewError` for
    an unknown set, an id that is not one of its members, or a selection without members.
    """
    with reading(store) as connection:
        stored = _load_set(connection, name)
    remote = server.find_set(name) if server else None
    if stored.ref.server and remote is None:
        raise ReviewError(f"{stored.ref.server} no longer has the set {name}.", "Its records are gone already.")
    if server and remote and not dry_run:
        pull(store, recipe.review, server, name)
    with writing(store, dry_run=dry_run) as connection:
        members = _find_members(connection, recipe, name, ids, where)
        counts = _count_by_answers(connection, name, members, stored.overlap)
        connection.register("leaving", members)
        connection.execute(
            "UPDATE review_records SET removed = true WHERE review_set = ? AND conversation IN (FROM leaving)", [name]
        )
        verdicts = _change_verdicts(connection, recipe.review, name)
        records = connection.execute(
            """SELECT record FROM review_records WHERE review_set = ? AND removed AND NOT gone AND record IS NOT NULL
               ORDER BY 1""",
            [name],
        ).fetchall()
        connection.unregister("leaving")
    if server and remote and not dry_run:
        _delete_records(store, server, remote, [record for (record,) in records])
    return MemberRemoval(name, members.height, *counts, verdicts)


# --- annotators ---


def _load_pushed_sets(connection: DuckDBPyConnection) -> dict[str, str]:
    """The sets that were pushed to a server: name -> id there."""
    query = "SELECT review_set, remote FROM review_sets WHERE remote IS NOT NULL ORDER BY 1"
    return dict(connection.execute(query).fetchall())


def _check_no_answers_elsewhere(server: ReviewServer, name: str, sets: dict[str, str]) -> None:
    elsewhere = server.answers_elsewhere(name, list(sets.values()))
    if elsewhere:
        names = ", ".join(f"{each} ({plural(count, 'answer')})" for each, count in elsewhere.items())
        raise ReviewError(
            f"{name} has answers in sets that this store does not have, and they would be deleted: {names}.",
            f"Use the --store that pushed them. To only lock {name} out: curate review users password {name}",
        )


def _change_verdicts(connection: DuckDBPyConnection, section: ReviewSection, review: str) -> Rows:
    """Write the verdicts that follow from the current answers; those that changed, before and after."""
    before = _read_verdicts(connection)
    write_verdicts(connection, resolve_store(connection, section), review)
    both = before.join(_read_verdicts(connection), on="conversation", how="full", coalesce=True, suffix="_after")
    changed = both.filter(pl.col("verdict").ne_missing(pl.col("verdict_after")))
    return changed.sort("conversation").rename({"verdict": "before", "verdict_after": "after"}).to_dicts()


def _read_verdicts(connection: DuckDBPyConnection) -> pl.DataFrame:
    """The human verdicts in force: `conversation` and `verdict`."""
    query = f"SELECT conversation, nullif(verdict, 'undecided') AS verdict FROM ({LATEST_SQL})"
    verdicts: pl.DataFrame = connection.sql(query).pl()
    return verdicts


# --- members ---


def _load_set(connection: DuckDBPyConnection, name: str) -> StoredSet:
    stored = load_set(connection, name)
    if stored is None:
        names = [one for (one,) in connection.execute("SELECT review_set FROM review_sets ORDER BY 1").fetchall()]
        raise ReviewError(f"The store has no review set {name}.", f"Known sets: {join_names(names, 20) or 'none'}.")
    return stored


def _find_members(
    connection: DuckDBPyConnection, recipe: Recipe, name: str, ids: Sequence[str], where: str | None
) -> pl.DataFrame:
    """The members of the set that are meant: one column `conversation`."""
    members: pl.DataFrame = connection.sql(
        "SELECT conversation FROM review_records WHERE review_set = ? AND NOT removed ORDER BY 1", params=[name]
    ).pl()
    for prefix in ids:  # few: typed by hand
        if members.filter(pl.col("conversation").str.starts_with(prefix)).height != 1:
            raise ReviewError(f"The set {name} has no conversation whose id begins with {prefix}, or several.", "")
    if ids:
        begins = pl.any_horizontal(pl.col("conversation").str.starts_with(prefix) for prefix in ids)
        members = members.filter(begins)
    if where is not None:
        matching = find_matching(connection, recipe, where, None).pl()
        members = members.join(matching, on="conversation", how="semi")
    if members.is_empty():
        raise ReviewError(f"No conversation of {name} is selected.", "Loosen --where; curate review status shows sets.")
    return members


def _count_by_answers(
    connection: DuckDBPyConnection, name: str, members: pl.DataFrame, overlap: int
) -> tuple[int, int, int]:
    """How many have enough answers in the set, too few, and none."""
    answers = connection.sql(
        """SELECT conversation, count(*) AS answers FROM latest_reviews WHERE dataset = ? AND status = 'submitted'
           GROUP BY 1""",
        params=[name],
    ).pl()
    counts = members.join(answers, on="conversation", how="left")["answers"].fill_null(0)
    return int((counts >= overlap).sum()), int(counts.is_between(1, overlap - 1).sum()), int((counts == 0).sum())


def _delete_records(store: Path, server: ReviewServer, remote: RemoteSet, records: Sequence[str]) -> None:
    """Delete records on the server, then record that they are gone: a repeated command deletes the rest."""
    server.delete_records(remote, records)
    with writing(store) as connection:
        connection.execute(
            "UPDATE review_records SET gone = true WHERE review_set = ? AND list_contains(?, record)",
            [remote.name, list(records)],
        )
