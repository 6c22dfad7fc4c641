"""Mending: turns come in, turns with a safe repair go out, and which conversations were touched by which repair.

A repair is applied only where it is asked for by name, in the order asked; nothing is repaired by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from schemas.conversation import ASSISTANT_ROLES


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair: what it does in a sentence, and the function from turns to repaired turns."""

    description: str
    apply: Callable[[pl.DataFrame], pl.DataFrame]


STORED_REPAIRS = "mend"
"""The key of the repairs in `sources.mapping`, and in the value that the id of an import is the digest of."""


def repair(turns: pl.DataFrame, names: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns after the repairs called `names`, and `row`, `repairs` of the conversations that they changed.

    A conversation of which a repair would leave nothing stays as it was, and is left to the rules.
    """
    touched = pl.DataFrame(schema={"row": pl.Int64, "repair": pl.String})
    for name in names:
        repaired = _none_lost(turns, REPAIRS[name].apply(turns))
        changed = _changed(turns, repaired)
        touched = pl.concat([touched, changed.select("row", pl.lit(name).alias("repair"))])
        turns = repaired
    return turns, touched.group_by("row", maintain_order=True).agg(pl.col("repair").alias("repairs")).sort("row")


def strip(turns: pl.DataFrame) -> pl.DataFrame:
    """White space around every turn is taken away.

    >>> strip(pl.DataFrame({"row": [0], "from": ["human"], "value": [" Hi "]}))["value"].to_list()
    ['Hi']
    """
    return turns.with_columns(pl.col("value").str.strip_chars())


def drop_trailing_user(turns: pl.DataFrame) -> pl.DataFrame:
    """What comes behind the assistant's last turn is taken away.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["human", "gpt", "human"], "value": ["Hi", "Hello", "Bye"]})
    >>> drop_trailing_user(talk)["value"].to_list()
    ['Hi', 'Hello']
    """
    return turns.filter(pl.col("from").is_in(list(ASSISTANT_ROLES)).cum_max(reverse=True).over("row"))


def drop_leading_assistant(turns: pl.DataFrame) -> pl.DataFrame:
    """What the assistant says before the first question is taken away; a system prompt stays.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["gpt", "human", "gpt"], "value": ["Welcome", "Hi", "Hello"]})
    >>> drop_leading_assistant(talk)["value"].to_list()
    ['Hi', 'Hello']
    """
    asked = (pl.col("from") == "human").cum_max().over("row")
    return turns.filter(asked | (pl.col("from") == "system"))


def merge_consecutive(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Turns of the same speaker in a row become one, with a blank line between; tool calls and results stay apart.

    So do turns of which one is learned and the other is not: one turn cannot be half learned.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["human", "human", "gpt"], "value": ["Hi", "You?", "Hello"]})
    >>> merge_consecutive(talk)["value"].to_list()
    ['Hi\n\nYou?', 'Hello']
    """
    alike = [pl.col(name) == pl.col(name).shift(1) for name in ("row", "from", "train") if name in turns.columns]
    joins = pl.all_horizontal(*alike, pl.col("from").is_in(["system", "human", "gpt"])).fill_null(False)
    if not turns.select(joins.any()).item():
        return turns
    others = [name for name in turns.columns if name != "value"]
    together = turns.with_columns(joins.not_().cum_sum().alias("_turn")).group_by("_turn", maintain_order=True)
    merged = together.agg(pl.col(others).first(), pl.col("value").str.join("\n\n"))
    return merged.select(turns.columns)


REPAIRS: dict[str, Repair] = {
    "strip": Repair("Take away white space around every turn.", strip),
    "trailing-user": Repair("Take away what comes behind the assistant's last turn.", drop_trailing_user),
    "leading-assistant": Repair("Take away what the assistant says before the first question.", drop_leading_assistant),
    "merge-consecutive": Repair(
        "Join turns of one speaker that follow each other, with a blank line.", merge_consecutive
    ),
}
"""Every repair by the name that `--repair` takes."""


def _none_lost(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The repaired turns, and as they were those of conversations that have none left."""
    if before.height == after.height:
        return after
    lost = before.join(after.select("row").unique(), on="row", how="anti", maintain_order="left")
    return after if lost.is_empty() else pl.concat([after, lost]).sort("row", maintain_order=True)


def _changed(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The rows whose turns are not what they were."""
    if before.height == after.height:
        differs = (before["value"].ne_missing(after["value"])) | (before["from"].ne_missing(after["from"]))
        return before.filter(differs).select("row").unique(maintain_order=True)
    texts = [
        turns.group_by("row", maintain_order=True).agg(pl.col("value"), pl.col("from")) for turns in (before, after)
    ]
    both = texts[0].join(texts[1], on="row", suffix="_after", maintain_order="left")
    unlike = (pl.col("value") != pl.col("value_after")) | (pl.col("from") != pl.col("from_after"))
    return both.filter(unlike).select("row")
