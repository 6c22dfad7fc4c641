"""The review set: its questions, its members, and the server that has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.questions import (
    MOST_MARKS,
    beyond_marks,
    guidelines_of,
    messages_of,
    numbers_turns,
    offered_marks,
    questions_of,
    suggestions_of,
    task_of,
)
from curate.review.queue import (
    DISAGREEMENT,
    FACT_KINDS,
    NEAR_DUPLICATES,
    Chosen,
    Unfit,
    Wanted,
    choose,
    filters,
    read_tasks,
)
from curate.review.verdicts import disputes
from curate.versions.freeze import check_name
from schemas.conversation import ASSISTANT_ROLES
from schemas.digest import canonical_json, digest
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection
from schemas.review import TURNS, Question, RemoteSet, ReviewServer, SetPlan, Suggestion, Task
from schemas.store import reading
from schemas.text import plural

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
    """A set as it is to be, and what the store knows of it: `sent` is conversation -> digest of what is there.

    `unfit` lists whom the set would have taken and cannot show: conversation and reason.
    """

    name: str
    plan: SetPlan
    entries: list[Entry]
    at: Place
    sent: dict[str, str]
    unfit: list[dict[str, str]] = field(default_factory=list)


def prepare(
    store: Path, recipe: Recipe, name: str, wanted: Wanted, *, unfit: Unfit, remote: RemoteSet | None = None
) -> Prepared:
    """The set `name` as `wanted` and the recipe make it; the store is read and closed again.

    Whom `unfit` gives a reason against takes no place in it. What a set asks and waits for stays, also of one that
    only the server knows, `remote`. Raises `ReviewError` where the recipe now asks something else, where `wanted` names
    another overlap, and where nothing is chosen.
    """
    check_name(name)
    with reading(store) as connection:
        known = _known_set(connection, name)
        asked = known.plan.questions if known else remote.questions if remote else ()
        overlap = remote.overlap if remote else known.plan.overlap if known else recipe.review.overlap
        whose = f"The set {name}" if known else f"The set {name} on the server"
        _refuse_overlap(name, wanted.overlap, overlap)
        chosen = _choose(connection, recipe, name, wanted, unfit=unfit, asked=asked)
        questions = _questions(connection, recipe.review, chosen.members, asked, whose)
        plan = _plan(connection, recipe, questions, overlap)
        rows = read_tasks(connection, recipe, chosen.members)
    entries = [_entry(row, plan.questions) for row in rows]
    at, sent = (known.at, known.sent) if known else (Place(), {})
    return Prepared(name, plan, entries, at, sent, chosen.unfit)


def _refuse_overlap(name: str, said: int | None, overlap: int) -> None:
    if said not in (None, overlap):
        raise ReviewError(
            f"The set {name} waits for {plural(overlap, 'answer')} each, not for {said}.",
            "Leave --overlap out, or push under another name.",
        )


def _choose(
    connection: DuckDBPyConnection,
    recipe: Recipe,
    name: str,
    wanted: Wanted,
    *,
    unfit: Unfit,
    asked: Sequence[Question],
) -> Chosen:
    """The set's members; refuses an empty choice."""
    by_turn = numbers_turns(asked)

    def show(row: Mapping[str, Any]) -> Task:
        return Task(row["conversation"], messages_of(row["conversations"], row["tools"], by_turn=by_turn), {}, ())

    disputed = disputes(connection, recipe.review) if wanted.queue == DISAGREEMENT else []
    limit = offered_marks(asked or questions_of(recipe.review, MOST_MARKS))
    chosen = choose(connection, recipe, name, wanted, disputed, show=show,
                    unfit=lambda task: unfit(task) or beyond_marks(task, limit))  # fmt: skip
    if chosen.members.is_empty():
        raise _nothing(connection, wanted, chosen.unfit)
    return chosen


def _questions(
    connection: DuckDBPyConnection,
    section: ReviewSection,
    members: pl.DataFrame,
    asked: Sequence[Question],
    whose: str,
) -> tuple[Question, ...]:
    """What the set asks: what it asked before, which has to be the recipe's, or what the recipe says."""
    questions = questions_of(section, _most_answers(connection, members))
    if not asked:
        return questions
    check_same_questions(questions, asked, whose)
    return tuple(asked)


def _plan(connection: DuckDBPyConnection, recipe: Recipe, questions: tuple[Question, ...], overlap: int) -> SetPlan:
    kinds = filters(connection, recipe)
    hidden = frozenset(kinds.keys() - FACT_KINDS.keys())
    return SetPlan(questions, overlap, guidelines_of(recipe.review, questions, overlap), kinds, hidden)


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
               server = coalesce(excluded.server, server), remote = coalesce(excluded.remote, remote),
               overlap = excluded.overlap""",
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


def forget_members(connection: DuckDBPyConnection, name: str, unfit: Sequence[Mapping[str, str]]) -> None:
    """Take the unfit out again whom nobody was ever shown, also those of a push that was killed: nobody can answer."""
    connection.execute(
        """DELETE FROM review_records WHERE review_set = $name AND list_contains($unfit, conversation)
           AND conversation NOT IN (SELECT s.conversation FROM review_shown s WHERE s.review_set = $name)""",
        {"name": name, "unfit": [row["conversation"] for row in unfit]},
    )


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


def _most_answers(connection: DuckDBPyConnection, members: pl.DataFrame) -> int:
    """How many turns of the assistant the conversation has that has the most of them."""
    connection.register("members_of_set", members)
    rows = connection.execute(
        """SELECT max(len(list_filter(conversations, lambda turn: list_contains(?, turn."from")))) FROM conversations
           WHERE id IN (SELECT conversation FROM members_of_set)""",
        [list(ASSISTANT_ROLES)],
    ).fetchall()
    connection.unregister("members_of_set")
    return int(rows[0][0])


def _entry(row: dict[str, Any], questions: Sequence[Question]) -> Entry:
    row["metadata"]["queue"] = row["queue"]
    task = task_of(row, questions, blind=row["blind"])
    shown = {**asdict(task), "messages": list(task.messages)}
    return Entry(task, row["queue"], row["blind"], digest(shown), suggestions_of(row, questions))


def _nothing(connection: DuckDBPyConnection, wanted: Wanted, unfit: Sequence[Mapping[str, str]]) -> ReviewError:
    if unfit:
        one = unfit[0]
        return ReviewError(
            f"None of the {plural(len(unfit), 'conversation')} that were chosen can be shown;"
            f" {one['conversation'][:12]}: {one['reason']}.",
            "Choose others: --where",
        )
    if wanted.queue == DISAGREEMENT:
        return ReviewError(
            "There is no conversation on which people differ.", "curate review status shows who says what."
        )
    if wanted.queue == NEAR_DUPLICATES:
        return ReviewError(
            f"No two conversations {_offered_to_people(wanted)} are near-duplicates.",
            _looser(wanted),
        )
    ((stored,),) = connection.sql("SELECT count(*) FROM conversations").fetchall()
    if not stored:
        return ReviewError("The store has no conversation yet.", "curate import FILE reads some in.")
    return ReviewError(
        f"None of the {plural(stored, 'conversation')} fits: not one {_offered_to_people(wanted)}.",
        _looser(wanted),
    )


def _offered_to_people(wanted: Wanted) -> str:
    """Whom the options let in, in words."""
    kept = "" if wanted.also_dropped else "that are kept, "
    return f"of those {kept}that no person has judged, and that the options name"


def _looser(wanted: Wanted) -> str:
    """How to ask for more, without what was asked for already."""
    return "Loosen --where." if wanted.also_dropped else "Loosen --where, or add --also-dropped."
