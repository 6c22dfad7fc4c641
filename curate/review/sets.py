"""A queue query, the recipe and the store → a review set: its questions, its members, and the server that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.labels import has_labels, merge_questions
from curate.review.questions import (
    MAX_MARKS,
    build_guidelines,
    build_questions,
    build_suggestions,
    build_task,
    mark_limit,
    render_messages,
    too_many_answers,
    uses_turn_numbers,
)
from curate.review.queue import (
    DISAGREEMENT,
    FACT_TYPES,
    NEAR_DUPLICATES,
    QueueQuery,
    QueueSelection,
    RejectionReason,
    filterable_metadata,
    read_task_rows,
    select_members,
)
from curate.review.verdicts import find_disputed
from curate.versions.freeze import check_name
from schemas.conversation import ASSISTANT_ROLES, PRESENT_SQL
from schemas.digest import canonical_json, digest
from schemas.errors import ReviewError
from schemas.recipe import Recipe
from schemas.review import ASSIGNED, TURNS, Question, RemoteSet, ReviewServer, SetPlan, Suggestion, Task
from schemas.store import reading
from schemas.text import plural

Progress = Callable[[int, int], None]
"""Called with the number of finished items and the total."""


@dataclass(frozen=True, slots=True)
class RemoteRef:
    """Where a set is: the server's address and the set's id there; both None for sets that are only in spreadsheets."""

    server: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """A task with its queue, whether it is blind, the digest of everything that it shows, and its place in the set.

    `suggestions` are computed for blind tasks, too, to measure suggestion bias.
    """

    task: Task
    queue: str
    blind: bool
    digest: str
    suggestions: tuple[Suggestion, ...] = ()
    position: int | None = None
    assigned: list[str] | None = None


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A set as recorded in the store. `activity` is the server's change marker at the latest pull."""

    ref: RemoteRef
    questions: tuple[Question, ...]
    overlap: int
    activity: str | None


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """A set to push or export. `sent` maps the conversations already on the server to the digests of their tasks.

    `rejected` lists the candidates that cannot be shown: conversation and reason.
    """

    name: str
    plan: SetPlan
    tasks: list[ReviewTask]
    ref: RemoteRef = RemoteRef()
    sent: dict[str, str] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)


def prepare_set(
    store: Path,
    recipe: Recipe,
    name: str,
    query: QueueQuery,
    *,
    rejection_reason: RejectionReason,
    remote: RemoteSet | None = None,
) -> PreparedSet:
    """The set `name` by `query` and the recipe; reads the store and closes it.

    Candidates with a `rejection_reason` do not become members. An existing set keeps its questions and overlap, also if
    only the server has it (`remote`). Raises `ReviewError` if the recipe has other questions, `query` another overlap,
    or no conversation matches.
    """
    check_name(name)
    with reading(store) as connection:
        stored = load_set(connection, name)
        existing = stored.questions if stored else remote.questions if remote else ()
        overlap = remote.overlap if remote else stored.overlap if stored else recipe.review.overlap
        if query.overlap not in (None, overlap):
            raise ReviewError(
                f"The set {name} asks for {plural(overlap, 'answer')} per conversation, not {query.overlap}.",
                "Omit --overlap, or push under another name.",
            )
        if query.assign and len(set(query.assign)) < overlap:
            raise ReviewError(
                f"The set {name} asks for {plural(overlap, 'answer')} per conversation, but --assign names"
                f" {plural(len(set(query.assign)), 'annotator')}.",
                "Name more annotators.",
            )
        selection = _select(connection, recipe, name, query, existing=existing, rejection_reason=rejection_reason)
        questions = build_questions(recipe.review, _max_answers(connection, selection.members))
        if existing:
            check_same_questions(questions, existing, f"The set {name}{'' if stored else ' on the server'}")
        metadata = filterable_metadata(connection, recipe)
        rows = read_task_rows(connection, recipe, name, selection.members)
        sent = _load_sent_digests(connection, name)
    renamed = recipe.review.renamed
    questions = merge_questions(questions, existing, renamed) or questions
    for row in rows:  # few: a suggestion has the value of an option, which can be its former name
        row["scores"] |= {old: row["scores"].get(new) for old, new in renamed.items()}
    guidelines = build_guidelines(recipe.review, questions, overlap)
    plan = SetPlan(questions, overlap, guidelines, metadata, frozenset(metadata.keys() - FACT_TYPES.keys()))
    tasks = [review_task(row, plan.questions) for row in rows]  # one by one: each becomes the JSON of a request
    return PreparedSet(name, plan, tasks, stored.ref if stored else RemoteRef(), sent, selection.rejected)


