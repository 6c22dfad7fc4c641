"""Lists of turns with content blocks, and items of OpenAI's Responses API → lists of turns whose content is text.

A message with several kinds of blocks becomes several: texts are joined without a separator, calls become `tool_calls`,
and every result a message of its own. Blocks keep their order, and values of calls their original text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import NamedTuple

import polars as pl

from curate.ingest.shapes.content_blocks import (
    RESULT_TYPES,
    Block,
    Call,
    Reasoning,
    Result,
    Text,
    UnsupportedBlockError,
    filled_keys,
    read_blocks,
    read_call,
    read_result,
)
from curate.ingest.shapes.json_cells import split_list
from curate.ingest.shapes.shape import PROBLEMS
from curate.ingest.shapes.turn_elements import REASONING_KEYS, ROLE_KEYS, TEXT_KEYS, TRAIN_KEYS

_MEDIA_TYPES = ("image_url", "input_image", "input_audio", "input_file")


def expand_lists(elements: pl.DataFrame, lists: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lists that are not texts throughout, with texts (`row`, `cell`), and the problems of blocks without text.

    Python loops over these lists: their blocks have different keys, and DuckDB would rewrite the numbers of calls.
    """
    is_data = pl.col("from").is_in(["function_call", "observation"]) & ~pl.col("other").is_in(
        [*RESULT_TYPES, *_MEDIA_TYPES]
    ).fill_null(False)
    has_blocks = pl.col("nested").is_not_null() & ~pl.col("all_text").fill_null(False)
    no_content = pl.col("kind").is_null() & pl.col("calls").is_null()
    unusual = elements.filter((has_blocks & ~is_data) | no_content | pl.col("name").is_null())
    if unusual.is_empty():
        return lists.head(0), pl.DataFrame(schema=PROBLEMS)
    data = elements.filter(has_blocks & is_data).group_by("row").agg(pl.col("position").alias("data"))
    selected = lists.join(unusual.select("row").unique(), on="row", how="semi", maintain_order="left")
    selected = selected.join(data, on="row", how="left", maintain_order="left")
    cells, problems = [], []
    for row, cell, positions in selected.select("row", "cell", "data").iter_rows():
        try:
            cells.append((row, expand_blocks(cell, positions or ())))
        except UnsupportedBlockError as error:
            problems.append((row, "non-text-content", str(error)))
    return (
        pl.DataFrame(cells, schema={"row": pl.Int64, "cell": pl.String}, orient="row"),
        pl.DataFrame(problems, schema=PROBLEMS, orient="row"),
    )


class _Message(NamedTuple):
    """The blocks of a message, its role (JSON text) and the keys that apply to all of it, such as training flags."""

    role: str
    blocks: list[Block]
    keys: dict[str, str]


def expand_blocks(cell: str, data: Collection[int] = ()) -> str:
    """A JSON list of turns with one message per text, group of calls, or result; the turns `data` stay as they are.

    Raises `UnsupportedBlockError` with the number of the turn.

    >>> expand_blocks('[{"role": "user", "parts": [{"text": "Hi"}, {"text": "!"}]}]')
    '[{"role": "user", "content": "Hi!"}]'
    """
    texts: list[str] = []
    reasoning: list[Block] = []
    for position, element in enumerate(split_list(cell), start=1):
        try:
            message = None if position in data else _read_element(element)
        except UnsupportedBlockError as error:
            raise UnsupportedBlockError(f"Turn {position} is not text: it contains {error}.") from error
        if isinstance(message, Reasoning):
            reasoning.append(message)
            continue
        if message is None or message.role != '"assistant"':
            texts += _write_reasoning(reasoning)
        else:
            message.blocks[:0] = reasoning
        reasoning = []
        texts += [element] if message is None else _write(message)
    return f"[{', '.join([*texts, *_write_reasoning(reasoning)])}]"


def _write_reasoning(blocks: list[Block]) -> list[str]:
    """A message of reasoning that no answer follows, which validation rejects."""
    return list(_write(_Message('"assistant"', blocks, {}))) if blocks else []


def _read_element(element: str) -> _Message | Reasoning | None:
    """The blocks of a message; None for other elements. Reasoning of the Responses API belongs to the next message."""
    if not element.startswith("{"):
        return None
    keys = filled_keys(element)
    role = next((keys[key] for key in ROLE_KEYS if key in keys), None)
    if role is None:
        return _read_item(keys)
    content = next((keys[key] for key in (*TEXT_KEYS, "parts", "refusal") if key in keys), "[]")
    calls = [Call(call) for call in split_list(keys.get("tool_calls", "[]"))]
    calls += [Call(keys["function_call"])] if "function_call" in keys else []
    reasoning = [Reasoning(json.loads(keys[key])) for key in REASONING_KEYS if keys.get(key, "").startswith('"')]
    kept = {key: keys[key] for key in (*TRAIN_KEYS, "tool_call_id") if key in keys}
    return _Message(role, [*reasoning[:1], *read_blocks(content), *calls], kept)


def _read_item(keys: dict[str, str]) -> _Message | Reasoning | None:
    """An item without a role of the Responses API. Raises `UnsupportedBlockError` for calls of built-in tools."""
    kind = json.loads(keys.get("type", "null"))
    if kind == "function_call":
        return _Message('"assistant"', [read_call(keys)], {})
    if kind == "function_call_output":
        return _Message('"tool"', [read_result(keys)], {})
    if kind == "reasoning":
        parts = [*read_blocks(keys.get("content", "[]"))] or [*read_blocks(keys.get("summary", "[]"))]
        return Reasoning("\n\n".join(part.text for part in parts if isinstance(part, Text | Reasoning)))
    if isinstance(kind, str) and kind.endswith(("_call", "_call_output")):
        raise UnsupportedBlockError(kind)
    return None


def _write(message: _Message) -> Iterator[str]:
    """The messages with the blocks of one: a text follows calls or a result only in a message of its own."""
    part: list[Block] = []
    written = False
    for block in message.blocks:
        after_call = bool(part) and isinstance(part[-1], Call) and not isinstance(block, Call)
        if part and (after_call or isinstance(block, Result)):
            yield _write_part(message, part)
            part, written = [], True
        if isinstance(block, Result):
            content = json.dumps(block.text, ensure_ascii=False)
            yield f'{{"role": "tool", "tool_call_id": {block.id}, "content": {content}}}'
            written = True
        else:
            part.append(block)
    if part or not written:
        yield _write_part(message, part)


def _write_part(message: _Message, blocks: list[Block]) -> str:
    """One message from reasoning, text and calls; reasoning after a text stays at its place in the text."""
    text, reasoning, calls = "", [], []
    for block in blocks:
        if isinstance(block, Call):
            calls.append(block.json)
        elif isinstance(block, Reasoning):
            if text:
                text += f"<think>\n{block.text}\n</think>\n\n" if block.text else ""
            else:
                reasoning.append(block.text)
        elif isinstance(block, Text):
            text += block.text
    keys = {"role": message.role, "content": json.dumps(text, ensure_ascii=False), **message.keys}
    if any(reasoning):
        keys["reasoning_content"] = json.dumps("\n\n".join(filter(None, reasoning)), ensure_ascii=False)
    if calls:
        keys["tool_calls"] = f"[{', '.join(calls)}]"
    return "{" + ", ".join(f'"{key}": {value}' for key, value in keys.items()) + "}"
