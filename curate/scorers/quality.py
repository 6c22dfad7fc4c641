"""Other scores → one quality score: 1 minus a penalty for each problem that they measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import polars as pl
from pydantic import Field, FiniteFloat, model_validator

from schemas.section import Section


class Penalty(Section):
    """The penalty for a score: 0 at `fine`, `weight` at `worst`, linear in between."""

    weight: float = Field(ge=0, le=1)
    fine: FiniteFloat = 0.0
    worst: FiniteFloat = 1.0

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.fine == self.worst:
            raise ValueError("fine and worst must differ")
        return self

    def expression(self, score: str) -> pl.Expr:
        """The penalty, from 0 to `weight`; a boolean counts as 0 or 1, the penalty of a missing score is 0."""
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
    """1 minus the penalties of other scores, at least 0.

    `[score.quality.penalties]` in a recipe replaces all defaults: `refusal = {weight = 1}` subtracts 1 if `refusal` is
    true; `words = {weight = 0.3, fine = 20, worst = 5}` subtracts nothing for 20 words and more, 0.3 for 5 and fewer,
    and a proportional part in between. `curate score --why ID` shows the penalties of a conversation. The default
    weights were chosen in this project so that few answers of instruction data have a penalty (see DECISIONS.md).

    >>> frame = pl.DataFrame({"refusal": [True, False], "words": [5, 10]})
    >>> penalties = {"refusal": Penalty(weight=0.5), "words": Penalty(weight=0.3, fine=20, worst=5)}
    >>> frame.select(quality(penalties=penalties).round(2)).to_series().to_list()
    [0.2, 0.8]
    """
    subtracted = pl.sum_horizontal(penalty.expression(score) for score, penalty in penalties.items())
    return (1.0 - subtracted).clip(lower_bound=0.0)
