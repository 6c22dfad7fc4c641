"""Turns and their findings → the repairs that work: each is applied to a sample, which is validated again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from curate.ingest.repairs import REPAIRS, repair
from curate.ingest.validation import RULES, validate

_SAMPLE = 500
"""Conversations per rule to which the repairs are applied."""

_STEPS = 3
"""Repairs that may be necessary one after the other: a conversation is rejected only by the first rule it violates."""

_PARENTS = ("parent", "parent_id", "parent_message_id", "parent_uuid", "in_reply_to", "reply_to", "reply_to_id")


@dataclass(frozen=True, slots=True)
class RepairAdvice:
    """Repairs in the order in which they are needed; how many conversations they were tried on, and repair."""

    repairs: tuple[str, ...]
    tried: int
    repaired: int


@dataclass(frozen=True, slots=True)
class RepairTrial:
    """Repairs that were tried on a sample: those that are needed, and the conversations tried and repaired."""

    repairs: tuple[str, ...]
    tried: pl.Series
    repaired: pl.Series


def try_repairs(
    turns: pl.DataFrame,
    tools: pl.DataFrame,
    findings: pl.DataFrame,
    known: Collection[str],
    *,
    has_questions: bool = True,
) -> dict[str, RepairTrial]:
    """The trial for each code of `findings` that has a repair and is not `known`; codes without a working one too.

    A repair works if the conversation is accepted after it and those that it makes necessary, and a warning is gone.
    """
    trials = {}
    for code in findings["code"].unique(maintain_order=True):
        if code in known or code not in RULES or RULES[code].repair is None:
            continue
        rows = findings.filter(pl.col("code") == code)["row"].unique(maintain_order=True).head(_SAMPLE)
        sample = turns.filter(pl.col("row").is_in(rows.implode()))
        names, bad = _apply_repairs(sample, tools.filter(pl.col("row").is_in(rows.implode())), code, has_questions)
        good = rows.filter(~rows.is_in(bad.implode()))
        touched = repair(sample, names)[1].filter(pl.col("row").is_in(good.implode()))["repairs"].explode().unique()
        needed = tuple(name for name in names if name in touched)
        trials[code] = RepairTrial(needed, rows, good if needed else good.clear())
    return trials


def _apply_repairs(
    sample: pl.DataFrame, tools: pl.DataFrame, code: str, has_questions: bool
) -> tuple[list[str], pl.Series]:
    """The repairs that were applied one after the other, and the rows that still have the finding."""
    names: list[str] = []
    broken = {code}
    for _ in range(_STEPS):
        wanted = {RULES[one].repair for one in broken if one in RULES}
        new = [name for name in REPAIRS if name in wanted and name not in names]
        if not new:
            break
        names += new
        findings = validate(repair(sample, names)[0], tools, has_questions=has_questions)
        left = findings.filter((pl.col("severity") == "reject") | (pl.col("code") == code))
        broken = set(left["code"])
    return names, left["row"]


def rival_rows(table: pl.DataFrame, members: pl.DataFrame) -> pl.Series:
    """The conversations in which two turns reply to the same one, by a column with the parent of each.

    Merging them would join the answers of different branches.
    """
    parent = next((name for name in table.columns if name.casefold() in _PARENTS), None)
    if parent is None or members.is_empty():
        return pl.Series([], dtype=pl.Int64)
    replies = members.with_columns(parent=table[parent].gather(members["position"])).drop_nulls("parent")
    return replies.filter(pl.struct("row", "parent").is_duplicated())["row"].unique()
