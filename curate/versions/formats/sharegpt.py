"""ShareGPT: `conversations` with `from` and `value`, as in the store. Represents every conversation without loss."""

from __future__ import annotations

import polars as pl

from curate.versions.formats.format import ExportFormat, json_lists, json_member, json_string
from schemas.conversation import TURN


def to_cells(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """`id`, `conversations`, `tools` (a string with JSON, as in LLaMA-Factory).

    A turn has `train: false` if it is excluded from the loss, and `tool_call_id` if it is the result of a call.
    """
    flag = pl.when("train").then(None).otherwise(pl.lit("false"))
    turn = pl.concat_str(
        pl.lit('{"from": '), json_string("from"), pl.lit(', "value": '), json_string("value"),
        json_member("train", flag), json_member("tool_call_id", json_string("tool_call_id")), pl.lit("}"),
    )  # fmt: skip
    lists = json_lists(turns, turn, conversations)
    return conversations.select(id=json_string("id"), conversations=lists, tools=json_string("tools"))


FORMAT = ExportFormat(
    name="sharegpt",
    shape="sharegpt",
    columns={"id": pl.String, "conversations": pl.List(TURN), "tools": pl.String},
    to_cells=to_cells,
)
