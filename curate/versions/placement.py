"""Kept conversations, `[freeze]` and `[mix]` → the members of a version, with `train` or `held_out` for each group.

A group is placed as a unit by a hash, so sample and split are independent of random seeds and of the order of import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.named_split import HELD_OUT_NAMES, SPLIT_COLUMN, TRAIN_NAMES
from curate.rule_columns import EDITS_SQL, find_values
from curate.versions.mixture import PartCount, hash_texts, mix_members
from curate.versions.split import NO_LINKS, group_members
from schemas.errors import VersionError
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.text import plural
from schemas.version import SPLITS
from schemas.version_recipe import FreezeSection

TRAIN, HELD_OUT = SPLITS

EMPTY = "(empty)"
"""How a stratum shows that a column has no value."""


NAMED_SQL = f"""
    {EDITS_SQL}, named AS (
        SELECT conversation AS imported, lower(trim(metadata ->> '$."{SPLIT_COLUMN}"')) AS name FROM origins
        WHERE contains(metadata::VARCHAR, '"{SPLIT_COLUMN}"')
    )
    SELECT edits.conversation,
        CASE WHEN bool_or(list_contains(?, name)) THEN 'held_out' WHEN bool_or(list_contains(?, name)) THEN 'train' END
        AS named
    FROM edits JOIN named USING (imported) GROUP BY ALL
"""
"""The split by which the rows of a conversation are named, in all of its imports; an edit has that of the original."""


@dataclass(frozen=True, slots=True)
class NamedSplits:
    """How many members are placed by the name of a split, and how many are not."""

    train: int
    held_out: int
    moved: int
    """of `held_out`: named as train, in a group with a row that is named as held out"""
    unnamed: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The members of a version, and how they were chosen and placed."""

    members: pl.DataFrame
    """`conversation`, `group`, `split`, `per_epoch`"""
    kept: int
    """kept conversations, before sampling"""
    sampled: int
    """of these in the sample, before mixing"""
    wanted: int | None = None
    """conversations to hold out, if the recipe gives or implies a number; groups can make it impossible"""
    strata: list[dict[str, Any]] = field(default_factory=list)
    """`stratum`, `conversations`, `held_out`"""
    named: NamedSplits | None = None
    """if the store has rows that are named as held out, and the recipe uses such names"""
    mix: list[PartCount] = field(default_factory=list)

    @property
    def unrepresented(self) -> list[str]:
        """The strata without a held-out conversation."""
        return [stratum["stratum"] for stratum in self.strata if not stratum["held_out"]]


def place_members(connection: DuckDBPyConnection, recipe: Recipe) -> Placement:
    """Group, sample, split and mix the kept conversations.

    Raises `RecipeError` for unknown columns, and `VersionError` if more conversations are asked for than there are.
    """
    section = recipe.freeze
    kept = group_members(connection, _group_links(connection, recipe))
    named = _read_named(connection, kept) if section.named_splits else kept.with_columns(named=None, placed=None)
    members = _sample(named, section)
    columns = [Expression.read(column, "freeze.stratify") for column in section.stratify]
    strata = _read_strata(connection, recipe, members, columns)
    free = strata.filter(pl.col("placed").is_null())
    wanted = None
    if free.is_empty() or (not columns and isinstance(section.held_out, float)):
        groups = free.select("group", split=_split_by_share(float(section.held_out), section.salt)).unique()
    else:
        wanted = _count_wanted(free.height, section.held_out, named=members.height > free.height)
        groups = _split_by_count(free.drop("named", "placed"), wanted, section.salt)
    placed = members.join(groups, on="group", how="left", maintain_order="left").select(
        "conversation", "group", pl.coalesce("placed", "split").alias("split")
    )
    by_stratum = _count_strata(placed, strata, section.stratify) if columns else []
    mixed, parts = mix_members(connection, recipe, placed)
    return Placement(mixed, kept.height, members.height, wanted, by_stratum, _count_named(members), parts)


def _read_named(connection: DuckDBPyConnection, kept: pl.DataFrame) -> pl.DataFrame:
    """The kept conversations with the split that their rows name, and the one that follows for their groups.

    A group with a row that is named as held out is held out. If no row is, names decide nothing: a lone `train.jsonl`
    is split like any other file.
    """
    names = connection.sql(NAMED_SQL, params=[list(HELD_OUT_NAMES), list(TRAIN_NAMES)]).pl()
    named = kept.join(names, on="conversation", how="left", maintain_order="left")
    if not (named["named"] == HELD_OUT).any():
        return kept.with_columns(named=None, placed=None)
    return named.with_columns(placed=pl.col("named").min().over("group"))  # held_out comes before train


def _count_named(members: pl.DataFrame) -> NamedSplits | None:
    if members["placed"].null_count() == members.height:
        return None
    placed = pl.col("placed")
    counts = members.select(
        train=(placed == TRAIN).sum(),
        held_out=(placed == HELD_OUT).sum(),
        moved=((placed == HELD_OUT) & (pl.col("named") == TRAIN)).sum(),
        unnamed=placed.is_null().sum(),
    )
    return NamedSplits(**counts.row(0, named=True))


def _group_links(connection: DuckDBPyConnection, recipe: Recipe) -> pl.DataFrame:
    """A link for each value of each column in `freeze.group`, in all imports of a conversation."""
    columns = [Expression.read(column, "freeze.group") for column in recipe.freeze.group]
    if not columns:
        return NO_LINKS
    values = find_values(connection, recipe, columns, per_import=True)
    links = values.unpivot(index="conversation", variable_name="column", value_name="value").drop_nulls("value")
    return links.select("conversation", link=pl.format("column {} {}", "column", "value")).unique()


