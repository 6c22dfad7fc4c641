"""A workbook of Excel or LibreOffice → batches: the cells of one sheet as text; rows have the numbers of the sheet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from curate.ingest.column_names import make_unique
from curate.ingest.readers.arrow import ROWS
from curate.ingest.readers.batch import Batch, batch_of_rows, reject_large
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.first_rows import MOST_ROWS, Row, check_first_rows, is_header
from curate.ingest.readers.formulas import check_computed
from curate.ingest.readers.sheet_extent import check_extent
from curate.ingest.readers.table_options import TableOptions, import_line
from schemas.errors import SourceError
from schemas.text import join_names, shell_quote

if TYPE_CHECKING:
    from python_calamine import CalamineWorkbook


Cell = int | float | str | bool | time | date | datetime | timedelta


def read_workbook(stream: ByteStream, options: TableOptions) -> Iterator[Batch]:
    """The rows of a sheet that are not empty. The first one has the column names; the line of a row is its number.

    Raises `SourceError` if the file is not a workbook, several sheets have data and none is chosen, or the first row
    does not seem to have the column names.
    """
    rows = _read_rows(stream, options)
    check_first_rows(stream.path, rows[:MOST_ROWS], options)
    has_header = options.header is not False
    width = max(map(_width, rows))
    names = make_unique([*rows[0].cells[:width], *[""] * width][:width] if has_header else [""] * width)
    body = rows[has_header:]
    for at in range(0, max(len(body), 1), ROWS):
        part = body[at : at + ROWS]
        batch = batch_of_rows(names, [row.cells for row in part], at, [row.line for row in part])
        yield reject_large(batch, stream.limits)


def _read_rows(stream: ByteStream, options: TableOptions) -> list[Row]:
    """The rows with a filled cell, without those that are to be skipped."""
    file = stream.seekable()
    workbook = _open_workbook(stream, file)
    name, table = _choose_sheet(stream.path, workbook, options.sheet)
    check_computed(stream.path, file, name, workbook.sheet_names.index(name))
    numbered = (Row(number, [_text(cell) for cell in cells]) for number, cells in enumerate(table, 1))
    rows = [row for row in numbered if row.line > options.skip_lines and any(row.cells)]
    if not rows:
        raise SourceError(f"{stream.path}: the sheet {name} has no rows.", "Choose another with --sheet NAME.")
    return rows


def _open_workbook(stream: ByteStream, file: Path | io.BytesIO) -> CalamineWorkbook:
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError

    check_extent(stream.path, file, stream.limits)
    try:
        return CalamineWorkbook.from_object(file)
    except PasswordError as error:
        raise SourceError(f"{stream.path} is encrypted.", "Save it without a password.") from error
    except CalamineError as error:
        raise SourceError(
            f"{stream.path} is not a complete workbook: {error}.", "Save it again as .xlsx, or as CSV UTF-8."
        ) from error


def _choose_sheet(path: str, workbook: CalamineWorkbook, name: str | None) -> tuple[str, list[list[Cell]]]:
    """Name and cells of the requested sheet, or of the only one with data."""
    names = workbook.sheet_names
    if name is not None and name not in names:
        commands = "".join(import_line(path, f"--sheet {shell_quote(each)}") for each in names)
        raise SourceError(f"{path} has no sheet {name}.", f"Choose one:{commands}")
    tables = {each: _cells(path, workbook, each) for each in names if name in (None, each)}
    filled = [each for each, table in tables.items() if table]
    if len(filled) > 1:
        named = [each for each in filled if _has_known_header(tables[each])] or filled
        commands = "".join(import_line(path, f"--sheet {shell_quote(each)}") for each in named)
        others = join_names([repr(each) for each in filled if each not in named], 5)
        without = f" Without known column names: {others}." if others else ""
        raise SourceError(f"{path} has {len(filled)} sheets with data.{without}", f"Choose one:{commands}")
    chosen = filled[0] if filled else names[0]
    return chosen, tables[chosen]


def _has_known_header(table: list[list[Cell]]) -> bool:
    """Whether one of the first rows has column names that shapes look for."""
    return any(is_header([_text(cell) for cell in row]) for row in table[:MOST_ROWS])


def _cells(path: str, workbook: CalamineWorkbook, name: str) -> list[list[Cell]]:
    from python_calamine import CalamineError

    try:
        return workbook.get_sheet_by_name(name).to_python(skip_empty_area=False)
    except CalamineError as error:
        raise SourceError(f"{path}: the sheet {name} cannot be read: {error}.", "Save it as CSV UTF-8.") from error


def _text(cell: Cell) -> str:
    """A cell as text: whole numbers without decimals, dates and times in ISO 8601, `true` and `false`.

    >>> _text(5.0), _text(0.1), _text(True), _text(date(2024, 5, 1)), _text("a")
    ('5', '0.1', 'true', '2024-05-01', 'a')
    """
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    return cell.isoformat() if isinstance(cell, date | time) else str(cell)


def _width(row: Row) -> int:
    """The number of cells up to the last one that is filled."""
    return next(at for at in range(len(row.cells), 0, -1) if row.cells[at - 1])
