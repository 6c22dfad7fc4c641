"""Argilla itself: made ready in its home, given its page and headers, run until it is told to end.

Imported when its settings stand in the environment, since argilla_server reads them as it is imported.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from argilla_server import _app
from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE
from argilla_server.static_rewrite import RewriteStaticFiles

from .accounts import make_owner
from .index import connect
from .job_queue import Jobs
from .patches import patch
from .repair import heal
from .search_engine import SqliteSearchEngine
from .security_headers import SecurityHeaders

_SCRIPTS = Path(_app.__file__).parent / "alembic"
_PAGES = Path(sys.prefix) / "pages"
"""The web page, in the environment's folder, where `curate.review.argilla.process` has laid it."""

_GRACE = 5
"""Seconds that open requests are given when the server stops."""


@dataclass(frozen=True)
class Ready:
    """What a person is told of the start: the password of an owner made now, and what was repaired."""

    password: str | None
    repaired: str


def run(database: Path, sock: socket.socket, *, killed: bool, announce: Callable[[Ready], None]) -> None:
    """Serve on `sock` until SIGTERM or SIGINT. Raises `healing.Unusable` when the database cannot be used."""
    # Said with each changed dataset, by a line of Argilla that does no harm.
    warnings.filterwarnings("ignore", message="Object of type <Record> not in session")
    ready = _make_ready(database, killed=killed)
    jobs = Jobs([HIGH_QUEUE, DEFAULT_QUEUE])  # also those of a Redis: other workers lack this search engine
    jobs.start()
    try:
        _Server(_configuration(), lambda: announce(ready)).run(sockets=[sock])
    finally:
        jobs.stop()


def _make_ready(database: Path, *, killed: bool) -> Ready:
    repaired = heal(database, _SCRIPTS, killed=killed)
    SqliteSearchEngine.the_one = SqliteSearchEngine(database)
    patch(connect(database))
    return Ready(asyncio.run(make_owner()), repaired)


def _configuration() -> uvicorn.Config:
    _app.app.mount("/", RewriteStaticFiles(directory=_PAGES, html=True), name="static")
    return uvicorn.Config(
        SecurityHeaders(_app.app, _PAGES),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )


class _Server(uvicorn.Server):
    """Says that it is ready when it is."""

    def __init__(self, configuration: uvicorn.Config, when_ready: Callable[[], None]) -> None:
        super().__init__(configuration)
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._when_ready()
