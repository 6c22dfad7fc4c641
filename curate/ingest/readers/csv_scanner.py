"""Where the records and cells of CSV lie in a chunk of bytes: all quotes, newlines and delimiters at once.

A newline or a delimiter counts where an even number of quotes stands between it and the start of its record.
That holds as long as quotes stand where CSV has them: one that opens stands behind a delimiter or newline, one that
closes before one, and a quote within a quoted cell is doubled. Where the first quote does not, that record alone is
read cell by cell: a quote in an unquoted cell is text; a quoted cell without a proper end makes the record a bad
one, and reading goes on behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curate.ingest.readers.byte_stream import BLOCK, CHUNK, Bytes, Positions, find

NEWLINE, RETURN, QUOTE = 10, 13, 34

LOOK_AHEAD = 3
"""As many whole records behind a line show that its quote was not closed, and not that its cell goes on."""

LONGEST_FAULT = 1 << 20
"""Bytes within which a record with a stray quote has to end; otherwise it is taken to end with its line."""

FEW = 256
"""Separators looked at behind a faulty record, and then twice as many each time, as long as all is well."""

Mask = npt.NDArray[np.bool_]


class Fault(NamedTuple):
    """Why the quotes of a record make no sense: the rule's name and a sentence."""

    code: str
    reason: str


UNCLOSED = Fault("unclosed-quote", "A quote opens a cell in this line and is not closed.")
STRAY = Fault("stray-quote", "A quote stands within a quoted cell and is not doubled.")


@dataclass(frozen=True, slots=True)
class Records:
    """The cells of consecutive records. A cell reaches from behind one separator to the next."""

    separators: Positions
    """Positions of the delimiters and newlines between cells; the last may stand behind the data."""
    ends: Mask
    """Which of the separators end a record."""
    quotes: Positions
    """How many quotes stand in each cell."""
    faults: dict[int, Fault]
    """Why a record cannot be read, by the position of the separator that ends it. It counts as one cell."""


class RecordSplitter:
    """Cuts chunks of CSV behind whole records, given the delimiter and how many cells a record has: 0 is unknown."""

    def __init__(self, delimiter: str, width: int) -> None:
        self.delimiter = ord(delimiter)
        self.width = width
        self.cell = cell_pattern(delimiter)

    def __call__(self, data: Bytes, newlines: Positions, last: bool) -> tuple[int, Records]:
        """How many bytes of `data` are whole records, and these records."""
        chunk = _Chunk(self, data, newlines, last=last)
        kept: list[Positions] = [np.empty(0, np.int64)]
        faults: dict[int, Fault] = {}
        at = 0
        while at < len(data):
            well = chunk.well_formed(at)
            kept.append(well)
            at = chunk.behind(well, at)
            if at >= len(data) or (found := chunk.odd(at)) is None:
                break
            separators, fault = found
            kept.append(separators)
            at = chunk.behind(separators, at)
            if fault:
                faults[at - 1] = fault
        return min(at, len(data)), chunk.records(np.concatenate(kept), faults)


def cell_pattern(delimiter: str) -> re.Pattern[bytes]:
    """Matches one cell, quoted or not, up to its delimiter or the end of its record."""
    sign = re.escape(delimiter.encode())
    return re.compile(rb'(?:"[^"]*+(?:""[^"]*+)*+"|(?!")[^' + sign + rb"\n]*+)(?=" + sign + rb"|\r?\n|\r?\Z)")