def _select(
    connection: DuckDBPyConnection,
    recipe: Recipe,
    name: str,
    query: QueueQuery,
    *,
    existing: Sequence[Question],
    rejection_reason: RejectionReason,
) -> QueueSelection:
    """The set's members. Raises `ReviewError` if there are none."""
    by_turn = uses_turn_numbers(existing)
    limit = mark_limit(existing or build_questions(recipe.review, MAX_MARKS))

    def render(row: Mapping[str, Any]) -> Task:
        return Task(row["conversation"], render_messages(row["conversations"], row["tools"], by_turn=by_turn), {}, ())

    selection = select_members(
        connection,
        recipe,
        name,
        query,
        find_disputed(connection, recipe.review) if query.queue == DISAGREEMENT else [],
        render=render,
        rejection_reason=lambda task: rejection_reason(task) or too_many_answers(task, limit),
    )
    if selection.members.is_empty():
        raise _empty_selection(connection, query, selection.rejected)
    return selection


def _empty_selection(
    connection: DuckDBPyConnection, query: QueueQuery, rejected: Sequence[Mapping[str, str]]
) -> ReviewError:
    if rejected:
        first = rejected[0]
        return ReviewError(
            f"None of {plural(len(rejected), 'selected conversation')} can be shown;"
            f" {first['conversation'][:12]}: {first['reason']}.",
            "Select others: --where",
        )
    if query.queue == DISAGREEMENT:
        return ReviewError("No conversation is disputed.", "curate review status shows the answers.")
    ((stored,),) = connection.sql(f"SELECT count(*) FROM conversations c WHERE {PRESENT_SQL}").fetchall()
    if not stored:
        return ReviewError("The store has no conversations.", "Import a file: curate import FILE")
    condition = f"{'' if query.also_dropped else 'kept, '}unreviewed and selected by --where"
    hint = "Loosen --where." if query.also_dropped else "Loosen --where, or add --also-dropped."
    if query.queue == NEAR_DUPLICATES:
        return ReviewError(f"No near-duplicates among the conversations that are {condition}.", hint)
    return ReviewError(f"No conversation matches: none of {stored:,} is {condition}.", hint)


def _max_answers(connection: DuckDBPyConnection, members: pl.DataFrame) -> int:
    """The largest number of assistant turns in one member."""
    connection.register("members_of_set", members)
    rows = connection.execute(
        """SELECT max(len(list_filter(conversations, lambda turn: list_contains(?, turn."from")))) FROM conversations
           WHERE id IN (SELECT conversation FROM members_of_set)""",
        [list(ASSISTANT_ROLES)],
    ).fetchall()
    connection.unregister("members_of_set")
    return int(rows[0][0])


def review_task(row: dict[str, Any], questions: Sequence[Question]) -> ReviewTask:
    """The task of a row of `read_task_rows`."""
    row["metadata"]["queue"] = row["queue"]
    if row["assigned"]:
        row["metadata"][ASSIGNED] = row["assigned"]
    task = build_task(row, questions, blind=row["blind"])
    content = {**asdict(task), "messages": list(task.messages), "answered_by": list(task.answered_by)}
    for added in ("earlier", "answered_by"):  # tasks without them keep the digest of earlier releases
        if not content[added]:
            del content[added]
    return ReviewTask(
        task,
        row["queue"],
        row["blind"],
        digest(content),
        build_suggestions(row, questions),
        row["position"],
        row["assigned"],
    )


# --- checks ---


def check_same_server(name: str, ref: RemoteRef, server: ReviewServer, remote: RemoteSet | None) -> None:
    """Raise `ReviewError` if the set is on another server: both its address and its id differ.

    The address alone may change, for example with the port.
    """
    if ref.server not in (None, server.url) and (remote is None or remote.id != ref.id):
        raise ReviewError(f"The set {name} is on {ref.server}, not on {server.url}.", f"--url {ref.server}")


def check_same_questions(expected: Sequence[Question], existing: Sequence[Question], owner: str) -> None:
    """Raise `ReviewError` if the questions differ in a name, kind or the options of a rating.

    Titles, labels and the number of marks may differ. `owner` is the subject of the message: the set that has the
    existing questions.
    """
    ours, theirs = ({question.name: question for question in questions} for questions in (expected, existing))
    changed = [
        name
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name].kind != theirs[name].kind
        or (name != TURNS and not has_labels(ours[name]) and set(ours[name].options) != set(theirs[name].options))
    ]
    differences = [
        *(f"lacks the question {name}" for name in sorted(ours.keys() - theirs.keys())),
        *(f"has the additional question {name}" for name in sorted(theirs.keys() - ours.keys())),
        *(f"has other options for {name}" for name in changed),
    ]
    if differences:
        raise ReviewError(
            f"{owner} {', '.join(differences)}.",
            "Answers to different questions cannot be combined: push under another name, or revert [review].",
        )


# --- the set in the store ---


