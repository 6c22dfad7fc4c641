"""Pushing: what is wanted and a server come in; a review set with its tasks goes out, there and in the store.

The store says what shall be in the set and is closed; the tasks travel; one short write says what arrived. So the same
command goes on where it was cut off, whether the server went away or this process did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.asking import questions_of, suggestions_of, task_of
from curate.freezing import check_name
from curate.judging import DISPUTED, judge
from curate.queueing import DISAGREEMENT, FACT_KINDS, Wanted, choose, filters, read_tasks
from schemas.errors import CurateError, ReviewError
from schemas.recipe import Recipe, ReviewSection, canonical_json, digest
from schemas.review import TURNS, Question, RemoteSet, ReviewServer, SetPlan, Suggestion, Task
from schemas.store import reading, writing

Progress = Callable[[int, int], None]
"""Told how many tasks have arrived, and of how many."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A task on its way: why it was chosen, whether it is blind, and the digest of all that it shows.

    `guesses` are what would be suggested, also where it is not: to measure what suggestions do to people.
    """

    task: Task
    queue: str
    blind: bool
    digest: str
    guesses: tuple[Suggestion, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a set is: the address of its server and the server's id of it; both null for spreadsheets alone."""

    server: str | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A set as it is to be, and what the store knows of it: `sent` is conversation -> digest of what is there."""

    name: str
    plan: SetPlan
    entries: list[Entry]
    at: Place
    sent: dict[str, str]


@dataclass(slots=True)
class Pushed:
    """What a push did. `unfit` lists what the server cannot take: conversation and reason."""

    review_set: str
    server: str
    conversations: int
    overlap: int
    blind: int
    sent: int = 0
    unchanged: int = 0
    unfit: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


def push(
    store: Path,
    recipe: Recipe,
    server: ReviewServer,
    name: str,
    wanted: Wanted,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Pushed:
    """Bring the set `name` to the server: what is new or shows something else is sent, answers there stay.

    Raises `RecipeError` for rules that cannot be applied and `ReviewError` for a set of other questions, an empty
    choice, or a server that fails; what had arrived by then is written down.
    """
    prepared = prepare(store, recipe, name, wanted)
    blind = sum(entry.blind for entry in prepared.entries)
    done = Pushed(name, server.url, len(prepared.entries), prepared.plan.overlap, blind)
    remote = server.find_set(name)
    check_same_place(name, prepared.at, server, remote)
    if remote is not None:
        check_same_questions(prepared.plan.questions, remote.questions, f"The set {name} on {server.url}")
    waiting = _waiting(prepared, server, remote, done)
    if dry_run:
        return done
    remote = remote or server.make_set(name, prepared.plan)
    with writing(store) as connection:
        note_set(connection, prepared, Place(server.url, remote.id))
        note_members(connection, name, prepared.entries)
    arrived: list[tuple[Entry, str | None]] = []
    try:
        _send(server, remote, waiting, arrived, done.unfit, progress=progress)
    except CurateError as error:
        raise ReviewError(
            f"{error.what} {len(arrived):,} of {len(waiting):,} conversations had arrived.",
            f"{error.hint} The same command goes on from there.".strip(),
        ) from error
    finally:
        with writing(store) as connection:
            note_records(connection, name, arrived)
    done.sent = len(arrived)
    return done


def prepare(store: Path, recipe: Recipe, name: str, wanted: Wanted) -> Prepared:
    """The set `name` as `wanted` and the recipe make it; the store is read and closed again.

    Raises `ReviewError` where the recipe now asks something else than the set does, and where nothing is chosen.
    """
    check_name(name)
    with reading(store) as connection:
        disputed = disputes(connection, recipe.review) if wanted.queue == DISAGREEMENT else []
        chosen = choose(connection, recipe, name, wanted, disputed)
        if chosen.is_empty():
            raise _nothing(connection, wanted)
        known = _known_set(connection, name)
        longest = _longest(connection, chosen)
        questions = questions_of(recipe.review, longest)
        if known is not None:
            check_same_questions(questions, known.plan.questions, f"The set {name}")
            questions = known.plan.questions
        overlap = known.plan.overlap if known else recipe.review.overlap
        kinds = filters(connection, recipe)
        plan = SetPlan(questions, overlap, recipe.review.guidelines, kinds, frozenset(kinds.keys() - FACT_KINDS.keys()))
        rows = read_tasks(connection, recipe, chosen)
    entries = [_entry(row, questions) for row in rows]
    return Prepared(name, plan, entries, known.at if known else Place(), known.sent if known else {})


def disputes(connection: DuckDBPyConnection, section: ReviewSection, *, only_kept: bool = False) -> list[str]:
    """The conversations on which people differ now; with `only_kept` those of them that a freeze takes."""
    query = "SELECT DISTINCT conversation FROM opinions"
    kept = " SEMI JOIN standing ON standing.conversation = opinions.conversation AND kept" if only_kept else ""
    asked = connection.sql(query + kept).pl()["conversation"].to_list()
    return judge(connection, section, asked).of(DISPUTED)


def check_same_place(name: str, at: Place, server: ReviewServer, remote: RemoteSet | None) -> None:
    """Raise `ReviewError` where the set is on another server: neither the address nor the id there is the one known.

    The same server may have another address today: its port may have changed.
    """
    if at.server not in (None, server.url) and (remote is None or remote.id != at.remote):
        raise ReviewError(f"The set {name} is on {at.server}, not on {server.url}.", f"--url {at.server}")


def check_same_questions(ours: Sequence[Question], theirs: Sequence[Question], whose: str) -> None:
    """Raise `ReviewError` where two sets of questions differ in a name, a kind or an option (but for turn numbers)."""
    mine, other = ({question.name: question for question in questions} for questions in (ours, theirs))
    missing, more = sorted(mine.keys() - other.keys()), sorted(other.keys() - mine.keys())
    changed = [
        name
        for name in sorted(mine.keys() & other.keys())
        if mine[name].kind != other[name].kind
        or (name != TURNS and set(mine[name].options) != set(other[name].options))
    ]
    told = [
        *(f"does not ask {name}" for name in missing),
        *(f"asks {name}, which the recipe does not" for name in more),
        *(f"has other options for {name}" for name in changed),
    ]
    if told:
        raise ReviewError(
            f"{whose} {', '.join(told)}.",
            "Answers of different questions do not mix: push under another name, or change [review] back.",
        )


def note_set(connection: DuckDBPyConnection, prepared: Prepared, at: Place) -> None:
    """Write down the set, or where it is now."""
    connection.execute(
        """INSERT INTO review_sets (review_set, server, remote, questions, overlap) VALUES (?, ?, ?, ?, ?)
           ON CONFLICT (review_set) DO UPDATE SET
               server = coalesce(excluded.server, server), remote = coalesce(excluded.remote, remote)""",
        [
            prepared.name,
            at.server,
            at.remote,
            canonical_json([question.as_json() for question in prepared.plan.questions]),
            prepared.plan.overlap,
        ],
    )


def note_members(connection: DuckDBPyConnection, name: str, entries: Sequence[Entry]) -> None:
    """Write down what shall be in the set; what is in it already stays as it is."""
    connection.register("entries", _frame([(entry, None) for entry in entries]))
    connection.execute(
        f"""INSERT INTO review_records ({RECORD_COLUMNS}) SELECT ?, * FROM entries WHERE conversation NOT IN (
                SELECT r.conversation FROM review_records r WHERE review_set = ?)""",
        [name, name],
    )
    connection.unregister("entries")


def note_records(connection: DuckDBPyConnection, name: str, arrived: Sequence[tuple[Entry, str | None]]) -> None:
    """Write down what has arrived, with the server's ids."""
    connection.register("arrived", _frame(arrived))
    connection.execute(
        "DELETE FROM review_records WHERE review_set = ? AND conversation IN (SELECT conversation FROM arrived)", [name]
    )
    connection.execute(f"INSERT INTO review_records ({RECORD_COLUMNS}) SELECT ?, * FROM arrived", [name])
    connection.unregister("arrived")
    note_shown(connection, name, [entry for entry, _ in arrived])


