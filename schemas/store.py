"""A path → a connection to the store, the DuckDB file that holds all data of a project.

Use `reading` or `writing`. A process that writes to a DuckDB file locks out all others, so a command opens the store,
works in one transaction and closes it; no command keeps it open while it trains or waits for input.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from schemas.atomic import staging_path
from schemas.errors import StoreError
from schemas.migrations import MIGRATIONS
from schemas.text import join_names
from schemas.timing import timed
from schemas.views import create_views

logger = logging.getLogger(__name__)


DISK_FULL_MESSAGES = ("Could not write", "max_temp_directory_size")
"""Parts of DuckDB's messages about a full disk: for the store or its log, and for spilled data."""

DAMAGE_MESSAGES = ("Corrupt database", "Could not read enough bytes", "INTERNAL Error", "Failed to deserialize")
"""Parts of DuckDB's messages about damaged pages, of which most are read only when a query needs them."""

MAGIC_OFFSET, MAGIC = 8, b"DUCK"
"""Offset and value of the magic bytes of a DuckDB file; a checksum precedes them."""

STORE_TABLES = {"migrations", "sources", "conversations"}
"""Tables that every store has after its first migration."""

LOCK_TIMEOUT = 20.0
"""Seconds to wait for a locked store. Most commands hold it for less, even with 100,000 conversations; a longer import,
a scoring run or a program that was left open should be reported."""

LOCK_TIMEOUT_VARIABLE = "CURATE_LOCK_TIMEOUT"
"""Environment variable that changes the timeout; 0 fails immediately."""

NOTICE_AFTER, RETRY_EVERY = 1.0, 0.1
"""Seconds until a message says that the command waits for the store, and between attempts."""

STORE_ONLY = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
"""DuckDB settings of a connection that reads its store alone: no query, and no view in a store that was made elsewhere,
reads other files, other databases, the network or variables of this process."""

WITH_FILES = {name: value for name, value in STORE_ONLY.items() if name != "enable_external_access"}
"""Settings of a connection whose queries may read files, but install and load nothing."""

NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of a file system without hard links."""


@contextmanager
def reading(path: Path, *, files: bool = False) -> Iterator[DuckDBPyConnection]:
    """A read-only connection to the store at `path`; with `files`, queries may read other files too.

    Raises `StoreError` if it is missing, locked by a writer, from a newer release, or not a store.
    """
    _check_folder(path)
    if not path.exists():
        raise StoreError(f"The store {path} does not exist.", f"Create it with: curate import FILE --store {path}")
    with _open(path, read_only=True) as connection:
        missing = len(MIGRATIONS) - _count_applied(connection, path)
    if missing:
        with writing(path):
            pass  # a store of an older release: migrate it first
    with _open(path, read_only=True, settings=WITH_FILES if files else STORE_ONLY) as connection:
        yield connection


@contextmanager
def writing(path: Path, *, dry_run: bool = False) -> Iterator[DuckDBPyConnection]:
    """A connection to the store at `path`, created if missing, inside one transaction.

    The transaction is committed at the end of the block and rolled back if the block raises, and after a `dry_run`,
    for which a missing store is a temporary one. Raises `StoreError` as `reading` does.
    """
    _check_folder(path)
    if dry_run and not path.exists():
        with tempfile.TemporaryDirectory() as folder, writing(Path(folder) / path.name) as connection:
            yield connection
        return
    if not path.exists():
        _create(path)
    with _open(path, read_only=False) as connection:
        _migrate(connection, path)
        with _disk_errors(path):
            connection.begin()
            try:
                yield connection
            except BaseException:
                with suppress(duckdb.TransactionException):  # a commit within the block that failed has ended it
                    connection.rollback()
                raise
            connection.rollback() if dry_run else connection.commit()


def folder_of(connection: DuckDBPyConnection) -> Path:
    """The folder of the store that `connection` is open on."""
    query = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    return Path(connection.execute(query).fetchall()[0][0]).resolve().parent


def _check_folder(path: Path) -> None:
    if path == Path():
        raise StoreError("The path of the store is empty.", "Check for an unset variable in the command.")
    if not path.parent.is_dir():
        raise StoreError(f"The folder {path.parent} for the store does not exist.", f"mkdir -p {path.parent}")


def _create(path: Path) -> None:
    """Create an empty store next to `path` and move it there once it is complete.

    DuckDB creates a file of 0 bytes and then writes its headers; a process killed in between would leave a file that
    DuckDB rejects. A hard link, unlike a rename, does not replace a store that another process created in the meantime.
    """
    try:
        with staging_path(path) as place:
            _create_at(place, path)
    except OSError as error:
        raise _to_store_error(path, error.strerror or str(error)) from error


def _create_at(place: Path, path: Path) -> None:
    try:
        with _disk_errors(path), _open(place, read_only=False) as connection:
            _migrate(connection, place)
    except StoreError as error:
        raise StoreError(error.what.replace(str(place), str(path)), error.hint) from error
    try:
        os.link(place, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        place.rename(path)


_DISK_FULL_ERRORS = (
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.OutOfMemoryException,
    duckdb.FatalException,
)
"""A FatalException occurs when a checkpoint does not fit; the data stays in the log and is applied at the next open."""


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn errors about a full disk or a file size limit into `StoreError`.

    Only DuckDB's message identifies them: a file that a query cannot read raises the same `IOException`.
    """
    try:
        yield
    except _DISK_FULL_ERRORS as error:
        if not any(words in str(error) for words in DISK_FULL_MESSAGES):
            raise
        raise StoreError(
            f"The store {path} cannot be written: {_first_line(error)}",
            "Free some disk space and run the command again; the store is unchanged.",
        ) from error


