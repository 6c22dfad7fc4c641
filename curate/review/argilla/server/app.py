"""A database and a socket → Argilla's application, served with its web page and security headers until it is stopped.

Import this module after the settings are in the environment, since argilla_server reads them when it is imported.
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

from .accounts import create_owner, reopen_records_of_deleted_accounts
from .compression import CompressedFiles
from .connection import LimitedProtocol
from .gate import Gate
from .guidelines import escape_guidelines
from .index import connect
from .job_queue import JobWorker
from .labels import permit_label_changes
from .patches import apply_patches
from .permissions import restrict_annotators
from .repair import repair_database
from .search_engine import SqliteSearchEngine
from .security_headers import SecurityHeaders
from .sessions import Sessions, bind_sessions_to_passwords
from .sign_in import PasswordCheck
from .web_page import mount_page

_MIGRATIONS = Path(_app.__file__).parent / "alembic"
_PAGES = Path(sys.prefix) / "pages"
"""The web page, where `curate.review.argilla.process` put it when the environment was installed."""

_GRACE = 5
"""Seconds for open requests when the server stops."""


@dataclass(frozen=True)
class StartupReport:
    """The password of a new owner, and the repairs of the database; each empty if there is none."""

    password: str | None
    repairs: str


def run(database: Path, sock: socket.socket, *, killed: bool, announce: Callable[[StartupReport], None]) -> None:
    """Serve on `sock` until SIGTERM or SIGINT. Raises `UnusableDatabaseError`.

    `killed`: whether the previous process was killed; then the database is checked.
    """
    # A harmless warning of Argilla for every changed dataset.
    warnings.filterwarnings("ignore", message="Object of type <Record> not in session")
    repairs = repair_database(database, _MIGRATIONS, killed=killed)
    SqliteSearchEngine.instance = SqliteSearchEngine(database)
    connection = connect(database)
    apply_patches(connection)
    sessions = Sessions(connection)
    bind_sessions_to_passwords(sessions, PasswordCheck())
    restrict_annotators()
    reopen_records_of_deleted_accounts(connection)
    escape_guidelines(connection)
    permit_label_changes()
    report = StartupReport(asyncio.run(create_owner()), repairs)
    jobs = JobWorker([HIGH_QUEUE, DEFAULT_QUEUE])  # with an external Redis, too: other workers lack this search engine
    jobs.start()
    try:
        _Server(_configuration(sessions), lambda: announce(report)).run(sockets=[sock])
    finally:
        jobs.stop()


def _configuration(sessions: Sessions) -> uvicorn.Config:
    mount_page(_app.app, _PAGES)
    return uvicorn.Config(
        SecurityHeaders(Gate(CompressedFiles(_app.app), sessions), _PAGES),
        http=LimitedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )


class _Server(uvicorn.Server):
    """A server that calls a function when it is ready."""

    def __init__(self, configuration: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(configuration)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call the function."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()
