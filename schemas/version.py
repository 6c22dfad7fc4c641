"""A frozen version of a dataset: which conversations, on which side of the split, by which recipe.

This is where `curate` and `train` meet: the one writes versions, the other reads them, both through here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from schemas.digest import canonical_json, text_digest
from schemas.errors import VersionError
from schemas.text import plural

SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class Version:
    """What the store knows of a frozen version, without its members."""

    name: str
    number: int
    digest: str
    parent: str | None
    recipe: dict[str, Any]
    counts: dict[str, int]
    frozen_at: datetime

    @property
    def label(self) -> str:
        """The name people use: `support@3`."""
        return f"{self.name}@{self.number}"


def version_digest(members: pl.DataFrame, recipe: dict[str, Any]) -> str:
    """SHA-256 (64 hex digits) over the lines `id split`, sorted by id, and the JSON of the recipe's data part.

    `members` has the columns `conversation` and `split`, in any order.
    """
    lines = members.sort("conversation").select(
        pl.concat_str("conversation", pl.lit(" "), "split", pl.lit("\n")).str.join("")
    )
    text = lines.item() if members.height else ""
    return text_digest(f"{text}{canonical_json(recipe)}")


def find_version(connection: DuckDBPyConnection, label: str) -> Version:
    """The version called `label`: `support@3`, or `support` for its newest.

    Raises `VersionError` naming the versions that are there.
    """
    name, at, number = label.partition("@")
    query = "SELECT name, number, digest, parent, recipe, counts, epoch_us(frozen_at) FROM versions WHERE name = ?"
    found = connection.execute(f"{query} ORDER BY number DESC", [name]).fetchall()
    for found_name, found_number, digest, parent, recipe, counts, microseconds in found:
        if not at or str(found_number) == number:
            at_time = datetime.fromtimestamp(microseconds / 1e6, UTC)
            return Version(found_name, found_number, digest, parent, json.loads(recipe), json.loads(counts), at_time)
    known = [v for (v,) in connection.execute("SELECT version FROM versions ORDER BY name, number").fetchall()]
    have = (
        f"The store has {', '.join(known)}." if known else "The store has no version yet: curate freeze NAME makes one."
    )
    raise VersionError(f"There is no version {label}.", have)


def read_members(connection: DuckDBPyConnection, version: Version, split: str | None = None) -> pl.DataFrame:
    """The conversations of a version, sorted by id: columns `id`, `conversations`, `tools`, `split`.

    `split` keeps one side. Raises `VersionError` when the members do not give the version's digest any more.
    """
    members = check_members(connection, version)
    frame: pl.DataFrame = connection.sql(
        """SELECT c.id, c.conversations, c.tools, m.split FROM members m JOIN conversations c ON c.id = m.conversation
           WHERE m.version = ? AND (m.split = ? OR ? IS NULL) ORDER BY c.id""",
        params=[version.label, split, split],
    ).pl()
    wanted = members.height if split is None else members.filter(pl.col("split") == split).height
    if frame.height != wanted:
        raise VersionError(
            f"{version.label} has {plural(wanted, 'conversation')}; the store has {frame.height:,} of them.",
            "Rebuild the version from its exported bundle.",
        )
    return frame


def check_members(connection: DuckDBPyConnection, version: Version) -> pl.DataFrame:
    """The ids and sides of a version's members: `conversation`, `split`.

    Raises `VersionError` when they do not give the version's digest any more.
    """
    members: pl.DataFrame = connection.sql(
        "SELECT conversation, split FROM members WHERE version = ?", params=[version.label]
    ).pl()
    if version_digest(members, version.recipe) != version.digest:
        raise VersionError(
            f"The members of {version.label} are not the ones that were frozen: their digest differs.",
            "The store was changed by hand; curate restore rebuilds the version from its exported bundle.",
        )
    return members