@contextmanager
def _open(path: Path, *, read_only: bool, settings: Mapping[str, str] = STORE_ONLY) -> Iterator[DuckDBPyConnection]:
    connection = _connect(path, read_only=read_only, settings=settings)
    try:
        yield connection
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # DuckDB's error for Ctrl-C during a query
            raise KeyboardInterrupt from error
        raise
    except duckdb.Error as error:
        raise _explain(error, path) from error
    finally:
        with suppress(duckdb.Error):  # of a damaged store, which is already reported
            connection.close()


def is_store_error(error: duckdb.Error) -> bool:
    """Whether damaged pages, or a view that reads other files, cause an error; `reading` and `writing` explain it."""
    return isinstance(error, duckdb.PermissionException) or any(words in str(error) for words in DAMAGE_MESSAGES)


def _explain(error: duckdb.Error, path: Path) -> StoreError:
    """The explanation of an error: of the store if its pages, tables or views cause it, otherwise of a query."""
    message = _first_line(error)
    if isinstance(error, duckdb.PermissionException):
        return StoreError(
            f"A view in the store {path} reads other files: {message}",
            "Views read only the store. curate sql shows them: SELECT view_name, sql FROM duckdb_views()",
        )
    if is_store_error(error):
        return StoreError(
            f"The store {path} is damaged: {message}",
            "Restore it from a backup, or import the files into another --store.",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return StoreError(
            f"There is not enough memory for a query on the store {path}: {message}", "Close other programs."
        )
    if isinstance(error, duckdb.CatalogException | duckdb.BinderException):
        return StoreError(
            f"The tables of the store {path} are not those of this release: {message}",
            "Restore it from a backup, or import the files into another --store.",
        )
    return StoreError(f"A query failed while the store {path} was open: {message}", "--debug shows the traceback.")


def _connect(path: Path, *, read_only: bool, settings: Mapping[str, str]) -> DuckDBPyConnection:
    """A connection, after waiting up to the lock timeout for a process that holds the store."""
    start, timeout, notified = time.monotonic(), _lock_timeout(), False
    while True:
        try:
            return _try_to_connect(path, read_only=read_only, settings=settings)
        except _LockedError as error:
            waited = time.monotonic() - start
            if waited >= timeout:
                raise StoreError(error.what, error.hint) from error
            if waited >= NOTICE_AFTER and not notified:
                logger.warning("Waiting for the store %s, which is in use by %s.", path, error.holder)
                notified = True
            time.sleep(RETRY_EVERY)


def _lock_timeout() -> float:
    """Seconds to wait for a locked store."""
    given = os.environ.get(LOCK_TIMEOUT_VARIABLE) or str(LOCK_TIMEOUT)
    try:
        return float(given)
    except ValueError as error:
        raise StoreError(
            f"{LOCK_TIMEOUT_VARIABLE} is {given!r}, not a number of seconds.", "Use 0 to fail immediately."
        ) from error


@timed("opening the store")
def _try_to_connect(path: Path, *, read_only: bool, settings: Mapping[str, str]) -> DuckDBPyConnection:
    _check_magic(path)
    try:  # an absolute path: DuckDB treats `md:x` as a service and `:memory:` as a temporary database
        return duckdb.connect(str(path.absolute()), read_only=read_only, config=dict(settings))
    except duckdb.IOException as error:
        raise (_explain(error, path) if is_store_error(error) else _to_store_error(path, str(error))) from error
    except duckdb.Error as error:
        if is_store_error(error):
            raise _explain(error, path) from error
        raise StoreError(
            f"{path} cannot be opened as a store: {_first_line(error)}",
            "Give another --store, or restore this file from a backup.",
        ) from error


def _check_magic(path: Path) -> None:
    """Raise `StoreError` for a file that is not a DuckDB file.

    DuckDB would load CSV and JSON into an in-memory database, and try to download an extension for an SQLite file.
    Closing a file releases the locks of this process on it, so the check runs before DuckDB opens the file.
    """
    if not path.exists():  # it is about to be created
        return
    try:
        start = _start(path) if path.is_file() else b""  # reading a pipe would block
    except OSError as error:
        raise _to_store_error(path, error.strerror or str(error)) from error
    if start[MAGIC_OFFSET:] != MAGIC:
        raise _not_a_store(path)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAGIC_OFFSET + len(MAGIC))


