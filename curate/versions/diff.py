"""Two versions → the conversations that were added, removed, edited or moved between them, with reasons."""

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
from schemas.digest import flatten_keys
from schemas.timing import timed
from schemas.version import MIX, Version, find_version, has_subset

CHANGES = ("added", "removed", "edited", "moved", "reweighted")

CHANGED_SQL = """
    SELECT
        CASE WHEN a.split IS NULL THEN 'added' WHEN b.split IS NULL THEN 'removed'
            WHEN a.split <> b.split THEN 'moved' ELSE 'reweighted' END AS change,
        if(a.split IS NULL, NULL, conversation) AS before,
        if(b.split IS NULL, NULL, conversation) AS after,
        a.split AS split_before,
        b.split AS split_after,
        a.per_epoch AS per_epoch_before,
        b.per_epoch AS per_epoch_after
    FROM (SELECT conversation, split, per_epoch FROM members WHERE version = $before) a
    FULL JOIN (SELECT conversation, split, per_epoch FROM members WHERE version = $after) b USING (conversation)
    WHERE (a.split, a.per_epoch) IS DISTINCT FROM (b.split, b.per_epoch)
"""
"""The members that are not in the same split in both versions, or that an epoch uses more or less often."""

LEFT_OUT = "kept, but not in the sample or the mix"
"""The reason of a conversation that a version lacks although it is kept."""

EDITED_SQL = """
    WITH RECURSIVE edits AS (
        SELECT conversation AS old, edited_to AS new FROM verdicts WHERE edited_to IS NOT NULL
        UNION SELECT parent, id FROM conversations WHERE parent IS NOT NULL
    ), walk AS (
        SELECT before AS old, before AS new, [before] AS path FROM changed WHERE change = 'removed'
        UNION ALL
        SELECT walk.old, edits.new, list_append(path, edits.new)
        FROM walk JOIN edits ON edits.old = walk.new WHERE NOT list_contains(path, edits.new)
    ), pairs AS (
        SELECT old, new, len(path) AS length FROM walk
        WHERE new IN (SELECT after FROM changed WHERE change = 'added')
        QUALIFY row_number() OVER (PARTITION BY new ORDER BY len(path), old) = 1
    )
    SELECT old, new FROM pairs QUALIFY row_number() OVER (PARTITION BY old ORDER BY length, new) = 1
"""
"""One-to-one pairs of a removed conversation and the added one that it was edited to, over any number of edits."""

VERDICTS_SQL = """
    SELECT conversation, by_whom || ': ' || reason AS verdict_reason, by_whom, verdict FROM (
        SELECT * FROM verdicts
        WHERE seq < (SELECT seq FROM versions WHERE version = $version)
          AND conversation IN (SELECT coalesce(before, after) FROM changed)
        QUALIFY row_number() OVER (
            PARTITION BY conversation, by_whom = 'rule' ORDER BY seq DESC) = 1
    ) WHERE verdict <> 'undecided'
    QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY by_whom = 'rule') = 1
"""
"""The valid verdict on each conversation when a version was frozen: the latest human one, otherwise that of a rule."""

