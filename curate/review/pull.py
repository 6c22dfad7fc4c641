"""Pulling: a review set and its server come in; people's answers go into the store, and what they come to as verdicts.

An answer is never overwritten: a changed one is a new row, one that was taken back a row that says so, and the latest
counts. Pulling the same again writes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.sets import Place, Progress, check_same_place, check_same_questions, read_questions
from curate.review.verdicts import DISPUTED, TO_BE_FIXED, UNDECIDED, WAITING, judge, write_verdicts
from curate.selection import RULE
from schemas.errors import ReviewError
from schemas.recipe import ReviewSection
from schemas.review import ANSWERS, DISCARDED, DRAFT, SUBMITTED, WITHDRAWN, Question, RemoteSet, ReviewServer
from schemas.store import reading, writing
from schemas.text import plural

SHOWN_SQL = """
    SELECT conversation, suggestions, if(lag(shown_at) OVER before IS NULL, TIMESTAMPTZ '-infinity', shown_at) AS since
    FROM review_shown WHERE review_set = $name WINDOW before AS (PARTITION BY conversation ORDER BY shown_at)
"""
"""What was suggested from when on. Whoever answered before the first push was noted saw that push: it was under way, or
the server's clock is behind ours."""

FRESH_SQL = """
    WITH known AS (
        SELECT *, record IS NULL AS sheet FROM reviews WHERE dataset = $name
        QUALIFY row_number() OVER (PARTITION BY conversation, reviewer, record IS NULL ORDER BY rowid DESC) = 1
    ), said AS (
        SELECT p.*, record IS NULL AS sheet FROM pulled p
        SEMI JOIN (SELECT conversation FROM review_records WHERE review_set = $name) r USING (conversation)
    )
    SELECT s.conversation, s.reviewer, s.response, s.answers, s.status, s.answered_at, s.record
    FROM said s LEFT JOIN known k USING (conversation, reviewer, sheet)
    WHERE (s.status, s.answers, s.record) IS DISTINCT FROM (k.status, k.answers::VARCHAR, k.record)
       OR (NOT s.sheet AND s.response <> k.response)
    UNION ALL
    SELECT k.conversation, k.reviewer, k.response, k.answers::VARCHAR, $withdrawn, k.answered_at, k.record
    FROM known k ANTI JOIN said USING (conversation, reviewer, sheet)
    WHERE k.status <> $withdrawn AND k.record IN (SELECT record FROM present)
"""
"""Answers that are new or changed among those pulled, and those that were there and are no more."""

APPEND_SQL = f"""
    INSERT INTO reviews (conversation, dataset, reviewer, response, answers, status, answered_at, record, blind,
        suggestions, pulled_at)
    SELECT f.conversation, $name, f.reviewer, f.response, f.answers, f.status, f.answered_at, f.record, r.blind,
        coalesce(s.suggestions, r.suggestions), now()
    FROM fresh f JOIN review_records r ON r.review_set = $name AND r.conversation = f.conversation
    ASOF LEFT JOIN ({SHOWN_SQL}) s ON s.conversation = f.conversation AND f.answered_at >= s.since
    ORDER BY f.answered_at, f.conversation
"""

OUTCOMES = ("keep", "edit", "drop", WAITING, DISPUTED, UNDECIDED)


@dataclass(slots=True)
class Pulled:
    """What answers brought: rows written, by status, and what the conversations answered for come to now."""

    review_set: str
    answers: dict[str, int] = field(default_factory=dict)
    verdicts: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    to_be_fixed: int = 0
    gone: int = 0
    unknown: int = 0
    unchanged: bool = False

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store knows of a set that is pulled."""

    at: Place
    questions: tuple[Question, ...]
    activity: str | None


def pull(
    store: Path,
    section: ReviewSection,
    server: ReviewServer,
    name: str,
    *,
    partial: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Take the answers of the set `name` from the server and judge by the recipe's policy.

    Where nobody has answered since the latest pull no record is read, unless `again`. `partial` judges also where
    fewer have answered than the set waits for. Raises `ReviewError` for an unknown set, a question that was renamed
    on the server, or a server that fails; then nothing is written.
    """
    with reading(store) as connection:
        known = _read_set(connection, name)
    remote = server.find_set(name)
    check_same_place(name, known.at, server, remote)
    if remote is None:
        raise ReviewError(
            f"{server.url} has no set {name} any more.",
            f"The answers pulled before stay; curate review push {name} makes it again.",
        )
    check_same_questions(known.questions, remote.questions, f"The set {name} on {server.url}")
    activity = f"{server.activity(remote)} {server.count(remote)}"
    if activity == known.activity and not again:
        with writing(store) as connection:
            _note_overlap(connection, name, remote.overlap)
            return _judged(connection, section, Pulled(name, unchanged=True), name, partial=partial)
    records, answers = _read_all(server, remote, progress)
    with writing(store) as connection:
        _note_overlap(connection, name, remote.overlap)
        done = take_answers(connection, section, name, answers, records, partial=partial)
        connection.execute(
            "UPDATE review_sets SET activity = ?, pulled_at = now(), server = ? WHERE review_set = ?",
            [activity, server.url, name],
        )
    return done


