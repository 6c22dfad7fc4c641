"""Headers that every answer of the server carries, so that nothing in a conversation runs in a reviewer's browser.

Argilla's chat and text fields put text into the page as HTML, also where it is not meant as such. The page's own
scripts are files of the server, and a few lines inside its HTML, which are named by their digests; any other
script, and any request to elsewhere, is refused by the browser.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Any, Send], Awaitable[None]]

_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


class SecurityHeaders:
    """Wraps an ASGI application."""

    def __init__(self, application: Application, pages: Path) -> None:
        self._application = application
        self._headers = [(name.encode(), value.encode()) for name, value in security_headers(pages).items()]
        self._names = {name for name, _ in self._headers}

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer as the application does, with the headers added."""

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message.get("headers", []) if header[0].lower() not in self._names]
                message["headers"] = [*others, *self._headers]
            await send(message)

        await self._application(scope, receive, send_with_headers if scope["type"] == "http" else send)


def security_headers(pages: Path) -> dict[str, str]:
    """The headers for the web page that lies in `pages`."""
    rules = {
        "default-src": "'self'",
        "script-src": " ".join(["'self'", *_digests(pages)]),
        "style-src": "'self' 'unsafe-inline'",  # the page's components write styles into elements
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "frame-src": "'none'",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }


def _digests(pages: Path) -> list[str]:
    """The digests of the scripts that stand inside the server's own HTML files."""
    scripts = {script for page in pages.rglob("*.html") for script in _INLINE_SCRIPT.findall(page.read_bytes())}
    return sorted(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
