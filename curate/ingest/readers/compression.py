"""The layers between a file and its decoded text: each reads bytes from the layer below and provides `readinto`."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zstandard

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of compressed files."""

BLOCK = 1 << 20
"""Bytes that a layer reads at a time from the layer below."""


FRAME_STEP = 8 << 10
"""Compressed bytes of a frame that are decompressed at a time: at most 256 MB."""

XZ_STATE = 1 << 20
"""Memory of an xz decompressor besides its dictionary."""


def data_suffix(path: str) -> str:
    """The lower-case suffix of a file name, without that of a compression.

    >>> data_suffix("tickets.CSV.gz")
    '.csv'
    """
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


class Frame(Protocol):
    """A decompressor of one frame."""

    @property
    def eof(self) -> bool: ...  # noqa: D102
    @property
    def unused_data(self) -> bytes: ...  # noqa: D102
    def decompress(self, data: memoryview, /) -> bytes: ...  # noqa: D102


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


class FrameReader(BlockReader):
    """Decompresses all frames of a file. Unlike the readers of the libraries it detects a truncated file.

    A frame gets few bytes at a time, as zstd may turn each into 32,000.
    """

    def __init__(self, file: Readable, start_frame: Callable[[], Frame]) -> None:
        super().__init__(file)
        self._start_frame = start_frame
        self._frame = start_frame()
        self._compressed = memoryview(b"")

    def next_block(self) -> bytes | None:
        """The next decompressed bytes. Raises `EOFError` if the file ends within a frame."""
        compressed = self._compressed or memoryview(read_bytes(self._file, BLOCK))
        if not compressed:
            if not self._frame.eof:
                raise EOFError("it ends within a frame")
            return None
        if self._frame.eof:
            self._frame = self._start_frame()
        part, self._compressed = compressed[:FRAME_STEP], compressed[FRAME_STEP:]
        plain = self._frame.decompress(part)
        if self._frame.unused_data:
            self._compressed = compressed[len(part) - len(self._frame.unused_data) :]
        return plain


def open_zstd(file: Readable, window: int) -> FrameReader:
    """The decompressed bytes of a Zstandard file, whose window must not be larger than `window` bytes."""
    return FrameReader(file, zstandard.ZstdDecompressor(max_window_size=window).decompressobj)


def open_xz(file: Readable, window: int) -> FrameReader:
    """The decompressed bytes of an xz file, whose dictionary must not be larger than `window` bytes."""
    return FrameReader(file, lambda: lzma.LZMADecompressor(memlimit=window + XZ_STATE))
