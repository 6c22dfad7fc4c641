"""CSV and TSV → batches: the first record is the header, every cell is text, an empty cell is the empty string."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from curate.ingest.column_names import make_unique
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Chunk, Positions, find_byte
from curate.ingest.readers.csv_scanner import NEWLINE, QUOTE, RETURN, Fault, Mask, Records, RecordSplitter
from curate.ingest.readers.encoding import encoding_error
from curate.ingest.readers.text_arrays import (
    Problem,
    RecordNumbers,
    build_batch,
    check_utf8,
    decode_texts,
    slice_texts,
    text_bytes,
    utf8_problem,
)
from schemas.errors import SourceError
from schemas.text import join_names, plural

DELIMITERS = ",;\t|"

SNIFF_BYTES = 1 << 16
"""Bytes from which the delimiter is detected."""

MAX_NAMED_CELLS = 5
"""Missing or surplus cells that the reason of a reject lists."""


def read_csv(stream: ByteStream) -> Iterator[Batch]:
    """The records of a CSV file in order, one batch per chunk; the delimiter is detected.

    A file with only a header gives one empty batch. Raises `SourceError` if there is no valid header, or the file is
    not UTF-8.
    """
    return _read(stream, find_csv_delimiter(stream.head()))


def read_tsv(stream: ByteStream) -> Iterator[Batch]:
    """The records of a TSV file, like `read_csv`; a tab is preferred as the delimiter."""
    return _read(stream, find_tsv_delimiter(stream.head()))


def _read(stream: ByteStream, delimiter: str) -> Iterator[Batch]:
    names = find_header(stream, delimiter)
    reader = _BatchReader(stream.path, names)
    for chunk in stream.chunks(RecordSplitter(delimiter, len(names))):
        yield reader.batch(chunk)


def find_csv_delimiter(head: bytes) -> str:
    """The delimiter of a CSV file that starts with `head`: a comma if there is only one column."""
    return find_delimiter(head) or ","


def find_tsv_delimiter(head: bytes) -> str:
    """The delimiter of a TSV file that starts with `head`: a tab, unless only another one splits the header."""
    return find_delimiter(head, "\t") or find_delimiter(head) or "\t"


def find_delimiter(head: bytes, among: str = DELIMITERS) -> str:
    r"""The delimiter for which most of the first records are as wide as the header; empty if none splits the header.

    >>> find_delimiter(b"question;answer\nWhy, then?;So.\n")
    ';'
    """
    start = np.frombuffer(head[:SNIFF_BYTES], np.uint8)
    share, _, delimiter = max((*_agreement(start, candidate), candidate) for candidate in among)
    return delimiter if share else ""


def _agreement(start: Bytes, delimiter: str) -> tuple[float, int]:
    """The share of records that are as wide as the header, and the header's width; share 0 for a single column."""
    layout = _first_records(start, delimiter)
    widths = layout.widths[~layout.blank]
    widths = widths[:-1] if len(widths) > 2 else widths
    return (float(np.mean(widths == widths[0])), int(widths[0])) if len(widths) and widths[0] > 1 else (0.0, 0)


def find_header(stream: ByteStream, delimiter: str) -> list[str]:
    """The column names: the cells of the first record, made unique; an empty one is named by its position.

    Raises `SourceError` if there is no header, its quotes are unbalanced, or it is not UTF-8.
    """
    if not stream.head().strip():
        raise SourceError(f"{stream.path} is empty.", "Omit it, or export it again.")
    if b"\r" in stream.head() and b"\n" not in _QUOTED.sub(b"", stream.head()):
        what = f"The lines of {stream.path} end in carriage returns without newlines, as in old Mac files."
        raise SourceError(what, "Convert them: tr '\\r' '\\n' < FILE")
    if hint := _EXCEL_HINT.match(stream.head()):
        what = f"The first line of {stream.path}, {hint[1].decode()}, is a delimiter hint for Excel, not a header."
        raise SourceError(what, "Remove it: tail -n +2 FILE")
    data = np.frombuffer(stream.head(), np.uint8)
    layout = _first_records(data, delimiter)
    record = int(np.argmin(layout.blank))
    if record in layout.faults:
        raise SourceError(
            f"{stream.path}: the quotes of the header are unbalanced.", "Close them; double a quote in a quoted cell."
        )
    start, stop = layout.starts[layout.first[record]], layout.stops[layout.first[record] + layout.widths[record] - 1]
    _check_header_encoding(stream.path, data[start:stop].tobytes(), 1 + len(find_byte(data[:start], NEWLINE)))
    return make_unique(cell.decode() for cell in layout.cells_of(data, record))


_QUOTED = re.compile(rb'"[^"]*"')
"""Quoted text, in which a newline does not end a record."""

_EXCEL_HINT = re.compile(rb'"?(sep=[\t -~])"?\r?(?:\n|$)', re.IGNORECASE)
"""A first line that sets the delimiter for Excel, where the regional list separator is another one."""


