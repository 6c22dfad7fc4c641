"""`[freeze]` and `[mix]` of the recipe: the conversations of a version, its split, and how often an epoch uses each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from schemas.section import Section, read_amount, read_share

FIRST_KEYS = ("held_out", "salt")
"""The keys of `[freeze]` that the digest of every version covers, also at their default."""

MEASURES = ("share", "count", "epochs")
"""Keys of a part of the mix, of which exactly one is set."""


class FreezeSection(Section):
    """Which kept conversations a version has, and how it is split into train and held_out."""

    held_out: int | float = Field(
        0.05,
        description="held out from training, by content hash: a share of the groups (0.05) or a number of "
        "conversations (200)",
    )
    salt: str = Field("", description="any text; changing it changes the split and the sample")
    stratify: tuple[str, ...] = Field(
        (), description='columns whose values are in both splits in proportion, such as ["source", "language"]'
    )
    group: tuple[str, ...] = Field(
        (), description='columns; conversations with the same value are in the same split: ["meta.customer"]'
    )
    sample: int | float | None = Field(
        None,
        description="only so many of the kept conversations, by content hash: a number or a share",
        examples=[5000],
    )
    named_splits: bool = Field(
        True, description="hold out rows of files, folders or a column split that are named test, validation, …"
    )

    @field_validator("held_out", "sample", mode="before")
    @classmethod
    def _read_amount(cls, value: object) -> object:
        return None if value is None else read_amount(value)

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, held_out: int | float) -> int | float:
        if isinstance(held_out, float) and held_out >= 1:
            raise ValueError("a share must be less than 1, or nothing is left to train on")
        return held_out

    @field_validator("sample")
    @classmethod
    def _check_sample(cls, sample: int | float | None) -> int | float | None:
        if sample == 0:
            raise ValueError("the share must be more than 0")
        return sample

    def data_part(self) -> dict[str, Any]:
        """The keys that determine a version. Keys at their default are left out, but `FIRST_KEYS`: digests stay."""
        written, defaults = self.model_dump(mode="json"), FreezeSection().model_dump(mode="json")
        return {key: value for key, value in written.items() if key in FIRST_KEYS or value != defaults[key]}


class MixPart(Section):
    """The conversations that meet a condition, and how much of an epoch they make up."""

    where: str = Field(description="an SQL condition on scores and metadata, as in a rule")
    share: float | None = Field(None, gt=0, le=1, description="share of the conversations of an epoch, no repeats")
    count: int | None = Field(None, ge=1, description="number of conversations in an epoch, no repeats")
    epochs: float | None = Field(
        None, gt=0, le=1000, description="how often an epoch uses each of them; 0.5: half of them"
    )

    @field_validator("share", mode="before")
    @classmethod
    def _read_percent(cls, share: object) -> object:
        return None if share is None else read_share(share)

    @model_validator(mode="after")
    def _check_measures(self) -> MixPart:
        given = [key for key in MEASURES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of share, count and epochs, not {' and '.join(given) or 'none'}")
        return self


def check_shares(parts: Mapping[str, MixPart]) -> None:
    """Raise `ValueError` if the shares add up to more than 1."""
    shares = {name: part.share for name, part in parts.items() if part.share is not None}
    if sum(shares.values()) > 1 + 1e-9:
        listed = " + ".join(f"{share:g} ({name})" for name, share in shares.items())
        raise ValueError(f"the shares add up to {sum(shares.values()):g}, more than 1: {listed}")