def _sample(kept: pl.DataFrame, section: FreezeSection) -> pl.DataFrame:
    """The first conversations in the order of a hash, so that a larger sample contains the smaller one."""
    if section.sample is None:
        return kept
    size = section.sample if isinstance(section.sample, int) else max(1, round(section.sample * kept.height))
    if size > kept.height:
        raise VersionError(
            f"A sample of {size:,} is asked for, but only {plural(kept.height, 'conversation')} are kept.",
            f"Use --sample {kept.height} or less; curate select --dry-run shows how many each rule drops.",
        )
    return kept.sort(hash_texts(f"sample {section.salt} ", "conversation"), "conversation").head(size)


def _split_by_share(share: float, salt: str) -> pl.Expr:
    """`held_out` if SHA-256(salt + group), read as a fraction, is below `share`.

    A larger share only moves groups from `train` to `held_out`, and a group stays where it is when others are imported
    or dropped. `share` is the expected share of groups, not an exact one: with n groups the standard deviation is
    sqrt(p(1-p)/n). 5 % of 1,000 groups is between 4.3 % and 5.7 % in two of three cases; with 20 groups `held_out` is
    empty in one of three cases. A large group, such as many chats that open with the same greeting, moves as a unit.
    """
    is_held_out = hash_texts(salt, "group") < f"{int(share * 2**64):016x}"
    return pl.when(is_held_out).then(pl.lit(HELD_OUT)).otherwise(pl.lit(TRAIN))


# --- numbers of conversations


def _count_wanted(members: int, held_out: int | float, *, named: bool) -> int:
    wanted = held_out if isinstance(held_out, int) else round(held_out * members)
    if wanted >= max(members, 1):
        which = " without a named split" if named else ""
        raise VersionError(
            f"{plural(wanted, 'conversation')} would be held out of {members:,}{which}, which leaves none to train on.",
            f"Use a smaller number, such as --held-out {members // 10}, or a share, such as --held-out 10%.",
        )
    return wanted


def _read_strata(
    connection: DuckDBPyConnection, recipe: Recipe, members: pl.DataFrame, columns: Sequence[Expression]
) -> pl.DataFrame:
    """The members with the values of `columns`, named `0`, `1`, …."""
    if not columns:
        return members
    values = find_values(connection, recipe, columns)
    return members.join(values, on="conversation", how="left", maintain_order="left")


def _split_by_count(members: pl.DataFrame, wanted: int, salt: str) -> pl.DataFrame:
    """The split of each group (`group`, `split`), so that `wanted` conversations are held out, in proportion.

    Each stratum gets its share of `wanted`, by largest remainder. Its groups are taken in the order of a hash, without
    those that no longer fit, so that groups are whole and `wanted` is never exceeded. What a stratum cannot fill is
    taken from all strata. The result is exact if there are enough groups of one conversation.
    """
    values = pl.exclude("conversation", "group")
    strata = members.with_columns(stratum=pl.struct(pl.lit(0).alias("all"), values).rank("dense"))
    sizes = strata.group_by("group", "stratum").len("size").sort("size", "stratum", descending=[True, False])
    groups = sizes.group_by("group", maintain_order=True).agg(pl.sum("size"), pl.first("stratum"))
    ordered = groups.sort(hash_texts(salt, "group"), "group")
    first = _fill(ordered, _share_out(ordered, wanted))
    missing = wanted - int(ordered.filter(first)["size"].sum())
    rest = ordered.with_columns(size=pl.when(first).then(wanted + 1).otherwise("size"), stratum=0)
    held_out = first | _fill(rest, {0: missing})
    return ordered.select("group", split=pl.when(held_out).then(pl.lit(HELD_OUT)).otherwise(pl.lit(TRAIN)))


def _share_out(groups: pl.DataFrame, wanted: int) -> dict[int, int]:
    """`wanted`, distributed to the strata in proportion to their sizes by largest remainder; it adds up."""
    total = max(int(groups["size"].sum()), 1)
    strata = groups.group_by("stratum").agg(pl.sum("size")).with_columns(
        share=pl.col("size") * wanted // total, remainder=pl.col("size") * wanted % total
    )  # fmt: skip
    left = wanted - int(strata["share"].sum())
    ranked = strata.sort("remainder", "stratum", descending=[True, False]).with_row_index("place")
    return dict(ranked.select("stratum", pl.col("share") + (pl.col("place") < left)).iter_rows())


def _fill(groups: pl.DataFrame, left: dict[int, int]) -> pl.Series:
    """Which groups are taken, in their order, if `left` conversations are to be taken of each stratum."""
    taken = []
    for stratum, size in groups.select("stratum", "size").iter_rows():  # each step depends on those before
        fits = size <= left[stratum]
        left[stratum] -= size * fits
        taken.append(fits)
    return pl.Series(taken, dtype=pl.Boolean)


def _count_strata(placed: pl.DataFrame, strata: pl.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The conversations of each stratum and those held out, the largest first."""
    values = [pl.col(str(number)).fill_null(EMPTY) for number in range(len(columns))]
    parts = [pl.format("{} = {}", pl.lit(column), value) for column, value in zip(columns, values, strict=True)]
    named = strata.select("conversation", stratum=pl.concat_str(parts, separator=", "))
    counted = named.join(placed, on="conversation").group_by("stratum").agg(
        pl.len().alias("conversations"), (pl.col("split") == HELD_OUT).sum().alias(HELD_OUT)
    )  # fmt: skip
    return counted.sort("conversations", "stratum", descending=[True, False]).to_dicts()
