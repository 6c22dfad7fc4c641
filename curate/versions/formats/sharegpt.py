"""ShareGPT: `conversations` with `from` and `value`, the form that the store itself keeps. Nothing is lost in it."""

from __future__ import annotations

import polars as pl

from curate.versions.formats.format import Exporter, joined, marks_nobody_reads, member, quoted, reasons
from schemas.conversation import TURN


def cells(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """`id`, `conversations`, `tools` (a string that holds JSON, as LLaMA-Factory has it).

    A turn has `train: false` where it is not learned, and `tool_call_id` where it answers a call.
    """
    flag = pl.when("train").then(None).otherwise(pl.lit("false"))
    turn = pl.concat_str(
        pl.lit('{"from": '), quoted("from"), pl.lit(', "value": '), quoted("value"),
        member("train", flag), member("tool_call_id", quoted("tool_call_id")), pl.lit("}"),
    )  # fmt: skip
    listed = joined(turns, turn, conversations)
    return conversations.select(quoted("id").alias("id"), listed.alias("conversations"), quoted("tools").alias("tools"))


def unfit(_: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The conversations with marks that no reader takes."""
    return reasons(marks_nobody_reads(turns))


EXPORTER = Exporter(
    name="sharegpt",
    shape="sharegpt",
    columns={"id": pl.String, "conversations": pl.List(TURN), "tools": pl.String},
    cells=cells,
    unfit=unfit,
)
