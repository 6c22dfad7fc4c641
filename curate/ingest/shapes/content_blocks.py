"""Content blocks of vendors → texts, reasoning, tool calls and results, in order.

Read are the blocks of Anthropic (`text`, `thinking`, `tool_use`, `tool_result`), Gemini (`functionCall`), Bedrock
Converse (`toolUse`), OpenAI's Chat Completions and Responses API (`input_text`, `refusal`), LlamaFactory v1 (`value`)
and Vercel's AI SDK (`tool-call`). Encrypted reasoning and signatures cannot be trained on and are omitted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from curate.ingest.shapes.json_cells import is_object, split_list, split_object

TEXT_TYPES = ("text", "input_text", "output_text", "summary_text")
REASONING_TYPES = ("thinking", "reasoning", "reasoning_text", "redacted_thinking")
CALL_TYPES = ("tool_use", "tool-call", "tool_call", "function_call", "function")
RESULT_TYPES = ("tool_result", "tool-result", "tool_call_response", "function_call_output")

_RESULT_BLOCKS = (*TEXT_TYPES, "json", "image", "image_url", "input_image", "document", "input_file", "video", "audio")

CALL_KEYS = ("functionCall", "function_call", "toolUse")
RESULT_KEYS = ("functionResponse", "function_response", "toolResult")

_TEXTS = ("text", "value", "content", "thinking", "reasoning", "refusal")
_CALL_NAMES, _ARGUMENTS = ("name", "toolName"), ("input", "args", "arguments", "parameters")
_CALL_IDS = ("call_id", "toolUseId", "toolCallId", "id")
_RESULT_IDS = ("tool_use_id", "toolUseId", "toolCallId", "tool_call_id", "call_id", "id")
_RESULTS = ("content", "output", "result", "response")


class UnsupportedBlockError(ValueError):
    """A block that is not text, a call or a result; the text names it."""


class Text(NamedTuple):
    """A part of the text of a message."""

    text: str


class Reasoning(NamedTuple):
    """Reasoning before an answer or a tool call."""

    text: str


class Call(NamedTuple):
    """A tool call in OpenAI's notation, as JSON text with the original text of its arguments."""

    json: str


class Result(NamedTuple):
    """The result of a tool call; `id` is JSON text."""

    id: str
    text: str


Block = Text | Reasoning | Call | Result


def read_blocks(content: str) -> Iterator[Block]:
    """The blocks of a JSON value: a text, a block, or a list of them. Raises `UnsupportedBlockError`.

    >>> list(read_blocks('[{"type": "thinking", "thinking": "Hm."}, {"text": "Hello"}]'))
    [Reasoning(text='Hm.'), Text(text='Hello')]
    """
    if content.startswith('"'):
        yield Text(json.loads(content))
    elif content.startswith("["):
        for entry in split_list(content):
            yield from read_blocks(entry)
    elif content.startswith("{"):
        yield from _read_block(filled_keys(content))
    elif content != "null":
        raise UnsupportedBlockError(content[:20])


def filled_keys(text: str) -> dict[str, str]:
    """The JSON text of each value of an object that is not null, by key."""
    return {key: value for key, value in split_object(text).items() if value != "null"}


def _read_block(keys: dict[str, str]) -> Iterator[Block]:
    kind = json.loads(keys.get("type", "null"))
    if key := _first_key(keys, CALL_KEYS):
        yield read_call(filled_keys(keys[key]))
    elif key := _first_key(keys, RESULT_KEYS):
        yield read_result(filled_keys(keys[key]))
    elif "reasoningContent" in keys:
        yield Reasoning(_text(filled_keys(keys["reasoningContent"]).get("reasoningText", '""')))
    elif kind in CALL_TYPES:
        yield read_call(keys)
    elif kind in RESULT_TYPES:
        yield read_result(keys)
    elif kind in REASONING_TYPES or keys.get("thought") == "true":
        yield Reasoning(_text_of(keys))
    elif kind == "refusal" or ((kind is None or kind in TEXT_TYPES) and keys.keys() & {"text", "value", "content"}):
        yield Text(_text_of(keys))
    elif kind is None and "parts" in keys:
        yield from read_blocks(keys["parts"])
    elif keys.keys() != {"cachePoint"}:
        raise UnsupportedBlockError(str(kind or next(iter(keys), "an empty object")))


def _first_key(keys: dict[str, str], names: Sequence[str]) -> str | None:
    return next((name for name in names if keys.get(name, "").startswith("{")), None)


def _first_value(keys: dict[str, str], names: Sequence[str], default: str) -> str:
    return next((keys[name] for name in names if name in keys), default)


def _text_of(keys: dict[str, str]) -> str:
    return _text(_first_value(keys, _TEXTS, '""'))


def _text(value: str) -> str:
    """A text, also as `{"value": …}` or as a list of text blocks. Raises `UnsupportedBlockError` for other values."""
    if value.startswith('"'):
        return str(json.loads(value))
    if value.startswith("["):
        return "".join(_text(part) for part in split_list(value))
    keys = filled_keys(value) if value.startswith("{") else {}
    if not any(name in keys for name in _TEXTS):
        raise UnsupportedBlockError(value[:20])
    return _text_of(keys)


def read_call(keys: dict[str, str]) -> Call:
    """A tool call; LlamaFactory v1 writes its JSON text under `value`, OpenAI its name under `function`."""
    if "value" in keys and "name" not in keys:
        return Call(_nested_call(keys["value"]))
    keys = filled_keys(keys["function"]) | keys if keys.get("function", "").startswith("{") else keys
    name, arguments = _first_value(keys, _CALL_NAMES, "null"), _first_value(keys, _ARGUMENTS, "{}")
    function = f'{{"name": {name}, "arguments": {arguments}}}'
    return Call(f'{{"id": {_first_value(keys, _CALL_IDS, "null")}, "type": "function", "function": {function}}}')


def _nested_call(value: str) -> str:
    text = json.loads(value) if value.startswith('"') else value
    if not is_object(text):
        raise UnsupportedBlockError("a tool call that is not a JSON object")
    return str(text)


def read_result(keys: dict[str, str]) -> Result:
    """The result of a tool call. Values that are not text keep their JSON text."""
    return Result(_first_value(keys, _RESULT_IDS, "null"), _result_text(_first_value(keys, _RESULTS, '""')))


def _result_text(value: str) -> str:
    if value.startswith('"'):
        return str(json.loads(value))
    entries = list(split_list(value)) if value.startswith("[") else [value]
    blocks = [filled_keys(entry) if entry.startswith("{") else {} for entry in entries]
    if not all(_is_result_block(keys) for keys in blocks):
        return value
    return "".join(_result_block(keys) for keys in blocks)


def _is_result_block(keys: dict[str, str]) -> bool:
    """Whether an object is a block of a result, and not a value of the tool: Bedrock has no types, but one key."""
    return keys.keys() in ({"text"}, {"json"}) or json.loads(keys.get("type", "null")) in _RESULT_BLOCKS


def _result_block(keys: dict[str, str]) -> str:
    kind = json.loads(keys.get("type", "null"))
    if kind == "json" or "json" in keys:
        return _first_value(keys, ("json", "value"), "null")
    if kind is None or kind in TEXT_TYPES:
        return _text_of(keys)
    raise UnsupportedBlockError(f"a tool result with {kind}")
