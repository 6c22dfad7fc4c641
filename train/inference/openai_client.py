"""The URL of an OpenAI-compatible server and request bodies → decoded JSON responses.

The OpenAI API has no endpoints for rendering and tokenizing. vLLM adds `/tokenize`; llama.cpp adds `/apply-template`
and `/tokenize`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from schemas.errors import ExportError
from schemas.text import shorten

if TYPE_CHECKING:
    import httpx

TIMEOUT = 120
"""Seconds to wait for a response."""

FORCING_BIAS = 100.0
"""A logit bias that makes the model choose a token."""

Messages = Sequence[Mapping[str, Any]]


class RefusedError(Exception):
    """The server answered with an error status; the text is its message."""


@dataclass(frozen=True, slots=True)
class OpenAIClient:
    """A server's URL without `/v1`, its API key, and the model to request."""

    url: str
    key: str = ""
    model: str = ""

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON response to a POST request. Raises `RefusedError`, or `ExportError` if the server is unreachable."""
        return self._request("POST", path, json.dumps(body))

    def models(self) -> list[str]:
        """The names of the served models."""
        return [model["id"] for model in self._request("GET", "/v1/models")["data"]]

    def _request(self, method: str, path: str, body: str | None = None) -> Any:
        import httpx

        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            response = _http_client().request(method, f"{self.url}{path}", content=body, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ExportError(
                f"No server responds at {self.url}: {error}.", "Start the server, or correct --url."
            ) from error
        if not response.is_success:
            raise RefusedError(_error_message(response.status_code, response.text))
        return response.json()


@cache
def _http_client() -> httpx.Client:
    """One client for all servers, because creating one takes 0.1 s. Each request opens a new connection."""
    import httpx

    return httpx.Client(timeout=TIMEOUT, follow_redirects=True, limits=httpx.Limits(max_keepalive_connections=0))


def connect(url: str, key: str = "", model: str = "") -> OpenAIClient:
    """A client for the server at `url`, with or without `/v1`. Without `model` the first served model is used.

    Raises `ExportError` if the server is unreachable or lists no model.
    """
    client = OpenAIClient(url.rstrip("/").removesuffix("/v1"), key, model)
    try:
        return client if model else OpenAIClient(client.url, key, client.models()[0])
    except (RefusedError, IndexError, KeyError) as error:
        raise ExportError(f"{url} does not list its models: {error}.", "Give --api-key if it needs one.") from error


def _error_message(status: int, text: str) -> str:
    try:
        body = json.loads(text)
    except ValueError:
        return f"{status} {text[:200]}"
    inner = body.get("error", body) if isinstance(body, dict) else body
    return shorten(str(inner.get("message", inner) if isinstance(inner, dict) else inner))


def to_openai(messages: Messages) -> list[dict[str, Any]]:
    """Messages in the format of the OpenAI API, where the arguments of a tool call are JSON text.

    >>> call = {"function": {"name": "now", "arguments": {"zone": "é"}}}
    >>> to_openai([{"role": "assistant", "tool_calls": [call]}])[0]["tool_calls"][0]["function"]["arguments"]
    '{"zone": "é"}'
    """
    return [
        {**message, "tool_calls": [_format_call(number, call) for number, call in enumerate(message["tool_calls"])]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _format_call(number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": f"call_{number}", "type": "function", **call, "function": {**function, "arguments": text}}