ORIGINS_SQL = """
    SELECT conversation, arg_min(path, number) AS path, arg_min(coalesce(line, row), number) AS line,
        min(seq) > (SELECT seq FROM versions WHERE version = $before) AS is_new
    FROM (SELECT *, row_number() OVER (ORDER BY seq, row) AS number
          FROM origins JOIN sources USING (source) WHERE conversation IN (SELECT after FROM changed))
    GROUP BY conversation
"""
"""The first imported row of each conversation."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A recipe key with different values in the two versions; None if a version does not have the key."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class TurnChange:
    """A turn that an edit changed: its position from 0, its role, and the lines of a unified diff."""

    position: int
    role: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """The changes from one version to another.

    `changes` has one row per change: `change`, `before` and `after` (ids, null if there is none), `split_before`,
    `split_after`, `per_epoch_before`, `per_epoch_after`, `reason`, `origin` (file and line of the first import). The
    counts add up: conversations before = unchanged + moved + reweighted + edited + removed, conversations after =
    unchanged + moved + reweighted + edited + added.
    """

    before: Version
    after: Version
    changes: pl.DataFrame
    recipe: tuple[KeyChange, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of conversations per change, and of unchanged ones."""
        by_change = dict(self.changes.group_by("change").len().iter_rows())
        counts = {change: int(by_change.get(change, 0)) for change in CHANGES}
        changed = sum(counts.values()) - counts["added"]
        return {"unchanged": sum(self.before.counts.values()) - changed, **counts}

    @property
    def reasons(self) -> pl.DataFrame:
        """Counts per reason: `change`, `reason`, `conversations`, the most frequent first within each change."""
        order = pl.col("change").cast(pl.Enum(CHANGES))
        grouped = self.changes.group_by("change", "reason").agg(pl.len().alias("conversations"))
        return grouped.sort(order, -pl.col("conversations").cast(pl.Int64), "reason")

    def as_json(self) -> dict[str, Any]:
        """The counts, reasons and recipe changes as plain values, without the individual changes."""
        return {
            "before": self.before.label,
            "after": self.after.label,
            "conversations_before": sum(self.before.counts.values()),
            "conversations_after": sum(self.after.counts.values()),
            "counts": self.counts,
            "reasons": self.reasons.to_dicts(),
            "recipe": [asdict(change) for change in self.recipe],
            "total_changes": self.changes.height,
        }


@timed("comparing members")
def diff_versions(connection: DuckDBPyConnection, before: str, after: str) -> VersionDiff:
    """The changes from the version labelled `before` to `after`. Raises `VersionError` if one does not exist."""
    first, second = find_version(connection, before), find_version(connection, after)
    recipe = tuple(diff_recipes(first.recipe, second.recipe))
    changed = connection.sql(CHANGED_SQL, params={"before": first.label, "after": second.label}).pl()
    connection.register("changed", changed)
    edits = connection.sql(EDITED_SQL).pl()
    earlier, current = (
        connection.sql(VERDICTS_SQL, params={"version": version.label}).pl() for version in (first, second)
    )
    origins = connection.sql(ORIGINS_SQL, params={"before": first.label}).pl()
    connection.unregister("changed")
    drops = earlier.filter(pl.col("verdict") == "drop").select(
        "conversation", pl.col("verdict_reason").alias("dropped_by")
    )
    conversation = pl.coalesce("before", "after")
    changes = (
        _join_edits(changed, edits)
        .join(current, left_on=conversation, right_on="conversation", how="left")
        .join(drops, left_on=conversation, right_on="conversation", how="left")
        .join(origins, left_on="after", right_on="conversation", how="left")
        .with_columns(_reason(first, second, recipe), _origin())
        .sort(pl.col("change").cast(pl.Enum(CHANGES)), "before", "after")
    )
    return VersionDiff(first, second, changes.select(*changed.columns, "reason", "origin"), recipe)


