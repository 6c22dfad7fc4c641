"""CSV and TSV to batches: the first record names the columns, every cell is text, an empty cell is empty text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from curate.ingest.column_names import make_unique
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Chunk, Positions, find
from curate.ingest.readers.csv_scanner import NEWLINE, QUOTE, RETURN, Fault, Mask, Records, RecordSplitter
from curate.ingest.readers.encoding import foreign_encoding
from curate.ingest.readers.text_arrays import (
    Numbers,
    Problem,
    as_bytes,
    as_text,
    batch_of,
    not_utf8,
    refuse_foreign,
    texts_of,
)
from schemas.errors import SourceError
from schemas.text import join_names, plural

DELIMITERS = ",;\t|"

SNIFFED = 1 << 16
"""As many bytes are looked at to find the delimiter."""

NAMED = 5
"""Cells that are too many or missing which a reject names."""


def read_csv(stream: ByteStream) -> Iterator[Batch]:
    """The records of a CSV file, in order, some ten thousand at a time; its delimiter is found.

    A file with nothing but a header gives one empty batch. Raises `SourceError` where there is no header, or the
    file is in another encoding than UTF-8.
    """
    return _read(stream, delimiter_of(stream.head(), "csv"))


def read_tsv(stream: ByteStream) -> Iterator[Batch]:
    """The same for a TSV file: tabs are the delimiter where there is one in the header."""
    return _read(stream, delimiter_of(stream.head(), "tsv"))


def delimiter_of(head: bytes, format: str) -> str:
    """What separates the cells of a file in format `csv` or `tsv` that begins with `head`."""
    if format == "tsv":
        return find_delimiter(head, "\t") or find_delimiter(head) or "\t"
    return find_delimiter(head) or ","


def _read(stream: ByteStream, delimiter: str) -> Iterator[Batch]:
    names = find_header(stream, delimiter)
    reader = _Reader(stream.path, names)
    for chunk in stream.chunks(RecordSplitter(delimiter, len(names))):
        yield reader.batch(chunk)


def find_delimiter(head: bytes, among: str = DELIMITERS) -> str:
    r"""The delimiter with which most of the first records are as wide as the header; empty where none splits it.

    >>> find_delimiter(b"question;answer\nWhy, then?;So.\n")
    ';'
    """
    start = np.frombuffer(head[:SNIFFED], np.uint8)
    share, _, delimiter = max((*_fit(start, sign), sign) for sign in among)
    return delimiter if share else ""


def _fit(start: Bytes, delimiter: str) -> tuple[float, int]:
    """Share of the records that are as wide as the header, and its width; no share where that is one cell."""
    layout = _first_records(start, delimiter)
    widths = layout.widths[~layout.blank]
    widths = widths[:-1] if len(widths) > 2 else widths
    return (float(np.mean(widths == widths[0])), int(widths[0])) if len(widths) and widths[0] > 1 else (0.0, 0)


def find_header(stream: ByteStream, delimiter: str) -> list[str]:
    """The names of the columns: the cells of the first record, made distinct; a nameless one is named by its place.

    Raises `SourceError` where there is none, its quotes do not close, or it is not UTF-8: a row can be left out with
    a reason, a header cannot.
    """
    if not stream.head().strip():
        raise SourceError(f"{stream.path} is empty.", "Leave it out, or export it again.")
    if b"\r" in stream.head() and b"\n" not in _QUOTED.sub(b"", stream.head()):
        what = f"The lines of {stream.path} end in carriage returns alone, as on old Macs."
        raise SourceError(what, "Convert them: tr '\\r' '\\n' < FILE")
    if note := _NOTE_TO_EXCEL.match(stream.head()):
        what = f"The first line of {stream.path}, {note[1].decode()}, is a note to Excel and no header."
        raise SourceError(what, "Leave it out: tail -n +2 FILE")
    data = np.frombuffer(stream.head(), np.uint8)
    layout = _first_records(data, delimiter)
    record = int(np.argmin(layout.blank))
    if record in layout.faults:
        raise SourceError(
            f"{stream.path}: the header's quotes make no sense.", "Close them; double a quote within a quoted cell."
        )
    start, stop = layout.starts[layout.first[record]], layout.stops[layout.first[record] + layout.widths[record] - 1]
    _refuse_foreign_header(stream.path, data[start:stop].tobytes(), 1 + len(find(data[:start], NEWLINE)))
    return make_unique(cell.decode() for cell in layout.cells_of(data, record))


_QUOTED = re.compile(rb'"[^"]*"')
"""What may hold a newline that ends no record."""

_NOTE_TO_EXCEL = re.compile(rb'"?(sep=[\t -~])"?\r?(?:\n|$)', re.IGNORECASE)
"""Which delimiter Excel shall take, where the list separator of its country is another one."""


def _refuse_foreign_header(path: str, header: bytes, line: int) -> None:
    """Raise `SourceError` where the header, which begins on `line`, is not UTF-8."""
    try:
        header.decode()
    except UnicodeDecodeError as error:
        raise foreign_encoding(path, header, line + header.count(b"\n", 0, error.start)) from error


def _first_records(start: Bytes, delimiter: str) -> _Layout:
    return _Layout.of(start, RecordSplitter(delimiter, 0)(start, find(start, NEWLINE), last=True)[1])


class _Layout(NamedTuple):
    """Where records and cells lie in the data."""

    starts: Positions
    stops: Positions
    """Start and end of each cell, with its quotes and without a line end."""
    quotes: Positions
    """How many quotes each cell has."""
    first: Positions
    """Number of each record's first cell."""
    widths: Positions
    """How many cells each record has."""
    blank: Mask
    """Which records are empty lines."""
    faults: dict[int, Fault]
    """Why a record cannot be read."""

    @classmethod
    def of(cls, data: Bytes, records: Records) -> _Layout:
        """The layout of the records that a splitter found in `data`."""
        starts = np.append(0, records.separators + 1)[:-1]
        last = np.flatnonzero(records.ends)
        stops = records.separators.copy()
        stops[last] -= (stops[last] > starts[last]) & (data[stops[last] - 1] == RETURN)
        first = np.append(0, last + 1)[:-1]
        widths = last - first + 1
        at_fault = np.searchsorted(records.separators[last], list(records.faults)).tolist()
        faults = dict(zip(at_fault, records.faults.values(), strict=True))
        return cls(starts, stops, records.quotes, first, widths, (widths == 1) & (stops == starts)[last], faults)

    def cells_of(self, data: Bytes, record: int) -> Iterator[bytes]:
        """The cells of one record, without their quotes."""
        for cell in range(self.first[record], self.first[record] + self.widths[record]):
            text = data[self.starts[cell] : self.stops[cell]].tobytes()
            yield text[1:-1].replace(b'""', b'"') if text.startswith(b'"') else text