class _Chunk:
    """One chunk while it is split. Separators are named by their place among all delimiters and newlines."""

    def __init__(self, splitter: RecordSplitter, data: Bytes, newlines: Positions, *, last: bool) -> None:
        self._data = data
        self._bytes = memoryview(data.data)
        self._newlines = newlines
        self._last = last
        self._width = splitter.width
        self._cell = splitter.cell
        self._quotes = find(data, QUOTE)
        self._separators = _find_either(data, NEWLINE, splitter.delimiter)
        self._ends = data[self._separators] == NEWLINE
        if last and len(data) and data[-1] != NEWLINE:
            self._separators, self._ends = np.append(self._separators, len(data)), np.append(self._ends, True)
        self._before = np.searchsorted(self._quotes, self._separators)
        self._odd_quotes = _odd_quotes(data, self._quotes, splitter.delimiter)
        self._reach = len(self._separators)

    def records(self, kept: Positions, faults: dict[int, Fault]) -> Records:
        """The records that the separators `kept` make."""
        quotes = np.diff(self._before[kept], prepend=0)
        return Records(self._separators[kept], self._ends[kept], quotes, faults)

    def behind(self, separators: Positions, at: int) -> int:
        """The position behind the last of `separators`; `at` where there is none."""
        return int(self._separators[separators[-1]]) + 1 if len(separators) else at

    def well_formed(self, at: int) -> Positions:
        """The separators of the records from `at` on, as far as their quotes stand where they should.

        All of a chunk at once, until something is wrong: then step by step, so that many faults cost no more than
        as many records.
        """
        odd_quote = self._next_odd_quote(self._quotes_before(at))
        if odd_quote < self._line_end(at):
            return self._separators[:0]
        high = int(self._separators.searchsorted(odd_quote))
        kept, is_well = [self._separators[:0]], True
        while is_well:
            low = int(self._separators.searchsorted(at))
            stop = min(low + self._reach, high)
            whole, is_well = self._whole(at, low, stop)
            kept.append(whole)
            at = self.behind(whole, at)
            is_well = is_well and stop < high
            self._reach = 2 * self._reach if is_well else FEW
        return np.concatenate(kept)

    def _whole(self, at: int, low: int, high: int) -> tuple[Positions, bool]:
        """The separators from `low` to `high` that make whole records, the first at `at`; and whether all are well.

        They end before a record that is too narrow or too wide since it swallows lines.
        """
        run = low + np.flatnonzero((self._before[low:high] - self._quotes_before(at)) % 2 == 0)
        ends = np.flatnonzero(self._ends[run])
        starts = np.append(at, self._separators[run[ends]] + 1)
        wrong = np.flatnonzero(np.diff(ends, prepend=-1) != self._width) if self._width else ends[:0]
        swallowing = (record for record in wrong if self._swallows(int(starts[record]), int(starts[record + 1]) - 1))
        whole = next(swallowing, len(ends))
        return run[: ends[whole - 1] + 1 if whole else 0], whole == len(ends)

    def odd(self, at: int) -> tuple[Positions, Fault | None] | None:
        """The separators of the record at `at`, read cell by cell, and its fault; None where its end is to come."""
        walk = self._walk(at)
        if walk.open and not self._last and len(self._data) - at <= CHUNK:
            return None
        wrong = self._width and len(walk.ends) != self._width
        if not walk.whole or (wrong and self._swallows(at, walk.ends[-1])):
            return self._faulty(at)
        return np.searchsorted(self._separators, walk.ends), None

    def _next_odd_quote(self, first: int) -> int:
        """Position of the first quote that stands wrong in records which start with the quote number `first`."""
        odd = self._odd_quotes[first % 2]
        place = odd.searchsorted(first)
        return int(self._quotes[odd[place]]) if place < len(odd) else len(self._data) + 1

    def _walk(self, at: int) -> _Walk:
        ends: list[int] = []
        while cell := self._cell.match(self._bytes, at):
            end = cell.end()
            if end < len(self._data) and self._bytes[end] == RETURN:
                end += 1
            ends.append(end)
            if end >= len(self._data) or self._bytes[end] == NEWLINE:
                return _Walk(ends, whole=end < len(self._data) or self._last, open=end >= len(self._data))
            at = end + 1
        return _Walk(ends, whole=False, open=_OPEN.match(self._bytes, at) is not None)

    def _swallows(self, start: int, end: int) -> bool:
        """Whether a record with too few or too many cells goes over several lines because a quote is not closed."""
        return self._line_end(start) < end and self._is_unclosed(start)

    def _is_unclosed(self, at: int) -> bool:
        """Whether whole records follow the line at `at`, so that an open quote in it cannot reach further."""
        for _ in range(LOOK_AHEAD):
            at = self._line_end(at) + 1
            if at >= len(self._data):
                return True
            walk = self._walk(at)
            odd_quote = self._next_odd_quote(self._quotes_before(at))
            if not walk.whole or len(walk.ends) != self._width or odd_quote < walk.ends[-1]:
                return walk.open and not self._last
            at = walk.ends[-1]
        return True

    def _faulty(self, at: int) -> tuple[Positions, Fault] | None:
        """The end of a record with a quote that makes no sense: where records are well again."""
        end = self._line_end(at)
        fault = UNCLOSED
        if not self._is_unclosed(at):
            end, fault = self._even_end(at) or end, STRAY
        if end >= len(self._data) and not self._last:
            return None
        return np.searchsorted(self._separators, [end]), fault

    def _line_end(self, at: int) -> int:
        """Position of the next newline, or behind the data."""
        place = self._newlines.searchsorted(at)
        return int(self._newlines[place]) if place < len(self._newlines) else len(self._data)

    def _even_end(self, at: int) -> int | None:
        """The newline that ends the record at `at` if its stray quotes come in pairs; None where they seem not to."""
        newlines = self._newlines_by_quotes[self._quotes_before(at) % 2]
        place = newlines.searchsorted(at)
        if place == len(newlines) or newlines[place] >= at + LONGEST_FAULT:
            return None
        end = int(newlines[place])
        return end if end + 1 >= len(self._data) or len(self._walk(end + 1).ends) == self._width else None

    @cached_property
    def _newlines_by_quotes(self) -> tuple[Positions, Positions]:
        """The newlines with an even number of quotes before them in the chunk, and those with an odd one."""
        odd = self._quotes.searchsorted(self._newlines) % 2 == 1
        return self._newlines[~odd], self._newlines[odd]

    def _quotes_before(self, at: int) -> int:
        return int(self._quotes.searchsorted(at))


