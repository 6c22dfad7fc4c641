"""In: the turns of a conversation, as the store has them. Out: the messages that a chat template is given.

    system, human, gpt     {"role": "system" | "user" | "assistant", "content": value}
    function_call          "tool_calls" of an assistant message; a gpt turn right before it is its content
    observation            {"role": "tool", "content": value, "tool_call_id": …}

Every text that a turn brings goes through `write` on its way in, so that a caller can mark where it comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Write = Callable[[int, str], str]
"""(number of the turn, its text) -> what is written into the message."""

ROLE_NAMES = {"system": "system", "human": "user", "gpt": "assistant", "observation": "tool"}


class UnreadableTurnError(ValueError):
    """A turn that no message can be made of; the text is the reason."""


def as_is(_turn: int, text: str) -> str:
    """A `Write` that changes nothing."""
    return text


def to_messages(turns: Sequence[Mapping[str, Any]], write: Write = as_is) -> list[dict[str, Any]]:
    """The messages of `turns`, as OpenAI writes them, but a call's arguments are an object, not its text.

    An assistant message that only calls tools has the content "": many templates add to it or look into it.
    Raises `UnreadableTurnError` for a function_call that is no JSON.

    >>> to_messages([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        if turn["from"] != "function_call":
            messages.append(_plain(number, turn, write))
            continue
        if number == 0 or turns[number - 1]["from"] != "gpt":
            messages.append({"role": "assistant", "content": ""})
        messages[-1]["tool_calls"] = _calls(number, turn["value"], write)
    return messages


def message_numbers(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each turn the number of the message that it became a part of.

    >>> message_numbers([{"from": role} for role in ("human", "gpt", "function_call", "observation")])
    [0, 1, 1, 2]
    """
    numbers: list[int] = []
    for number, turn in enumerate(turns):
        joins = number > 0 and turn["from"] == "function_call" and turns[number - 1]["from"] == "gpt"
        numbers.append((numbers[-1] if numbers else -1) + (not joins))
    return numbers


def to_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The tool list that a template is given; a bare function description is wrapped as OpenAI wraps it.

    >>> to_tools('[{"name": "now", "parameters": {}}]')
    [{'type': 'function', 'function': {'name': 'now', 'parameters': {}}}]
    """
    if tools is None:
        return None
    try:
        listed = json.loads(tools)
    except json.JSONDecodeError as error:
        raise UnreadableTurnError(f"its tools are no JSON: {error}") from error
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise UnreadableTurnError("its tools are no list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in listed] or None


def _plain(number: int, turn: Mapping[str, Any], write: Write) -> dict[str, Any]:
    message = {"role": ROLE_NAMES[turn["from"]], "content": write(number, turn["value"])}
    if turn["from"] == "observation" and turn.get("tool_call_id") is not None:
        message["tool_call_id"] = turn["tool_call_id"]
    return message


def _calls(number: int, value: str, write: Write) -> list[dict[str, Any]]:
    try:
        read = json.loads(value)
    except json.JSONDecodeError as error:
        raise UnreadableTurnError(f"turn {number + 1} calls a function in text that is no JSON: {error}") from error
    return [_call(number, call, write) for call in (read if isinstance(read, list) else [read])]


def _call(number: int, call: object, write: Write) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise UnreadableTurnError(f"turn {number + 1} calls a function that has no name")
    arguments = _written(number, call.get("arguments", {}), write)
    made: dict[str, Any] = {
        "type": "function",
        "function": {"name": write(number, call["name"]), "arguments": arguments},
    }
    return {"id": call["id"], **made} if call.get("id") is not None else made


def _written(number: int, value: Any, write: Write) -> Any:
    """`value` with every string in it, but not the keys, written."""
    if isinstance(value, str):
        return write(number, value)
    if isinstance(value, list):
        return [_written(number, item, write) for item in value]
    if isinstance(value, dict):
        return {key: _written(number, item, write) for key, item in value.items()}
    return value