class _Reader:
    """Turns the records of one file into batches, counting its rows."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self._path = path
        self._names = names
        self._rows = 0
        self._header_is_next = True

    def batch(self, chunk: Chunk[Records]) -> Batch:
        """The next records of the file."""
        layout = _Layout.of(chunk.data, chunk.parts)
        starts = layout.starts[layout.first]
        texts, line = texts_of(chunk.data, starts), chunk.line_at(starts)
        row = self._number(layout.blank)
        problems = [problem for problem in self._problems(chunk.data, layout, texts) if row[problem.position]]
        refuse_foreign(self._path, texts, problems, line)
        row_is_good = row > 0
        row_is_good[[problem.position for problem in problems]] = False
        good = np.flatnonzero(row_is_good)
        return batch_of(self._table(chunk.data, layout, good), texts, good, problems, Numbers(row, line))

    def _number(self, blank: Mask) -> Positions:
        """The row number of each record; 0 for blank ones and the header, which are no rows."""
        counts = ~blank
        if self._header_is_next and counts.any():
            counts[np.argmax(counts)] = False
            self._header_is_next = False
        row = np.where(counts, self._rows + np.cumsum(counts), 0)
        self._rows += int(counts.sum())
        return row

    def _problems(self, data: Bytes, layout: _Layout, texts: pa.LargeStringArray) -> list[Problem]:
        """What is wrong with the records, one problem for each that has any."""
        ragged = np.flatnonzero(layout.widths != len(self._names))
        foreign = as_text(texts).is_null().arg_true()
        nul = (
            np.unique(np.searchsorted(layout.starts[layout.first], find(data, 0), "right") - 1)
            if not data.all()
            else ()
        )
        found = {at: Problem(at, "ragged-row", self._ragged(data, layout, at)) for at in ragged.tolist()}
        found |= {int(at): Problem(int(at), "nul-byte", "It holds a NUL byte, which no text has.") for at in nul}
        found |= {at: Problem(at, *fault) for at, fault in layout.faults.items()}
        found |= {at: not_utf8(at, as_bytes(texts, at)) for at in foreign}
        return [found[at] for at in sorted(found)]

    def _ragged(self, data: Bytes, layout: _Layout, record: int) -> str:
        cells = [cell.decode(errors="replace") for cell in layout.cells_of(data, record)]
        wide = len(self._names)
        found = f"It has {plural(len(cells), 'cell')} and the header {wide:,}"
        if len(cells) < wide:
            return f"{found}: nothing for {join_names(map(repr, self._names[len(cells) :]), NAMED)}."
        return f"{found}: too many by {join_names(map(repr, cells[wide:]), NAMED)}."

    def _table(self, data: Bytes, layout: _Layout, good: Positions) -> pl.DataFrame:
        """The cells of the good records: laid over the data, copied only where a doubled quote has to go."""
        wide = len(self._names)
        cells = (layout.first[good, None] + np.arange(wide)).ravel()
        starts, stops = layout.starts[cells], layout.stops[cells]
        quoted = (stops > starts) & (data[np.minimum(starts, len(data) - 1)] == QUOTE)
        text = _between(data, starts + quoted, stops - quoted)
        doubled = np.flatnonzero(quoted & (layout.quotes[cells] > 2))
        if len(doubled):
            text = text.scatter(doubled, text.gather(doubled).str.replace_all('""', '"', literal=True))
        return pl.DataFrame([text.gather_every(wide, at).alias(name) for at, name in enumerate(self._names)])


def _between(data: Bytes, starts: Positions, stops: Positions) -> pl.Series:
    """The texts between `starts` and `stops`, which alternate in order; what lies between two texts is passed over."""
    offsets = np.empty(2 * len(starts) + 1, np.int64)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, stops, len(data)
    series = pl.from_arrow(texts_of(data, offsets[:-1]))
    assert isinstance(series, pl.Series)
    return series.gather_every(2)
