"""The end of delimited text → the records of a footer, such as the number of rows.

A footer is below the last blank line, or has the words of one and a single cell.
"""

from __future__ import annotations

import itertools
import re

import numpy as np

from curate.ingest.readers.byte_stream import Bytes, Chunk, Positions
from curate.ingest.readers.csv_head import Head
from curate.ingest.readers.csv_layout import Layout
from curate.ingest.readers.csv_scanner import Records

MOST_ROWS = 5
"""Rows of a footer."""

SAMPLE = 30
"""Rows above the footer with which it is compared."""

FOOTER = (
    "footer-row",
    "It follows the last blank line of the file and is unlike the rows above, as a footer is.",
)
"""Code and reason of the rejects."""

WORDED = (
    "footer-row",
    "It is at the end of the file and has a single cell with the words of a footer, unlike the rows above.",
)

_WORDS = re.compile(
    rb"(?i)\W*(?:(?:grand )?total|sum|count|number of|exported|generated|created|printed|downloaded|retrieved|report"
    rb"|end(?: of)?|eof|rows?|records?|source:|page|\(?\d[\d,. ]* (?:rows?|records?|entries|lines|items|results)"
    rb"|gesamt|summe|anzahl|erstellt|exportiert|ende)\b"
)
_NUMBER = re.compile(rb"\s*[+-]?[\d.,]*\d%?\s*")


MORE_CELLS = 1_000
"""Cells of a record beyond those of the header that are compared."""


class FooterSearch:
    """Searches the last chunk of a file; remembers rows of earlier chunks for comparison."""

    def __init__(self, head: Head) -> None:
        self._signs = head.signs
        self._width = len(head.names)
        self._header_pending = head.has_header
        self._above: list[list[bytes]] = []
        self._last_filled = 0
        """Position of the last record that is not blank, relative to the next chunk."""

    def find(self, chunk: Chunk[Records], layout: Layout) -> dict[int, tuple[str, str]]:
        """The records of the chunk that are a footer, with code and reason.

        They are few, follow the only blank line among the last records, and one of them has a number, or nothing,
        where all rows above have text, or the like. Without a blank line, each has a single cell that starts with a
        word of a footer, and all rows above have several.
        """
        filled = np.flatnonzero(~layout.blank)
        if self._header_pending and len(filled):
            filled, self._header_pending = filled[1:], False
        gaps = np.flatnonzero(np.diff(filled, prepend=self._last_filled) > 1)
        self._last_filled = (int(filled[-1]) if len(filled) else self._last_filled) - len(layout.blank)
        footer = filled[gaps[-1] :] if chunk.parts.last and len(gaps) else filled[:0]
        worded = self._count_worded(chunk.data, layout, filled) if chunk.parts.last and not len(footer) else 0
        above = filled[: len(filled) - len(footer) - worded][-SAMPLE:]
        self._above = [*self._above, *(self._cells(chunk.data, layout, int(at)) for at in above)][-SAMPLE:]
        if worded:
            is_single = any(_count_filled(cells) < 2 for cells in self._above) or len(self._above) < 2
            return {} if is_single else dict.fromkeys(filled[-worded:].tolist(), WORDED)
        is_double_spaced = len(gaps) > 1 and gaps[-1] - gaps[-2] < SAMPLE
        if not 0 < len(footer) <= MOST_ROWS or len(self._above) < max(2, len(footer)) or is_double_spaced:
            return {}
        rows = [self._cells(chunk.data, layout, int(at)) for at in footer]
        return dict.fromkeys(footer.tolist(), FOOTER) if any(map(self._is_unlike, rows)) else {}

    def _count_worded(self, data: Bytes, layout: Layout, filled: Positions) -> int:
        """The number of records at the end that have a single cell, which starts with a word of a footer."""
        for count, record in enumerate(filled[: -MOST_ROWS - 1 : -1]):
            cells = self._cells(data, layout, int(record))
            if _count_filled(cells) != 1 or not _WORDS.match(max(cells).strip(b'"')):
                return count
        return 0

    def _cells(self, data: Bytes, layout: Layout, record: int) -> list[bytes]:
        """The cells of a record; of one with far more than the header, enough to see that."""
        return list(itertools.islice(layout.cells_of(data, record, self._signs), self._width + MORE_CELLS))

    def _is_unlike(self, row: list[bytes]) -> bool:
        """Whether a column has another kind of cell in this row than in all rows above."""
        if len(row) != self._width:
            return True
        columns = [{_kind(cells[at]) for cells in self._above if at < len(cells)} for at in range(self._width)]
        return any(len(kinds) == 1 and _kind(cell) not in kinds for kinds, cell in zip(columns, row, strict=True))


def _count_filled(cells: list[bytes]) -> int:
    return sum(bool(cell.strip()) for cell in cells)


def _kind(cell: bytes) -> str:
    if not cell.strip():
        return "empty"
    return "number" if _NUMBER.fullmatch(cell) else "text"
