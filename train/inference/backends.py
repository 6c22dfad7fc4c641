"""Chat messages → the token ids that an inference engine makes of them with its own chat template and tokenizer.

The engines are those that handle a user's request: transformers loads the exported folder, llama.cpp's server has
loaded the GGUF, and a URL is any running server.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from train.inference.openai_client import FORCING_BIAS, Messages, OpenAIClient, RefusedError, to_openai
from train.model.log_capture import quiet

Ids = list[int]
CONCURRENT_REQUESTS = 4

GREETING = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """Messages that end before an answer, their tools, and the text of the entire conversation."""

    messages: Messages
    tools: Sequence[Any] | None
    text: str


class Backend(Protocol):
    """An engine that renders and tokenizes: for each request the ids, or the reason why there are none."""

    name: str
    note: str
    """What is compared, if it is not the engine itself; otherwise empty."""

    def encode_prompts(self, requests: Sequence[RenderRequest]) -> Sequence[Ids | str | None]:
        """The ids of the messages with the generation prompt; None for a request that the engine does not support."""

    def encode_texts(self, requests: Sequence[RenderRequest]) -> list[Ids | str] | None:
        """The ids of the texts; None if the engine does not tokenize plain text."""

    def check_stop(self, token: int) -> str | None:
        """The problem if generation continues after this token, which ends an answer; None if it stops."""


class TransformersBackend:
    """The folder of a model or an adapter as loaded by transformers, and therefore by vLLM and TGI."""

    note = ""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        with quiet():
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode_prompts(self, requests: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of `apply_chat_template`."""
        return [self._encode(request) for request in requests]

    def _encode(self, request: RenderRequest) -> Ids | str:
        try:
            encoded = self._tokenizer.apply_chat_template(
                list(request.messages), tools=request.tools, add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # a template is a program and can raise any exception
            return str(error) or type(error).__name__
        return list(encoded["input_ids"])

    def encode_texts(self, requests: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the texts, without added special tokens."""
        return list(self._tokenizer([request.text for request in requests], add_special_tokens=False)["input_ids"])

    def check_stop(self, token: int) -> str | None:
        """Whether generation_config.json lists the token; an adapter's folder has no such file and uses the base's."""
        path = self._folder / "generation_config.json"
        if not path.exists():
            return None
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids = [value] if isinstance(value, int) else value or []
        return None if token in ids else f"generation_config.json does not list {token} in eos_token_id"


class ServerBackend(ABC):
    """A server that renders and tokenizes. A request that it refuses results in its message."""

    note = ""

    def __init__(self, name: str, client: OpenAIClient) -> None:
        self.name = name
        self._client = client

    def encode_prompts(self, requests: Sequence[RenderRequest]) -> Sequence[Ids | str | None]:
        """The ids of the rendered messages."""
        return map_requests(self._encode, requests)

    def encode_texts(self, requests: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the texts, without added special tokens."""
        return map_requests(lambda request: self._tokenize(request.text), requests)

    @abstractmethod
    def _encode(self, request: RenderRequest) -> Ids: ...

    @abstractmethod
    def _tokenize(self, text: str) -> Ids: ...

    @abstractmethod
    def check_stop(self, token: int) -> str | None:
        """Force the model to generate the token and check that the answer ends there, empty."""


class LlamaCppBackend(ServerBackend):
    """A llama.cpp server: `/apply-template`, then `/tokenize`, which adds the special tokens that the GGUF requires."""

    def _encode(self, request: RenderRequest) -> Ids:
        tools = {"tools": list(request.tools)} if request.tools else {}
        body = {"messages": to_openai(request.messages), **tools}
        return self._tokenize(self._client.post("/apply-template", body)["prompt"], add_special=True)

    def _tokenize(self, text: str, *, add_special: bool = False) -> Ids:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return list(self._client.post("/tokenize", body)["tokens"])

    def check_stop(self, token: int) -> str | None:
        """Check through `/completion`."""
        body = {"prompt": "Hello", "n_predict": 3, "temperature": 0, "logit_bias": [[token, FORCING_BIAS]]}
        answer = self._client.post("/completion", body)
        return _describe_stop(token, answer["content"], stopped=answer["stop_type"] == "eos")


class VllmBackend(ServerBackend):
    """A vLLM server: `/tokenize` renders messages and tokenizes texts."""

    def _encode(self, request: RenderRequest) -> Ids:
        tools = {"tools": list(request.tools)} if request.tools else {}
        return self._post({"messages": to_openai(request.messages), "add_generation_prompt": True, **tools})

    def _tokenize(self, text: str) -> Ids:
        return self._post({"prompt": text, "add_special_tokens": False})

    def _post(self, body: dict[str, Any]) -> Ids:
        return list(self._client.post("/tokenize", {"model": self._client.model, **body})["tokens"])

    def check_stop(self, token: int) -> str | None:
        """Check through the OpenAI API."""
        body = {"model": self._client.model, "messages": GREETING, "max_tokens": 3, "temperature": 0}
        body["logit_bias"] = {str(token): FORCING_BIAS}
        answer = self._client.post("/v1/chat/completions", body)["choices"][0]
        return _describe_stop(token, answer["message"].get("content"), stopped=answer["finish_reason"] == "stop")


def _describe_stop(token: int, content: str | None, *, stopped: bool) -> str | None:
    return None if stopped and not content else f"generation continued after token {token}: {content!r}"


def detect_backend(url: str, client: OpenAIClient) -> Backend | None:
    """The backend of a running server, detected by its endpoints; None if it cannot render and tokenize."""
    try:
        if client.post("/tokenize", {"model": client.model, "messages": GREETING})["tokens"]:
            return VllmBackend(f"vLLM at {url}", client)
        if client.post("/apply-template", {"messages": GREETING})["prompt"]:
            return LlamaCppBackend(f"llama.cpp at {url}", client)
    except (RefusedError, KeyError, TypeError):
        pass
    return None


def map_requests(encode: Callable[[RenderRequest], Ids], requests: Sequence[RenderRequest]) -> list[Ids | str]:
    """Apply `encode` to `CONCURRENT_REQUESTS` requests at a time; a refused request becomes the server's message."""

    def encode_or_reason(request: RenderRequest) -> Ids | str:
        try:
            return encode(request)
        except RefusedError as error:
            return str(error)

    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        return list(pool.map(encode_or_reason, requests))
