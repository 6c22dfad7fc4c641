"""In: an adapter and questions, from the command line or typed one after the other. Out: the answers of each side.

A side is "base", the model before it was tuned, or "adapter", the same model after; one load serves both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.answering import Speaker, speak_for
from train.narrating import print_line

SIDES = ("base", "adapter")


def ask(
    adapter: Path,
    prompts: Sequence[str],
    sides: Sequence[str] = SIDES,
    *,
    system: str | None = None,
    max_tokens: int = 200,
    temperature: float = 0.0,
) -> list[dict[str, str]]:
    """For each prompt a dictionary with `prompt` and the answer of each side."""
    speaker = speak_for(adapter)
    return [
        {"prompt": prompt}
        | {
            side: speaker.answer(
                [*_opening(system), {"role": "user", "content": prompt}],
                base=side == "base",
                max_tokens=max_tokens,
                temperature=temperature,
            )
            for side in sides
        }
        for prompt in prompts
    ]


def converse(
    adapter: Path,
    sides: Sequence[str] = SIDES,
    *,
    system: str | None = None,
    max_tokens: int = 200,
    temperature: float = 0.0,
) -> None:
    """Answer what is typed until the input ends; each side remembers what it said itself."""
    speaker = speak_for(adapter)
    spoken = {side: _opening(system) for side in sides}
    for line in _typed():
        for side in sides:
            spoken[side].append({"role": "user", "content": line})
            answer = _say(speaker, spoken[side], side, max_tokens, temperature)
            print_line(answer if len(sides) == 1 else f"{side}: {answer}")


def _say(speaker: Speaker, messages: list[dict[str, str]], side: str, max_tokens: int, temperature: float) -> str:
    answer = speaker.answer(messages, base=side == "base", max_tokens=max_tokens, temperature=temperature)
    messages.append({"role": "assistant", "content": answer})
    return answer


def _opening(system: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def _typed() -> Iterator[str]:
    """The lines of the input that are not empty; on a terminal each after a sign that it is awaited."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("› ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
