"""Messages with their parents → branches: the paths from the first message to the last answers.

Messages are numbered from 0; a parent is such a number, or -1. Every step is a gather over all messages of a level, so
the time grows with the messages and the depth, not with their product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of trees: `end` (their last message) and `message`, from the first to the last, sorted by end.

    `unanswered` are messages without an answer after them, `unreachable` those without a first message: they are in a
    circle, or follow one. Both are in no branch.
    """

    messages: pl.DataFrame
    unanswered: Mask
    unreachable: Mask


def find_branches(parents: Numbers, is_answer: Mask) -> Branches:
    """All branches of trees of messages: each ends with an answer that no other answer follows."""
    unreachable = in_circle(parents)
    answers = is_answer & ~unreachable
    followed = np.zeros(len(parents), np.bool_)
    level = parents[answers]
    while (level := np.unique(level[level >= 0])).size:
        level = level[~followed[level]]
        followed[level] = True
        level = parents[level]
    ends = np.flatnonzero(answers & ~followed)
    return Branches(collect_paths(parents, ends), ~unreachable & ~answers & ~followed, unreachable)


def collect_paths(parents: Numbers, ends: Numbers) -> pl.DataFrame:
    """The messages from the first one to each of `ends`: `end`, `message`. The parents have no circles."""
    paths, level, end = [], ends, ends
    while level.size:
        paths.append((end, level))
        level = parents[level]
        level, end = level[level >= 0], end[level >= 0]
    if not paths:
        return pl.DataFrame(schema={"end": pl.Int64, "message": pl.Int64})
    depth = np.repeat(np.arange(len(paths)), [len(level) for _, level in paths])
    frame = pl.DataFrame(
        {"end": np.concatenate([e for e, _ in paths]), "message": np.concatenate([m for _, m in paths])}
    )
    return frame.with_columns(depth=pl.Series(depth)).sort("end", "depth", descending=[False, True]).drop("depth")


def number_parents(messages: pl.DataFrame, tree: str) -> tuple[Numbers, Mask]:
    """The number of each message's parent, or -1; and whether its parent is not among the messages.

    `messages` has `message` (its number), `id`, `parent`, and the column `tree` within which ids are unique.
    """
    known = messages.filter(pl.col("id") != "").unique([tree, "id"], keep="first").select(tree, "id", parent="message")
    named = messages.select(tree, id=pl.when(pl.col("parent") != "").then("parent"))
    found = named.join(known, on=[tree, "id"], how="left", maintain_order="left")["parent"]
    return found.fill_null(-1).to_numpy(), (named["id"].is_not_null() & found.is_null()).to_numpy()


def in_circle(parents: Numbers) -> Mask:
    """Which messages have no first message before them, because their parents form a circle."""
    return np.equal(_lead_to(parents, np.zeros(len(parents), np.bool_)), len(parents))


def mark_descendants(parents: Numbers, marked: Mask) -> Mask:
    """The marked messages and all that follow them. The parents may have circles."""
    found = _lead_to(parents, marked)
    return marked | ((found >= 0) & (found < len(parents)))


def _lead_to(parents: Numbers, stops: Mask) -> Numbers:
    """For each message the first ancestor in `stops`, -1 if there is none, or the number of messages for a circle.

    Every round doubles the distance.
    """
    count = len(parents)
    numbers = np.arange(count, dtype=np.int64)
    jump = np.append(np.where(stops, numbers, parents), -1)  # the last element is that of -1
    for _ in range(max(count, 1).bit_length()):
        jump = jump[jump]
    at_end = (jump[:-1] < 0) | stops[jump[:-1]] if count else np.zeros(0, np.bool_)
    return np.where(at_end, jump[:-1], count)
