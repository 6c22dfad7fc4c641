"""The base of every section of the recipe, and amounts written as a share or as a number of conversations."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from schemas.errors import RecipeError


class Section(BaseModel):
    """A section of the recipe: frozen, unknown keys rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def parse_share(text: str, option: str) -> float:
    """A share written as `5%` or `0.05`. Raises `RecipeError` that names the option.

    >>> parse_share("5%", "--max-rejects"), parse_share("0.05", "--max-rejects")
    (0.05, 0.05)
    """
    try:
        return read_share(text)
    except ValueError as error:
        raise RecipeError(f"{option} {text!r} is not a share.", f"Write {option} 5% or {option} 0.05.") from error


def parse_amount(text: str, option: str) -> int | float:
    """A share as in `parse_share`, or a number of conversations. Raises `RecipeError` that names the option.

    >>> parse_amount("5%", "--held-out"), parse_amount("200", "--held-out")
    (0.05, 200)
    """
    try:
        return read_amount(text)
    except ValueError as error:
        raise RecipeError(f"{option} {text!r} is {error}.", f"Write {option} 5% or {option} 200.") from error


def read_amount(value: object) -> int | float:
    """An integer from 1 as a number of conversations, anything else as a share from 0 to 1. Raises `ValueError`.

    >>> read_amount(200), read_amount("10%"), read_amount(0)
    (200, 0.1, 0.0)
    """
    text = str(value).strip()
    if not isinstance(value, bool) and text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    try:
        return read_share(value)
    except ValueError as error:
        raise ValueError("neither a share such as 0.05 or 5% nor a number of conversations such as 200") from error


def read_share(value: object) -> float:
    """A share from 0 to 1, as a number or as text with or without a percent sign. Raises `ValueError`.

    >>> read_share("60%"), read_share(0.6)
    (0.6, 0.6)
    """
    number, percent, rest = str(value).strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or rest or not 0 <= share <= 1:
        raise ValueError("not a share such as 0.05 or 5%")
    return share
