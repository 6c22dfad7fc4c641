"""In: the address of a server that speaks OpenAI's protocol. Out: what it makes of messages, in tokens and in words.

Rendering and tokens are outside of that protocol: vLLM has them behind `/tokenize`, llama.cpp behind
`/apply-template` and `/tokenize`; of any other server only the number of a prompt's tokens is known.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import ExportError

PATIENCE = 120
"""Seconds until a server that does not answer is given up."""

FORCED = 100.0
"""A logit bias that no model outweighs."""

Messages = Sequence[Mapping[str, Any]]


class RefusedError(Exception):
    """The server answered that it cannot do this; the text is its reason."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server: its address without `/v1`, its key, and the model to ask for."""

    url: str
    key: str = ""
    model: str = ""

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request, from JSON. Raises `RefusedError`, or `ExportError` when nobody answers."""
        with self._opened(path, body) as answer:
            return json.loads(answer.read())

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The events of a streamed answer, from JSON, as they come."""
        with self._opened(path, {**body, "stream": True}) as answer:
            for line in answer:
                event = line.decode().strip().removeprefix("data:").strip()
                if event and event != "[DONE]":
                    yield json.loads(event)

    def _opened(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            raise RefusedError(_reason(error)) from error
        except (urllib.error.URLError, OSError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ExportError(
                f"Nobody answers at {self.url}: {reason}.", "Start the server, or correct --url."
            ) from error

    def models(self) -> list[str]:
        """The names of the models that are served."""
        with self._opened("/v1/models", None) as answer:
            return [model["id"] for model in json.loads(answer.read())["data"]]


def address_of(url: str, key: str = "", model: str = "") -> Address:
    """The server at `url`, with or without `/v1` at its end, and the one model it serves if none is named."""
    plain = Address(url.rstrip("/").removesuffix("/v1"), key, model)
    try:
        return plain if model else Address(plain.url, key, plain.models()[0])
    except (RefusedError, IndexError, KeyError) as error:
        raise ExportError(
            f"{url} names no model that it serves: {error}.", "Give --api-key if it asks for one."
        ) from error


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        return f"{error.code} {text[:200]}"
    inner = told.get("error", told) if isinstance(told, dict) else told
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)[:300]


def for_the_wire(messages: Messages) -> list[dict[str, Any]]:
    """Messages as OpenAI's protocol writes them: the arguments of a call are the text of an object.

    >>> call = {"function": {"name": "now", "arguments": {"zone": "é"}}}
    >>> for_the_wire([{"role": "assistant", "tool_calls": [call]}])[0]["tool_calls"][0]["function"]["arguments"]
    '{"zone": "é"}'
    """
    return [
        {**message, "tool_calls": [_call(number, call) for number, call in enumerate(message["tool_calls"])]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _call(number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function", **call, "function": {**function, "arguments": text}}