def load_set(connection: DuckDBPyConnection, name: str) -> StoredSet | None:
    """The set `name`, or None if the store does not have it."""
    rows = connection.execute(
        "SELECT server, remote, questions, overlap, activity FROM review_sets WHERE review_set = ?", [name]
    ).fetchall()
    if not rows:
        return None
    server, remote, questions, overlap, activity = rows[0]
    return StoredSet(RemoteRef(server, remote), parse_questions(questions), overlap, activity)


def parse_questions(text: str) -> tuple[Question, ...]:
    """The questions in `review_sets.questions`."""
    return tuple(Question(**{**each, "options": tuple(each["options"])}) for each in json.loads(text))


def _load_sent_digests(connection: DuckDBPyConnection, name: str) -> dict[str, str]:
    rows = connection.execute(
        "SELECT conversation, digest FROM review_records WHERE review_set = ? AND record IS NOT NULL AND NOT gone",
        [name],
    ).fetchall()
    return dict(rows)


def save_set(connection: DuckDBPyConnection, prepared: PreparedSet, ref: RemoteRef) -> None:
    """Record the set; of an existing one, its server, overlap and labels."""
    questions = canonical_json([question.as_json() for question in prepared.plan.questions])
    connection.execute(
        """INSERT INTO review_sets (review_set, server, remote, questions, overlap) VALUES (?, ?, ?, ?, ?)
           ON CONFLICT (review_set) DO UPDATE SET
               questions = excluded.questions, server = coalesce(excluded.server, server),
               remote = coalesce(excluded.remote, remote),
               overlap = excluded.overlap""",
        [prepared.name, ref.server, ref.id, questions, prepared.plan.overlap],
    )


def save_members(connection: DuckDBPyConnection, name: str, tasks: Sequence[ReviewTask]) -> None:
    """Record the members of the set; existing ones stay as they are."""
    connection.register("tasks", _record_frame([(task, None) for task in tasks]))
    connection.execute(
        f"""INSERT INTO review_records ({RECORD_COLUMNS}) SELECT ?, * FROM tasks WHERE conversation NOT IN (
                SELECT r.conversation FROM review_records r WHERE review_set = ?)""",
        [name, name],
    )
    connection.unregister("tasks")


def remove_rejected(connection: DuckDBPyConnection, name: str, rejected: Sequence[Mapping[str, str]]) -> None:
    """Remove rejected members that were never shown, including those of a push that was killed."""
    connection.execute(
        """DELETE FROM review_records WHERE review_set = $name AND list_contains($rejected, conversation)
           AND conversation NOT IN (SELECT s.conversation FROM review_shown s WHERE s.review_set = $name)""",
        {"name": name, "rejected": [row["conversation"] for row in rejected]},
    )


def save_records(connection: DuckDBPyConnection, name: str, sent: Sequence[tuple[ReviewTask, str | None]]) -> None:
    """Record the sent tasks with their record ids on the server, and their suggestions."""
    connection.register("sent", _record_frame(sent))
    connection.execute(
        "DELETE FROM review_records WHERE review_set = ? AND conversation IN (SELECT conversation FROM sent)", [name]
    )
    connection.execute(f"INSERT INTO review_records ({RECORD_COLUMNS}) SELECT ?, * FROM sent", [name])
    connection.unregister("sent")
    save_suggestions(connection, name, [task for task, _ in sent])


def save_suggestions(connection: DuckDBPyConnection, name: str, tasks: Sequence[ReviewTask]) -> None:
    """Record the suggestions that tasks show from now on, if they differ from the latest ones."""
    connection.register("shown", _record_frame([(task, None) for task in tasks]))
    connection.execute(
        """INSERT INTO review_shown (review_set, conversation, suggestions)
           SELECT ?, n.conversation, n.suggestions FROM shown n LEFT JOIN (
               SELECT conversation, arg_max(suggestions, shown_at) AS latest FROM review_shown WHERE review_set = ?
               GROUP BY conversation) o USING (conversation)
           WHERE n.suggestions IS DISTINCT FROM o.latest""",
        [name, name],
    )
    connection.unregister("shown")


RECORD_COLUMNS = "review_set, conversation, record, queue, blind, suggestions, digest, position, assigned"


def _record_frame(records: Sequence[tuple[ReviewTask, str | None]]) -> pl.DataFrame:
    """Rows of `review_records` without the set's name."""
    rows = [
        (each.task.conversation, record, each.queue, each.blind,
         canonical_json([asdict(suggestion) for suggestion in each.suggestions]), each.digest, each.position,
         each.assigned)
        for each, record in records  # one by one: each was the JSON of a request
    ]  # fmt: skip
    special: dict[str, Any] = {"blind": pl.Boolean, "position": pl.Int32, "assigned": pl.List(pl.String)}
    types = {name: special.get(name, pl.String) for name in RECORD_COLUMNS.split(", ")[1:]}
    return pl.DataFrame(rows, schema=types, orient="row")
