"""OpenAI messages: `messages` with `role` and `content`, tool calls as part of assistant messages."""

from __future__ import annotations

import json

import polars as pl

from curate.ingest.shapes.json_cells import split_list, split_object
from curate.versions.formats.format import ExportFormat, json_lists, json_member, json_string

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


def to_cells(conversations: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """`id`, `messages`, `tools`.

    A text and the tool call directly after it are one message. `weight: 0` excludes a message from the loss. Tools are
    a list, or its JSON text if some tools of the version are not spelled as DuckDB's JSON reader returns lists. A tool
    call with another spelling stays text, as a message with the role `function_call`, so that the conversation that is
    read back is the same.
    """
    messages = _merge_calls(turns.with_columns(_call_column(turns)))
    weight = pl.when("train").then(None).otherwise(pl.lit("0"))
    message = pl.concat_str(
        pl.lit('{"role": '), json_string(_role()), pl.lit(', "content": '), json_string("content").fill_null("null"),
        json_member("tool_calls", pl.col("calls")), json_member("tool_call_id", json_string("tool_call_id")),
        json_member("weight", weight), pl.lit("}"),
    )  # fmt: skip
    message_lists = json_lists(messages, message, conversations)
    tools = pl.when("tools_are_canonical").then("tools").otherwise(json_string("tools"))
    return conversations.select(json_string("id").alias("id"), message_lists.alias("messages"), tools.alias("tools"))


def tool_calls(value: str) -> str | None:
    r"""OpenAI's `tool_calls` for the text of a `function_call` turn; None if they would not be read back as that text.

    >>> tool_calls('{"name": "add", "arguments": {"a": 1.0}, "id": "c1"}')
    '[{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1.0}"}}]'
    >>> tool_calls('{"name":"add","arguments":{}}') is None
    True
    """
    try:
        entries = [split_object(entry) for entry in (split_list(value) if value.startswith("[") else [value])]
        imported = ", ".join(_imported_call(entry) for entry in entries)
    except (ValueError, IndexError, KeyError):
        return None  # neither JSON nor a call: the text itself is written
    if not entries or value != (f"[{imported}]" if len(entries) > 1 else imported):
        return None
    return f"[{', '.join(_openai_call(entry) for entry in entries)}]"


def _call_column(turns: pl.DataFrame) -> pl.Expr:
    """`calls`: the tool calls of the `function_call` turns. A loop over texts, because their spelling matters."""
    is_call = pl.col("from") == "function_call"
    by_text = {text: tool_calls(text) for text in turns.filter(is_call)["value"].unique()}
    calls = pl.col("value").replace_strict(by_text, default=None, return_dtype=pl.String) if by_text else pl.lit(None)
    return pl.when(is_call).then(calls).cast(pl.String).alias("calls")


def _merge_calls(turns: pl.DataFrame) -> pl.DataFrame:
    """Turns as messages with `content` and `calls`; a call is merged into the text before it if `train` is equal."""
    same = (pl.col("id") == pl.col("id").shift(-1)) & (pl.col("train") == pl.col("train").shift(-1))
    has_call = ((pl.col("from") == "gpt") & same & pl.col("calls").shift(-1).is_not_null()).fill_null(False)
    return turns.with_columns(
        pl.when(has_call).then(pl.col("calls").shift(-1)).otherwise("calls").alias("calls"),
        pl.when(pl.col("calls").is_null()).then("value").alias("content"),
        has_call.shift(1, fill_value=False).alias("is_merged"),
    ).filter(~pl.col("is_merged"))


def _role() -> pl.Expr:
    is_text_call = (pl.col("from") == "function_call") & pl.col("calls").is_null()
    return pl.when(is_text_call).then(pl.lit("function_call")).otherwise(pl.col("from").replace_strict(ROLES))


def _imported_call(entry: dict[str, str]) -> str:
    """A call as `curate import` stores it from OpenAI's format."""
    name, arguments = entry["name"], entry["arguments"]
    if not arguments.startswith("{") or not name.startswith('"'):
        raise ValueError(arguments)
    json.loads(arguments, parse_constant=_reject_constant)
    ending = f', "id": {entry["id"]}' if "id" in entry else ""
    return f'{{"name": {name}, "arguments": {arguments}{ending}}}'


def _openai_call(entry: dict[str, str]) -> str:
    head = f'"id": {entry["id"]}, ' if "id" in entry else ""
    arguments = json.dumps(entry["arguments"], ensure_ascii=False)
    return f'{{{head}"type": "function", "function": {{"name": {entry["name"]}, "arguments": {arguments}}}}}'


def _reject_constant(constant: str) -> None:
    """Python accepts NaN and Infinity, other JSON readers do not."""
    raise ValueError(constant)


FORMAT = ExportFormat(
    name="messages",
    shape="messages",
    columns={"id": pl.String, "messages": pl.List(MESSAGE), "tools": pl.String},
    to_cells=to_cells,
)
