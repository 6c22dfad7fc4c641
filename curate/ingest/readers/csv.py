"""CSV and TSV → batches: every cell is text, an empty cell is the empty string. The first record is the header."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Chunk, Positions, find_byte
from curate.ingest.readers.csv_footer import FooterSearch
from curate.ingest.readers.csv_head import Head, find_head, find_signs
from curate.ingest.readers.csv_layout import Layout, escape_pattern
from curate.ingest.readers.csv_scanner import Mask, Records, RecordSplitter
from curate.ingest.readers.limits import TOO_LARGE
from curate.ingest.readers.table_options import TableOptions
from curate.ingest.readers.text_arrays import (
    Problem,
    RecordNumbers,
    build_batch,
    check_utf8,
    decode_texts,
    find_large,
    slice_texts,
    text_bytes,
    utf8_problem,
)
from schemas.text import join_names, plural

OPTIONS = ("delimiter", "quote", "escape", "skip_lines", "header")

TAB = "\t"

REPEATED = ("repeated-header", "The record is the header again, as in files that were joined.")

MAX_NAMED_CELLS = 5
"""Missing or surplus cells that the reason of a reject lists."""


def read_csv(stream: ByteStream, options: TableOptions) -> Iterator[Batch]:
    """The records of a CSV file in order, one batch per chunk; the delimiter is detected.

    A file with only a header gives one empty batch. Raises `SourceError` if there is no valid header, or the file is
    not UTF-8.
    """
    return _read(stream, find_head(stream, options))


def read_tsv(stream: ByteStream, options: TableOptions) -> Iterator[Batch]:
    """The records of a TSV file, like `read_csv`; a tab is preferred as the delimiter."""
    return _read(stream, find_head(stream, options, TAB))


def find_csv_delimiter(stream: ByteStream, options: TableOptions) -> str:
    """The delimiter of a CSV file: a comma if there is only one column."""
    return find_signs(stream, options, "")[0].delimiter


def find_tsv_delimiter(stream: ByteStream, options: TableOptions) -> str:
    """The delimiter of a TSV file: a tab, unless only another one splits the header."""
    return find_signs(stream, options, TAB)[0].delimiter


def _read(stream: ByteStream, head: Head) -> Iterator[Batch]:
    reader = _BatchReader(stream, head)
    for chunk in stream.chunks(RecordSplitter(head.signs, len(head.names) + head.closed), skip=head.skip, lines=True):
        yield reader.batch(chunk)


class _BatchReader:
    """Converts the chunks of one file to batches and counts its rows."""

    def __init__(self, stream: ByteStream, head: Head) -> None:
        self._stream = stream
        self._head = head
        self._names = head.names
        self._rows = 0
        self._header_pending = head.has_header
        self._header = b""
        self._footer = FooterSearch(head)

    def batch(self, chunk: Chunk[Records]) -> Batch:
        """The next records of the file."""
        layout = Layout.of(chunk.data, chunk.parts)
        starts = layout.starts[layout.first]
        texts, line = slice_texts(chunk.data, starts), chunk.line_at(starts)
        if self._header_pending and not layout.blank.all():
            self._header = text_bytes(texts, int(np.argmin(layout.blank))).strip(b"\r\n")
        row = self._number_rows(layout.blank)
        problems = [problem for problem in self._problems(chunk, layout, texts) if row[problem.position]]
        check_utf8(self._stream, texts, problems, line)
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

    def _problems(self, chunk: Chunk[Records], layout: Layout, texts: pa.LargeStringArray) -> list[Problem]:
        """One problem per invalid record, by position; invalid UTF-8 takes precedence, then quotes, then NUL bytes."""
        data = chunk.data
        large = find_large(texts, self._stream.limits)
        ragged = np.setdiff1d(np.flatnonzero(layout.widths != len(self._names)), large)
        if self._head.closed:
            ragged = ragged[~self._is_closed(layout, ragged)]
        not_utf8 = decode_texts(texts).is_null().arg_true()
        nul = (
            np.unique(np.searchsorted(layout.starts[layout.first], find_byte(data, 0), "right") - 1)
            if not data.all()
            else ()
        )
        problems = {at: Problem(at, "ragged-row", self._ragged_reason(data, layout, at)) for at in ragged.tolist()}
        if self._header:
            problems |= {at: Problem(at, *REPEATED) for at in self._repeated_headers(data, layout, texts)}
        problems |= {at: Problem(at, *why) for at, why in self._footer.find(chunk, layout).items()}
        problems |= {int(at): Problem(int(at), "nul-byte", "The record contains a NUL byte.") for at in nul}
        problems |= {at: Problem(at, *fault) for at, fault in layout.faults.items()}
        problems |= {at: utf8_problem(at, text_bytes(texts, at)) for at in not_utf8}
        problems |= {at: Problem(at, TOO_LARGE, self._stream.limits.reason) for at in large}
        return [problems[at] for at in sorted(problems)]

    def _repeated_headers(self, data: Bytes, layout: Layout, texts: pa.LargeStringArray) -> list[int]:
        """The records with the text of the header, as in files that were joined."""
        lengths = np.diff(layout.starts[layout.first], append=len(data))
        same = np.flatnonzero(np.abs(lengths - len(self._header)) <= 2)  # the line ends may differ
        return [at for at in same.tolist() if text_bytes(texts, at).strip(b"\r\n") == self._header]

    def _is_closed(self, layout: Layout, records: Positions) -> Mask:
        """Which records have an empty cell more than there are names."""
        last = layout.first[records] + len(self._names)
        wide = layout.widths[records] == len(self._names) + 1
        closed: Mask = wide & (layout.stops[last * wide] == layout.starts[last * wide])
        return closed

    def _ragged_reason(self, data: Bytes, layout: Layout, record: int) -> str:
        found, width = int(layout.widths[record]), len(self._names)
        counts = f"The record has {plural(found, 'cell')}, the header {width:,}"
        if found < width:
            return f"{counts}; missing: {join_names(map(repr, self._names[found:]), MAX_NAMED_CELLS)}."
        named = itertools.islice(layout.cells_of(data, record, self._head.signs), width, width + MAX_NAMED_CELLS + 1)
        surplus = [repr(cell.decode(errors="replace")) for cell in named]
        others = [""] * (found - width - len(surplus))  # only their number is shown
        return f"{counts}; surplus: {join_names([*surplus, *others], MAX_NAMED_CELLS)}."

    def _table(self, data: Bytes, layout: Layout, good: Positions) -> pl.DataFrame:
        """The cells of the valid records; they share the memory of `data`, except cells with doubled quotes."""
        width = len(self._names)
        cells = (layout.first[good, None] + np.arange(width)).ravel()
        starts, stops = layout.starts[cells], layout.stops[cells]
        text = self._unescaped(data, starts, stops, layout.quotes[cells])
        return pl.DataFrame([text.gather_every(width, at).alias(name) for at, name in enumerate(self._names)])

    def _unescaped(self, data: Bytes, starts: Positions, stops: Positions, quotes: Positions) -> pl.Series:
        """The content of cells with these bounds and numbers of quotes."""
        signs = self._head.signs
        quote = ord(signs.quote) if signs.quote else -1
        quoted = (stops > starts) & (data[np.minimum(starts, len(data) - 1)] == quote)
        text = _slice_cells(data, starts + quoted, stops - quoted)
        if signs.escape:
            null = ~quoted & (text == f"{signs.escape}N").to_numpy()
            text = text.scatter(np.flatnonzero(null), "")
            plain, within = (escape_pattern(signs, quoted=quoted) for quoted in (False, True))
            is_quoted = pl.Series(quoted)
            return pl.select(
                pl.when(is_quoted)
                .then(text.str.replace_all(within, "$1$2") if signs.quote else text)
                .otherwise(text.str.replace_all(plain, "$1"))
            ).to_series()
        doubled = np.flatnonzero(quoted & (quotes > 2))
        if not len(doubled):
            return text
        return text.scatter(doubled, text.gather(doubled).str.replace_all(2 * signs.quote, signs.quote, literal=True))


def _slice_cells(data: Bytes, starts: Positions, stops: Positions) -> pl.Series:
    """The texts from `starts` to `stops`, which alternate in ascending order."""
    offsets = np.empty(2 * len(starts) + 1, np.int64)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, stops, len(data)
    series = pl.from_arrow(slice_texts(data, offsets[:-1]))
    assert isinstance(series, pl.Series)
    return series.gather_every(2)
