"""Pushing: what is wanted and a server come in; a review set with its tasks goes out, there and in the store.

The store says what shall be in the set and is closed; the tasks travel; one short write says what arrived. So the same
command goes on where it was cut off, whether the server went away or this process did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curate.review.questions import beyond_marks, offered_marks
from curate.review.queue import Wanted
from curate.review.sets import (
    Entry,
    Place,
    Prepared,
    Progress,
    check_same_place,
    check_same_questions,
    forget_members,
    note_members,
    note_records,
    note_set,
    prepare,
)
from schemas.errors import CurateError, ReviewError
from schemas.recipe import Recipe
from schemas.review import RemoteSet, ReviewServer
from schemas.store import writing
from schemas.text import plural


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
    remote = server.find_set(name)
    prepared = prepare(store, recipe, name, wanted, unfit=server.unfit, remote=remote)
    check_same_place(name, prepared.at, server, remote)
    if remote is not None:
        check_same_questions(prepared.plan.questions, remote.questions, f"The set {name} on {server.url}")
    done = Pushed(name, server.url, len(prepared.entries), prepared.plan.overlap, 0, unfit=prepared.unfit)
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
            f"{error.what} {len(arrived):,} of {plural(len(waiting), 'conversation')} had arrived.",
            f"{error.hint} The same command goes on from there.".strip(),
        ) from error
    finally:
        with writing(store) as connection:
            note_records(connection, name, arrived)
            forget_members(connection, name, done.unfit)
    done.sent = len(arrived)
    return done


def _waiting(prepared: Prepared, server: ReviewServer, remote: RemoteSet | None, done: Pushed) -> list[Entry]:
    """What has to be sent: all that the server can take and does not have just so."""
    same = remote is not None and remote.id == prepared.at.remote and server.count(remote) >= len(prepared.sent)
    there = prepared.sent if same else {}
    waiting = []
    offered = offered_marks(prepared.plan.questions)
    for entry in prepared.entries:  # one by one: each is a request's JSON already
        reason = server.unfit(entry.task) or beyond_marks(entry.task, offered)
        if reason is not None:
            done.unfit.append({"conversation": entry.task.conversation, "reason": reason})
        elif there.get(entry.task.conversation) == entry.digest:
            done.unchanged += 1
        else:
            waiting.append(entry)
    unfit = {row["conversation"] for row in done.unfit}
    shown = [entry for entry in prepared.entries if entry.task.conversation not in unfit]
    done.conversations, done.blind = len(shown), sum(entry.blind for entry in shown)
    return waiting


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
