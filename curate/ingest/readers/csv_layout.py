"""The records of a CSV splitter → positions and texts of their cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from curate.ingest.readers.byte_stream import Bytes, Positions, find_byte
from curate.ingest.readers.csv_scanner import NEWLINE, RETURN, Fault, Mask, Records, RecordSplitter, Signs


class Layout(NamedTuple):
    """Positions of records and cells in the data."""

    starts: Positions
    stops: Positions
    """Start and end of each cell, including quotes, without the line end."""
    quotes: Positions
    """Number of quotes in each cell."""
    first: Positions
    """Index of the first cell of each record."""
    widths: Positions
    """Number of cells of each record."""
    blank: Mask
    """Whether a record is an empty line."""
    faults: dict[int, Fault]
    """Record → why it cannot be read."""

    @classmethod
    def of(cls, data: Bytes, records: Records) -> Layout:
        """The layout of the records of a splitter in `data`."""
        starts = np.append(0, records.separators + 1)[:-1]
        last = np.flatnonzero(records.ends)
        stops = records.separators.copy()
        stops[last] -= (stops[last] > starts[last]) & (data[stops[last] - 1] == RETURN)
        first = np.append(0, last + 1)[:-1]
        widths = last - first + 1
        faulty = np.searchsorted(records.separators[last], list(records.faults)).tolist()
        faults = dict(zip(faulty, records.faults.values(), strict=True))
        return cls(starts, stops, records.quotes, first, widths, (widths == 1) & (stops == starts)[last], faults)

    def span(self, record: int) -> tuple[int, int]:
        """Start and end of a record, without the line end."""
        return int(self.starts[self.first[record]]), int(self.stops[self.first[record] + self.widths[record] - 1])

    def cells_of(self, data: Bytes, record: int, signs: Signs) -> Iterator[bytes]:
        """The cells of one record, unquoted."""
        for cell in range(self.first[record], self.first[record] + self.widths[record]):
            yield unquote(data[self.starts[cell] : self.stops[cell]].tobytes(), signs)


def first_records(start: Bytes, signs: Signs, *, last: bool = True) -> Layout:
    """The layout of the records in the first bytes of a file; with `last`, including one that may be incomplete."""
    return Layout.of(start, RecordSplitter(signs, 0)(start, find_byte(start, NEWLINE), last=last)[1])


def split_record(text: str, signs: Signs) -> list[str] | None:
    """The cells of the text of one record; None if its quotes are invalid."""
    data = np.frombuffer(text.encode(), np.uint8)
    layout = first_records(data, signs)
    if len(layout.widths) != 1 or layout.faults:
        return None
    return [cell.decode() for cell in layout.cells_of(data, 0, signs)]


def unquote(cell: bytes, signs: Signs) -> bytes:
    r"""The content of a cell.

    >>> unquote(b"'a ''b'", Signs(",", "'")), unquote(rb"a\,b\n", Signs(",", "", "\\"))
    (b"a 'b", b'a,b\\n')
    """
    quote = signs.quote.encode()
    quoted = bool(quote) and cell.startswith(quote)
    text = cell[1:-1] if quoted else cell
    if not signs.escape:
        return text.replace(quote * 2, quote) if quoted else text
    if not quoted and text == signs.escape.encode() + b"N":
        return b""
    return re.sub(escape_pattern(signs, quoted=quoted).encode(), rb"\1\2" if quoted else rb"\1", text)


def escape_pattern(signs: Signs, *, quoted: bool) -> str:
    """Matches the notation of one character: a pair of quotes, or a character with a meaning after an escape.

    The character is in the first group, or in the second one. An escape before any other character is text. An
    unquoted cell that is an escape and `N`, as databases write NULL, is empty.
    """
    delimiter, quote, escape = (re.escape(sign) for sign in signs)
    return rf"{escape}([{delimiter}{quote}{escape}\n\r])" + (f"|{quote}({quote})" if quoted else "")
