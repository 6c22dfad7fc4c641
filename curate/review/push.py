"""A prepared review set → records on the labelling server, and their ids in the store.

The members are recorded before tasks are sent, the sent records afterwards. The same command therefore resumes a push
that was interrupted on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curate.review.questions import mark_limit, too_many_answers
from curate.review.queue import QueueQuery
from curate.review.sets import (
    PreparedSet,
    Progress,
    RemoteRef,
    ReviewTask,
    check_same_questions,
    check_same_server,
    prepare_set,
    remove_rejected,
    save_members,
    save_records,
    save_set,
)
from schemas.errors import CurateError, ReviewError
from schemas.recipe import Recipe
from schemas.review import RemoteSet, ReviewServer
from schemas.store import writing
from schemas.text import join_names, plural
from schemas.timing import timed


@dataclass(slots=True)
class PushResult:
    """The counts of a push. `rejected_by_server` lists conversation and reason.

    `labels` lists the questions of an existing set whose labels changed: question, added, renamed, retired.
    """

    review_set: str
    server: str
    conversations: int
    overlap: int
    blind: int
    sent: int = 0
    unchanged: int = 0
    rejected_by_server: list[dict[str, str]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)


def push(
    store: Path,
    recipe: Recipe,
    server: ReviewServer,
    name: str,
    query: QueueQuery,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PushResult:
    """Send new and changed members of the set `name` to the server; existing answers stay.

    Raises `RecipeError` for rules that cannot be applied, and `ReviewError` for a set with other questions, an empty
    selection or a server failure; the records sent before a failure are recorded.
    """
    remote = server.find_set(name)
    _check_assignment(server, query.assign or ())
    prepared = prepare_set(store, recipe, name, query, rejection_reason=server.rejection_reason, remote=remote)
    check_same_server(name, prepared.ref, server, remote)
    if remote is not None:
        check_same_questions(prepared.plan.questions, remote.questions, f"The set {name} on {server.url}")
    result = PushResult(name, server.url, 0, prepared.plan.overlap, 0, rejected_by_server=prepared.rejected)
    unsent = _find_unsent(prepared, server, remote, result)
    if remote is not None:
        renamed = recipe.review.renamed
        result.labels = server.change_options(remote, prepared.plan.questions, renamed, dry_run=dry_run)
    if dry_run:
        return result
    remote = remote or server.create_set(name, prepared.plan)
    with writing(store) as connection:
        save_set(connection, prepared, RemoteRef(server.url, remote.id))
        save_members(connection, name, prepared.tasks)
    sent: list[tuple[ReviewTask, str | None]] = []
    try:
        _send(server, remote, unsent, sent, result.rejected_by_server, progress=progress)
    except CurateError as error:
        raise ReviewError(
            f"{error.what} Sent {len(sent):,} of {plural(len(unsent), 'conversation')}.",
            f"{error.hint} Run the same command again to resume.".strip(),
        ) from error
    finally:
        with writing(store) as connection:
            save_records(connection, name, sent)
            remove_rejected(connection, name, result.rejected_by_server)
    result.sent = len(sent)
    return result


def _check_assignment(server: ReviewServer, names: Sequence[str]) -> None:
    """Raise `ReviewError` if the server cannot offer conversations to these annotators only."""
    if not names:
        return
    if not server.can_assign:
        raise ReviewError(
            f"{server.url} offers every conversation to all annotators of a workspace.",
            "Use curate review serve, or push to another workspace: --workspace NAME",
        )
    accounts = server.accounts()
    if unknown := sorted(set(names) - accounts):
        raise ReviewError(f"There is no account {unknown[0]}.", f"Accounts: {join_names(sorted(accounts), 20)}.")


@timed("comparing with the server")
def _find_unsent(
    prepared: PreparedSet, server: ReviewServer, remote: RemoteSet | None, result: PushResult
) -> list[ReviewTask]:
    """The tasks that the server accepts and does not have in this form; counts all of them in `result`."""
    is_same = remote is not None and remote.id == prepared.ref.id and server.count(remote) >= len(prepared.sent)
    on_server = prepared.sent if is_same else {}
    limit = mark_limit(prepared.plan.questions)
    unsent = []
    for each in prepared.tasks:  # one by one: each is the JSON of a request already
        conversation = each.task.conversation
        reason = server.rejection_reason(each.task) or too_many_answers(each.task, limit)
        if reason is not None:
            result.rejected_by_server.append({"conversation": conversation, "reason": reason})
            continue
        result.conversations += 1
        result.blind += each.blind
        if on_server.get(conversation) == each.digest:
            result.unchanged += 1
        else:
            unsent.append(each)
    return unsent


@timed("sending")
def _send(
    server: ReviewServer,
    remote: RemoteSet,
    unsent: Sequence[ReviewTask],
    sent: list[tuple[ReviewTask, str | None]],
    rejected: list[dict[str, str]],
    *,
    progress: Progress | None,
) -> None:
    """Send tasks in batches. `sent` and `rejected` grow with every batch, so they are complete if one fails."""
    for start in range(0, len(unsent), server.batch_size):
        batch = unsent[start : start + server.batch_size]
        for each, result in zip(batch, server.send(remote, [each.task for each in batch]), strict=True):
            if result.record is not None:
                shown = replace(each, suggestions=each.suggestions + result.stale_suggestions)
                sent.append((shown, result.record))
            else:
                rejected.append({"conversation": each.task.conversation, "reason": result.reason})
        if progress:
            progress(start + len(batch), len(unsent))