class _LockedError(StoreError):
    """Another process holds the store."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"The store {path} is in use by {holder}; DuckDB allows one writing process at a time.",
            "Wait for it to finish, or close the program that has the file open, and run the command again.",
        )
        self.holder = holder


def _to_store_error(path: Path, message: str) -> StoreError:
    if "lock" in message.lower():
        match = re.search(r"PID (\d+)", message)
        return _LockedError(path, f"process {match.group(1)}" if match else "another process")
    if "not a valid DuckDB" in message:
        return _not_a_store(path)
    if "No space left" in message:
        return StoreError(f"The disk of the store {path} is full.", "Free some disk space and run the command again.")
    return StoreError(
        f"The store {path} cannot be opened: {message.splitlines()[0]}", "Check the path and its permissions."
    )


def _not_a_store(path: Path) -> StoreError:
    return StoreError(f"{path} is not a curate store: it is not a DuckDB file.", "Give another --store.")


@timed("checking migrations")
def _migrate(connection: DuckDBPyConnection, path: Path) -> None:
    """Apply the pending migrations, each recorded in the same transaction."""
    applied = _count_applied(connection, path)
    for number, step in enumerate(MIGRATIONS[applied:], start=applied + 1):
        connection.begin()
        if number == 1:
            connection.execute(
                "CREATE TABLE migrations (number INTEGER, name VARCHAR, applied_at TIMESTAMPTZ DEFAULT now())"
            )
        step(connection)
        if number == len(MIGRATIONS):
            create_views(connection)
        connection.execute("INSERT INTO migrations (number, name) VALUES (?, ?)", [number, step.__name__])
        connection.commit()


def _count_applied(connection: DuckDBPyConnection, path: Path) -> int:
    """The number of applied migrations. Raises `StoreError` for a DuckDB file that is not a store."""
    query = "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
    names = {name for (name,) in connection.sql(query).fetchall()}
    if not names:
        return 0
    steps = _steps(connection) if names >= STORE_TABLES else []
    known = [(number, step.__name__) for number, step in enumerate(MIGRATIONS, start=1)]
    if not steps or steps[: len(known)] != known[: len(steps)]:
        raise StoreError(
            f"{path} is a DuckDB file with other tables ({join_names(sorted(names), 3)}), not a curate store.",
            "Give another --store; this file was not changed.",
        )
    if len(steps) > len(known):
        raise StoreError(
            f"The store {path} was written by a newer release (migration {len(steps)} of {len(known)} known ones).",
            "pip install --upgrade curate-sft",
        )
    return len(steps)


def _steps(connection: DuckDBPyConnection) -> list[tuple[int, str]]:
    """The applied migrations that the store records; none if a foreign table `migrations` has other columns."""
    try:
        return connection.sql("SELECT number, name FROM main.migrations ORDER BY number").fetchall()
    except (duckdb.BinderException, duckdb.CatalogException):
        return []


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
