"""The web page's files → compressed once and kept in memory.

Argilla compresses every response anew in its event loop: 220 ms for the page's largest script, which everybody may
request. Responses of the API, which require an account, are still compressed by Argilla.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import brotli

from .gate import is_private
from .security_headers import Application, Scope, Send

MAX_FILES = 512
"""Compressed files that are kept; the page has about 250, of 8 MB before compression."""

MIN_SIZE = 512
QUALITY = 5
_TEXTS = (b"text/", b"application/javascript", b"application/json", b"image/svg+xml")


class CompressedFiles:
    """An ASGI application that compresses the responses of another to requests without an account."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._compressed: OrderedDict[bytes, bytes] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compression")

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer like the application, compressed if the client accepts it."""
        path = str(scope.get("path", ""))
        if scope["type"] != "http" or is_private(path):
            await self._application(scope, receive, send)
            return
        headers = dict(scope["headers"])
        accepts = b"br" in headers.get(b"accept-encoding", b"") and b"range" not in headers
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        responder = self._collect(send) if accepts and scope["method"] == "GET" else send
        await self._application({**scope, "headers": plain}, receive, responder)

    def _collect(self, send: Send) -> Send:
        """A `send` that keeps the response until it is complete, then sends it compressed."""
        start: dict[str, Any] = {}
        body = bytearray()

        async def collect(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                content, headers = await self._compress(bytes(body), start["headers"])
                await send({**start, "headers": headers})
                await send({"type": "http.response.body", "body": content})

        return collect

    async def _compress(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, Any]:
        """The body and headers to send."""
        kind = next((value for name, value in headers if name.lower() == b"content-type"), b"")
        if len(body) < MIN_SIZE or not kind.startswith(_TEXTS):
            return body, headers
        key = sha256(body).digest()
        if key not in self._compressed:
            loop = asyncio.get_running_loop()
            self._compressed[key] = await loop.run_in_executor(self._thread, _compress, body)
            if len(self._compressed) > MAX_FILES:
                self._compressed.popitem(last=False)
        content = self._compressed[key]
        others = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        added = [
            (b"content-encoding", b"br"),
            (b"vary", b"Accept-Encoding"),
            (b"content-length", str(len(content)).encode()),
        ]
        return content, [*others, *added]


def _compress(body: bytes) -> bytes:
    return bytes(brotli.compress(body, quality=QUALITY))
