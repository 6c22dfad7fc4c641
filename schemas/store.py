"""The store: one DuckDB file that holds everything up to the adapter.

`reading` and `writing` are the two doors. DuckDB lets one process write and shuts all others out meanwhile, so
a command opens the store, does its work in one transaction and closes it; nothing keeps it open while it
trains or waits for a person.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from schemas.atomic import staging_path
from schemas.errors import StoreError
from schemas.migrations import MIGRATIONS
from schemas.text import join_names
from schemas.views import create_views

logger = logging.getLogger(__name__)

DEFAULT_STORE = Path("curate.duckdb")
STORE_VARIABLE = "CURATE_STORE"

DISK_IS_FULL = ("Could not write", "max_temp_directory_size")
"""What DuckDB says when the disk takes no more: of the store or its log, and of what memory cannot hold."""


MAGIC_PLACE, MAGIC = 8, b"DUCK"
"""Where the mark of a DuckDB file stands, behind a checksum, and how it reads."""

STORE_TABLES = {"migrations", "sources", "conversations"}
"""Tables that a store has from its first step on."""

PATIENCE = 20.0
"""Seconds that a locked store is waited for: most commands hold it for less, even with 100,000 conversations. Who has
it for longer imports or scores, or is a program that was left open, and a person wants to know that."""

PATIENCE_VARIABLE = "CURATE_PATIENCE"
"""Other seconds; 0 refuses a locked store at once."""

SILENCE, BETWEEN_TRIES = 1.0, 0.1
"""Seconds before it is said that the store is waited for, and between two tries."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system without links says."""


@contextmanager
def reading(path: Path) -> Iterator[DuckDBPyConnection]:
    """A read-only connection to the store at `path`.

    Raises `StoreError` when there is no store, it is locked by a writer, newer than this release, or no store.
    """
    _refuse_missing_folder(path)
    if not path.exists():
        raise StoreError(f"There is no store at {path}.", f"curate import FILE --store {path} makes one.")
    with _connected(path, read_only=True) as connection:
        missing = len(MIGRATIONS) - _applied(connection, path)
    if missing:
        with writing(path):
            pass  # a store of an older release: bring it up to date first
    with _connected(path, read_only=True) as connection:
        yield connection


@contextmanager
def writing(path: Path) -> Iterator[DuckDBPyConnection]:
    """A connection to the store at `path`, made if missing, inside one transaction.

    Leaving the block commits, an exception rolls back: a command is done whole or not at all.
    Raises `StoreError` as `reading` does.
    """
    _refuse_missing_folder(path)
    if not path.exists():
        _create(path)
    with _connected(path, read_only=False) as connection:
        _migrate(connection, path)
        with _written(path):
            connection.begin()
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()


def folder_of(connection: DuckDBPyConnection) -> Path:
    """The folder in which the store of this connection lies."""
    query = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    return Path(connection.execute(query).fetchall()[0][0]).resolve().parent


def _refuse_missing_folder(path: Path) -> None:
    if path == Path():
        raise StoreError("The name of the store is empty.", "An unset variable may stand in its place.")
    if not path.parent.is_dir():
        raise StoreError(f"The folder {path.parent} for the store is not there.", f"mkdir -p {path.parent}")


def _create(path: Path) -> None:
    """Make an empty store beside `path` and give it that name when it is whole.

    DuckDB makes a file of 0 bytes and then writes its headers; a process killed in between would leave a file that
    is refused ever after. A link, unlike a rename, leaves a store alone that another process founded meanwhile.
    """
    try:
        with staging_path(path) as place:
            _found(place, path)
    except OSError as error:
        raise _explained(path, error.strerror or str(error)) from error


