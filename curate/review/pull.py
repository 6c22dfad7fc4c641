"""A review set and its server → annotators' answers in the store, and the verdicts that they resolve to.

Answers are append-only: a changed answer is a new row, a deleted one a row with the status `withdrawn`, and the latest
row counts. A pull without new answers writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.sets import Progress, StoredSet, check_same_questions, check_same_server, load_set
from curate.review.verdicts import (
    DISPUTED,
    NO_CORRECTION,
    UNDECIDED,
    WAITING,
    ReviewOutcomes,
    resolve_answers,
    write_verdicts,
)
from curate.selection import RULE
from schemas.errors import ReviewError
from schemas.recipe import ReviewSection
from schemas.review import ANSWER_SCHEMA, DISCARDED, DRAFT, SUBMITTED, WITHDRAWN, RemoteSet, ReviewServer
from schemas.store import reading, writing
from schemas.text import plural
from schemas.timing import timed

SUGGESTIONS_SQL = """
    SELECT conversation, suggestions, if(lag(shown_at) OVER before IS NULL, TIMESTAMPTZ '-infinity', shown_at) AS since
    FROM review_shown WHERE review_set = $name WINDOW before AS (PARTITION BY conversation ORDER BY shown_at)
"""
"""The suggestions of a task and the time since when. Answers from before the first record of them belong to them too:
that push was still running, or the server's clock is slow."""

NEW_ANSWERS_SQL = """
    WITH known AS (
        SELECT *, record IS NULL AS sheet FROM reviews WHERE dataset = $name
        QUALIFY row_number() OVER (PARTITION BY conversation, reviewer, record IS NULL ORDER BY seq DESC) = 1
    ), answered AS (
        SELECT p.*, record IS NULL AS sheet FROM pulled p
        SEMI JOIN (SELECT conversation FROM review_records WHERE review_set = $name) r USING (conversation)
    )
    SELECT a.conversation, a.reviewer, a.response, a.answers, a.status, a.answered_at, a.record
    FROM answered a LEFT JOIN known k USING (conversation, reviewer, sheet)
    WHERE (a.status, a.answers, a.record) IS DISTINCT FROM (k.status, k.answers::VARCHAR, k.record)
       OR (NOT a.sheet AND (a.response, a.answered_at) IS DISTINCT FROM (k.response, k.answered_at))
    UNION ALL
    SELECT k.conversation, k.reviewer, k.response, k.answers::VARCHAR, $withdrawn, k.answered_at, k.record
    FROM known k ANTI JOIN answered USING (conversation, reviewer, sheet)
    WHERE k.status <> $withdrawn AND k.record IN (SELECT record FROM present)
        AND k.reviewer NOT IN (SELECT reviewer FROM absent)
"""
"""Answers that are new or changed, and known ones that are missing from the server, except those of deleted accounts.

Answers in spreadsheets are compared with the annotator's latest from a spreadsheet, answers on a server with the latest
from the server. Reading either again therefore never turns an old answer into the newest. The same answer submitted
again on a server is newer than an answer given in another set in between.
"""

APPEND_SQL = f"""
    INSERT INTO reviews (conversation, dataset, reviewer, response, answers, status, answered_at, record, blind,
        suggestions, pulled_at)
    SELECT n.conversation, $name, n.reviewer, n.response, n.answers, n.status, n.answered_at, n.record, r.blind,
        coalesce(s.suggestions, r.suggestions), now()
    FROM new_answers n JOIN review_records r ON r.review_set = $name AND r.conversation = n.conversation
    ASOF LEFT JOIN ({SUGGESTIONS_SQL}) s ON s.conversation = n.conversation AND n.answered_at >= s.since
    ORDER BY n.answered_at, n.conversation
"""

RULE_PERSON = f"{RULE} (person)"
"""An annotator whose name is the one of rules."""

OUTCOMES = ("keep", "edit", "drop", WAITING, DISPUTED, UNDECIDED)


@dataclass(slots=True)
class PullResult:
    """Counts of a pull: answers written by status, outcomes of the set's answered conversations, verdicts written.

    `ended` of the verdicts end an earlier one that no longer follows from the answers.

    `deleted_accounts` has `annotator` and `answers`: accounts that no longer exist on the server, with their answers
    that still count. `uncorrected` counts conversations marked "fix" without a correction, `deleted` records deleted
    on the server, `unknown` answers to records that this store did not push, `surplus_marks` marks on answers that do
    not exist.
    """

    review_set: str
    answers: dict[str, int] = field(default_factory=dict)
    verdicts: int = 0
    ended: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    uncorrected: int = 0
    deleted: int = 0
    unknown: int = 0
    surplus_marks: int = 0
    deleted_accounts: list[dict[str, Any]] = field(default_factory=list)
    unchanged: bool = False


