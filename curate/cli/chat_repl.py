"""An adapter and questions, as arguments or typed line by line → the answers of each side, printed.

The sides are "base", the model without the adapter, and "adapter", the model with it; both share one loaded model.
A chat can be rated good or bad, which saves it in the store as a conversation to train on or to edit.
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
from train.inference.chat_log import RATINGS, save_chat
from train.inference.generate import GREEDY, ChatModel, Sampling, load_chat_model

SIDES = ("base", "adapter")
HELP = "/good and /bad save the chat so far, /new starts a new chat, Ctrl-D quits."

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ChatLog:
    """Where chats with an adapter are saved, and the sampling parameters saved with them."""

    store: Path
    adapter: Path
    sampling: Sampling

    def save(self, side: str, messages: Messages, rating: str) -> str:
        """Save the chat with one side to the store, rated good or bad, and return the conversation's id."""
        metadata = {"side": side, **asdict(self.sampling)}
        return save_chat(self.store, read_manifest(self.adapter), messages, rating, metadata)


def answer_prompts(
    adapter: Path,
    prompts: Sequence[str],
    sides: Sequence[str] = SIDES,
    *,
    system: str | None = None,
    sampling: Sampling = GREEDY,
    save: Callable[[str, Messages], str] | None = None,
) -> list[dict[str, str]]:
    """For each prompt a dictionary with `prompt`, the answer of each side, and `saved`, the id of the saved chat.

    `save` is called with the last side and its messages.
    """
    model = load_chat_model(adapter)
    results = []
    for prompt in prompts:
        messages = [*_first_messages(system), {"role": "user", "content": prompt}]
        answers = {side: model.answer(messages, base=side == "base", sampling=sampling) for side in sides}
        chat = [*messages, {"role": "assistant", "content": answers[sides[-1]]}]
        results.append({"prompt": prompt, **answers} | ({"saved": save(sides[-1], chat)} if save else {}))
    return results


def run_repl(
    adapter: Path,
    sides: Sequence[str] = SIDES,
    *,
    system: str | None = None,
    sampling: Sampling = GREEDY,
    log: ChatLog | None = None,
    rating: str = "",
) -> None:
    """Answer each typed line until the input ends, printing text as it is generated. Each side has its own history.

    `/good` and `/bad` save the chat with the last side to `log`; with `rating` it is also saved at the end.
    """
    model = load_chat_model(adapter)
    if sys.stdin.isatty():
        note(HELP)
    chats = {side: _first_messages(system) for side in sides}
    for line in _read_lines():
        if line == "/new":
            chats = {side: _first_messages(system) for side in sides}
        elif line.removeprefix("/") in RATINGS and line.startswith("/"):
            _save(log, sides[-1], chats[sides[-1]], line[1:])
        elif line.startswith("/"):
            note(HELP)
        else:
            for side in sides:
                _print_answer(model, chats[side], side, line, sampling, show_side=len(sides) > 1)
    if rating:
        _save(log, sides[-1], chats[sides[-1]], rating)


def _save(log: ChatLog | None, side: str, messages: Messages, rating: str) -> None:
    if log is None:
        return
    try:
        note(f"Saved as {rating}: {log.save(side, messages, rating)}")
    except TrainError as error:
        note(f"{error.what} {error.hint}")


def _print_answer(
    model: ChatModel, messages: Messages, side: str, line: str, sampling: Sampling, *, show_side: bool
) -> None:
    messages.append({"role": "user", "content": line})
    if show_side:
        print_text(f"{side}: ")
    answer = model.answer(messages, base=side == "base", sampling=sampling, on_text=print_text)
    print_text("\n")
    messages.append({"role": "assistant", "content": answer})


def print_text(text: str) -> None:
    """Print part of a line at once, with control characters made visible."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _first_messages(system: str | None) -> Messages:
    return [{"role": "system", "content": system}] if system else []


def _read_lines() -> Iterator[str]:
    """The non-empty lines of stdin, with a prompt on stderr if it is a terminal."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("› ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