def _found(place: Path, path: Path) -> None:
    try:
        with _written(path), _connected(place, read_only=False) as connection:
            _migrate(connection, place)
    except StoreError as error:
        raise StoreError(error.what.replace(str(place), str(path)), error.hint) from error
    try:
        os.link(place, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        place.rename(path)


_PERHAPS_FULL = (duckdb.IOException, duckdb.TransactionException, duckdb.OutOfMemoryException, duckdb.FatalException)
"""Fatal is what no longer fits when the log is written over to the store; the log has it, and the next opening."""


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Say in a sentence that the disk would not take what was written: it is full, or the file may not grow.

    DuckDB tells so by its words alone: an unreadable file of a query raises the same `IOException`.
    """
    try:
        yield
    except _PERHAPS_FULL as error:
        if not any(words in str(error) for words in DISK_IS_FULL):
            raise
        raise StoreError(
            f"The store {path} cannot be written: {_first_line(error)}",
            "Free some disk space and run the command again; nothing is half done.",
        ) from error


@contextmanager
def _connected(path: Path, *, read_only: bool) -> Iterator[DuckDBPyConnection]:
    connection = _connect(path, read_only=read_only)
    try:
        yield connection
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # how DuckDB tells of Ctrl-C during a query
            raise KeyboardInterrupt from error
        raise
    finally:
        connection.close()


def _connect(path: Path, *, read_only: bool) -> DuckDBPyConnection:
    """A connection, waiting for whoever has the store for some seconds."""
    start, patience, said = time.monotonic(), _patience(), False
    while True:
        try:
            return _try_to_connect(path, read_only=read_only)
        except _LockedError as error:
            waited = time.monotonic() - start
            if waited >= patience:
                raise StoreError(error.what, error.hint) from error
            if waited >= SILENCE and not said:
                logger.warning("Waiting for the store %s: %s has it.", path, error.who)
                said = True
            time.sleep(BETWEEN_TRIES)


def _patience() -> float:
    """How many seconds a locked store is waited for."""
    given = os.environ.get(PATIENCE_VARIABLE) or str(PATIENCE)
    try:
        return float(given)
    except ValueError as error:
        raise StoreError(
            f"{PATIENCE_VARIABLE} is {given!r}, not a number of seconds.", "0 waits for nobody."
        ) from error


def _try_to_connect(path: Path, *, read_only: bool) -> DuckDBPyConnection:
    _refuse_other_kind(path)
    try:  # from the root on: `md:x` is a service to DuckDB, `:memory:` a store that is gone at the end
        return duckdb.connect(str(path.absolute()), read_only=read_only)
    except duckdb.IOException as error:
        raise _explained(path, str(error)) from error
    except duckdb.Error as error:
        raise StoreError(
            f"{path} cannot be opened as a store: {_first_line(error)}",
            "Give another --store; if this file is yours, restore it from a copy.",
        ) from error


def _refuse_other_kind(path: Path) -> None:
    """Refuse a file that DuckDB would not open as its own.

    It reads CSV and JSON into a database in memory, and asks the network for what opens an SQLite file. To close
    a file ends the locks that this process has on it: look before DuckDB opens it.
    """
    if not path.exists():  # it is about to be made
        return
    try:
        start = _start(path) if path.is_file() else b""  # a pipe would be waited for
    except OSError as error:
        raise _explained(path, error.strerror or str(error)) from error
    if start[MAGIC_PLACE:] != MAGIC:
        raise _no_store(path)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAGIC_PLACE + len(MAGIC))


class _LockedError(StoreError):
    """Another process has the store."""

    def __init__(self, path: Path, who: str) -> None:
        super().__init__(
            f"The store {path} is in use by {who}, and DuckDB lets one process write at a time.",
            "Wait for it to end, or close the program that has the file open, then run this again.",
        )
        self.who = who


def _explained(path: Path, message: str) -> StoreError:
    if "lock" in message.lower():
        holder = re.search(r"PID (\d+)", message)
        return _LockedError(path, f"process {holder.group(1)}" if holder else "another process")
    if "not a valid DuckDB" in message:
        return _no_store(path)
    if "No space left" in message:
        return StoreError(f"There is no space left for the store {path}.", "Free some disk space and run this again.")
    return StoreError(f"The store {path} cannot be opened: {message.splitlines()[0]}", "Check the path and its rights.")


def _no_store(path: Path) -> StoreError:
    return StoreError(f"{path} is not a curate store, nor any DuckDB file.", "Give another --store.")


def _migrate(connection: DuckDBPyConnection, path: Path) -> None:
    """Apply the steps that this store has not seen, each in its own transaction with its mark."""
    applied = _applied(connection, path)
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


def _applied(connection: DuckDBPyConnection, path: Path) -> int:
    """How many steps this store has seen. Raises `StoreError` for a file whose tables are not those of a store."""
    query = "SELECT table_name FROM duckdb_tables() UNION ALL SELECT view_name FROM duckdb_views() WHERE NOT internal"
    names = {name for (name,) in connection.sql(query).fetchall()}
    if not names:
        return 0
    steps = _steps(connection) if names >= STORE_TABLES else []
    known = [(number, step.__name__) for number, step in enumerate(MIGRATIONS, start=1)]
    if not steps or steps[: len(known)] != known[: len(steps)]:
        raise StoreError(
            f"{path} is a DuckDB file with other tables ({join_names(sorted(names), 3)}), not a curate store.",
            "Give another --store; nothing was changed in this file.",
        )
    if len(steps) > len(known):
        raise StoreError(
            f"The store {path} was written by a newer release (step {len(steps)}, this one knows {len(known)}).",
            "pip install --upgrade curate-sft",
        )
    return len(steps)


def _steps(connection: DuckDBPyConnection) -> list[tuple[int, str]]:
    """The steps that the store has written down; none where such a table of somebody else has other columns."""
    try:
        return connection.sql("SELECT number, name FROM main.migrations ORDER BY number").fetchall()
    except (duckdb.BinderException, duckdb.CatalogException):
        return []


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def store_path(given: Path | None = None) -> Path:
    """The store to use: the option, then the variable `CURATE_STORE`, then `curate.duckdb` in this folder."""
    return given or Path(os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)
