"""Comparing: two versions come in; what was added, removed, edited or moved between them, and why, goes out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.selection import RULE
from schemas.conversation import Conversation, Turn
from schemas.digest import canonical_json
from schemas.text import plural
from schemas.version import Version, find_version

CHANGES = ("added", "removed", "edited", "moved")

OUTER_SQL = """
    SELECT
        CASE WHEN a.split IS NULL THEN 'added' WHEN b.split IS NULL THEN 'removed' ELSE 'moved' END AS change,
        if(a.split IS NULL, NULL, conversation) AS before,
        if(b.split IS NULL, NULL, conversation) AS after,
        a.split AS split_before,
        b.split AS split_after
    FROM (SELECT conversation, split FROM members WHERE version = $before) a
    FULL JOIN (SELECT conversation, split FROM members WHERE version = $after) b USING (conversation)
    WHERE a.split IS DISTINCT FROM b.split
"""
"""Every member that is not on the same side in both versions."""

EDITED_SQL = """
    WITH RECURSIVE steps AS (
        SELECT conversation AS old, edited_to AS new FROM verdicts WHERE edited_to IS NOT NULL
        UNION SELECT parent, id FROM conversations WHERE parent IS NOT NULL
    ), walk AS (
        SELECT before AS old, before AS new, [before] AS path FROM outer_rows WHERE change = 'removed'
        UNION ALL
        SELECT walk.old, steps.new, list_append(path, steps.new)
        FROM walk JOIN steps ON steps.old = walk.new WHERE NOT list_contains(path, steps.new)
    ), pairs AS (
        SELECT old, new, len(path) AS length FROM walk
        WHERE new IN (SELECT after FROM outer_rows WHERE change = 'added')
        QUALIFY row_number() OVER (PARTITION BY new ORDER BY len(path), old) = 1
    )
    SELECT old, new FROM pairs QUALIFY row_number() OVER (PARTITION BY old ORDER BY length, new) = 1
"""
"""One to one: a removed conversation and the added one that it became, over any number of edits."""

SAID_SQL = """
    SELECT conversation, by_whom || ': ' || reason AS said, by_whom, verdict FROM (
        SELECT * FROM verdicts
        WHERE epoch_us(decided_at) <= $until AND conversation IN (SELECT coalesce(before, after) FROM outer_rows)
        QUALIFY row_number() OVER (
            PARTITION BY conversation, by_whom = 'rule' ORDER BY decided_at DESC, verdicts.rowid DESC) = 1
    ) WHERE verdict <> 'undecided'
    QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY by_whom = 'rule') = 1
"""
"""The word that counted for each conversation at a time: a person's before a rule's."""

CAME_SQL = """
    SELECT conversation, arg_min(path, number) AS path, arg_min(coalesce(line, row), number) AS line,
        min(epoch_us(imported_at)) AS came
    FROM (SELECT *, row_number() OVER (ORDER BY imported_at, path, row) AS number
          FROM origins JOIN sources USING (source) WHERE conversation IN (SELECT after FROM outer_rows))
    GROUP BY conversation