def note_shown(connection: DuckDBPyConnection, name: str, entries: Sequence[Entry]) -> None:
    """Write down what is suggested from now on, where it is something else than before."""
    connection.register("shown", _frame([(entry, None) for entry in entries]))
    connection.execute(
        """INSERT INTO review_shown (review_set, conversation, suggestions)
           SELECT ?, n.conversation, n.suggestions FROM shown n LEFT JOIN (
               SELECT conversation, arg_max(suggestions, shown_at) AS latest FROM review_shown WHERE review_set = ?
               GROUP BY conversation) o USING (conversation)
           WHERE n.suggestions IS DISTINCT FROM o.latest""",
        [name, name],
    )
    connection.unregister("shown")


RECORD_COLUMNS = "review_set, conversation, record, queue, blind, suggestions, digest"


def _frame(records: Sequence[tuple[Entry, str | None]]) -> pl.DataFrame:
    """Rows of `review_records` without the set's name."""
    rows = [
        (entry.task.conversation, record, entry.queue, entry.blind, _as_json(entry.guesses), entry.digest)
        for entry, record in records  # one by one: each was a request's JSON
    ]
    kinds = {name: pl.Boolean if name == "blind" else pl.String for name in RECORD_COLUMNS.split(", ")[1:]}
    return pl.DataFrame(rows, schema=kinds, orient="row")


