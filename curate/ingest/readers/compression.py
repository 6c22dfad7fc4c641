"""The layers between a file and its text: each takes bytes from the one below and offers `readinto`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Protocol

import zstandard

BLOCK = 1 << 20
"""Bytes that a layer takes at a time from the one below."""


class Readable(Protocol):
    """Fills the buffer from its front and says how many bytes it wrote; 0 is the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...  # noqa: D102


def read(file: Readable, size: int) -> bytes:
    """The next `size` bytes of `file`, fewer only at its end."""
    buffer, filled = bytearray(size), 0
    while filled < size and (count := file.readinto(memoryview(buffer)[filled:])):
        filled += count
    return bytes(buffer[:filled])


class Hashed:
    """Shows every byte that passes to `seen`."""

    def __init__(self, file: Readable, seen: Callable[[memoryview], None]) -> None:
        self._file = file
        self._seen = seen

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the file."""
        count = self._file.readinto(buffer) or 0
        self._seen(buffer[:count])
        return count


class Pushed(io.RawIOBase):
    """Bytes that were looked at already, and then the rest of the file."""

    def __init__(self, start: bytes, file: Readable) -> None:
        self._start = memoryview(start)
        self._file = file

    def readable(self) -> bool:
        """Always: `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Fill `buffer` with what was pushed back, or from the file."""
        if not self._start:
            return self._file.readinto(buffer)
        count = min(len(buffer), len(self._start))
        buffer[:count], self._start = self._start[:count], self._start[count:]
        return count


class Produced:
    """A layer that makes its bytes block by block in `produce`, empty at the end."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._ready = memoryview(b"")

    def produce(self) -> bytes | None:
        """The next bytes, perhaps none yet; None at the end."""
        raise NotImplementedError

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the produced bytes."""
        while not self._ready:
            produced = self.produce()
            if produced is None:
                return 0
            self._ready = memoryview(produced)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


class Zstd(Produced):
    """Decompressed Zstandard, one frame after the other. Unlike the library's reader it notices a cut-off file."""

    def __init__(self, file: Readable) -> None:
        super().__init__(file)
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._packed = b""

    def produce(self) -> bytes | None:
        """The next block's content. Raises `EOFError` where the file ends within a frame."""
        packed = self._packed or read(self._file, BLOCK)
        if not packed:
            if not self._frame.eof:
                raise EOFError("it ends within a Zstandard frame")
            return None
        if self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        plain = self._frame.decompress(packed)
        self._packed = self._frame.unused_data
        return plain
