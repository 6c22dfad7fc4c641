"""A table of an SQLite database → batches. Rows have no line numbers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import polars as pl

from curate.ingest.column_names import make_unique
from curate.ingest.readers.arrow import PART, ROWS
from curate.ingest.readers.batch import REJECTS, Batch, batch_of_rows, reject_large
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.table_options import TableOptions, import_line
from curate.ingest.readers.text_arrays import utf8_problem
from schemas.errors import SourceError
from schemas.text import quote_name, shell_quote

MOST_CELL = 128 << 20
"""Bytes of a cell; a view can compute one of a gigabyte."""

TABLES_SQL = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"


def read_sqlite(stream: ByteStream, options: TableOptions) -> Iterator[Batch]:
    """The rows of a table or view, in the order of the database.

    Raises `SourceError` if the database has several tables and none is chosen, or is damaged.
    """
    try:
        with closing(_connect(stream.seekable())) as database:
            database.text_factory = _decode
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_CELL)
            cursor = database.execute(
                f"SELECT * FROM {quote_name(_choose_table(stream.path, database, options.sheet))}"
            )
            names, before = make_unique(column[0] for column in cursor.description), 0
            while rows := _fetch(cursor):
                yield reject_large(_batch(names, rows, before), stream.limits)
                before += len(rows)
    except sqlite3.Error as error:
        raise SourceError(f"{stream.path} cannot be read as an SQLite database: {error}.", "Copy it again.") from error


def _fetch(cursor: sqlite3.Cursor) -> list[Sequence[Cell]]:
    """The next rows: at most `ROWS`, with about `PART` bytes."""
    rows: list[Sequence[Cell]] = []
    size = 0
    while len(rows) < ROWS and size < PART and (row := cursor.fetchone()) is not None:
        rows.append(row)
        size += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
    return rows


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
    commands = "".join(import_line(path, f"--sheet {shell_quote(each)}") for each in names)
    what = f"has {len(names)} tables" if name is None else f"has no table {name}"
    raise SourceError(f"{path} {what}.", f"Choose one:{commands}")


class InvalidText(bytes):
    """A text of the database that is not UTF-8; SQLite does not check texts."""


Cell = int | float | str | bytes | None


def _decode(text: bytes) -> str | InvalidText:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return InvalidText(text)


def _batch(names: Sequence[str], rows: Sequence[Sequence[Cell]], before: int) -> Batch:
    """The batch of `rows`, after `before` other rows; those with a text that is not UTF-8 are rejects."""
    invalid = [at for at, row in enumerate(rows) if InvalidText in map(type, row)]
    good = sorted({*range(len(rows))} - {*invalid})
    batch = batch_of_rows(names, [[_text(cell) for cell in rows[at]] for at in good], before)
    rejects = [_reject(names, rows[at], before + at + 1) for at in invalid]
    return replace(
        batch,
        row=pl.Series("row", [before + at + 1 for at in good], dtype=pl.Int64),
        rejects=pl.DataFrame(rejects, schema=REJECTS, orient="row"),
    )


def _reject(names: Sequence[str], cells: Sequence[Cell], row: int) -> tuple[int, None, str, str, str]:
    name, text = next((name, cell) for name, cell in zip(names, cells, strict=True) if isinstance(cell, InvalidText))
    _, code, reason = utf8_problem(0, text)
    raw = json.dumps(dict(zip(names, map(_text, cells), strict=True)), ensure_ascii=False)
    return row, None, code, f"{name}: {reason}", raw


def _text(cell: Cell) -> str | None:
    if isinstance(cell, InvalidText):
        return cell.decode(errors="backslashreplace")
    return cell.hex() if isinstance(cell, bytes) else None if cell is None else str(cell)
