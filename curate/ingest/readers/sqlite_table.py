"""A table of an SQLite database → batches. Rows have no line numbers."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from curate.ingest.column_names import make_unique
from curate.ingest.readers.arrow import ROWS
from curate.ingest.readers.batch import Batch, batch_of_rows
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.table_options import TableOptions, import_line
from schemas.errors import SourceError

TABLES_SQL = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"


def read_sqlite(stream: ByteStream, options: TableOptions) -> Iterator[Batch]:
    """The rows of a table or view, in the order of the database.

    Raises `SourceError` if the database has several tables and none is chosen, or is damaged.
    """
    try:
        with closing(_connect(stream.seekable())) as database:
            cursor = database.execute(f"SELECT * FROM {_quoted(_choose_table(stream.path, database, options.sheet))}")
            names, before = make_unique(column[0] for column in cursor.description), 0
            while rows := cursor.fetchmany(ROWS):
                yield batch_of_rows(names, [[_text(cell) for cell in row] for row in rows], before)
                before += len(rows)
    except sqlite3.Error as error:
        raise SourceError(f"{stream.path} cannot be read as an SQLite database: {error}.", "Copy it again.") from error


def _connect(file: object) -> sqlite3.Connection:
    """A connection that cannot change the database; a file in memory is copied."""
    if isinstance(file, Path):
        return sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, check_same_thread=False)
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.deserialize(file.getvalue())  # type: ignore[attr-defined]
    return database


def _choose_table(path: str, database: sqlite3.Connection, name: str | None) -> str:
    names = [str(row[0]) for row in database.execute(TABLES_SQL)]
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    if not names:
        raise SourceError(f"{path} has no tables.", "Check that it is the right file, and that it is complete.")
    commands = "".join(import_line(path, f"--sheet {shlex.quote(each)}") for each in names)
    what = f"has {len(names)} tables" if name is None else f"has no table {name}"
    raise SourceError(f"{path} {what}.", f"Choose one:{commands}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(cell: int | float | str | bytes | None) -> str | None:
    return cell.hex() if isinstance(cell, bytes) else None if cell is None else str(cell)