def take_answers(
    connection: DuckDBPyConnection,
    section: ReviewSection,
    name: str,
    answers: pl.DataFrame,
    records: dict[str, str] | None = None,
    *,
    partial: bool = False,
) -> Pulled:
    """Append what is new among `answers` (an answers frame), and the verdicts that follow from all answers.

    `records` are all records that the server has, id -> conversation: an answer that the store knows of one of them
    and that is not among `answers` was taken back; a record of the set that is not there was deleted.
    """
    done = Pulled(name)
    connection.register("pulled", _fit(answers))
    connection.register(
        "present",
        pl.DataFrame(
            {"record": list(records or {}), "conversation": list((records or {}).values())},
            schema={"record": pl.String, "conversation": pl.String},
        ),
    )
    if records is not None:
        done.gone = _mark_gone(connection, name)
    done.unknown = _count_unknown(connection, name)
    done.answers = _append(connection, name)
    connection.unregister("pulled")
    connection.unregister("present")
    return _judged(connection, section, done, name, partial=partial)


def _read_set(connection: DuckDBPyConnection, name: str) -> _Known:
    """What the store knows of the set. Raises `ReviewError` when it was never pushed."""
    rows = connection.execute(
        "SELECT server, remote, questions, activity FROM review_sets WHERE review_set = ?", [name]
    ).fetchall()
    if not rows:
        names = [one for (one,) in connection.execute("SELECT review_set FROM review_sets ORDER BY 1").fetchall()]
        there = f"The store knows {', '.join(names)}." if names else f"curate review push {name} makes it."
        raise ReviewError(f"The store knows no review set {name}.", there)
    server, remote, questions, activity = rows[0]
    if server is None:
        raise ReviewError(f"The set {name} was never pushed, only exported.", "curate review import FILE.csv takes it.")
    return _Known(Place(server, remote), read_questions(questions), activity)


def _note_overlap(connection: DuckDBPyConnection, name: str, overlap: int) -> None:
    """How many answers the set waits for can be changed in the server's page."""
    connection.execute("UPDATE review_sets SET overlap = ? WHERE review_set = ?", [overlap, name])


def _read_all(
    server: ReviewServer, remote: RemoteSet, progress: Progress | None
) -> tuple[dict[str, str], pl.DataFrame]:
    """All records of the set and all answers. Raises `ReviewError` when the pages do not add up to the set."""
    total = server.count(remote)
    records: dict[str, str] = {}
    frames = [pl.DataFrame(schema=ANSWERS)]
    for page in server.pages(remote):
        records |= page.records
        frames.append(page.answers)
        if progress:
            progress(len(records), total)
    if len(records) < total:
        raise ReviewError(
            f"{server.url} says that {remote.name} has {plural(total, 'record')} and gave {len(records):,} of them.",
            "Somebody may be deleting records just now: pull again.",
        )
    return records, pl.concat(frames)


def _fit(answers: pl.DataFrame) -> pl.DataFrame:
    """The answers, nobody among them with the name that stands for the rules."""
    taken = pl.col("reviewer") == RULE
    return answers.with_columns(reviewer=pl.when(taken).then(pl.lit(f"{RULE} (person)")).otherwise("reviewer")).unique(
        ["conversation", "reviewer"], keep="last", maintain_order=True
    )


def _mark_gone(connection: DuckDBPyConnection, name: str) -> int:
    """Mark what was pushed and is not on the server any more; how many are gone now."""
    connection.execute(
        """UPDATE review_records SET gone = record NOT IN (SELECT record FROM present)
           WHERE review_set = ? AND record IS NOT NULL
             AND gone IS DISTINCT FROM (record NOT IN (SELECT record FROM present))""",
        [name],
    )
    rows = connection.execute("SELECT count(*) FROM review_records WHERE review_set = ? AND gone", [name]).fetchall()
    return int(rows[0][0])


def _count_unknown(connection: DuckDBPyConnection, name: str) -> int:
    """Answers to conversations that the set, or the store, does not have: somebody else put them there."""
    rows = connection.execute(
        """SELECT count(*) FROM pulled WHERE conversation IS NULL OR conversation NOT IN (
               SELECT r.conversation FROM review_records r WHERE review_set = ?)""",
        [name],
    ).fetchall()
    return int(rows[0][0])


def _append(connection: DuckDBPyConnection, name: str) -> dict[str, int]:
    """Append new and changed answers, and those taken back; how many of each status.

    A sheet's answer is held against the person's latest in a sheet, a server's against the latest from the server: so
    reading either again makes no old answer the newest.
    """
    rows: pl.DataFrame = connection.sql(FRESH_SQL, params={"name": name, "withdrawn": WITHDRAWN}).pl()
    connection.register("fresh", rows)
    connection.execute(APPEND_SQL, {"name": name})
    connection.unregister("fresh")
    found = dict(rows.group_by("status").len().iter_rows())
    return {status: int(found.get(status, 0)) for status in (SUBMITTED, DISCARDED, DRAFT, WITHDRAWN)}


def _judged(
    connection: DuckDBPyConnection, section: ReviewSection, done: Pulled, name: str, *, partial: bool
) -> Pulled:
    """Judge what people said of the set's conversations, and write the verdicts that follow."""
    asked = connection.sql(
        "SELECT DISTINCT conversation FROM reviews WHERE conversation IN ("
        "SELECT conversation FROM review_records WHERE review_set = ?)",
        params=[name],
    ).pl()["conversation"]
    judged = judge(connection, section, asked.to_list(), partial=partial)
    done.verdicts = write_verdicts(connection, judged, name)
    found = dict(judged.outcomes.group_by("outcome").len().iter_rows())
    done.outcomes = {outcome: int(found.get(outcome, 0)) for outcome in OUTCOMES}
    done.to_be_fixed = judged.outcomes.filter(pl.col("reason").str.ends_with(TO_BE_FIXED)).height
    return done
