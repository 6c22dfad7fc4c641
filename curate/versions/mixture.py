"""Members of a version and `[mix]` → how often an epoch of training uses each train conversation.

Each part takes conversations by a condition. `epochs` uses each of them so often; `count` and `share` use a subset of
them once. Conversations outside all parts are used once, or make up the rest of the epoch if there are shares. Which
conversations are in a subset follows from a hash, so a larger subset contains the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import polars_hash  # noqa: F401  registers the namespace `chash`
from duckdb import DuckDBPyConnection

from curate.rule_columns import find_values
from schemas.errors import RecipeError
from schemas.recipe import Recipe
from schemas.rule import Expression
from schemas.text import plural, shell_quote
from schemas.version_recipe import MixPart

OTHERS = "(others)"
"""The name of the conversations outside all parts."""

ROUNDING = 1e-9
"""Tolerance for shares that add up to 1 but for the rounding of floating-point numbers."""


@dataclass(frozen=True, slots=True)
class PartCount:
    """The train conversations of a part, how many uses of them an epoch has, and the share of the epoch."""

    part: str
    conversations: int
    used: int
    share: float
    limits: bool = False
    """whether the epoch would be larger if this part had more conversations"""


def mix_members(
    connection: DuckDBPyConnection, recipe: Recipe, members: pl.DataFrame
) -> tuple[pl.DataFrame, list[PartCount]]:
    """The members that an epoch uses, with `per_epoch`, and the counts of the parts, which are empty without a mix.

    Members of held_out are used once. Raises `RecipeError` for an invalid condition, for parts that overlap or match
    nothing, and for counts and shares that cannot be reached without repeating.
    """
    if not recipe.mix:
        return members.with_columns(per_epoch=pl.lit(1, pl.Int32)), []
    parts = _assign_parts(connection, recipe.mix, recipe, members)
    sizes = dict.fromkeys([*recipe.mix, OTHERS], 0) | dict(parts.group_by("part").len().iter_rows())
    _check_sizes(recipe.mix, sizes)
    used, limiting = _count_uses(recipe.mix, sizes)
    counts = pl.DataFrame({"part": list(used), "used": list(used.values()), "size": [sizes[part] for part in used]})
    place = hash_texts(f"mix {recipe.freeze.salt} ", "conversation").rank("ordinal").over("part").cast(pl.Int64) - 1
    times = pl.col("used") // pl.col("size") + (place < pl.col("used") % pl.col("size"))
    per_epoch = parts.join(counts, on="part").select("conversation", per_epoch=times.cast(pl.Int32))
    mixed = members.join(per_epoch, on="conversation", how="left", maintain_order="left").with_columns(
        pl.col("per_epoch").fill_null(1)
    )
    total = max(sum(used.values()), 1)
    report = [
        PartCount(part, sizes[part], count, count / total, limits=part == limiting) for part, count in used.items()
    ]
    return mixed.filter(pl.col("per_epoch") > 0), report


def hash_texts(prefix: str, column: str) -> pl.Expr:
    """SHA-256 of the prefix and each text of a column, in hex: an order that depends on the texts alone."""
    hashed: pl.Expr = pl.concat_str(pl.lit(prefix), column).chash.sha2_256()  # type: ignore[attr-defined]
    return hashed


def _assign_parts(
    connection: DuckDBPyConnection, mix: Mapping[str, MixPart], recipe: Recipe, members: pl.DataFrame
) -> pl.DataFrame:
    """The train conversations with the name of their part: `conversation`, `part`. NULL counts as false."""
    conditions = [Expression.read(part.where, f"mix.{name}.where") for name, part in mix.items()]
    values = find_values(connection, recipe, conditions, conditions=True)
    train = members.filter(pl.col("split") == "train").select("conversation")
    names = [
        pl.when(pl.col(str(number)) == "true").then(pl.lit(name)).alias(str(number)) for number, name in enumerate(mix)
    ]
    matched = train.join(values, on="conversation", how="left").select(
        "conversation", parts=pl.concat_list(names).list.drop_nulls()
    )
    overlapping = matched.filter(pl.col("parts").list.len() > 1)
    if overlapping.height:
        first = overlapping.sort("conversation").row(0, named=True)
        raise RecipeError(
            f"mix: {plural(overlapping.height, 'train conversation')} meet the conditions of several parts, such as "
            f"{first['conversation'][:12]} those of {' and '.join(first['parts'])}.",
            "Narrow one of the conditions with `and not (…)`.",
        )
    return matched.select("conversation", part=pl.col("parts").list.first().fill_null(OTHERS))


def _check_sizes(mix: Mapping[str, MixPart], sizes: Mapping[str, int]) -> None:
    for name, part in mix.items():
        size = sizes[name]
        if not size:
            raise RecipeError(
                f"mix.{name}: no train conversation meets {part.where!r}.",
                f"curate search --where {shell_quote(part.where)} shows the conversations of the store that do.",
            )
        if part.count is not None and part.count > size:
            raise RecipeError(
                f"mix.{name}: count is {part.count:,}, but only {plural(size, 'train conversation')} meet its "
                "condition.",
                f"The largest count is {size}; epochs = {part.count / size:.3g} repeats them.",
            )


def _count_uses(mix: Mapping[str, MixPart], sizes: Mapping[str, int]) -> tuple[dict[str, int], str | None]:
    """The uses of each part and of the others in an epoch, and the part that limits its size.

    With shares the epoch is the largest that keeps them and repeats nothing.
    """
    fixed = {name: _fixed_uses(part, sizes[name]) for name, part in mix.items() if part.share is None}
    shares = {name: part.share for name, part in mix.items() if part.share is not None}
    others, known = sizes[OTHERS], sum(fixed.values())
    if not shares:
        return fixed | ({OTHERS: others} if others else {}), None
    rest = 1 - sum(shares.values())
    if rest < ROUNDING:
        _check_nothing_else(fixed, others)
    elif not known + others:
        raise RecipeError(
            f"mix: the shares add up to {1 - rest:g}, and no train conversation makes up the rest.",
            "Let the shares add up to 1.",
        )
    limits = {name: sizes[name] / share for name, share in shares.items()}
    if rest >= ROUNDING:
        limits[OTHERS] = (known + others) / rest
    limiting = min(limits, key=lambda name: limits[name])
    total = limits[limiting]
    if rest >= ROUNDING and total * rest < known - 0.5:
        raise _unreachable(limiting, shares, sizes[limiting], fixed)
    used = {name: min(round(share * total), sizes[name]) for name, share in shares.items()}
    _check_used(used, shares, total)
    left = max(0, min(round(total * rest) - known, others))
    counts = {name: (fixed | used)[name] for name in mix}
    return counts | ({OTHERS: left} if others else {}), None if limiting == OTHERS else limiting


def _check_used(used: Mapping[str, int], shares: Mapping[str, float], total: float) -> None:
    """Raise `RecipeError` for a share that is less than one conversation of an epoch."""
    for name in (name for name, uses in used.items() if not uses):
        raise RecipeError(
            f"mix.{name}: a share of {shares[name]:g} of an epoch with {plural(round(total), 'conversation')} is less "
            "than one conversation.",
            "Raise the share, give count = 1 instead, or remove the part.",
        )


def _fixed_uses(part: MixPart, size: int) -> int:
    return part.count if part.count is not None else max(1, round((part.epochs or 0) * size))


def _check_nothing_else(fixed: Mapping[str, int], others: int) -> None:
    """Raise `RecipeError` if shares that add up to 1 leave no room for other parts or conversations."""
    if fixed:
        raise RecipeError(
            f"mix: the shares add up to 1, which leaves nothing for {' and '.join(fixed)}.", "Lower a share."
        )
    if others:
        raise RecipeError(
            f"mix: the shares add up to 1, but {plural(others, 'train conversation')} are in no part.",
            "Lower a share, or add a part for them; curate select drops them.",
        )


def _unreachable(name: str, shares: Mapping[str, float], size: int, fixed: Mapping[str, int]) -> RecipeError:
    """The error for a share that the parts with fixed sizes make too large, with the largest share that is possible."""
    known = sum(fixed.values())
    others = sum(share for other, share in shares.items() if other != name)
    needed = math.ceil(shares[name] * known / (1 - others - shares[name]))
    largest = math.floor(1000 * size * (1 - others) / (known + size)) / 1000
    return RecipeError(
        f"mix.{name}: a share of {shares[name]:g} next to {known:,} uses of {' and '.join(fixed)} needs {needed:,} "
        f"conversations, but only {size:,} meet its condition.",
        f"The largest share without repeating is {largest:g}; epochs = {needed / size:.3g} repeats them.",
    )
