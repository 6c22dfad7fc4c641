"""Kept conversations and `[freeze]` → the members of a version: `train` or `held_out` for each group.

A group is placed as a unit by a hash, so the split is independent of random seeds and of the order of import.
"""

from __future__ import annotations

import polars as pl
import polars_hash  # noqa: F401  registers the namespace `chash`
from duckdb import DuckDBPyConnection

from curate.versions.split import group_members
from schemas.recipe import FreezeSection


def place_members(connection: DuckDBPyConnection, section: FreezeSection) -> pl.DataFrame:
    """The kept conversations with their splits: columns `conversation`, `group`, `split`."""
    members = group_members(connection)
    return members.with_columns(split=_split_by_share(section.held_out, section.salt))


def _split_by_share(share: float, salt: str) -> pl.Expr:
    """`held_out` if SHA-256(salt + group), read as a fraction, is below `share`.

    A larger share only moves groups from `train` to `held_out`, and a group stays where it is when others are imported
    or dropped. `share` is the expected share of groups, not an exact one: with n groups the standard deviation is
    sqrt(p(1-p)/n). 5 % of 1,000 groups is between 4.3 % and 5.7 % in two of three cases; with 20 groups `held_out` is
    empty in one of three cases. A large group, such as many chats that open with the same greeting, moves as a unit.
    """
    hashed = pl.concat_str(pl.lit(salt), "group").chash.sha2_256()  # type: ignore[attr-defined]
    is_held_out = hashed < f"{int(share * 2**64):016x}"
    return pl.when(is_held_out).then(pl.lit("held_out")).otherwise(pl.lit("train"))
