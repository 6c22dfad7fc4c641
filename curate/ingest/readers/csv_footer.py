"""The end of delimited text → the records of a footer, such as the number of rows, below the last blank line."""

from __future__ import annotations

import re

import numpy as np

from curate.ingest.readers.byte_stream import Bytes, Chunk
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

_NUMBER = re.compile(rb"\s*[+-]?[\d.,]*\d%?\s*")


class FooterSearch:
    """Searches the last chunk of a file; remembers rows of earlier chunks for comparison."""

    def __init__(self, head: Head) -> None:
        self._signs = head.signs
        self._width = len(head.names)
        self._header_pending = head.has_header
        self._above: list[list[bytes]] = []
        self._last_filled = 0
        """Position of the last record that is not blank, relative to the next chunk."""

    def find(self, chunk: Chunk[Records], layout: Layout) -> list[int]:
        """The records of the chunk that are a footer.

        They are few, follow the only blank line among the last records, and one of them has a number, or nothing,
        where all rows above have text, or the like.
        """
        filled = np.flatnonzero(~layout.blank)
        if self._header_pending and len(filled):
            filled, self._header_pending = filled[1:], False
        gaps = np.flatnonzero(np.diff(filled, prepend=self._last_filled) > 1)
        self._last_filled = (int(filled[-1]) if len(filled) else self._last_filled) - len(layout.blank)
        footer = filled[gaps[-1] :] if chunk.parts.last and len(gaps) else filled[:0]
        above = filled[: len(filled) - len(footer)][-SAMPLE:]
        self._above = [*self._above, *(self._cells(chunk.data, layout, int(at)) for at in above)][-SAMPLE:]
        is_double_spaced = len(gaps) > 1 and gaps[-1] - gaps[-2] < SAMPLE
        if not 0 < len(footer) <= MOST_ROWS or len(self._above) < max(2, len(footer)) or is_double_spaced:
            return []
        rows = [self._cells(chunk.data, layout, int(at)) for at in footer]
        return footer.tolist() if any(map(self._is_unlike, rows)) else []

    def _cells(self, data: Bytes, layout: Layout, record: int) -> list[bytes]:
        return list(layout.cells_of(data, record, self._signs))

    def _is_unlike(self, row: list[bytes]) -> bool:
        """Whether a column has another kind of cell in this row than in all rows above."""
        if len(row) != self._width:
            return True
        columns = [{_kind(cells[at]) for cells in self._above if at < len(cells)} for at in range(self._width)]
        return any(len(kinds) == 1 and _kind(cell) not in kinds for kinds, cell in zip(columns, row, strict=True))


def _kind(cell: bytes) -> str:
    if not cell.strip():
        return "empty"
    return "number" if _NUMBER.fullmatch(cell) else "text"
