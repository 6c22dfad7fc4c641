"""Rows of `versions` and `members` → frozen versions: their conversations, splits, recipe and digest.

`curate` writes versions and `train` reads them; this module is their only connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.digest import canonical_json, text_digest
from schemas.errors import VersionError
from schemas.text import plural

SPLITS = ("train", "held_out")

MIX = "mix"
"""The section of a version's recipe that makes an epoch use some members more than once; absent without one."""


@dataclass(frozen=True, slots=True)
class Version:
    """A frozen version, without its members."""

    name: str
    number: int
    digest: str
    parent: str | None
    recipe: dict[str, Any]
    counts: dict[str, int]
    frozen_at: datetime

    @property
    def label(self) -> str:
        """The label used on the command line: `support@3`."""
        return f"{self.name}@{self.number}"


def has_subset(recipe: Mapping[str, Any]) -> bool:
    """Whether a version with this recipe may lack conversations that are kept: it has a sample or a mix."""
    return MIX in recipe or "sample" in recipe.get("freeze", {})


def version_digest(members: pl.DataFrame, recipe: dict[str, Any]) -> str:
    """SHA-256 (64 hex digits) over the lines `id split`, sorted by id, followed by the JSON of the recipe's data part.

    A member that an epoch uses more than once has the line `id split per_epoch`. `members` has the columns
    `conversation`, `split` and `per_epoch`, in any order.
    """
    times = pl.when(pl.col("per_epoch") == 1).then(pl.lit("")).otherwise(pl.format(" {}", "per_epoch"))
    line = pl.concat_str("conversation", pl.lit(" "), "split", times, pl.lit("\n"))
    lines = members.sort("conversation").select(line.str.join(""))
    text = lines.item() if members.height else ""
    return text_digest(f"{text}{canonical_json(recipe)}")


def find_version(connection: DuckDBPyConnection, label: str) -> Version:
    """The version called `label`: `support@3`, or `support` for the latest.

    Raises `VersionError` that lists the existing versions.
    """
    name, at, number = label.partition("@")
    query = "SELECT name, number, digest, parent, recipe, counts, epoch_us(frozen_at) FROM versions WHERE name = ?"
    found = connection.execute(f"{query} ORDER BY number DESC", [name]).fetchall()
    for found_name, found_number, digest, parent, recipe, counts, microseconds in found:
        if not at or str(found_number) == number:
            at_time = datetime.fromtimestamp(microseconds / 1e6, UTC)
            return Version(found_name, found_number, digest, parent, json.loads(recipe), json.loads(counts), at_time)
    known = [v for (v,) in connection.execute("SELECT version FROM versions ORDER BY name, number").fetchall()]
    have = f"The store has {', '.join(known)}." if known else "The store has no versions yet: run curate freeze NAME."
    raise VersionError(f"There is no version {label}.", have)


def read_members(connection: DuckDBPyConnection, version: Version, split: str | None = None) -> pl.DataFrame:
    """The conversations of a version, sorted by id: columns `id`, `conversations`, `tools`, `split`, `per_epoch`.

    `split` selects one split. Raises `VersionError` if the members no longer match the version's digest.
    """
    members = check_members(connection, version)
    frame: pl.DataFrame = connection.sql(
        """SELECT c.id, c.conversations, c.tools, m.split, m.per_epoch
           FROM members m JOIN conversations c ON c.id = m.conversation
           WHERE m.version = ? AND (m.split = ? OR ? IS NULL) ORDER BY c.id""",
        params=[version.label, split, split],
    ).pl()
    expected = members.height if split is None else members.filter(pl.col("split") == split).height
    if frame.height != expected:
        raise VersionError(
            f"{version.label} has {plural(expected, 'conversation')}, but the store has only {frame.height:,} of them.",
            "Restore the version from its exported bundle: curate restore BUNDLE",
        )
    return frame


def check_members(connection: DuckDBPyConnection, version: Version) -> pl.DataFrame:
    """The members of a version: columns `conversation`, `split`, `per_epoch`.

    Raises `VersionError` if they no longer match the version's digest.
    """
    members: pl.DataFrame = connection.sql(
        "SELECT conversation, split, per_epoch FROM members WHERE version = ?", params=[version.label]
    ).pl()
    if version_digest(members, version.recipe) != version.digest:
        raise VersionError(
            f"The members of {version.label} are not those that were frozen: their digest differs.",
            "The store was changed by hand; restore the version from its exported bundle: curate restore BUNDLE",
        )
    return members
