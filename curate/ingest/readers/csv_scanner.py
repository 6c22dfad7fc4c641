"""A chunk of CSV bytes → positions of its records and cells, computed for all quotes, newlines and delimiters at once.

A newline or delimiter separates cells if the number of quotes between the start of the record and it is even. This
holds while quotes are well placed: an opening quote follows a delimiter or newline, a closing quote precedes one, and
a quote in a quoted cell is doubled. A record with a misplaced quote is parsed cell by cell: a quote in an unquoted
cell is text; a quoted cell without a proper end makes the record a reject, and scanning continues after it. A character
after the escape character, if the dialect has one, is none of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from curate.ingest.readers.byte_stream import CHUNK, Bytes, Positions, find_byte, find_bytes

NEWLINE, RETURN = 10, 13

LOOK_AHEAD = 3
"""Number of complete records that must follow a line to conclude that its quote is unclosed."""

LONGEST_FAULT = 1 << 20
"""Maximum bytes of a record with a stray quote; a longer one is assumed to end with its line."""

FIRST_STEP = 256
"""Separators examined after a faulty record; doubled with every step, as long as no fault follows."""

Mask = npt.NDArray[np.bool_]


class Fault(NamedTuple):
    """Why the quotes of a record are invalid: the code of the violated rule, and a sentence."""

    code: str
    reason: str


UNCLOSED = Fault("unclosed-quote", "A quote in this line opens a cell and is not closed.")
STRAY = Fault("stray-quote", "A quote in a quoted cell is not doubled.")


@dataclass(frozen=True, slots=True)
class Records:
    """The cells of consecutive records. A cell starts after a separator and ends before the next."""

    separators: Positions
    """Positions of the delimiters and newlines between cells; the last may be the end of the data."""
    ends: Mask
    """Whether a separator ends a record."""
    quotes: Positions
    """Number of quotes in each cell."""
    faults: dict[int, Fault]
    """Position of the separator that ends an invalid record → its fault. The record counts as one cell."""
    last: bool
    """Whether the file ends with them."""


class Signs(NamedTuple):
    """The characters with a meaning, each ASCII; an empty one does not exist."""

    delimiter: str
    quote: str = '"'
    escape: str = ""


class RecordSplitter:
    """Splits chunks of CSV after complete records. `width` is the number of cells of a record; 0 if unknown."""

    def __init__(self, signs: Signs, width: int) -> None:
        self.signs = signs
        self.width = width
        self.cell = cell_pattern(signs)
        self.open_cell = open_cell_pattern(signs)

    def __call__(self, data: Bytes, newlines: Positions, last: bool) -> tuple[int, Records]:
        """The number of bytes of `data` that are complete records, and these records."""
        chunk = _Chunk(self, data, newlines, last=last)
        parts: list[Positions] = [np.empty(0, np.int64)]
        faults: dict[int, Fault] = {}
        at = 0
        while at < len(data):
            separators = chunk.well_formed(at)
            parts.append(separators)
            at = chunk.end_of(separators, at)
            if at >= len(data) or (irregular := chunk.parse_irregular(at)) is None:
                break
            separators, fault = irregular
            parts.append(separators)
            at = chunk.end_of(separators, at)
            if fault:
                faults[at - 1] = fault
        return min(at, len(data)), chunk.records(np.concatenate(parts), faults)


def cell_pattern(signs: Signs) -> re.Pattern[bytes]:
    """Matches one cell, quoted or not, up to its delimiter or the end of its record."""
    delimiter, quote, _ = (re.escape(sign) for sign in signs)
    unquoted = _unquoted(signs)
    cell = f"{_quoted(signs)}{quote}|(?!{quote}){unquoted}" if quote else unquoted
    return re.compile(rf"(?:{cell})(?={delimiter}|\r?\n|\r?\Z)".encode())


def open_cell_pattern(signs: Signs) -> re.Pattern[bytes]:
    """Matches a cell that continues after the data: a quoted one without its last quote, or an escape."""
    escape = re.escape(signs.escape)
    more = f"{escape}?\\Z|{_unquoted(signs)}{escape}" if escape else ""
    return re.compile(f"(?:{_quoted(signs)}{more})\\Z".encode())


def _unquoted(signs: Signs) -> str:
    delimiter, _, escape = (re.escape(sign) for sign in signs)
    plain = f"[^{delimiter}{escape}\\n]*+"
    return f"{plain}(?:{escape}(?s:.){plain})*+" if escape else plain


def _quoted(signs: Signs) -> str:
    """Matches a quoted cell without its last quote; nothing if there are no quotes."""
    quote, escape = re.escape(signs.quote), re.escape(signs.escape)
    if not quote:
        return "(?!)"
    pair = f"(?:{quote}{quote}|{escape}(?s:.))" if escape else quote + quote
    return f"{quote}[^{quote}{escape}]*+(?:{pair}[^{quote}{escape}]*+)*+"


def _find_sign(data: Bytes, sign: str) -> Positions:
    return find_byte(data, ord(sign)) if sign else np.empty(0, np.int64)


def _find_escaped(data: Bytes, escape: str) -> Positions:
    """Positions of the characters after an escape character that is not escaped itself."""
    escapes = _find_sign(data, escape)
    run_starts = np.flatnonzero(np.diff(escapes, prepend=-2) > 1)
    lengths = np.diff(np.append(run_starts, len(escapes)))
    active: Positions = escapes[(np.arange(len(escapes)) - np.repeat(run_starts, lengths)) % 2 == 0]
    return active + 1


class _Chunk:
    """One chunk while it is split. Separators are given as indices into all delimiters and newlines of the chunk."""

    def __init__(self, splitter: RecordSplitter, data: Bytes, newlines: Positions, *, last: bool) -> None:
        self._data = data
        self._bytes = memoryview(data.data)
        self._newlines = newlines
        self._last = last
        self._width = splitter.width
        self._cell = splitter.cell
        self._open_cell = splitter.open_cell
        delimiter, quote, escape = splitter.signs
        self._quotes = _find_sign(data, quote)
        self._separators = find_bytes(data, lambda block: (block == NEWLINE) | (block == ord(delimiter)))
        escaped = _find_escaped(data, escape)
        if len(escaped):
            found = (self._newlines, self._quotes, self._separators)
            self._newlines, self._quotes, self._separators = (at[~np.isin(at, escaped)] for at in found)
        self._ends = data[self._separators] == NEWLINE
        if last and len(data) and data[-1] != NEWLINE:
            self._separators, self._ends = np.append(self._separators, len(data)), np.append(self._ends, True)
        self._quote_counts = np.searchsorted(self._quotes, self._separators)
        self._misplaced = _misplaced_quotes(data, self._quotes, splitter.signs, escaped)
        self._step = len(self._separators)

    def records(self, separators: Positions, faults: dict[int, Fault]) -> Records:
        """The records that end at some of `separators`."""
        quotes = np.diff(self._quote_counts[separators], prepend=0)
        return Records(self._separators[separators], self._ends[separators], quotes, faults, self._last)

    def end_of(self, separators: Positions, at: int) -> int:
        """The position after the last of `separators`; `at` if there are none."""
        return int(self._separators[separators[-1]]) + 1 if len(separators) else at

    def well_formed(self, at: int) -> Positions:
        """The separators of the records from `at` on, up to the first record with a misplaced quote.

        Scans the chunk at once, up to the first fault, and then in growing steps, so that the cost of many faults is
        proportional to their number.
        """
        misplaced = self._next_misplaced(self._quotes_before(at))
        if misplaced < self._line_end(at):
            return self._separators[:0]
        high = int(self._separators.searchsorted(misplaced))
        parts, all_well = [self._separators[:0]], True
        while all_well:
            low = int(self._separators.searchsorted(at))
            stop = min(low + self._step, high)
            complete, all_well = self._complete_records(at, low, stop)
            parts.append(complete)
            at = self.end_of(complete, at)
            all_well = all_well and stop < high
            self._step = 2 * self._step if all_well else FIRST_STEP
        return np.concatenate(parts)

    def _complete_records(self, at: int, low: int, high: int) -> tuple[Positions, bool]:
        """The separators from `low` to `high` of complete records, the first at `at`; whether all are well-formed.

        They end before a record of the wrong width that spans lines because of an unclosed quote.
        """
        run = low + np.flatnonzero((self._quote_counts[low:high] - self._quotes_before(at)) % 2 == 0)
        ends = np.flatnonzero(self._ends[run])
        starts = np.append(at, self._separators[run[ends]] + 1)
        wrong = np.flatnonzero(np.diff(ends, prepend=-1) != self._width) if self._width else ends[:0]
        unclosed = (n for n in wrong if self._spans_unclosed_quote(int(starts[n]), int(starts[n + 1]) - 1))
        count = next(unclosed, len(ends))
        return run[: ends[count - 1] + 1 if count else 0], count == len(ends)

    def parse_irregular(self, at: int) -> tuple[Positions, Fault | None] | None:
        """The separators of the record at `at`, parsed cell by cell, and its fault; None if more data is needed."""
        record = self._parse_record(at)
        if record.open and not self._last and len(self._data) - at <= CHUNK:
            return None
        wrong = self._width and len(record.ends) != self._width
        if not record.complete or (wrong and self._spans_unclosed_quote(at, record.ends[-1])):
            return self._faulty(at)
        return np.searchsorted(self._separators, record.ends), None

    def _next_misplaced(self, first: int) -> int:
        """Position of the first misplaced quote in records that start with the quote number `first`."""
        misplaced = self._misplaced[first % 2]
        index = misplaced.searchsorted(first)
        return int(self._quotes[misplaced[index]]) if index < len(misplaced) else len(self._data) + 1

    def _parse_record(self, at: int) -> _Record:
        ends: list[int] = []
        while cell := self._cell.match(self._bytes, at):
            end = cell.end()
            if end < len(self._data) and self._bytes[end] == RETURN:
                end += 1
            ends.append(end)
            if end >= len(self._data) or self._bytes[end] == NEWLINE:
                return _Record(ends, complete=end < len(self._data) or self._last, open=end >= len(self._data))
            at = end + 1
        return _Record(ends, complete=False, open=self._open_cell.match(self._bytes, at) is not None)

    def _spans_unclosed_quote(self, start: int, end: int) -> bool:
        """Whether a record of the wrong width spans several lines because a quote is unclosed."""
        return self._line_end(start) < end and self._is_unclosed(start)

    def _is_unclosed(self, at: int) -> bool:
        """Whether complete records follow the line at `at`, so that an open quote cannot extend beyond it."""
        for _ in range(LOOK_AHEAD):
            at = self._line_end(at) + 1
            if at >= len(self._data):
                return True
            record = self._parse_record(at)
            misplaced = self._next_misplaced(self._quotes_before(at))
            if not record.complete or len(record.ends) != self._width or misplaced < record.ends[-1]:
                return record.open and not self._last
            at = record.ends[-1]
        return True

    def _faulty(self, at: int) -> tuple[Positions, Fault] | None:
        """The end of a record with invalid quotes, where well-formed records continue, and its fault."""
        end = self._line_end(at)
        fault = UNCLOSED
        if not self._is_unclosed(at):
            end, fault = self._paired_end(at) or end, STRAY
        if end >= len(self._data) and not self._last:
            return None
        return np.searchsorted(self._separators, [end]), fault

    def _line_end(self, at: int) -> int:
        """Position of the next newline; the end of the data if there is none."""
        index = self._newlines.searchsorted(at)
        return int(self._newlines[index]) if index < len(self._newlines) else len(self._data)

    def _paired_end(self, at: int) -> int | None:
        """The newline that ends the record at `at` if its stray quotes come in pairs; None if they seem not to."""
        newlines = self._newlines_by_parity[self._quotes_before(at) % 2]
        index = newlines.searchsorted(at)
        if index == len(newlines) or newlines[index] >= at + LONGEST_FAULT:
            return None
        end = int(newlines[index])
        is_end = end + 1 >= len(self._data) or len(self._parse_record(end + 1).ends) == self._width
        return end if is_end else None

    @cached_property
    def _newlines_by_parity(self) -> tuple[Positions, Positions]:
        """The newlines after an even number of quotes in the chunk, and those after an odd number."""
        odd = self._quotes.searchsorted(self._newlines) % 2 == 1
        return self._newlines[~odd], self._newlines[odd]

    def _quotes_before(self, at: int) -> int:
        return int(self._quotes.searchsorted(at))


class _Record(NamedTuple):
    """A record parsed cell by cell."""

    ends: list[int]
    """Position of the end of each cell."""
    complete: bool
    """Whether the end of the record was found."""
    open: bool
    """Whether the data ends before the end of the record."""


def _misplaced_quotes(data: Bytes, quotes: Positions, signs: Signs, escaped: Positions) -> tuple[Positions, Positions]:
    """Indices of the misplaced quotes, for records that start with an even-numbered quote and with an odd-numbered one.

    Quotes alternate between opening and closing; a doubled quote closes a cell and opens it again.
    """
    if not len(quotes):
        return quotes, quotes
    borders = np.zeros(256, np.bool_)
    borders[[ord(signs.delimiter), NEWLINE, ord(signs.quote)]] = True
    end = len(data) - 1
    cannot_open = (~borders[data[np.maximum(quotes - 1, 0)]] | np.isin(quotes - 1, escaped)) & (quotes > 0)
    cannot_close = ~borders[data[np.minimum(quotes + 1, end)]] & (quotes < end)
    lines = np.flatnonzero(cannot_close & (data[np.minimum(quotes + 1, end)] == RETURN))
    cannot_close[lines] = data[np.minimum(quotes[lines] + 2, end)] != NEWLINE
    even, odd = cannot_open.copy(), cannot_close.copy()
    even[1::2], odd[1::2] = cannot_close[1::2], cannot_open[1::2]
    return np.flatnonzero(even), np.flatnonzero(odd)
