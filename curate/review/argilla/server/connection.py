"""Connections to uvicorn → the same with limits on their number, on the size of a request's head and on its time.

uvicorn limits neither: a client that sends one byte a minute, or a header without an end, keeps its connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes of the request line and the headers."""

HEAD_SECONDS = 10.0
"""Time for them to arrive."""

MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CLIENT = 512, 100
LOCAL = ("127.0.0.1", "::1")
"""Addresses without a limit of their own: a proxy on this machine has the connections of all annotators."""


class LimitedProtocol(HttpToolsProtocol):
    """A connection that is closed if its client exceeds a limit."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_size: int | None = 0
    """Bytes of the head that is being read; None while there is none."""

    def connection_made(self, transport: Any) -> None:
        """Accept the connection, unless there are too many."""
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        of_client = [each for each in self.connections if isinstance(each, LimitedProtocol) and each.client]
        same = 0 if host in LOCAL else sum(each.client[0] == host for each in of_client if each.client)
        if len(self.connections) > MAX_CONNECTIONS or same > MAX_CONNECTIONS_OF_CLIENT:
            self.transport.close()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        if self._head_size is None or self.transport.is_closing():
            return
        self._head_size += len(data)
        if self._head_size > MAX_HEAD:
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        """Expect the head of a request in time."""
        super().on_message_begin()
        self._head_size = 0
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Pass the request on."""
        self._head_size = None
        self._stop_timer()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
