"""The turns of a stored conversation → the messages of a chat template.

    system, human, gpt     {"role": "system" | "user" | "assistant", "content": value}
    function_call          "tool_calls" of an assistant message; a gpt turn right before it is its content
    observation            {"role": "tool", "content": value, "tool_call_id": …}

Every text of a turn passes through `write`, so that a caller can mark it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Write = Callable[[int, str], str]
"""(number of the turn, its text) -> the text for the message."""

ROLE_NAMES = {"system": "system", "human": "user", "gpt": "assistant", "observation": "tool"}


class UnreadableTurnError(ValueError):
    """A turn that cannot become a message; the text is the reason."""


def as_is(_turn: int, text: str) -> str:
    """The text unchanged."""
    return text


def to_messages(turns: Sequence[Mapping[str, Any]], write: Write = as_is) -> list[dict[str, Any]]:
    """The messages of `turns` in OpenAI's format, except that a call's arguments are an object, not JSON text.

    An assistant message that only calls tools has the content "", since many templates concatenate or search it.
    Raises `UnreadableTurnError` for a function_call that is not valid JSON.

    >>> to_messages([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        if turn["from"] != "function_call":
            messages.append(_message(number, turn, write))
            continue
        if number == 0 or turns[number - 1]["from"] != "gpt":
            messages.append({"role": "assistant", "content": ""})
        messages[-1]["tool_calls"] = _calls(number, turn["value"], write)
    return messages


def message_numbers(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each turn, the number of the message that contains it.

    >>> message_numbers([{"from": role} for role in ("human", "gpt", "function_call", "observation")])
    [0, 1, 1, 2]
    """
    numbers: list[int] = []
    for number, turn in enumerate(turns):
        joins = number > 0 and turn["from"] == "function_call" and turns[number - 1]["from"] == "gpt"
        numbers.append((numbers[-1] if numbers else -1) + (not joins))
    return numbers


def to_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The list of tools for a template; a bare function description is wrapped as in OpenAI's format.

    >>> to_tools('[{"name": "now", "parameters": {}}]')
    [{'type': 'function', 'function': {'name': 'now', 'parameters': {}}}]
    """
    if tools is None:
        return None
    try:
        parsed = json.loads(tools)
    except json.JSONDecodeError as error:
        raise UnreadableTurnError(f"its tools are not valid JSON: {error}") from error
    if not isinstance(parsed, list) or not all(isinstance(tool, dict) for tool in parsed):
        raise UnreadableTurnError("its tools are not a list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in parsed] or None


def _message(number: int, turn: Mapping[str, Any], write: Write) -> dict[str, Any]:
    message = {"role": ROLE_NAMES[turn["from"]], "content": write(number, turn["value"])}
    if turn["from"] == "observation" and turn.get("tool_call_id") is not None:
        message["tool_call_id"] = turn["tool_call_id"]
    return message


def _calls(number: int, value: str, write: Write) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value)
    except json.JSONDecodeError as error:
        raise UnreadableTurnError(f"the function call in turn {number + 1} is not valid JSON: {error}") from error
    return [_call(number, call, write) for call in (calls if isinstance(calls, list) else [calls])]


def _call(number: int, call: object, write: Write) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise UnreadableTurnError(f"the function call in turn {number + 1} has no name")
    arguments = _write_strings(number, call.get("arguments", {}), write)
    function = {"name": write(number, call["name"]), "arguments": arguments}
    identified = {"id": call["id"]} if call.get("id") is not None else {}
    return {**identified, "type": "function", "function": function}


def _write_strings(number: int, value: Any, write: Write) -> Any:
    """`value` with every string in it, except keys, passed through `write`."""
    if isinstance(value, str):
        return write(number, value)
    if isinstance(value, list):
        return [_write_strings(number, item, write) for item in value]
    if isinstance(value, dict):
        return {key: _write_strings(number, item, write) for key, item in value.items()}
    return value