def _as_json(suggestions: Sequence[Suggestion]) -> str:
    return canonical_json([suggestion.as_json() for suggestion in suggestions])


def _known_set(connection: DuckDBPyConnection, name: str) -> Prepared | None:
    """The set as the store knows it, without its tasks."""
    rows = connection.execute(
        "SELECT server, remote, questions, overlap FROM review_sets WHERE review_set = ?", [name]
    ).fetchall()
    if not rows:
        return None
    server, remote, questions, overlap = rows[0]
    sent = connection.execute(
        "SELECT conversation, digest FROM review_records WHERE review_set = ? AND record IS NOT NULL AND NOT gone",
        [name],
    ).fetchall()
    return Prepared(name, SetPlan(read_questions(questions), overlap, "", {}), [], Place(server, remote), dict(sent))


def read_questions(text: str) -> tuple[Question, ...]:
    """The questions that `note_set` wrote."""
    return tuple(Question(**{**each, "options": tuple(each["options"])}) for each in json.loads(text))


def _longest(connection: DuckDBPyConnection, chosen: pl.DataFrame) -> int:
    connection.register("chosen", chosen)
    rows = connection.sql(
        "SELECT max(len(conversations)) FROM conversations WHERE id IN (SELECT conversation FROM chosen)"
    ).fetchall()
    connection.unregister("chosen")
    return int(rows[0][0])


def _entry(row: dict[str, Any], questions: Sequence[Question]) -> Entry:
    row["metadata"]["queue"] = row["queue"]
    task = task_of(row, questions, blind=row["blind"])
    shown = {**asdict(task), "messages": list(task.messages)}
    return Entry(task, row["queue"], row["blind"], digest(shown), suggestions_of(row, questions))


def _nothing(connection: DuckDBPyConnection, wanted: Wanted) -> ReviewError:
    if wanted.queue == DISAGREEMENT:
        return ReviewError(
            "There is no conversation on which people differ.", "curate review status shows who says what."
        )
    ((stored,),) = connection.sql("SELECT count(*) FROM conversations").fetchall()
    if not stored:
        return ReviewError("The store has no conversation yet.", "curate import FILE reads some in.")
    return ReviewError(
        f"None of the {stored:,} conversations fits: not one that is kept, that no person has judged, and that the"
        " options name.",
        "Loosen --where, or add --also-dropped.",
    )


def _waiting(prepared: Prepared, server: ReviewServer, remote: RemoteSet | None, done: Pushed) -> list[Entry]:
    """What has to be sent: all that the server can take and does not have just so."""
    same = remote is not None and remote.id == prepared.at.remote and server.count(remote) >= len(prepared.sent)
    there = prepared.sent if same else {}
    waiting = []
    offered = max((len(question.options) for question in prepared.plan.questions if question.name == TURNS), default=0)
    for entry in prepared.entries:  # one by one: each is a request's JSON already
        reason = server.unfit(entry.task) or _beyond(entry.task, offered)
        if reason is not None:
            done.unfit.append({"conversation": entry.task.conversation, "reason": reason})
        elif there.get(entry.task.conversation) == entry.digest:
            done.unchanged += 1
        else:
            waiting.append(entry)
    return waiting


def _beyond(task: Task, offered: int) -> str | None:
    """Why the set cannot ask about all turns of a task; null where it can, or does not ask about turns at all."""
    turns = sum(role[:1].isdigit() for role, _ in task.messages)
    if not offered or turns <= offered:
        return None
    return f"it has {turns} turns, and the set offers the numbers 1 to {offered}; a new set offers more"


def _send(
    server: ReviewServer,
    remote: RemoteSet,
    waiting: Sequence[Entry],
    arrived: list[tuple[Entry, str | None]],
    unfit: list[dict[str, str]],
    *,
    progress: Progress | None,
) -> None:
    """Send in batches; `arrived` grows with each that the server took, so that nothing is forgotten if one fails."""
    for start in range(0, len(waiting), server.batch_size):
        batch = waiting[start : start + server.batch_size]
        for entry, sent in zip(batch, server.send(remote, [entry.task for entry in batch]), strict=True):
            if sent.record is not None:
                arrived.append((replace(entry, guesses=entry.guesses + sent.left), sent.record))
            else:
                unfit.append({"conversation": entry.task.conversation, "reason": sent.reason})
        if progress:
            progress(start + len(batch), len(waiting))