@timed("reading changed conversations")
def list_changes(connection: DuckDBPyConnection, diff: VersionDiff, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` changes as plain values; an edit also has `turns`, the changes of each turn."""
    rows = diff.changes if limit is None else diff.changes.head(limit)
    changes = rows.to_dicts()
    for change in changes:  # a loop, because only as many are listed as a person reads
        if change["change"] == "edited":
            conversations = _read_pair(connection, change["before"], change["after"])
            change["turns"] = [asdict(turn) for turn in diff_turns(*conversations)]
    return changes


def diff_recipes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[KeyChange]:
    """The keys with different values, written with dots, in alphabetical order.

    >>> list(diff_recipes({"freeze": {"salt": ""}}, {"freeze": {"salt": "b"}}))
    [KeyChange(key='freeze.salt', before='', after='b')]
    """
    old, new = dict(flatten_keys(before)), dict(flatten_keys(after))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield KeyChange(key, old.get(key), new.get(key))


def diff_turns(before: Conversation, after: Conversation) -> Iterator[TurnChange]:
    """The turns that differ, compared by position, each as a unified diff; the tools have position -1."""
    if before.tools != after.tools:
        yield TurnChange(-1, "tools", _diff_lines(before.tools or "", after.tools or ""))
    for position, (old, new) in enumerate(zip_longest(before.turns, after.turns)):
        if old != new:
            role = " → ".join(dict.fromkeys(turn.role for turn in (old, new) if turn))
            yield TurnChange(position, role, _diff_lines(_turn_text(old), _turn_text(new)))


def _read_pair(connection: DuckDBPyConnection, before: str, after: str) -> tuple[Conversation, Conversation]:
    query = "SELECT conversations, tools FROM conversations WHERE id = ?"
    (old,), (new,) = (connection.sql(query, params=[id_]).pl().to_dicts() for id_ in (before, after))
    return Conversation.from_row(old), Conversation.from_row(new)


def _join_edits(changed: pl.DataFrame, edits: pl.DataFrame) -> pl.DataFrame:
    """The changes, with the two rows of each edit (one removed, one added) replaced by one."""
    ends = changed.with_columns(id=pl.coalesce("before", "after"))
    edited = (
        edits.join(ends.select("id", "split_before", "per_epoch_before"), left_on="old", right_on="id")
        .join(ends.select("id", "split_after", "per_epoch_after"), left_on="new", right_on="id")
        .select(pl.lit("edited").alias("change"), pl.col("old").alias("before"), pl.col("new").alias("after"),
                *changed.columns[3:])
    )  # fmt: skip
    is_part_of_edit = (
        (pl.col("change") == "removed") & pl.col("before").is_in(edits["old"].implode())
        | (pl.col("change") == "added") & pl.col("after").is_in(edits["new"].implode())
    )  # fmt: skip
    return pl.concat([changed.filter(~is_part_of_edit), edited])


def _reason(first: Version, second: Version, recipe: tuple[KeyChange, ...]) -> pl.Expr:
    is_left_out = (pl.col("change") == "removed") & (pl.col("verdict").fill_null("keep") == "keep")
    return (
        pl.when(pl.col("change") == "added").then(_reason_of_added(first))
        .when(pl.col("change") == "moved").then(pl.lit(_reason_of_moved(second, recipe)))
        .when(pl.col("change") == "reweighted").then(pl.lit(_reason_of_reweighted(recipe)))
        .when(is_left_out & has_subset(second.recipe)).then(pl.lit(LEFT_OUT))
        .otherwise(pl.coalesce("verdict_reason", pl.lit("not kept, without a verdict")))
        .alias("reason")
    )  # fmt: skip


def _reason_of_moved(second: Version, recipe: tuple[KeyChange, ...]) -> str:
    section = second.recipe.get("freeze", {})
    if any(change.key.startswith("freeze.") for change in recipe):
        return "freeze.* in the recipe changed"
    if isinstance(section.get("held_out"), int) or "stratify" in section:
        return "a number or strata are held out, and other conversations came or went"
    return "its group grew and got another hash"


def _reason_of_reweighted(recipe: tuple[KeyChange, ...]) -> str:
    is_new = any(change.key.partition(".")[0] == MIX for change in recipe)
    return "mix.* in the recipe changed" if is_new else "the sizes of the parts of the mix changed"


def _reason_of_added(first: Version) -> pl.Expr:
    """Why a conversation is only in the later version; for a rule verdict, the rule that dropped it before."""
    return (
        pl.when(pl.col("is_new").is_null()).then(pl.coalesce("verdict_reason", pl.lit("result of an edit")))
        .when("is_new").then(pl.concat_str(pl.lit("imported from "), "path"))
        .when(pl.col("by_whom") != RULE).then(pl.concat_str(pl.lit("already imported, now kept by "), "verdict_reason"))
        .otherwise(pl.coalesce(
            pl.concat_str(pl.lit("already imported, no longer dropped by "), "dropped_by"),
            pl.lit(
                "already imported, but not in the earlier sample or mix"
                if has_subset(first.recipe)
                else "already imported, without a verdict at the earlier freeze"
            ),
        ))
    )  # fmt: skip


def _origin() -> pl.Expr:
    return pl.concat_str("path", pl.lit(":"), pl.col("line").cast(pl.String)).alias("origin")


def _turn_text(turn: Turn | None) -> str:
    """The turn as lines of text, after a line with its role and flags."""
    if turn is None:
        return ""
    return f"({turn.role})" + ("" if turn.train else " (no loss)") + f"\n{turn.value}"


def _diff_lines(before: str, after: str) -> tuple[str, ...]:
    """The changed lines with one line of context, each after its sign, so that only hunk headers begin with `@@`."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm=""))[2:]  # without header
    return tuple(line for line in lines if not line.startswith("@@"))
