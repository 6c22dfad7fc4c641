"""A check before a workbook is opened: calamine allocates every cell up to the last row and column of a sheet."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path

from curate.ingest.readers.limits import Limits, check_expansion
from schemas.errors import SourceError

MOST_TEXT = 512 << 20
"""Bytes of the sheets of a workbook: 2 million cells of Excel have 100 MB."""

MOST_CELLS = 50_000_000
"""Cells of a sheet, about 1 GB; a single cell in the last corner of a sheet of Excel would need 400 GB."""

XLSX_CELL = re.compile(rb"""<(?:\w+:)?c\b[^>]*?\br=["']([A-Z]{1,3})(\d{1,7})["'][^>]*(?<!/)>(?!</)""")
"""A cell with content: column and row."""

ODS_ELEMENT = re.compile(rb"<table:(table|table-row|(?:covered-)?table-cell)(\s[^>]*?)?(/?)>")

ODS_REPEATED = re.compile(rb"""number-(?:rows|columns)-repeated=["'](\d{1,30})""")


def check_extent(path: str, file: Path | io.BytesIO, limits: Limits) -> None:
    """Raise `SourceError` if the cells of a sheet are so far apart that it cannot be read.

    Files of the old format `.xls` are not zip archives and have at most 65,536 rows of 256 cells.
    """
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            _check_parts(path, archive, limits)
            sheets = [
                name for name in archive.namelist() if re.fullmatch(r"xl/worksheets/[^/]+\.xml|content\.xml", name)
            ]
            extents = {name: _extent(archive.read(name)) for name in sheets}
    except RuntimeError:
        return  # calamine reports encrypted workbooks
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SourceError(
            f"{path} is not a complete workbook: {error}.", "Save it again as .xlsx, or as CSV UTF-8."
        ) from error
    for name, (rows, columns) in extents.items():
        if rows * columns > MOST_CELLS:
            raise SourceError(
                f"{path}: a sheet ({name}) reaches to row {rows:,} and column {column_name(columns)}, too many cells.",
                "Delete the cells far away from the table, or save the table as CSV UTF-8.",
            )


def _check_parts(path: str, archive: zipfile.ZipFile, limits: Limits) -> None:
    """Raise `SourceError` if the parts of a workbook, which are held in memory, expand beyond the limits."""
    parts = [part for part in archive.infolist() if part.filename.endswith((".xml", ".rels"))]
    plain = sum(part.file_size for part in parts)
    if plain > MOST_TEXT:
        raise SourceError(
            f"{path}: its sheets have {plain:,} bytes, more than the maximum of a workbook, {MOST_TEXT:,}.",
            "Save the table as CSV UTF-8.",
        )
    check_expansion(path, sum(part.compress_size for part in parts), plain, limits)


def column_name(number: int) -> str:
    """The letters of a column, its number if a workbook cannot have so many.

    >>> column_name(3), column_name(16384), column_name(3000000)
    ('C', 'XFD', '3,000,000')
    """
    if number > 26**3:
        return f"{number:,}"
    letters = ""
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def _extent(xml: bytes) -> tuple[int, int]:
    """The last row and the last column with content, over all sheets of the text."""
    if b"<table:table" in xml:
        return _ods_extent(xml)
    cells = XLSX_CELL.findall(xml)
    columns = {letters for letters, _ in cells}
    return max((int(row) for _, row in cells), default=0), max(map(_column_number, columns), default=0)


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + letter - ord("A") + 1
    return number


def _ods_extent(xml: bytes) -> tuple[int, int]:
    """Repeated rows and cells count, empty ones only before others: a loop, as positions follow from the order."""
    last_row = last_column = row_end = column = 0
    for element in ODS_ELEMENT.finditer(xml):
        kind, attributes, closed = element[1], element[2] or b"", element[3]
        repeated = ODS_REPEATED.search(attributes)
        count = int(repeated[1]) if repeated else 1
        if kind == b"table":
            row_end = 0
        elif kind == b"table-row":
            row_end, column = row_end + count, 0
        else:
            column += count
            if not closed or b"office:value" in attributes:
                last_row, last_column = max(last_row, row_end), max(last_column, column)
    return last_row, last_column
