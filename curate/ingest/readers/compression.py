"""The layers between a file and its decoded text: each reads bytes from the layer below and provides `readinto`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zstandard

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of compressed files."""

BLOCK = 1 << 20
"""Bytes that a layer reads at a time from the layer below."""


def data_suffix(path: str) -> str:
    """The lower-case suffix of a file name, without that of a compression.

    >>> data_suffix("tickets.CSV.gz")
    '.csv'
    """
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


class Readable(Protocol):
    """Fills a buffer from its start and returns the number of bytes written; 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...  # noqa: D102


def read_bytes(file: Readable, size: int) -> bytes:
    """The next `size` bytes of `file`; fewer only at its end."""
    buffer, filled = bytearray(size), 0
    while filled < size and (count := file.readinto(memoryview(buffer)[filled:])):
        filled += count
    return bytes(buffer[:filled])


class ObservedReader:
    """Passes all bytes read from a file to the function `observe`."""

    def __init__(self, file: Readable, observe: Callable[[memoryview], None]) -> None:
        self._file = file
        self._observe = observe

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the file."""
        count = self._file.readinto(buffer) or 0
        self._observe(buffer[:count])
        return count


class PushbackReader(io.RawIOBase):
    """Bytes that were already read from a file, followed by the rest of the file."""

    def __init__(self, start: bytes, file: Readable) -> None:
        self._start = memoryview(start)
        self._file = file

    def readable(self) -> bool:
        """Always true; required by `io.BufferedReader`."""
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Fill `buffer` from the start, then from the file."""
        if not self._start:
            return self._file.readinto(buffer)
        count = min(len(buffer), len(self._start))
        buffer[:count], self._start = self._start[:count], self._start[count:]
        return count


class BlockReader:
    """A layer whose subclass computes the bytes block by block in `next_block`."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._block = memoryview(b"")

    def next_block(self) -> bytes | None:
        """The next bytes, possibly empty; None at the end."""
        raise NotImplementedError

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the blocks."""
        while not self._block:
            block = self.next_block()
            if block is None:
                return 0
            self._block = memoryview(block)
        count = min(len(buffer), len(self._block))
        buffer[:count], self._block = self._block[:count], self._block[count:]
        return count


class ZstdReader(BlockReader):
    """Decompresses all frames of a Zstandard file. Unlike the library's reader it detects a truncated file."""

    def __init__(self, file: Readable) -> None:
        super().__init__(file)
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._compressed = b""

    def next_block(self) -> bytes | None:
        """The next decompressed bytes. Raises `EOFError` if the file ends within a frame."""
        compressed = self._compressed or read_bytes(self._file, BLOCK)
        if not compressed:
            if not self._frame.eof:
                raise EOFError("it ends within a Zstandard frame")
            return None
        if self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        plain = self._frame.decompress(compressed)
        self._compressed = self._frame.unused_data
        return plain
