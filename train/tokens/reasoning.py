"""What becomes of the reasoning that stands as `<think>…</think>` at the beginning of an answer: learn, skip or strip.

- learn: what the template renders of it is learned as the rest of the answer is;
- skip: it is rendered and seen, and not learned: learning begins behind `</think>`, and where that never comes the
  answer is not learned at all;
- strip: it is taken out of the answers before the last question, as the templates of reasoning models do when they
  are served (Qwen 3, `chat_template`), so that any template shows the history that its server would; what answers
  the last question keeps its reasoning and learns it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from schemas.conversation import ASSISTANT_ROLES

Reasoning = Literal["learn", "skip", "strip"]

REVISIONS: dict[Reasoning, int] = {"learn": 1, "skip": 2, "strip": 2}
"""Of what becomes of it, for whoever keeps a rendering; 2 takes several blocks, and skips one that never ends."""

_BLOCKS = re.compile(r"(?:\s*<think>.*?</think>)+\s*", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")
_BEGUN = re.compile(r"\s*<think>")
_END = "</think>"


def strip_reasoning(turns: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The turns, those before the last question without their reasoning.

    An answer that is nothing but reasoning keeps it, unless it leads to a call: else it would be learned as silence.

    >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>hm</think> Hello"}]
    >>> [turn["value"] for turn in strip_reasoning([*turns, *turns])]
    ['Hi', 'Hello', 'Hi', '<think>hm</think> Hello']
    """
    last = max((number for number, turn in enumerate(turns) if turn["from"] == "human"), default=0)
    if not any("</think>" in turn["value"] for turn in turns[:last]):
        return turns
    return [_stripped(turns, number) if number < last else turn for number, turn in enumerate(turns)]


def skip_reasoning(text: str, start: int, end: int) -> int:
    """Where the answer that stands at `start` to `end` goes on behind its reasoning; `start` where it has none.

    Some templates open the block in the prompt already, so the answer begins inside it. `end` where a block is opened
    and never closed.

    >>> skip_reasoning("A:<think>hm</think> Hello", 2, 25), skip_reasoning("A: Hello", 2, 8)
    (19, 2)
    >>> skip_reasoning("A:<think>hm", 2, 11)
    11
    """
    inside = _OPENED.search(text, max(0, start - 64), start)
    while block := inside or _BEGUN.match(text, start, end):
        closed = text.find(_END, block.end(), end)
        if closed < 0:
            return end
        start, inside = closed + len(_END), None
    return start


def _stripped(turns: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any]:
    turn = turns[number]
    if turn["from"] not in ASSISTANT_ROLES:
        return turn
    left = turn["value"][found.end() :] if (found := _BLOCKS.match(turn["value"])) else turn["value"]
    calls = number + 1 < len(turns) and turns[number + 1]["from"] == "function_call"
    return {**turn, "value": left} if left or calls else turn