class _Walk(NamedTuple):
    """A record read cell by cell."""

    ends: list[int]
    """Where its cells end."""
    whole: bool
    """Its end was found."""
    open: bool
    """The data ended before it."""


_OPEN = re.compile(rb'"[^"]*+(?:""[^"]*+)*+\Z')


def _odd_quotes(data: Bytes, quotes: Positions, delimiter: int) -> tuple[Positions, Positions]:
    """Which quotes stand wrong, in records that start with an even quote, and with an odd one.

    In turns one quote opens and one closes; a doubled quote is a cell that closes and opens again.
    """
    if not len(quotes):
        return quotes, quotes
    borders = np.zeros(256, np.bool_)
    borders[[delimiter, NEWLINE, QUOTE]] = True
    end = len(data) - 1
    cannot_open = ~borders[data[np.maximum(quotes - 1, 0)]] & (quotes > 0)
    cannot_close = ~borders[data[np.minimum(quotes + 1, end)]] & (quotes < end)
    lines = np.flatnonzero(cannot_close & (data[np.minimum(quotes + 1, end)] == RETURN))
    cannot_close[lines] = data[np.minimum(quotes[lines] + 2, end)] != NEWLINE
    even, odd = cannot_open.copy(), cannot_close.copy()
    even[1::2], odd[1::2] = cannot_close[1::2], cannot_open[1::2]
    return np.flatnonzero(even), np.flatnonzero(odd)


def _find_either(data: Bytes, one: int, other: int) -> Positions:
    """Positions of the two bytes in `data`."""
    blocks = []
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        blocks.append(np.flatnonzero((block == one) | (block == other)) + at)
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)
