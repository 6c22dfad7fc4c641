"""In: an adapter and questions, from the command line or typed one after the other. Out: the answers of each side.

A side is "base", the model before it was tuned, or "adapter", the same model after; one load serves both. What was
said can be called good or bad, and is then in the store as a row to train on or to repair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from curate.cli.console import note
from schemas.errors import TrainError
from schemas.manifest import read_manifest
from schemas.text import printable
from train.inference.chat_log import OPINIONS, remember
from train.inference.generate import GREEDY, Sampling, Speaker, speak_for

SIDES = ("base", "adapter")
HELP = "/good and /bad save what was said so far, /new begins anew, Ctrl-D ends."

Talk = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Memory:
    """Where conversations with an adapter are saved."""

    store: Path
    adapter: Path
    sampling: Sampling

    def keep(self, side: str, talk: Talk, opinion: str) -> str:
        """Write what one side said to the store, as good or bad, and return the conversation's id."""
        how = {"side": side, **asdict(self.sampling)}
        return remember(self.store, read_manifest(self.adapter), talk, opinion, how)


def ask(
    adapter: Path,
    prompts: Sequence[str],
    sides: Sequence[str] = SIDES,
    *,
    system: str | None = None,
    sampling: Sampling = GREEDY,
    keep: Callable[[str, Talk], str] | None = None,
) -> list[dict[str, str]]:
    """For each prompt a dictionary with `prompt` and the answer of each side, and `saved`, the id where it was kept.

    `keep` is given the last of the sides and what was said.
    """
    speaker = speak_for(adapter)
    found = []
    for prompt in prompts:
        talks = {side: [*_opening(system), {"role": "user", "content": prompt}] for side in sides}
        said = {side: speaker.answer(talks[side], base=side == "base", sampling=sampling) for side in sides}
        last = [*talks[sides[-1]], {"role": "assistant", "content": said[sides[-1]]}]
        found.append({"prompt": prompt, **said} | ({"saved": keep(sides[-1], last)} if keep else {}))
    return found


def converse(
    adapter: Path,
    sides: Sequence[str] = SIDES,
    *,
    system: str | None = None,
    sampling: Sampling = GREEDY,
    memory: Memory | None = None,
    opinion: str = "",
) -> None:
    """Answer what is typed until the input ends, letter by letter; each side remembers what it said itself.

    `/good` and `/bad` write what the last of the sides said so far to `memory`; `opinion` does so at the end.
    """
    speaker = speak_for(adapter)
    if sys.stdin.isatty():
        note(HELP)
    spoken = {side: _opening(system) for side in sides}
    for line in _typed():
        if line == "/new":
            spoken = {side: _opening(system) for side in sides}
        elif line.removeprefix("/") in OPINIONS and line.startswith("/"):
            _save(memory, sides[-1], spoken[sides[-1]], line[1:])
        elif line.startswith("/"):
            note(HELP)
        else:
            for side in sides:
                _say(speaker, spoken[side], side, line, sampling, named=len(sides) > 1)
    if opinion:
        _save(memory, sides[-1], spoken[sides[-1]], opinion)


def _save(memory: Memory | None, side: str, talk: Talk, opinion: str) -> None:
    if memory is None:
        return
    try:
        note(f"Saved as {opinion}: {memory.keep(side, talk, opinion)}")
    except TrainError as error:
        note(f"{error.what} {error.hint}")


def _say(speaker: Speaker, talk: Talk, side: str, line: str, sampling: Sampling, *, named: bool) -> None:
    talk.append({"role": "user", "content": line})
    if named:
        print_part(f"{side}: ")
    answer = speaker.answer(talk, base=side == "base", sampling=sampling, say=print_part)
    print_part("\n")
    talk.append({"role": "assistant", "content": answer})


def print_part(part: str) -> None:
    """Print a part of a line at once; what comes from a model is shown and not obeyed."""
    sys.stdout.write(printable(part))
    sys.stdout.flush()


def _opening(system: str | None) -> Talk:
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
