"""Answers that begin with `<think>…</think>` → this reasoning in the loss, out of the loss, or removed.

- learn: the reasoning that the template renders contributes to the loss like the rest of the answer;
- skip: the reasoning is context; the loss starts after `</think>`. An answer without `</think>` is not in the loss;
- strip: the reasoning is removed from answers before the last question, as templates of reasoning models do at
  inference (Qwen 3, `chat_template`), so every template renders the history that its server would. Answers to the last
  question keep their reasoning, and it contributes to the loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from schemas.conversation import ASSISTANT_ROLES

Reasoning = Literal["learn", "skip", "strip"]

REVISIONS: dict[Reasoning, int] = {"learn": 1, "skip": 2, "strip": 2}
"""Revisions of these rules, for cache keys; 2 handles several blocks, and skips a block that is not closed."""

_BLOCKS = re.compile(r"(?:\s*<think>.*?</think>)+\s*", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")
_BLOCK_START = re.compile(r"\s*<think>")
_BLOCK_END = "</think>"


def strip_reasoning(turns: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The turns, without the reasoning before the last question.

    An answer that is only reasoning keeps it unless a call follows: otherwise an empty answer would be trained on.

    >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>hm</think> Hello"}]
    >>> [turn["value"] for turn in strip_reasoning([*turns, *turns])]
    ['Hi', 'Hello', 'Hi', '<think>hm</think> Hello']
    """
    last = max((number for number, turn in enumerate(turns) if turn["from"] == "human"), default=0)
    if not any(_BLOCK_END in turn["value"] for turn in turns[:last]):
        return turns
    return [_strip_turn(turns, number) if number < last else turn for number, turn in enumerate(turns)]


def skip_reasoning(text: str, start: int, end: int) -> int:
    """The position after the reasoning of the answer at `start` to `end`; `start` if it has none.

    Some templates open the block in the generation prompt, so the answer starts inside it. Returns `end` if a block is
    opened and not closed.

    >>> skip_reasoning("A:<think>hm</think> Hello", 2, 25), skip_reasoning("A: Hello", 2, 8)
    (19, 2)
    >>> skip_reasoning("A:<think>hm", 2, 11)
    11
    """
    inside = _OPENED.search(text, max(0, start - 64), start)
    while block := inside or _BLOCK_START.match(text, start, end):
        closed = text.find(_BLOCK_END, block.end(), end)
        if closed < 0:
            return end
        start, inside = closed + len(_BLOCK_END), None
    return start


def _strip_turn(turns: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any]:
    turn = turns[number]
    if turn["from"] not in ASSISTANT_ROLES:
        return turn
    value = turn["value"][blocks.end() :] if (blocks := _BLOCKS.match(turn["value"])) else turn["value"]
    is_call_next = number + 1 < len(turns) and turns[number + 1]["from"] == "function_call"
    return {**turn, "value": value} if value or is_call_next else turn
