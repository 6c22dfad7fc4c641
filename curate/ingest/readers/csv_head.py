"""The first bytes of delimited text and the options → its dialect, its column names, and where its records start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curate.ingest.column_names import make_unique
from curate.ingest.readers.byte_stream import HEAD, Bytes, ByteStream, find_byte
from curate.ingest.readers.csv_layout import Layout, first_records
from curate.ingest.readers.csv_scanner import NEWLINE, Signs
from curate.ingest.readers.encoding import encoding_error
from curate.ingest.readers.first_rows import (
    MOST_COLUMNS,
    MOST_ROWS,
    Row,
    check_first_rows,
    example_mapping,
    is_header,
    is_value,
)
from curate.ingest.readers.table_options import TableOptions, import_line
from schemas.errors import SourceError
from schemas.text import shell_quote

DELIMITERS = ",;\t|"

SNIFF_BYTES = 1 << 16
"""Bytes from which the delimiter is detected."""

BACKSLASH = "\\"


class Head(NamedTuple):
    """The layout of a file."""

    signs: Signs
    skip: int
    """Bytes before the first record."""
    names: list[str]
    has_header: bool
    """Whether the first record has the column names."""
    closed: bool
    """Whether records end in a delimiter and the header does not: they have one more cell, which is empty."""


def find_head(stream: ByteStream, options: TableOptions, delimiters: str = "") -> Head:
    """The layout of `stream`; of `delimiters` one is preferred, if it splits the header.

    The names are the cells of the first record, made unique; an empty one is named by its position. Raises
    `SourceError` if there is no header, it does not seem to be the first record, its quotes are unbalanced, or it is
    not UTF-8.
    """
    signs, skip = find_signs(stream, options, delimiters)
    data = np.frombuffer(stream.head()[skip:], np.uint8)
    first_line = 1 + stream.head().count(b"\n", 0, skip)
    layout = first_records(data, signs)
    _check_header(stream, data, layout, first_line)
    rows = _first_rows(data, layout, signs, first_line, is_short=stream.is_short)
    if options.escape is None and _has_escapes(data, signs, is_short=stream.is_short):
        raise SourceError(
            f"{stream.path}: quotes in cells are escaped with backslashes.",
            "Name the escape character:" + import_line(stream.path, f"--escape '{BACKSLASH}'"),
        )
    if options.quote is None and all(re.fullmatch("'.+'", cell) for cell in rows[0].cells):
        raise SourceError(
            f"{stream.path}: the cells are in single quotes: {rows[0].cells[0]}.",
            "Name the quote:" + import_line(stream.path, '--quote "\'"'),
        )
    if options.header is False:
        check_first_rows(stream.path, rows, options)
        names = [""] * len(rows[0].cells)
        return Head(signs, skip, make_unique(names), has_header=False, closed=False)
    names, closed = _fit_names([row.cells for row in rows])
    if len(names) == len(rows[0].cells) and not closed:
        check_first_rows(stream.path, rows, options)
    return Head(signs, skip, make_unique(names), has_header=True, closed=closed)


def find_signs(stream: ByteStream, options: TableOptions, delimiters: str) -> tuple[Signs, int]:
    """The dialect of a file, and the number of bytes before its first record."""
    head = stream.head()
    _check_lines(stream.path, head)
    skip = _skip_lines(stream.path, head, options.skip_lines)
    hint = _EXCEL_HINT.match(head, skip)
    skip = hint.end() if hint else skip
    quote, escape = '"' if options.quote is None else options.quote, options.escape or ""
    delimiter = options.delimiter or (hint[1].decode() if hint else "")
    start = np.frombuffer(head[skip : skip + SNIFF_BYTES], np.uint8)
    for among in (delimiters, DELIMITERS):
        delimiter = delimiter or find_delimiter(start, among, quote, escape)
    return Signs(delimiter or delimiters[:1] or ",", quote, escape), skip


_EXCEL_HINT = re.compile(rb'"?sep=([\t -~])"?\r?(?:\n|$)', re.IGNORECASE)
"""A first line that sets the delimiter for Excel, where the regional list separator is another one."""


def find_delimiter(start: Bytes, among: str = DELIMITERS, quote: str = '"', escape: str = "") -> str:
    r"""The delimiter for which most of the first records are as wide as the header; empty if none splits the header.

    If none does, because the first lines are a title, one that splits nearly all of the following records alike.

    >>> find_delimiter(np.frombuffer(b"question;answer\nWhy, then?;So.\n", np.uint8))
    ';'
    """
    shares = [(*_agreement(first_records(start, Signs(sign, quote, escape))), sign) for sign in among if sign != quote]
    share, _, delimiter = max(shares, default=(0, 0, ""))
    return delimiter if share else ""


def is_table(start: bytes) -> bool:
    """Whether text seems to be delimited: nearly all of its first lines have the cells of a header that has names."""
    data = np.frombuffer(start[:SNIFF_BYTES], np.uint8)
    delimiter = find_delimiter(data)
    if not delimiter:
        return False
    signs = Signs(delimiter)
    layout = first_records(data, signs)
    share, width = _agreement(layout)
    names = [cell.decode(errors="replace") for cell in layout.cells_of(data, int(np.argmin(layout.blank)), signs)]
    return share > 0.9 and width > 1 and len(layout.widths) > 1 and all(names) and not any(map(is_value, names))


_LEAST_LINES = 3
"""Lines of a table without column names."""


def check_is_text(path: str, start: bytes) -> None:
    """Raise `SourceError` with the commands to choose from if a text file seems to have a table.

    Nearly all of its lines have the same number of cells, or a line in the beginning has column names of a shape. A
    comma separates cells only below such names.
    """
    text = start[:SNIFF_BYTES].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    for sign in DELIMITERS:
        widths = [line.count(sign) + 1 for line in lines]
        usual = max(set(widths), key=widths.count, default=1)
        if len(lines) >= _LEAST_LINES and usual > 1 and sign != "," and widths.count(usual) >= 0.9 * len(lines):
            options = f"{_delimiter_option(sign)} --no-header{example_mapping(usual)}"
            raise _table_error(path, f"nearly all lines have {usual} cells, divided by {sign!r}", options)
        header = next((at for at, line in enumerate(text.splitlines()[:MOST_ROWS]) if _is_header(line, sign)), 0)
        if header:
            options = f"{_delimiter_option(sign)} --skip-lines {header}"
            raise _table_error(path, f"line {header + 1} has column names, divided by {sign!r}", options)


def _is_header(line: str, sign: str) -> bool:
    cells = [cell.strip(' "') for cell in line.split(sign)]
    return len(cells) > 1 and all(cells) and is_header(cells)


def _delimiter_option(sign: str) -> str:
    return f"--delimiter {'tab' if sign == chr(9) else shell_quote(sign)}"


def _table_error(path: str, why: str, options: str) -> SourceError:
    commands = import_line(path, options) + import_line(path, "--format text")
    return SourceError(f"{path} seems to have a table: {why}.", f"Import its rows, or its text as a whole:{commands}")


def _agreement(layout: Layout) -> tuple[float, int]:
    """The share of records that are as wide as the header, and the header's width; share 0 for a single column.

    A header after a title counts less than one in the first record.
    """
    widths = layout.widths[~layout.blank]
    widths = widths[:-1] if len(widths) > 2 else widths
    if len(widths) and widths[0] > 1:
        return float(np.mean(widths == widths[0])), int(widths[0])
    usual = int(np.bincount(widths[1:]).argmax()) if len(widths) > 2 else 0
    share = float(np.mean(widths[1:] == usual)) if usual > 1 else 0.0
    return (share / 100, usual) if share > 0.7 else (0.0, 0)


def _check_lines(path: str, head: bytes) -> None:
    if not head.strip():
        raise SourceError(f"{path} is empty.", "Omit it, or export it again.")
    if b"\r" in head and b"\n" not in _QUOTED.sub(b"", head):
        what = f"The lines of {path} end in carriage returns without newlines, as in old Mac files."
        raise SourceError(what, f"Convert them: tr '\\r' '\\n' < {shell_quote(path)} | curate import -")


_QUOTED = re.compile(rb'"[^"]*"')
"""Quoted text, in which a newline does not end a record."""


def _skip_lines(path: str, head: bytes, count: int) -> int:
    """The number of bytes of the first `count` lines. Raises `SourceError` if the first megabyte has fewer."""
    ends = find_byte(np.frombuffer(head, np.uint8), NEWLINE)
    if count >= len(ends) + (not head.endswith(b"\n")):
        raise SourceError(
            f"{path}: {count:,} lines are to be skipped, and its first {len(head):,} bytes have {len(ends):,} line "
            "ends.",
            "Use a smaller number in --skip-lines.",
        )
    return int(ends[count - 1]) + 1 if count else 0


def _check_header(stream: ByteStream, data: Bytes, layout: Layout, first_line: int) -> None:
    """Raise `SourceError` if the first record is incomplete, has unbalanced quotes, or is not UTF-8."""
    record = int(np.argmin(layout.blank))
    if record in layout.faults:
        raise SourceError(
            f"{stream.path}: the quotes of the header are unbalanced.", "Close them; double a quote in a quoted cell."
        )
    start, stop = layout.span(record)
    if stop == len(data) and not stream.is_short:
        raise SourceError(
            f"{stream.path}: the header does not end within the first {HEAD:,} bytes, which is the limit, as are "
            f"{MOST_COLUMNS:,} columns.",
            "Omit columns, or close a quote in the header.",
        )
    header = data[start:stop].tobytes()
    try:
        header.decode()
    except UnicodeDecodeError as error:
        line = first_line + len(find_byte(data[:start], NEWLINE)) + header.count(b"\n", 0, error.start)
        raise encoding_error(stream.path, header, line, stream.blocks) from error


def _first_rows(data: Bytes, layout: Layout, signs: Signs, first_line: int, *, is_short: bool) -> list[Row]:
    """The first complete records that are not blank; at least the header."""
    records = np.flatnonzero(~layout.blank)[: min(MOST_ROWS, 2 + 100_000 // int(layout.widths.max())) + 1]
    if not is_short and records[-1] == len(layout.widths) - 1:
        records = records[:-1]  # it may end after the data
    lines = first_line + np.searchsorted(find_byte(data, NEWLINE), layout.starts[layout.first[records]])
    cells = ([cell.decode(errors="replace") for cell in layout.cells_of(data, int(at), signs)] for at in records)
    return [Row(int(line), row) for line, row in zip(lines, cells, strict=True)]


def _has_escapes(data: Bytes, signs: Signs, *, is_short: bool) -> bool:
    """Whether some quotes are misplaced, and none if a backslash takes away the meaning of a quote."""
    start = data[:SNIFF_BYTES]
    if (BACKSLASH + signs.quote).encode() not in start.tobytes() or not signs.quote:
        return False
    last = is_short and len(start) == len(data)
    layouts = (first_records(start, each, last=last) for each in (signs, signs._replace(escape=BACKSLASH)))
    odd, still_odd = map(_count_odd, layouts)
    return odd > 0 == still_odd


def _count_odd(layout: Layout) -> int:
    """The records that have a fault or another width than the header."""
    widths = layout.widths[~layout.blank]
    return len(layout.faults) + int((widths != widths[:1]).sum())


def _fit_names(rows: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """The names, as many as the records have cells, and whether the records end in a delimiter.

    The table may have a delimiter at the end of only the header or only the records, or, as written by R, row names
    without a column name.
    """
    header, below = list(rows[0]), rows[1:]
    surplus = {len(cells) - len(header) for cells in below}
    if surplus == {1} and all(cells[-1] == "" for cells in below):
        return header, True
    if surplus == {1} and [cells[0] for cells in below] == [str(number) for number in range(1, len(below) + 1)]:
        return ["", *header], False
    return (header[:-1] if surplus == {-1} and header[-1] == "" else header), False
