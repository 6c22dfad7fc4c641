"""A running Argilla's HTTP API: one request, and its failures in words. The one door to it, with or without a set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from curate.review.argilla.process import KEY_VARIABLE
from schemas.errors import ReviewError

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 300.0
SHOWN = 300
"""Characters of a server's own message that are repeated."""


@contextmanager
def open_api(address: str, key: str) -> Iterator[Api]:
    """The server at `address`, asked with `key`. A redirection is a failure: the key would go along."""
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    headers = {"X-Argilla-Api-Key": key}
    try:
        client = httpx.Client(base_url=f"{address}/api/v1/", headers=headers, timeout=timeout, follow_redirects=False)
    except httpx.InvalidURL as error:
        raise ReviewError(f"{address} is no address: {error}.", "Correct --url.") from error
    with client:
        yield Api(client, address)


class Api:
    """Requests under /api/v1, with failures in words. The key is in the client's headers and told to nobody."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self.url = url

    def ask(self, method: str, path: str, body: object = None, **query: object) -> dict[str, Any]:
        """The JSON object that the server answers. Raises `ReviewError`, or `InvalidError` for a 422."""
        try:
            answer = self._client.request(method, path, json=body, params=query)  # type: ignore[arg-type]
        except httpx.TimeoutException as error:
            raise ReviewError(f"{self.url} did not answer in time.", "Is it very busy? Try again.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ReviewError(
                f"{self.url} does not answer: {error}.", "Start it (curate review serve), or correct --url."
            ) from error
        if answer.is_success:
            return self._object(answer)
        raise self._failure(answer)

    def _object(self, answer: httpx.Response) -> dict[str, Any]:
        if not answer.content:
            return {}
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ReviewError(f"{self.url} is no Argilla: it did not answer with JSON.", "Correct --url.")
        return value

    def _failure(self, answer: httpx.Response) -> ReviewError:
        said = answer.text[:SHOWN]
        if answer.status_code == 403:
            return ReviewError(f"{self.url} does not let this key do that.", f"Give an owner's key in {KEY_VARIABLE}.")
        if answer.status_code == 401:
            return ReviewError(
                f"{self.url} does not let the key in{' any more' if answer.request.method != 'GET' else ''}.",
                f"Is the key in {KEY_VARIABLE} of this server, and its account still there, as owner or admin?",
            )
        if answer.status_code == 422:
            return InvalidError(f"{self.url} refused what was sent: {_detail(answer)}", "")
        if answer.status_code == 404:
            return ReviewError(
                f"{self.url} has no {answer.request.url.path}: {said}", "Was the set deleted? Or is it another server?"
            )
        return ReviewError(f"{self.url} answered {answer.status_code}: {said}", "Look at the server's own messages.")


class InvalidError(ReviewError):
    """The server understood, and refused what it was given."""


def _detail(answer: httpx.Response) -> str:
    """The sentence in an error's JSON, cut."""
    try:
        detail = answer.json().get("detail", answer.text)
    except ValueError:
        detail = answer.text
    return str(detail)[:SHOWN]
