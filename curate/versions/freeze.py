"""Kept conversations and a recipe → a frozen version `name@number` with its splits and digest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.rule_columns import WHERE
from curate.scorers.plan import plan_scorers
from curate.selection import KEPT_SQL, count_outdated_duplicates, latest_selection
from curate.versions.placement import Placement, place_members
from curate.versions.split import count_groups, count_splits
from schemas.cluster import METHOD, NEAR_DUPLICATE, Clustering, count_unclustered, find_clustering
from schemas.conversation import PRESENT_SQL
from schemas.digest import canonical_json
from schemas.errors import VersionError
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.text import plural
from schemas.timing import timed
from schemas.version import Version, find_version, version_digest

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
NO_PARENT = "none"

LAST_NUMBER = 2**31 - 1
"""The largest version number that a store can hold; a bundle may contain it."""


@dataclass(frozen=True, slots=True)
class FreezeResult:
    """The version that a freeze wrote or found, and statistics of its splits."""

    version: Version
    new: bool
    written: bool
    groups: dict[str, int]
    """split -> groups"""
    moved: int
    """conversations that are in the other split than in the parent version"""
    placement: Placement

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        version, placement = self.version, self.placement
        return {
            "version": version.label,
            "new": self.new,
            "digest": version.digest,
            "parent": version.parent,
            "conversations": sum(version.counts.values()),
            "counts": version.counts,
            "groups": self.groups,
            "moved_since_parent": self.moved,
            "kept": placement.kept,
            "sampled": placement.sampled,
            "held_out_wanted": placement.wanted,
            "strata": placement.strata,
            "named_splits": asdict(placement.named) if placement.named else None,
            "mix": [asdict(part) for part in placement.mix],
        }


@timed("freezing")
def freeze(
    connection: DuckDBPyConnection, name: str, recipe: Recipe, *, parent: str | None = None, dry_run: bool = False
) -> FreezeResult:
    """Write the kept conversations and `recipe` as a new version, or return the version of this name with this digest.

    `parent` is a label, `none`, or None for the newest version of this name. `dry_run` writes nothing and accepts a
    read-only connection. Raises `RecipeError` for invalid scorer parameters and unknown columns. Raises `VersionError`
    for an invalid name, an unknown parent, no kept conversation or fewer than the recipe asks for, and if the latest
    selection or near-duplicate search used other rules or parameters than `recipe`, because a version states the recipe
    that produced it.
    """
    check_name(name)
    plan_scorers(recipe.score)
    data_recipe = recipe.data_part() | applied_clustering(connection, recipe)
    data_recipe["select"]["rules"] = applied_rules(connection, recipe)
    _check_not_empty(connection)
    placement = place_members(connection, recipe)
    members = placement.members
    digest = version_digest(members, data_recipe)
    newest = _find_newest(connection, name)
    existing = _find_by_digest(connection, name, digest)
    parent = _parent_label(connection, parent, newest)
    counts = count_splits(members)
    version = existing or Version(name, _next_number(newest), digest, parent, data_recipe, counts, datetime.now(UTC))
    written = existing is None and not dry_run
    if written:
        write_version(connection, version, members)
    moved = _count_moved(connection, version.parent, members)
    return FreezeResult(version, existing is None, written, count_groups(members), moved, placement)


def applied_rules(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, str]:
    """The rules of the latest selection: those of the recipe, and the command's `--where` if it had one.

    Raises `VersionError` if they, or the scorer parameters of the selection, differ from `recipe`.
    """
    latest = latest_selection(connection)
    rules, scores = latest or ({}, recipe.score)
    of_recipe = {name: text for name, text in rules.items() if name != WHERE}
    hint = "Run curate select to apply the recipe's rules, with the same --recipe and --set as curate freeze."
    if of_recipe != recipe.select.rules:
        changes = "; ".join(_rule_changes(recipe.select.rules, of_recipe)) if latest else "no selection was made"
        raise VersionError(f"The recipe's rules differ from those of the latest selection: {changes}.", hint)
    if scores != recipe.score:
        now, then = canonical_json(recipe.score), canonical_json(scores)
        raise VersionError(f"The recipe's [score] ({now}) differs from that of the latest selection ({then}).", hint)
    return rules


def applied_clustering(connection: DuckDBPyConnection, recipe: Recipe) -> dict[str, Any]:
    """The `dedup` section for the version's recipe, or an empty mapping if `curate dedup` was never run.

    Raises `VersionError` if the search for near-duplicates is of an earlier revision, used other parameters, did not
    cover all conversations, or is newer than a selection that uses its result.
    """
    clustering = find_clustering(connection)
    if clustering is None:
        return {}
    hint = "Run curate dedup again, with the same --recipe and --set as curate freeze."
    if clustering.is_outdated:
        what = f"The near-duplicates in the store were found by an earlier search ({clustering.method}; now {METHOD})."
        raise VersionError(what, hint)
    now = recipe.dedup.model_dump(mode="json")
    if clustering.parameters != now:
        then = canonical_json(clustering.parameters)
        raise VersionError(f"The recipe's [dedup] ({canonical_json(now)}) differs from the applied one ({then}).", hint)
    if count := count_unclustered(connection, clustering):
        raise VersionError(
            f"The latest search for near-duplicates does not cover {plural(count, 'conversation')}, so the split could "
            "separate near-duplicates.",
            "curate dedup",
        )
    if _selected_before(connection, clustering):
        raise VersionError(
            f"The latest selection uses {NEAR_DUPLICATE}, but curate dedup was run after it.", "curate select"
        )
    if count := count_outdated_duplicates(connection):
        raise VersionError(
            f"The latest selection uses {NEAR_DUPLICATE}, and people changed {plural(count, 'verdict')} on "
            "conversations with near-duplicates after it.",
            "curate select",
        )
    return {"dedup": clustering.parameters}


def _selected_before(connection: DuckDBPyConnection, clustering: Clustering) -> bool:
    """Whether the latest selection has a rule on near-duplicates and is older than `clustering`."""
    latest = connection.sql("SELECT rules, seq FROM selections ORDER BY seq DESC LIMIT 1")
    return any(
        seq < clustering.seq
        and any((NEAR_DUPLICATE,) in Expression.read(rule, name).names for name, rule in json.loads(rules).items())
        for rules, seq in latest.fetchall()
    )


def _rule_changes(now: Mapping[str, str], then: Mapping[str, str]) -> Iterator[str]:
    for name, text in now.items():
        if name not in then:
            yield f"{name} is new ({text})"
        elif text != then[name]:
            yield f"{name} is now {text} and was {then[name]}"
    yield from (f"{name} was removed ({text})" for name, text in then.items() if name not in now)


def check_name(name: str) -> str:
    """Return `name` if it is a valid version name. Raises `VersionError` otherwise."""
    if not NAME.fullmatch(name):
        raise VersionError(
            f"{name!r} is not a valid version name.",
            "Use lower-case letters, digits, '.', '_' and '-', such as support; the number after @ is assigned.",
        )
    return name


def _check_not_empty(connection: DuckDBPyConnection) -> None:
    ((kept,),) = connection.sql(f"SELECT count(*) FROM ({KEPT_SQL})").fetchall()
    if kept:
        return
    ((stored,),) = connection.sql(f"SELECT count(*) FROM conversations c WHERE {PRESENT_SQL}").fetchall()
    if stored:
        raise VersionError(
            f"None of the {stored:,} conversations in the store is kept, so there is nothing to freeze.",
            "curate select --dry-run shows how many conversations each rule drops.",
        )
    raise VersionError("The store has no conversations yet.", "curate import FILE")


def _find_newest(connection: DuckDBPyConnection, name: str) -> Version | None:
    counts = connection.execute("SELECT count(*) FROM versions WHERE name = ?", [name]).fetchall()
    return find_version(connection, name) if counts[0][0] else None


def _next_number(newest: Version | None) -> int:
    if newest is None:
        return 1
    if newest.number == LAST_NUMBER:
        raise VersionError(f"{newest.label} has the largest possible number.", "Freeze under another name.")
    return newest.number + 1


def _find_by_digest(connection: DuckDBPyConnection, name: str, digest: str) -> Version | None:
    query = "SELECT version FROM versions WHERE name = ? AND digest = ? ORDER BY number DESC LIMIT 1"
    labels = connection.execute(query, [name, digest]).fetchall()
    return find_version(connection, labels[0][0]) if labels else None


def _parent_label(connection: DuckDBPyConnection, parent: str | None, newest: Version | None) -> str | None:
    if parent is None:
        return newest.label if newest else None
    return None if parent == NO_PARENT else find_version(connection, parent).label


@timed("writing the version")
def write_version(connection: DuckDBPyConnection, version: Version, members: pl.DataFrame) -> None:
    """Insert a version and its members (`conversation`, `split`, `per_epoch`)."""
    connection.execute(
        "INSERT INTO versions (version, name, number, digest, parent, recipe, counts, frozen_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            version.label,
            version.name,
            version.number,
            version.digest,
            version.parent,
            canonical_json(version.recipe),
            json.dumps(version.counts),
            version.frozen_at,
        ],
    )
    write_members(connection, version.label, members)


def write_members(connection: DuckDBPyConnection, label: str, members: pl.DataFrame) -> None:
    """Insert the members of a version (`conversation`, `split`, `per_epoch`)."""
    connection.register("new_members", members)
    connection.execute("INSERT INTO members SELECT ?, conversation, split, per_epoch FROM new_members", [label])
    connection.unregister("new_members")


def _count_moved(connection: DuckDBPyConnection, parent: str | None, members: pl.DataFrame) -> int:
    """How many conversations are in the other split in the parent version."""
    before = connection.sql(
        "SELECT conversation, split AS split_before FROM members WHERE version = ?", params=[parent]
    ).pl()
    return members.join(before, on="conversation").filter(pl.col("split") != pl.col("split_before")).height


def list_versions(connection: DuckDBPyConnection, name: str | None = None) -> list[dict[str, Any]]:
    """All versions, or those of one name, oldest first: label, conversations per split, digest, parent, date, runs.

    Raises `VersionError` if there is no version called `name`.
    """
    if name is not None:
        find_version(connection, name)
    labels = connection.execute(
        "SELECT version FROM versions WHERE name = ? OR ? IS NULL ORDER BY name, number", [name, name]
    ).fetchall()
    return [_version_row(connection, find_version(connection, label)) for (label,) in labels]


def _version_row(connection: DuckDBPyConnection, version: Version) -> dict[str, Any]:
    runs = connection.execute("SELECT run FROM runs WHERE version = ? ORDER BY seq", [version.label]).fetchall()
    return {
        "version": version.label,
        "conversations": sum(version.counts.values()),
        **version.counts,
        "digest": version.digest,
        "parent": version.parent,
        "frozen_at": version.frozen_at,
        "runs": [run for (run,) in runs],
    }
