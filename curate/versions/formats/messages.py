"""OpenAI messages: `messages` with `role` and `content`, tool calls inside the assistant's messages."""

from __future__ import annotations

import json

import polars as pl

from curate.ingest.shapes.json_cells import split_list, split_object
from curate.versions.formats.format import Exporter, joined, marks_nobody_reads, member, quoted, reasons

ROLES = {"system": "system", "human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
CALL = pl.Struct(
    {"id": pl.String, "type": pl.String, "function": pl.Struct({"name": pl.String, "arguments": pl.String})}
)
MESSAGE = pl.Struct(
    {
        "role": pl.String,
        "content": pl.String,
        "tool_calls": pl.List(CALL),
        "tool_call_id": pl.String,
        "weight": pl.Int64,
    }
)


def cells(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """`id`, `messages`, `tools`.

    Words directly followed by a tool call are one message. `weight: 0` marks what is not learned. Tools are a list,
    or its JSON text where some of the version's are spelt in another way than a reader of JSON would hand on. A
    tool call of such a spelling keeps its text too, as a message of the role `function_call`; so what is read back
    is the same conversation.
    """
    messages = _merge(turns.with_columns(_calls(turns)))
    weight = pl.when("train").then(None).otherwise(pl.lit("0"))
    message = pl.concat_str(
        pl.lit('{"role": '), quoted(_role()), pl.lit(', "content": '), quoted("content").fill_null("null"),
        member("tool_calls", pl.col("calls")), member("tool_call_id", quoted("tool_call_id")),
        member("weight", weight), pl.lit("}"),
    )  # fmt: skip
    listed = joined(messages, message, conversations)
    tools = pl.when("tools_plain").then("tools").otherwise(quoted("tools"))
    return conversations.select(quoted("id").alias("id"), listed.alias("messages"), tools.alias("tools"))


def unfit(_: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The conversations with marks that no reader takes."""
    return reasons(marks_nobody_reads(turns))


def tool_calls(value: str) -> str | None:
    r"""OpenAI's `tool_calls` for the text of a `function_call` turn; null when they would not give that text back.

    >>> tool_calls('{"name": "add", "arguments": {"a": 1.0}, "id": "c1"}')
    '[{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1.0}"}}]'
    >>> tool_calls('{"name":"add","arguments":{}}') is None
    True
    """
    try:
        many = value.startswith("[")
        entries = [split_object(entry) for entry in (split_list(value) if many else [value])]
        respelt = ", ".join(_spelt(entry) for entry in entries)
    except (ValueError, IndexError, KeyError):
        return None  # no JSON, or no call: then the text itself is written
    if not entries or value != (f"[{respelt}]" if len(entries) > 1 else respelt):
        return None
    return f"[{', '.join(_call(entry) for entry in entries)}]"


def _calls(turns: pl.DataFrame) -> pl.Expr:
    """`calls`: the tool calls of the `function_call` turns. A loop: their text counts to the letter."""
    texts = turns.filter(pl.col("from") == "function_call")["value"].unique()
    spelt = {text: tool_calls(text) for text in texts}
    is_call = pl.col("from") == "function_call"
    found = pl.col("value").replace_strict(spelt, default=None, return_dtype=pl.String) if spelt else pl.lit(None)
    return pl.when(is_call).then(found).cast(pl.String).alias("calls")


def _merge(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns as messages, with `content` and `calls`: a call joins the words before it if both are learned alike."""
    same = (pl.col("id") == pl.col("id").shift(-1)) & (pl.col("train") == pl.col("train").shift(-1))
    announces = ((pl.col("from") == "gpt") & same & pl.col("calls").shift(-1).is_not_null()).fill_null(False)
    return turns.with_columns(
        pl.when(announces).then(pl.col("calls").shift(-1)).otherwise("calls").alias("calls"),
        pl.when(pl.col("calls").is_null()).then("value").alias("content"),
        announces.shift(1, fill_value=False).alias("announced"),
    ).filter(~pl.col("announced"))


def _role() -> pl.Expr:
    spelt_out = (pl.col("from") == "function_call") & pl.col("calls").is_null()
    return pl.when(spelt_out).then(pl.lit("function_call")).otherwise(pl.col("from").replace_strict(ROLES))


def _spelt(entry: dict[str, str]) -> str:
    """A call as `curate import` writes it down from OpenAI's form."""
    name, arguments = entry["name"], entry["arguments"]
    if not arguments.startswith("{") or not name.startswith('"'):
        raise ValueError(arguments)
    json.loads(arguments, parse_constant=_refuse)
    ending = f', "id": {entry["id"]}' if "id" in entry else ""
    return f'{{"name": {name}, "arguments": {arguments}{ending}}}'


def _call(entry: dict[str, str]) -> str:
    head = f'"id": {entry["id"]}, ' if "id" in entry else ""
    arguments = json.dumps(entry["arguments"], ensure_ascii=False)
    return f'{{{head}"type": "function", "function": {{"name": {entry["name"]}, "arguments": {arguments}}}}}'


def _refuse(constant: str) -> None:
    """Python reads NaN and Infinity, no other reader of JSON does."""
    raise ValueError(constant)


EXPORTER = Exporter(
    name="messages",
    shape="messages",
    columns={"id": pl.String, "messages": pl.List(MESSAGE), "tools": pl.String},
    cells=cells,
    unfit=unfit,
)
