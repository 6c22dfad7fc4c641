"""`[freeze]` of the recipe: the conversations of a version and its split."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from schemas.section import Section, read_amount

FIRST_KEYS = ("held_out", "salt")
"""The keys of `[freeze]` that the digest of every version covers, also at their default."""


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
        """The keys that determine a version. Keys added after 0.1.0 are left out at their default: digests stay."""
        written, defaults = self.model_dump(mode="json"), FreezeSection().model_dump(mode="json")
        return {key: value for key, value in written.items() if key in FIRST_KEYS or value != defaults[key]}
