"""An ASGI application → the same with security headers, so that a browser executes nothing in a conversation.

Argilla's chat and text fields insert text into the page as HTML, even if it is not meant to be HTML. The page's own
scripts are files of the server and a few inline scripts, which are permitted by their digests. The browser blocks all
other scripts and all requests to other servers.
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
    """An ASGI application that adds security headers to every response of another."""

    def __init__(self, application: Application, pages: Path) -> None:
        self._application = application
        self._headers = [(name.encode(), value.encode()) for name, value in security_headers(pages).items()]
        self._names = {name for name, _ in self._headers}

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Respond like the application, with the headers added."""

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message.get("headers", []) if header[0].lower() not in self._names]
                message["headers"] = [*others, *self._headers]
            await send(message)

        await self._application(scope, receive, send_with_headers if scope["type"] == "http" else send)


def security_headers(pages: Path) -> dict[str, str]:
    """The headers for the web page in the folder `pages`."""
    rules = {
        "default-src": "'self'",
        "script-src": " ".join(["'self'", *_script_digests(pages)]),
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


def _script_digests(pages: Path) -> list[str]:
    """The digests of the inline scripts in the server's HTML files."""
    scripts = {script for page in pages.rglob("*.html") for script in _INLINE_SCRIPT.findall(page.read_bytes())}
    return sorted(f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
