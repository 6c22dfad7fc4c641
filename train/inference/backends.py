"""In: a folder, a server. Out: what it makes of conversations, in token ids: its own template, its own tokenizer.

Each engine here is what a user's request would meet, not a copy of it: transformers reads the folder that leaves,
llama.cpp's server has loaded the GGUF, and an address is whatever answers there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from train.inference.openai_client import FORCED, Address, Messages, RefusedError, for_the_wire
from train.model.log_capture import quiet

Ids = list[int]
AT_ONCE = 4
"""Requests that a server is given at the same time."""

QUESTION = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True, slots=True)
class Asked:
    """What an engine is asked: messages that end where an answer is due, their tools, and a whole text to read."""

    messages: Messages
    tools: Sequence[Any] | None
    text: str


class Engine(Protocol):
    """What renders and reads: for each question the ids, or the reason in words why there are none."""

    name: str

    def prompts(self, asked: Sequence[Asked]) -> Sequence[Ids | str | None]:
        """The ids of the messages, up to where the model begins to answer; nothing for what it refuses its users."""

    def texts(self, asked: Sequence[Asked]) -> list[Ids | str] | None:
        """The ids of the whole texts; nothing where the engine cannot be asked for them."""

    def stops_at(self, token: int) -> str | None:
        """What goes wrong when the model says this token, which ends an answer; nothing if the engine stops there."""


class Folder:
    """A model's or an adapter's folder, as transformers (and vLLM and TGI with it) loads it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        with quiet():
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def prompts(self, asked: Sequence[Asked]) -> list[Ids | str]:
        """The ids of `apply_chat_template`."""
        return [self._prompt(question) for question in asked]

    def _prompt(self, asked: Asked) -> Ids | str:
        try:
            made = self._tokenizer.apply_chat_template(
                list(asked.messages), tools=asked.tools, add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # a template is a program of others, and can raise whatever it likes
            return str(error) or type(error).__name__
        return list(made["input_ids"])

    def texts(self, asked: Sequence[Asked]) -> list[Ids | str]:
        """The ids of the texts; nothing is added before or behind."""
        return list(self._tokenizer([one.text for one in asked], add_special_tokens=False)["input_ids"])

    def stops_at(self, token: int) -> str | None:
        """Whether generation_config.json names it; an adapter's folder has none, the base's then counts."""
        path = self._folder / "generation_config.json"
        if not path.exists():
            return None
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids = [named] if isinstance(named, int) else named or []
        return None if token in ids else f"generation_config.json does not name {token} as an end"


class LlamaCpp:
    """A server of llama.cpp: `/apply-template`, then `/tokenize`."""

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self._address = address

    def prompts(self, asked: Sequence[Asked]) -> list[Ids | str]:
        """The ids of its rendering, read as it reads a prompt: with the beginning that the model's file asks for."""
        return many(self._prompt, asked)

    def texts(self, asked: Sequence[Asked]) -> list[Ids | str]:
        """The ids of the texts."""
        return many(lambda one: self._ids(one.text, begin=False), asked)

    def _prompt(self, asked: Asked) -> Ids:
        body = {"messages": for_the_wire(asked.messages)} | ({"tools": list(asked.tools)} if asked.tools else {})
        return self._ids(self._address.post("/apply-template", body)["prompt"], begin=True)

    def _ids(self, text: str, *, begin: bool) -> Ids:
        body = {"content": text, "add_special": begin, "parse_special": True}
        return list(self._address.post("/tokenize", body)["tokens"])

    def stops_at(self, token: int) -> str | None:
        """Make the model say the token, and see whether the answer ends there, empty."""
        body = {"prompt": "Hello", "n_predict": 3, "temperature": 0, "logit_bias": [[token, FORCED]]}
        said = self._address.post("/completion", body)
        ended = said["stop_type"] == "eos" and not said["content"]
        return None if ended else f"it went on behind token {token}: {said['content']!r}"


class Vllm:
    """A server of vLLM: `/tokenize` renders messages and reads texts."""

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self._address = address

    def prompts(self, asked: Sequence[Asked]) -> list[Ids | str]:
        """The ids of its rendering."""
        return many(self._prompt, asked)

    def texts(self, asked: Sequence[Asked]) -> list[Ids | str]:
        """The ids of the texts."""
        return many(lambda one: self._ids({"prompt": one.text, "add_special_tokens": False}), asked)

    def _prompt(self, asked: Asked) -> Ids:
        tools = {"tools": list(asked.tools)} if asked.tools else {}
        return self._ids({"messages": for_the_wire(asked.messages), "add_generation_prompt": True, **tools})

    def _ids(self, body: dict[str, Any]) -> Ids:
        return list(self._address.post("/tokenize", {"model": self._address.model, **body})["tokens"])

    def stops_at(self, token: int) -> str | None:
        """As `forced_stop` finds."""
        return forced_stop(self._address, token)


def engine_at(name: str, address: Address) -> Engine | None:
    """The engine behind an address, by what it answers; nothing where it neither renders nor reads for others."""
    try:
        if address.post("/tokenize", {"model": address.model, "messages": QUESTION})["tokens"]:
            return Vllm(f"vLLM at {name}", address)
        if address.post("/apply-template", {"messages": QUESTION})["prompt"]:
            return LlamaCpp(f"llama.cpp at {name}", address)
    except (RefusedError, KeyError, TypeError):
        pass
    return None


def forced_stop(address: Address, token: int) -> str | None:
    """Make a server's model say `token` and see whether the answer ends there, through OpenAI's protocol."""
    body = {"model": address.model, "messages": QUESTION, "max_tokens": 3, "temperature": 0}
    said = address.post("/v1/chat/completions", {**body, "logit_bias": {str(token): FORCED}})["choices"][0]
    ended = said["finish_reason"] == "stop" and not said["message"].get("content")
    return None if ended else f"it went on behind token {token}: {said['message'].get('content')!r}"


def many(ask: Callable[[Asked], Ids], asked: Sequence[Asked]) -> list[Ids | str]:
    """Ask a server several questions at a time; a refusal is its reason."""

    def one(question: Asked) -> Ids | str:
        try:
            return ask(question)
        except RefusedError as error:
            return str(error)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, asked))