def pull(
    store: Path,
    section: ReviewSection,
    server: ReviewServer,
    name: str,
    *,
    partial: bool | None = None,
    again: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PullResult:
    """Fetch the answers to the set `name` and resolve them by the recipe's policy.

    Without new answers no record is read, unless `again`; `dry_run` writes nothing. `partial`, which the store
    keeps, resolves conversations of the set with fewer answers than it asks for. Raises `ReviewError` for an
    unknown set, a question renamed on the server, or a server failure; the store is then unchanged.
    """
    with reading(store) as connection:
        stored = _load_pushed_set(connection, name)
    remote = server.find_set(name)
    check_same_server(name, stored.ref, server, remote)
    if remote is None:
        raise ReviewError(
            f"{server.url} no longer has the set {name}.",
            f"Answers pulled earlier are kept. curate review push {name} creates it again.",
        )
    check_same_questions(stored.questions, remote.questions, f"The set {name} on {server.url}")
    activity = f"{server.activity(remote)} {server.count(remote)}"
    accounts = server.accounts() | {RULE_PERSON}
    unchanged = activity == stored.activity and not again
    if not unchanged:
        records, answers, surplus = _fetch_answers(server, remote, progress)
    with writing(store, dry_run=dry_run) as connection:
        # The overlap can be changed on the server's page.
        connection.execute("UPDATE review_sets SET overlap = ? WHERE review_set = ?", [remote.overlap, name])
        if unchanged:
            result = _resolve(connection, section, PullResult(name, unchanged=True), partial)
            result.deleted_accounts = _find_deleted_accounts(connection, name, accounts)
            return result
        seen = accounts | set(answers["reviewer"])
        result = store_answers(connection, section, name, answers, records, accounts=seen, partial=partial)
        result.surplus_marks = surplus
        connection.execute(
            "UPDATE review_sets SET activity = ?, pulled_at = now(), server = ? WHERE review_set = ?",
            [activity, server.url, name],
        )
    return result


def store_answers(
    connection: DuckDBPyConnection,
    section: ReviewSection,
    name: str,
    answers: pl.DataFrame,
    records: dict[str, str] | None = None,
    *,
    accounts: Iterable[str] | None = None,
    partial: bool | None = None,
) -> PullResult:
    """Append the new answers of an answers frame, and the verdicts that all answers in the store resolve to.

    `records` are all records on the server, id -> conversation. Known answers to them that are not in `answers` were
    withdrawn, unless their annotator is missing in `accounts`. Records of the set that are not in `records` were
    deleted.
    """
    result = PullResult(name)
    connection.register("pulled", _rename_reserved(answers))
    present = {"record": list(records or {}), "conversation": list((records or {}).values())}
    connection.register("present", pl.DataFrame(present, schema={"record": pl.String, "conversation": pl.String}))
    if records is not None:
        result.deleted = _mark_deleted(connection, name)
    if accounts is not None:
        result.deleted_accounts = _find_deleted_accounts(connection, name, accounts)
    absent = [each["annotator"] for each in result.deleted_accounts]
    connection.register("absent", pl.DataFrame({"reviewer": absent}, schema={"reviewer": pl.String}))
    result.unknown = _count_unknown(connection, name)
    result.answers = _append(connection, name)
    connection.unregister("pulled")
    connection.unregister("present")
    connection.unregister("absent")
    return _resolve(connection, section, result, partial)


def _load_pushed_set(connection: DuckDBPyConnection, name: str) -> StoredSet:
    """The set as recorded in the store. Raises `ReviewError` if it was never pushed."""
    stored = load_set(connection, name)
    if stored is None:
        names = [one for (one,) in connection.execute("SELECT review_set FROM review_sets ORDER BY 1").fetchall()]
        hint = f"Known sets: {', '.join(names)}." if names else f"curate review push {name} creates it."
        raise ReviewError(f"The store has no review set {name}.", hint)
    if stored.ref.server is None:
        raise ReviewError(
            f"The set {name} was exported to a spreadsheet, not pushed.", "Use curate review import FILE.csv."
        )
    return stored


@timed("fetching answers")
def _fetch_answers(
    server: ReviewServer, remote: RemoteSet, progress: Progress | None
) -> tuple[dict[str, str], pl.DataFrame, int]:
    """All records of the set, all answers, and the number of marks that were ignored.

    Raises `ReviewError` if the server returns fewer records than it has.
    """
    total = server.count(remote)
    records: dict[str, str] = {}
    surplus = 0
    frames = [pl.DataFrame(schema=ANSWER_SCHEMA)]
    for page in server.pages(remote):
        records |= page.records
        frames.append(page.answers)
        surplus += page.surplus_marks
        if progress:
            progress(len(records), total)
    if len(records) < total:
        raise ReviewError(
            f"{server.url} returned {len(records):,} of {plural(total, 'record')} of {remote.name}.",
            "Records may have been deleted during the pull: pull again.",
        )
    return records, pl.concat(frames), surplus


def _rename_reserved(answers: pl.DataFrame) -> pl.DataFrame:
    """One answer per annotator and conversation; an annotator with the reserved name of rules is renamed."""
    reviewer = pl.when(pl.col("reviewer") == RULE).then(pl.lit(RULE_PERSON)).otherwise("reviewer")
    return answers.with_columns(reviewer=reviewer).unique(
        ["conversation", "reviewer"], keep="last", maintain_order=True
    )


def _mark_deleted(connection: DuckDBPyConnection, name: str) -> int:
    """Mark the pushed records that are missing from the server; the number of those."""
    connection.execute(
        """UPDATE review_records SET gone = record NOT IN (SELECT record FROM present)
           WHERE review_set = ? AND record IS NOT NULL
             AND gone IS DISTINCT FROM (record NOT IN (SELECT record FROM present))""",
        [name],
    )
    rows = connection.execute(
        "SELECT count(*) FROM review_records WHERE review_set = ? AND gone AND NOT removed", [name]
    ).fetchall()
    return int(rows[0][0])


def _find_deleted_accounts(connection: DuckDBPyConnection, name: str, accounts: Iterable[str]) -> list[dict[str, Any]]:
    """The annotators who answered on the server and have no account there: name, and answers that still count."""
    rows: list[dict[str, Any]] = (
        connection.sql(
            """SELECT k.reviewer AS annotator, count(*) FILTER (l.status = 'submitted') AS answers
           FROM (SELECT DISTINCT conversation, reviewer FROM reviews WHERE dataset = $name AND record IS NOT NULL) k
           LEFT JOIN latest_reviews l
               ON l.dataset = $name AND l.conversation = k.conversation AND l.reviewer = k.reviewer
           WHERE NOT list_contains($accounts, k.reviewer) GROUP BY 1 ORDER BY 1""",
            params={"name": name, "accounts": [*accounts]},
        )
        .pl()
        .to_dicts()
    )
    return rows


def _count_unknown(connection: DuckDBPyConnection, name: str) -> int:
    """The number of answers to conversations that are not in the set."""
    rows = connection.execute(
        """SELECT count(*) FROM pulled WHERE conversation IS NULL OR conversation NOT IN (
               SELECT r.conversation FROM review_records r WHERE review_set = ?)""",
        [name],
    ).fetchall()
    return int(rows[0][0])


@timed("writing answers")
def _append(connection: DuckDBPyConnection, name: str) -> dict[str, int]:
    """Append new, changed and withdrawn answers; their number by status."""
    rows: pl.DataFrame = connection.sql(NEW_ANSWERS_SQL, params={"name": name, "withdrawn": WITHDRAWN}).pl()
    connection.register("new_answers", rows)
    connection.execute(APPEND_SQL, {"name": name})
    connection.unregister("new_answers")
    counts = dict(rows.group_by("status").len().iter_rows())
    return {status: int(counts.get(status, 0)) for status in (SUBMITTED, DISCARDED, DRAFT, WITHDRAWN)}


def resolve_store(connection: DuckDBPyConnection, section: ReviewSection) -> ReviewOutcomes:
    """The outcomes of all answered conversations; writes nothing."""
    answered = connection.sql("SELECT DISTINCT conversation FROM reviews").pl()
    return resolve_answers(connection, section, answered["conversation"].to_list())


@timed("resolving verdicts")
def _resolve(
    connection: DuckDBPyConnection, section: ReviewSection, result: PullResult, partial: bool | None
) -> PullResult:
    """Resolve all answers in the store, also those of other sets: they are combined, and the policy may have changed.

    The outcomes in the result are those of the set.
    """
    if partial is not None:
        connection.execute("UPDATE review_sets SET partial = ? WHERE review_set = ?", [partial, result.review_set])
    resolved = resolve_store(connection, section)
    written = write_verdicts(connection, resolved, result.review_set)
    result.verdicts, result.ended = sum(written.values()), written.get(UNDECIDED, 0)
    members = connection.sql(
        "SELECT conversation FROM review_records WHERE review_set = ?", params=[result.review_set]
    ).pl()
    outcomes = resolved.outcomes.join(members, on="conversation", how="semi")
    counts = dict(outcomes.group_by("outcome").len().iter_rows())
    result.outcomes = {outcome: int(counts.get(outcome, 0)) for outcome in OUTCOMES}
    result.uncorrected = outcomes.filter(pl.col("reason").str.ends_with(NO_CORRECTION)).height
    return result