def _check_header_encoding(path: str, header: bytes, line: int) -> None:
    """Raise `SourceError` if the header, which starts on `line`, is not UTF-8."""
    try:
        header.decode()
    except UnicodeDecodeError as error:
        raise encoding_error(path, header, line + header.count(b"\n", 0, error.start)) from error


def _first_records(start: Bytes, delimiter: str) -> _Layout:
    return _Layout.of(start, RecordSplitter(delimiter, 0)(start, find_byte(start, NEWLINE), last=True)[1])


class _Layout(NamedTuple):
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
    def of(cls, data: Bytes, records: Records) -> _Layout:
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

    def cells_of(self, data: Bytes, record: int) -> Iterator[bytes]:
        """The cells of one record, unquoted."""
        for cell in range(self.first[record], self.first[record] + self.widths[record]):
            text = data[self.starts[cell] : self.stops[cell]].tobytes()
            yield text[1:-1].replace(b'""', b'"') if text.startswith(b'"') else text


class _BatchReader:
    """Converts the chunks of one file to batches and counts its rows."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self._path = path
        self._names = names
        self._rows = 0
        self._header_pending = True

    def batch(self, chunk: Chunk[Records]) -> Batch:
        """The next records of the file."""
        layout = _Layout.of(chunk.data, chunk.parts)
        starts = layout.starts[layout.first]
        texts, line = slice_texts(chunk.data, starts), chunk.line_at(starts)
        row = self._number_rows(layout.blank)
        problems = [problem for problem in self._problems(chunk.data, layout, texts) if row[problem.position]]
        check_utf8(self._path, texts, problems, line)
        row_is_good = row > 0
        row_is_good[[problem.position for problem in problems]] = False
        good = np.flatnonzero(row_is_good)
        return build_batch(self._table(chunk.data, layout, good), texts, good, problems, RecordNumbers(row, line))

    def _number_rows(self, blank: Mask) -> Positions:
        """The row number of each record; 0 for blank lines and the header."""
        counts = ~blank
        if self._header_pending and counts.any():
            counts[np.argmax(counts)] = False
            self._header_pending = False
        row = np.where(counts, self._rows + np.cumsum(counts), 0)
        self._rows += int(counts.sum())
        return row

    def _problems(self, data: Bytes, layout: _Layout, texts: pa.LargeStringArray) -> list[Problem]:
        """One problem per invalid record, by position; invalid UTF-8 takes precedence, then quotes, then NUL bytes."""
        ragged = np.flatnonzero(layout.widths != len(self._names))
        not_utf8 = decode_texts(texts).is_null().arg_true()
        nul = (
            np.unique(np.searchsorted(layout.starts[layout.first], find_byte(data, 0), "right") - 1)
            if not data.all()
            else ()
        )
        problems = {at: Problem(at, "ragged-row", self._ragged_reason(data, layout, at)) for at in ragged.tolist()}
        problems |= {int(at): Problem(int(at), "nul-byte", "The record contains a NUL byte.") for at in nul}
        problems |= {at: Problem(at, *fault) for at, fault in layout.faults.items()}
        problems |= {at: utf8_problem(at, text_bytes(texts, at)) for at in not_utf8}
        return [problems[at] for at in sorted(problems)]

    def _ragged_reason(self, data: Bytes, layout: _Layout, record: int) -> str:
        cells = [cell.decode(errors="replace") for cell in layout.cells_of(data, record)]
        width = len(self._names)
        counts = f"The record has {plural(len(cells), 'cell')}, the header {width:,}"
        if len(cells) < width:
            return f"{counts}; missing: {join_names(map(repr, self._names[len(cells) :]), MAX_NAMED_CELLS)}."
        return f"{counts}; surplus: {join_names(map(repr, cells[width:]), MAX_NAMED_CELLS)}."

    def _table(self, data: Bytes, layout: _Layout, good: Positions) -> pl.DataFrame:
        """The cells of the valid records; they share the memory of `data`, except cells with doubled quotes."""
        width = len(self._names)
        cells = (layout.first[good, None] + np.arange(width)).ravel()
        starts, stops = layout.starts[cells], layout.stops[cells]
        quoted = (stops > starts) & (data[np.minimum(starts, len(data) - 1)] == QUOTE)
        text = _slice_cells(data, starts + quoted, stops - quoted)
        doubled = np.flatnonzero(quoted & (layout.quotes[cells] > 2))
        if len(doubled):
            text = text.scatter(doubled, text.gather(doubled).str.replace_all('""', '"', literal=True))
        return pl.DataFrame([text.gather_every(width, at).alias(name) for at, name in enumerate(self._names)])


def _slice_cells(data: Bytes, starts: Positions, stops: Positions) -> pl.Series:
    """The texts from `starts` to `stops`, which alternate in ascending order."""
    offsets = np.empty(2 * len(starts) + 1, np.int64)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, stops, len(data)
    series = pl.from_arrow(slice_texts(data, offsets[:-1]))
    assert isinstance(series, pl.Series)
    return series.gather_every(2)