"""
"""The first row that brought each conversation."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key of the recipe that the two versions answer differently; `None` where one does not have it."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class TurnChange:
    """A turn that an edit changed: its position from 0, who speaks, and the lines of a unified diff."""

    position: int
    role: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one version to another.

    `changes` has a row per change: `change`, `before` and `after` (ids, null where there is none), `split_before`,
    `split_after`, `reason`, `origin` (file and line that brought it). The sums hold:
    all before = unchanged + moved + edited + removed, all after = unchanged + moved + edited + added.
    """

    before: Version
    after: Version
    changes: pl.DataFrame
    recipe: tuple[KeyChange, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many conversations each change touches, and how many none does."""
        found = dict(self.changes.group_by("change").len().iter_rows())
        counts = {change: int(found.get(change, 0)) for change in CHANGES}
        gone = counts["moved"] + counts["edited"] + counts["removed"]
        return {"unchanged": sum(self.before.counts.values()) - gone, **counts}

    @property
    def reasons(self) -> pl.DataFrame:
        """The changes grouped: `change`, `reason`, `conversations`, the most frequent first within each change."""
        order = pl.col("change").cast(pl.Enum(CHANGES))
        grouped = self.changes.group_by("change", "reason").agg(pl.len().alias("conversations"))
        return grouped.sort(order, -pl.col("conversations").cast(pl.Int64), "reason")

    def summary(self) -> Iterator[str]:
        """The sums and the changed keys of the recipe, a line each."""
        counts = self.counts
        yield f"{self.before.label} has {plural(sum(self.before.counts.values()), 'conversation')}, " + (
            f"{self.after.label} has {sum(self.after.counts.values()):,}:"
        )
        yield ", ".join(f"{count:,} {change}" for change, count in counts.items())
        for key in self.recipe:
            yield f"recipe {key.key}: {canonical_json(key.before)} → {canonical_json(key.after)}"

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values, without the single changes."""
        return {
            "before": self.before.label,
            "after": self.after.label,
            "conversations_before": sum(self.before.counts.values()),
            "conversations_after": sum(self.after.counts.values()),
            "counts": self.counts,
            "reasons": self.reasons.to_dicts(),
            "recipe": [asdict(change) for change in self.recipe],
            "changes_in_all": self.changes.height,
        }


def compare(connection: DuckDBPyConnection, before: str, after: str) -> Comparison:
    """What changed from the version labelled `before` to `after`. Raises `VersionError` when one is not there."""
    first, second = find_version(connection, before), find_version(connection, after)
    recipe = tuple(recipe_changes(first.recipe, second.recipe))
    rows = connection.sql(OUTER_SQL, params={"before": first.label, "after": second.label}).pl()
    connection.register("outer_rows", rows)
    edits = connection.sql(EDITED_SQL).pl()
    earlier, said = (connection.sql(SAID_SQL, params={"until": _microseconds(one)}).pl() for one in (first, second))
    came = connection.sql(CAME_SQL).pl()
    connection.unregister("outer_rows")
    told = _join_words(_join_edits(rows, edits), earlier, said, came)
    changes = _with_reasons(told, first, redrawn=_redrawn(recipe)).select(*rows.columns, "reason", "origin")
    return Comparison(first, second, changes, recipe)


def list_changes(connection: DuckDBPyConnection, seen: Comparison, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` changes as plain values; an edited one has `turns`, what the edit changed in each turn."""
    shown = seen.changes if limit is None else seen.changes.head(limit)
    changes = shown.to_dicts()
    for change in changes:  # a person reads these: few
        if change["change"] == "edited":
            pair = _read_pair(connection, change["before"], change["after"])
            change["turns"] = [asdict(turn) for turn in turn_changes(*pair)]
    return changes


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[KeyChange]:
    """The keys that differ, sections spelt out with dots, in alphabetical order.

    >>> list(recipe_changes({"freeze": {"salt": ""}}, {"freeze": {"salt": "b"}}))
    [KeyChange(key='freeze.salt', before='', after='b')]
    """
    old, new = dict(_flat(before)), dict(_flat(after))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield KeyChange(key, old.get(key), new.get(key))


def turn_changes(before: Conversation, after: Conversation) -> Iterator[TurnChange]:
    """The turns that differ, position by position, each as a unified diff of its lines; tools count as position -1."""
    if before.tools != after.tools:
        yield TurnChange(-1, "tools", _diff(before.tools or "", after.tools or ""))
    for position, (old, new) in enumerate(zip_longest(before.turns, after.turns)):
        if old != new:
            role = " → ".join(dict.fromkeys(turn.role for turn in (old, new) if turn))
            yield TurnChange(position, role, _diff(_spoken(old), _spoken(new)))


def _read_pair(connection: DuckDBPyConnection, before: str, after: str) -> tuple[Conversation, Conversation]:
    """The two conversations of an edit, by id."""
    query = "SELECT conversations, tools FROM conversations WHERE id = ?"
    (old,), (new,) = (connection.sql(query, params=[one]).pl().to_dicts() for one in (before, after))
    return Conversation.from_row(old), Conversation.from_row(new)


