"""The recipe's `[import]` section and the options of `curate import` → one checked section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curate.ingest.repairs import REPAIRS
from schemas.errors import RecipeError
from schemas.recipe import OPTIONS, ImportSection, check_recipe
from schemas.section import parse_share


def apply_options(section: ImportSection, options: Mapping[str, Any]) -> ImportSection:
    """The recipe's import section with the given options, which take precedence; `None` and `[]` are not given.

    `map` is a list of `field=column`, `max_rejects` a share such as `5%`. Raises `RecipeError`.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    if "map" in given:
        given["map"] = {**section.map, **dict(_parse_pair(text) for text in given["map"])}
    if "max_rejects" in given:
        given["max_rejects"] = parse_share(given["max_rejects"], "--max-rejects")
    return check_recipe({"import": {**section.model_dump(), **given}}, OPTIONS).import_


def _parse_pair(text: str) -> tuple[str, str]:
    field_name, equals, column = text.partition("=")
    if not equals:
        raise RecipeError(f"--map {text!r} is not field=column.", "For example: --map question=title")
    return field_name.strip(), column


def check_repairs(names: Sequence[str]) -> None:
    """Raise `RecipeError` for a repair that does not exist."""
    unknown = [name for name in names if name not in REPAIRS]
    if unknown:
        raise RecipeError(f"Unknown repair: {', '.join(unknown)}.", f"Known repairs: {', '.join(sorted(REPAIRS))}.")


def row_options(section: ImportSection) -> dict[str, Any]:
    """The options that choose rows, if they are set: ids of imports without them do not depend on them."""
    options = {"where": section.where}
    return {name: value for name, value in options.items() if value is not None}
