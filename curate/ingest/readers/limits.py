"""The largest record, and how far a compressed file may expand: what a source may cost before it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from curate.ingest.readers.compression import Readable
from schemas.errors import SourceError
from schemas.import_recipe import MAX_RATIO, MAX_RECORD, MAX_SIZE, MAX_WINDOW

UNSUSPICIOUS = 256 << 20
"""Bytes to which any file may expand: the ratio of a small file proves nothing, and they fit into memory."""

TOO_LARGE = "too-large"
"""Code of the rejects for records above the limit; only their start is stored."""

EXCERPT = 1_000
"""Bytes that are stored of a record that is too large."""


class Limits(NamedTuple):
    """Limits in bytes, and the ratio of decompressed to compressed bytes."""

    record: int = MAX_RECORD
    ratio: int = MAX_RATIO
    size: int = MAX_SIZE
    window: int = MAX_WINDOW

    @property
    def reason(self) -> str:
        """Why a record is rejected."""
        return f"The record has more than {self.record:,} bytes, the maximum (--max-record)."


DEFAULT = Limits()


def check_expansion(path: str, compressed: int, plain: int, limits: Limits) -> None:
    """Raise `SourceError` if a compressed file expands beyond the limits."""
    if plain > limits.size:
        raise SourceError(
            f"{path} expands to more than {limits.size:,} bytes.",
            f"If that is right, add --set import.max_size={2 * limits.size}.",
        )
    if plain > max(UNSUSPICIOUS, limits.ratio * compressed):
        raise SourceError(
            f"{path} expands to more than {limits.ratio:,} times its size, as files that are made to fill the memory.",
            f"If that is right, add --set import.max_ratio={10 * limits.ratio}.",
        )


class ExpansionReader:
    """Passes decompressed bytes on, and raises `SourceError` if they exceed the limits.

    `compressed` returns the number of bytes read from the file so far.
    """

    def __init__(self, file: Readable, path: str, limits: Limits, compressed: Callable[[], int]) -> None:
        self._file = file
        self._path = path
        self._limits = limits
        self._compressed = compressed
        self._plain = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the file."""
        count = self._file.readinto(buffer) or 0
        self._plain += count
        check_expansion(self._path, self._compressed(), self._plain, self._limits)
        return count
