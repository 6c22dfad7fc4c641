"""Requests to a running Argilla's HTTP API → JSON objects, or `ReviewError`.

Not named http.py: this folder is on the server's import path, where it would hide the standard library's `http`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from curate.review.argilla.process import KEY_VARIABLE
from schemas.errors import ReviewError

CONNECT_SECONDS, RESPONSE_SECONDS = 10.0, 300.0
MAX_DETAIL = 300
"""Characters of a server's message that are repeated."""


@contextmanager
def open_api(address: str, key: str) -> Iterator[Api]:
    """The server at `address`, with the API key. Redirects are errors, because they would pass the key on."""
    timeout = httpx.Timeout(RESPONSE_SECONDS, connect=CONNECT_SECONDS)
    headers = {"X-Argilla-Api-Key": key}
    try:
        client = httpx.Client(base_url=f"{address}/api/v1/", headers=headers, timeout=timeout, follow_redirects=False)
    except httpx.InvalidURL as error:
        raise ReviewError(f"{address} is not a valid address: {error}.", "Correct --url.") from error
    with client:
        yield Api(client, address)


class Api:
    """Requests under /api/v1. The key is in the client's headers and in no message."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self.url = url
        self.is_curate = False
        """Whether the latest response was from a server of `curate review serve`."""

    def request(self, method: str, path: str, body: object = None, **query: object) -> dict[str, Any]:
        """The JSON object of the response. Raises `InvalidError` for status 413 and 422, else `ReviewError`."""
        try:
            response = self._client.request(method, path, json=body, params=query)  # type: ignore[arg-type]
        except httpx.TimeoutException as error:
            raise ReviewError(f"{self.url} did not answer in time.", "It may be busy: try again.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ReviewError(
                f"{self.url} does not answer: {error}.", "Start it (curate review serve), or correct --url."
            ) from error
        self.is_curate = response.headers.get("x-labelling-server") == "curate"
        if response.is_success:
            return self._json(response)
        raise self._error(response)

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        if not response.content:
            return {}
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ReviewError(f"{self.url} is not an Argilla server: its response is not JSON.", "Correct --url.")
        return value

    def _error(self, response: httpx.Response) -> ReviewError:
        detail = response.text[:MAX_DETAIL]
        if response.status_code == 403:
            return ReviewError(f"{self.url} does not permit this with this key.", f"Use an owner's key: {KEY_VARIABLE}")
        if response.status_code == 401:
            accepts = "does not accept" if response.request.method == "GET" else "no longer accepts"
            return ReviewError(
                f"{self.url} {accepts} the key.",
                f"Check that the key in {KEY_VARIABLE} is from this server, and that its account exists and has the"
                " role owner or admin.",
            )
        if response.status_code in (413, 422):
            return InvalidError(f"{self.url} rejected the request: {_detail(response)}", "")
        if response.status_code == 404:
            return ReviewError(
                f"{self.url} has no {response.request.url.path}: {detail}",
                "The set may have been deleted, or this may be another server.",
            )
        return ReviewError(f"{self.url} answered {response.status_code}: {detail}", "See the server's log.")


class InvalidError(ReviewError):
    """The server rejected the content of a request."""


def _detail(response: httpx.Response) -> str:
    """The message in an error response."""
    try:
        detail = response.json().get("detail", response.text)
    except ValueError:
        detail = response.text
    return str(detail)[:MAX_DETAIL]
