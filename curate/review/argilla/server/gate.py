"""An ASGI application → the same behind a check of every request's size, time and account.

Argilla reads and parses a body before it looks at the account, and answers some requests without one. Here a request
to the API without a valid key or token gets 401 before its body is read, except for those that signing in requires.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .security_headers import Application, Scope, Send
from .sessions import Sessions
from .sign_in import address_of, client_address

PUBLIC = {
    ("POST", "/api/v1/token"),
    ("GET", "/api/v1/version"),
    ("GET", "/api/v1/settings"),
    ("GET", "/api/v1/oauth2/providers"),
}
"""What the sign-in page and clients request before they have an account."""

PRIVATE = ("/api", "/docs", "/openapi.json", "/redoc", "/share-your-progress")
"""Paths that require an account, with everything below them; the others are the files of the web page."""

MAX_PATH, MAX_QUERY, MAX_HEADERS = 1024, 16 * 1024, 100

MAX_BODY = {"": 4 * 1024, "annotator": 1024**2, "admin": 64 * 1024**2, "owner": 64 * 1024**2}
"""Bytes of a request's body by role; "" without an account. A conversation has at most 500 messages of 20,000
characters, which is 40 MB in the worst case; a push sends smaller requests if one is too large."""

ANONYMOUS_BODY_SECONDS, BODY_SECONDS, SEND_SECONDS = 10.0, 300.0, 60.0
"""Time for a body to arrive, without and with an account, and for a client to accept a part of the response."""


def is_private(path: str) -> bool:
    """Whether requests to this path require an account.

    >>> is_private("/api/v1/me"), is_private("/sign-in"), is_private("/apis")
    (True, False, False)
    """
    return any(path == each or path.startswith(f"{each}/") for each in PRIVATE)


MARK = (b"x-labelling-server", b"curate")
"""A header by which a client with an account recognises this server, which can do more than Argilla."""


class RefusedError(Exception):
    """A request that is answered here: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """An ASGI application that passes only bounded requests, of known accounts, to another."""

    def __init__(self, application: Application, sessions: Sessions) -> None:
        self._application = application
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer the request, or pass it on with its complete body."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        try:
            role = self._check(scope)
            async with asyncio.timeout(BODY_SECONDS if role else ANONYMOUS_BODY_SECONDS):
                body = await _read_body(scope, receive, MAX_BODY[role])
        except RefusedError as error:
            await _refuse(send, error.status, str(error))
            return
        except TimeoutError:
            await _refuse(send, 408, "The request did not arrive in time.")
            return
        client_address.set(address_of(scope))
        await self._application(scope, _replay(body, receive), _send_in_time(send, marked=bool(role)))

    def _check(self, scope: Scope) -> str:
        """The role of the request's account, or "". Raises `RefusedError`."""
        path, headers = str(scope["path"]), scope["headers"]
        if len(path) > MAX_PATH or len(scope["query_string"]) > MAX_QUERY:
            raise RefusedError(414, "The address is too long.")
        if len(headers) > MAX_HEADERS:
            raise RefusedError(431, "The request has too many headers.")
        if not is_private(path):
            if scope["method"] not in ("GET", "HEAD"):
                raise RefusedError(405, "Method Not Allowed")
            return ""
        caller = self._sessions.find(dict(headers))
        if caller is None and (scope["method"], path) not in PUBLIC:
            raise RefusedError(401, "Could not validate credentials")
        return caller.role if caller else ""


async def _read_body(scope: Scope, receive: Any, limit: int) -> bytes:
    """The complete body. Raises `RefusedError` if it is larger than `limit`, or if the client has gone."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > limit:
        raise RefusedError(413, f"The body has more than {limit:,} bytes.")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "The client has gone.")
        body += message.get("body", b"")
        if len(body) > limit:
            raise RefusedError(413, f"The body has more than {limit:,} bytes.")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that returns the body, then waits for the client's end."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay


def _send_in_time(send: Send, *, marked: bool) -> Send:
    """`send`, which ends the request if the client does not read its response; `marked` adds `MARK`."""

    async def send_in_time(message: Any) -> None:
        if marked and message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], MARK]
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)

    return send_in_time


async def _refuse(send: Send, status: int, message: str) -> None:
    """Answer with an error and close the connection, since the rest of the body is not read."""
    content = json.dumps({"detail": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
