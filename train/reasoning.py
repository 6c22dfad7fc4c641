"""What becomes of the reasoning that stands as `<think>…</think>` at the beginning of an answer: learn, skip or strip.

- learn: what the template renders of it is learned as the rest of the answer is;
- skip: it is rendered and seen, and not learned: learning begins behind `</think>`;
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

_BLOCK = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")
_TO_ITS_END = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_REST_OF_IT = re.compile(r".*?</think>", re.DOTALL)


def without_history(turns: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The turns, those before the last question without their reasoning.

    An answer that is nothing but reasoning keeps it, unless it leads to a call: else it would be learned as silence.

    >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "<think>hm</think> Hello"}]
    >>> [turn["value"] for turn in without_history([*turns, *turns])]
    ['Hi', 'Hello', 'Hi', '<think>hm</think> Hello']
    """
    last = max((number for number, turn in enumerate(turns) if turn["from"] == "human"), default=0)
    if not any("</think>" in turn["value"] for turn in turns[:last]):
        return turns
    return [_stripped(turns, number) if number < last else turn for number, turn in enumerate(turns)]


def behind_reasoning(text: str, start: int, end: int) -> int:
    """Where the answer that stands at `start` to `end` goes on behind its reasoning; `start` where it has none.

    Some templates open the block in the prompt already, so the answer begins inside it.

    >>> behind_reasoning("A:<think>hm</think> Hello", 2, 25), behind_reasoning("A: Hello", 2, 8)
    (19, 2)
    """
    opened = _OPENED.search(text, max(0, start - 64), start)
    found = (_REST_OF_IT if opened else _TO_ITS_END).match(text, start, end)
    return found.end() if found else start


def _stripped(turns: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any]:
    turn = turns[number]
    if turn["from"] not in ASSISTANT_ROLES:
        return turn
    left = _BLOCK.sub("", turn["value"], count=1) if _BLOCK.match(turn["value"]) else turn["value"]
    calls = number + 1 < len(turns) and turns[number + 1]["from"] == "function_call"
    return {**turn, "value": left} if left or calls else turn
