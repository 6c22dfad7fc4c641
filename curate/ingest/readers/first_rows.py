"""The first rows of a table → nothing, or an error if the first of them does not seem to have the column names.

A title above the header, or a file without a header, is never read by guess: the error prints the option that reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from curate.ingest.column_names import name_key
from curate.ingest.readers.batch import REJECT_COLUMN
from curate.ingest.readers.table_options import TableOptions, import_line
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.cell_path import base_column
from schemas.errors import SourceError
from schemas.text import join_names, shell_quote, shorten

MOST_ROWS = 30
"""First rows that are inspected."""

MOST_COLUMNS = 50_000
"""Columns of a table. The header of a CSV file also has to end within the first megabyte."""

MOST_TITLES = 20
"""Rows before the header that can be a title."""

REVIEW_COLUMNS = ("set", "conversation", "source", "line", "text")
"""The columns of `curate review export` before the questions, which annotators leave unchanged."""

LONGEST_NAME = 80
"""Characters of a column name; a longer text is a value."""

_SENTENCE = re.compile(r"\S+\s.*[.?!…。？！]\W*", re.DOTALL)
_NUMBER_OF = re.compile(r".*\b(no|nr|num)\.", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?[\d.,]*\d%?")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./]\d\d?[./]\d{2,4}( .*)?")
_JSON = re.compile(r"\s*(\{\s*\"|\[\s*[\[{\"]).*", re.DOTALL)


class Row(NamedTuple):
    """A row that is not blank, and the line on which it starts."""

    line: int
    cells: list[str]


def check_first_rows(path: str, rows: Sequence[Row], options: TableOptions) -> None:
    """Raise `SourceError` if the first row does not seem to be the header, or the first of data without a header."""
    cells = rows[0].cells if rows else []
    if len(cells) > MOST_COLUMNS:
        raise SourceError(f"{path} has {len(cells):,} columns; the limit is {MOST_COLUMNS:,}.", "Omit some of them.")
    if tuple(cells[: len(REVIEW_COLUMNS)]) == REVIEW_COLUMNS:
        raise SourceError(
            f"{path} is a review spreadsheet.", f"Import its answers:\n    curate review import {shell_quote(path)}"
        )
    if not rows or options.header or is_header(cells, options.named):
        return
    if (start := find_table(rows)) is not None:
        lines = rows[start].line - 1
        raise SourceError(
            f"{path}: the table seems to start on line {lines + 1}, with {_quote(rows[start].cells)}; above it is "
            f"{_quote(cells)}.",
            f"Skip the lines above it, or say that line {rows[0].line} has the column names:"
            + import_line(path, f"--skip-lines {lines}")
            + import_line(path, "--header"),
        )
    if options.header is None and looks_like_data(rows):
        raise SourceError(
            f"{path}: the first row looks like data, not like column names: {_quote(cells)}.",
            "Say that it is data, or that it has the column names:"
            + import_line(path, f"--no-header{example_mapping(len(cells))}")
            + import_line(path, f"--header{example_mapping(len(cells), cells)}"),
        )


def is_header(cells: Sequence[str], named: Sequence[str] = ()) -> bool:
    """Whether a row has a column that the user has named, or column names that shapes look for."""
    if REJECT_COLUMN in cells:
        return True
    known = sum(name_key(cell) in _known_names() for cell in cells)
    return any(base_column(name, cells) for name in named) or known > any(map(is_value, cells))


def find_table(rows: Sequence[Row]) -> int | None:
    """Index of the first row of the table; None if it is the first row.

    The rows above are a title if their number of cells differs from nearly all rows below, or if only their first cell
    is filled and the row below is complete.
    """
    widths = [len(row.cells) for row in rows]
    width, _ = Counter(widths[1:] or widths).most_common(1)[0]
    start = next((at for at, found in enumerate(widths) if found == width), 0)
    if start:
        same = [found == width for found in widths[start:]]
        return start if width > 1 and start <= MOST_TITLES and sum(same) >= max(2, 0.9 * len(same)) else None
    start = next((at for at, row in enumerate(rows) if row.cells[0] == "" or any(row.cells[1:])), 0)
    complete = 0 < start <= MOST_TITLES and len(rows) > start + 1 and all(rows[start].cells)
    return start if width > 1 and complete else None


def looks_like_data(rows: Sequence[Row]) -> bool:
    """Whether the first row has a value: a sentence or JSON, one that recurs below, or a number above numbers."""
    cells = rows[0].cells
    if cells in ([str(at) for at in range(len(cells))], [str(at) for at in range(1, len(cells) + 1)]):
        return False  # the names that pandas gives to columns without names
    below = [row.cells for row in rows[1:] if row.cells != cells]
    columns = [(cell, [row[at] for row in below if at < len(row)]) for at, cell in enumerate(cells) if cell]
    return any(is_value(cell) or cell in column or _is_same_kind(cell, column) for cell, column in columns)


def is_value(cell: str) -> bool:
    """Whether a text cannot well be a column name: a sentence, JSON, or a long text.

    >>> [is_value(cell) for cell in ("question", "Ticket No.", "How far is it?", "2024")]
    [False, False, True, False]
    """
    text = cell.strip()
    is_text = _JSON.fullmatch(text) or (_SENTENCE.fullmatch(text) and not _NUMBER_OF.fullmatch(text))
    return len(text) > LONGEST_NAME or bool(is_text)


def _is_same_kind(cell: str, column: Sequence[str]) -> bool:
    """Whether a cell and most of those below are numbers, or dates."""
    return any(
        pattern.fullmatch(cell) and 2 * sum(pattern.fullmatch(other) is not None for other in column) > len(column)
        for pattern in (_NUMBER, _DATE)
    )


@cache
def _known_names() -> frozenset[str]:
    """The column names that shapes look for."""
    fields = (field for shape in SHAPES.values() for field in shape.fields.values())
    return frozenset(name_key(name) for field in fields for name in (*field.names, *field.weak_names))


def _quote(cells: Sequence[str]) -> str:
    return join_names([repr(shorten(cell, 40)) for cell in cells if cell], 4)


def example_mapping(width: int, names: Sequence[str] = ("column_1", "column_2")) -> str:
    """The mapping of two columns to questions and answers; of other numbers of columns only the user knows it."""
    if width != 2 or len({*names, ""}) < len(names) + 1:
        return ""
    question, answer = (
        shell_quote(f"{field}={name}") for field, name in zip(("question", "answer"), names, strict=True)
    )
    return f" --shape pairs --map {question} --map {answer}"
