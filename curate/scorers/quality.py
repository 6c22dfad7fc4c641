"""One number for a quick cut: what the other scores find wrong is taken off from 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import polars as pl
from pydantic import Field, FiniteFloat, model_validator

from schemas.recipe import Section


class Penalty(Section):
    """How much a score may take off: nothing at `fine`, all of `weight` at `worst`, in proportion between."""

    weight: float = Field(ge=0, le=1)
    fine: FiniteFloat = 0.0
    worst: FiniteFloat = 1.0

    @model_validator(mode="after")
    def _has_a_slope(self) -> Self:
        if self.fine == self.worst:
            raise ValueError("fine and worst are the same")
        return self

    def expression(self, score: str) -> pl.Expr:
        """What the score takes off, from 0 to `weight`; a truth counts as 0 or 1, a missing score takes off nothing."""
        share = (pl.col(score).cast(pl.Float64) - self.fine) / (self.worst - self.fine)
        return (share.clip(0.0, 1.0) * self.weight).fill_null(0.0)


PENALTIES = {
    "answer_words": Penalty(weight=1.0, fine=1, worst=0),
    "refusal": Penalty(weight=0.5),
    "control_tokens": Penalty(weight=0.5),
    "ngram_repetition": Penalty(weight=0.4, fine=0.2, worst=0.5),
    "line_repetition": Penalty(weight=0.3, fine=0.2, worst=0.5),
    "echo": Penalty(weight=0.5, fine=0.8, worst=1.0),
    "unfinished": Penalty(weight=0.3),
    "boilerplate": Penalty(weight=0.3),
    "unbalanced_fences": Penalty(weight=0.2),
}


def quality(*, penalties: Mapping[str, Penalty] = PENALTIES) -> pl.Expr:
    """1 minus the penalties of other scores, not below 0.

    A recipe's `[score.quality.penalties]` replaces all of them: `refusal = {weight = 1}` takes off 1 where
    `refusal` is true, `words = {weight = 0.3, fine = 20, worst = 5}` takes off nothing from 20 words on, 0.3
    at 5 and less, and a part between. `curate score --why ID` shows what was taken off. The weights are this project's
    own, set so that few answers of instruction data lose anything (DECISIONS.md has the numbers).

    >>> frame = pl.DataFrame({"refusal": [True, False], "words": [5, 10]})
    >>> penalties = {"refusal": Penalty(weight=0.5), "words": Penalty(weight=0.3, fine=20, worst=5)}
    >>> frame.select(quality(penalties=penalties).round(2)).to_series().to_list()
    [0.2, 0.8]
    """
    taken = pl.sum_horizontal(penalty.expression(score) for score, penalty in penalties.items())
    return (1.0 - taken).clip(lower_bound=0.0)
