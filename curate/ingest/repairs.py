"""Turns → repaired turns, and the repairs applied to each conversation.

Only the repairs that the user names are applied, in the given order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from schemas.conversation import ASSISTANT_ROLES


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair: its description in one sentence, and the function from turns to repaired turns."""

    description: str
    apply: Callable[[pl.DataFrame], pl.DataFrame]


STORED_REPAIRS = "mend"
"""Key of the repairs in `sources.mapping`, and in the value whose digest is the id of an import."""


def repair(turns: pl.DataFrame, names: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns after the repairs `names`, and `row`, `repairs` of the conversations that changed.

    A conversation that a repair would empty is not changed, and is left to validation.
    """
    touched = pl.DataFrame(schema={"row": pl.Int64, "repair": pl.String})
    for name in names:
        repaired = _restore_emptied(turns, REPAIRS[name].apply(turns))
        changed = _changed_rows(turns, repaired)
        touched = pl.concat([touched, changed.select("row", pl.lit(name).alias("repair"))])
        turns = repaired
    return turns, touched.group_by("row", maintain_order=True).agg(pl.col("repair").alias("repairs")).sort("row")


def strip(turns: pl.DataFrame) -> pl.DataFrame:
    """Remove white space around every turn.

    >>> strip(pl.DataFrame({"row": [0], "from": ["human"], "value": [" Hi "]}))["value"].to_list()
    ['Hi']
    """
    return turns.with_columns(pl.col("value").str.strip_chars())


def drop_trailing_user(turns: pl.DataFrame) -> pl.DataFrame:
    """Remove the turns after the last assistant turn.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["human", "gpt", "human"], "value": ["Hi", "Hello", "Bye"]})
    >>> drop_trailing_user(talk)["value"].to_list()
    ['Hi', 'Hello']
    """
    return turns.filter(pl.col("from").is_in(list(ASSISTANT_ROLES)).cum_max(reverse=True).over("row"))


def drop_leading_assistant(turns: pl.DataFrame) -> pl.DataFrame:
    """Remove the turns before the first user turn, except a system prompt.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["gpt", "human", "gpt"], "value": ["Welcome", "Hi", "Hello"]})
    >>> drop_leading_assistant(talk)["value"].to_list()
    ['Hi', 'Hello']
    """
    after_user = (pl.col("from") == "human").cum_max().over("row")
    return turns.filter(after_user | (pl.col("from") == "system"))


def merge_consecutive(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Merge consecutive turns of the same role with a blank line between; tool calls and results are not merged.

    Turns with different training flags are not merged either: the flag applies to a turn as a unit.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["human", "human", "gpt"], "value": ["Hi", "You?", "Hello"]})
    >>> merge_consecutive(talk)["value"].to_list()
    ['Hi\n\nYou?', 'Hello']
    """
    same = [pl.col(name) == pl.col(name).shift(1) for name in ("row", "from", "train") if name in turns.columns]
    joins = pl.all_horizontal(*same, pl.col("from").is_in(["system", "human", "gpt"])).fill_null(False)
    if not turns.select(joins.any()).item():
        return turns
    others = [name for name in turns.columns if name != "value"]
    groups = turns.with_columns(joins.not_().cum_sum().alias("_turn")).group_by("_turn", maintain_order=True)
    merged = groups.agg(pl.col(others).first(), pl.col("value").str.join("\n\n"))
    return merged.select(turns.columns)


REPAIRS: dict[str, Repair] = {
    "strip": Repair("Remove white space around every turn.", strip),
    "trailing-user": Repair("Remove the turns after the last assistant turn.", drop_trailing_user),
    "leading-assistant": Repair("Remove assistant turns before the first user turn.", drop_leading_assistant),
    "merge-consecutive": Repair("Merge consecutive turns of the same role, with a blank line.", merge_consecutive),
}
"""Name for `--repair` → repair."""


def _restore_emptied(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The repaired turns, and the original turns of conversations that have none left."""
    if before.height == after.height:
        return after
    emptied = before.join(after.select("row").unique(), on="row", how="anti", maintain_order="left")
    return after if emptied.is_empty() else pl.concat([after, emptied]).sort("row", maintain_order=True)


def _changed_rows(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The rows whose turns differ."""
    if before.height == after.height:
        differs = (before["value"].ne_missing(after["value"])) | (before["from"].ne_missing(after["from"]))
        return before.filter(differs).select("row").unique(maintain_order=True)
    texts = [
        turns.group_by("row", maintain_order=True).agg(pl.col("value"), pl.col("from")) for turns in (before, after)
    ]
    both = texts[0].join(texts[1], on="row", suffix="_after", maintain_order="left")
    is_changed = (pl.col("value") != pl.col("value_after")) | (pl.col("from") != pl.col("from_after"))
    return both.filter(is_changed).select("row")