def _join_edits(rows: pl.DataFrame, edits: pl.DataFrame) -> pl.DataFrame:
    """The rows with each edited pair, a removed and an added one, made one row."""
    sides = rows.select(pl.coalesce("before", "after").alias("id"), "split_before", "split_after")
    joined = (
        edits.join(sides.select("id", "split_before"), left_on="old", right_on="id")
        .join(sides.select("id", "split_after"), left_on="new", right_on="id")
        .select(pl.lit("edited").alias("change"), pl.col("old").alias("before"), pl.col("new").alias("after"),
                "split_before", "split_after")
    )  # fmt: skip
    single = ~(
        ((pl.col("change") == "removed") & pl.col("before").is_in(edits["old"].implode()))
        | ((pl.col("change") == "added") & pl.col("after").is_in(edits["new"].implode()))
    )
    return pl.concat([rows.filter(single), joined])


def _join_words(changes: pl.DataFrame, earlier: pl.DataFrame, said: pl.DataFrame, came: pl.DataFrame) -> pl.DataFrame:
    """The changes with the word that counts now (`said`, `by_whom`), the one before it, and the row that came first."""
    before = earlier.filter(pl.col("verdict") == "drop").select("conversation", pl.col("said").alias("dropped_by"))
    id_ = pl.coalesce("before", "after")
    return (
        changes.join(said, left_on=id_, right_on="conversation", how="left")
        .join(before, left_on=id_, right_on="conversation", how="left")
        .join(came, left_on="after", right_on="conversation", how="left")
    )


def _with_reasons(told: pl.DataFrame, first: Version, *, redrawn: bool) -> pl.DataFrame:
    """The changes in order, with the columns `reason` and `origin`."""
    moved = "the split was drawn anew (freeze.* of the recipe)" if redrawn else "its group grew and took another side"
    reason = (
        pl.when(pl.col("change") == "added").then(_reason_of_added(first))
        .when(pl.col("change") == "moved").then(pl.lit(moved))
        .otherwise(pl.coalesce("said", pl.lit("no verdict names it: it was not among the kept")))
    )  # fmt: skip
    origin = pl.concat_str("path", pl.lit(":"), pl.col("line").cast(pl.String))
    return told.with_columns(reason.alias("reason"), origin.alias("origin")).sort(
        pl.col("change").cast(pl.Enum(CHANGES)), "before", "after"
    )


def _reason_of_added(first: Version) -> pl.Expr:
    """Why a conversation is in the later version only: a rule's keep says nothing, so the drop before it is named."""
    in_store = "was in the store, "
    by_person = pl.concat_str(pl.lit(f"{in_store}kept since: "), "said")
    by_rules = pl.concat_str(pl.lit(f"{in_store}no longer dropped by "), "dropped_by")
    return (
        pl.when(pl.col("came").is_null()).then(pl.coalesce("said", pl.lit("made by an edit")))
        .when(pl.col("came") > _microseconds(first)).then(pl.concat_str(pl.lit("imported from "), "path"))
        .when(pl.col("by_whom") != RULE).then(by_person)
        .otherwise(pl.coalesce(by_rules, pl.lit(f"{in_store}not judged then")))
    )  # fmt: skip


def _redrawn(recipe: tuple[KeyChange, ...]) -> bool:
    return any(change.key.startswith("freeze.") for change in recipe)


def _microseconds(version: Version) -> int:
    return round(version.frozen_at.timestamp() * 1e6)


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _spoken(turn: Turn | None) -> str:
    """The turn as text whose lines can be compared; marks that are not words come first."""
    if turn is None:
        return ""
    marks = [f"({turn.role})", "" if turn.train else "(not learned)"]
    return " ".join(filter(None, marks)) + f"\n{turn.value}"


def _diff(before: str, after: str) -> tuple[str, ...]:
    """The changed lines and their neighbours: each line of the texts behind its sign, so `@@` begins none of them."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm=""))[2:]  # two are a head
    return tuple(line for line in lines if not line.startswith("@@"))
