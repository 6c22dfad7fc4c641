"""The bytes of one file, as UTF-8 and in chunks of whole records: opened, hashed, decompressed and decoded on the way.

A stack of layers does it, each with the one method `readinto`: file, hash, gzip or zstd, encoding. A plain UTF-8
file is read into the chunk's own buffer and hardly copied. The next chunk is read in a thread while the last one
is parsed: reading, hashing and searching all let other threads run.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import zstandard

from curate.ingest.readers.compression import Hashed, Pushed, Readable, Zstd, read
from curate.ingest.readers.encoding import Recoded, refuse_binary, refuse_wide_encoding
from schemas.errors import SourceError

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

CHUNK = 32 << 20
"""Bytes per chunk: each goes through some fifty Polars queries, so 16 MB take 3 to 7 % longer; 64 only cost memory."""

FIRST = 4 << 20
"""Bytes of the first chunk: small, so that what comes behind reading starts early, and enough to see columns by."""

HEAD = 1 << 20
"""Bytes that are looked at before the format is known."""

PARQUET = b"PAR1"
"""A Parquet file starts and ends with it."""

SKIPPED, SKIPPED_FIRST = b"\x2a\x4d\x18", bytes(range(0x50, 0x60))
"""A Zstandard file may begin with a frame of other data: the first byte is one of sixteen (RFC 8878, 3.1.2)."""

BLOCK = 1 << 19
"""Bytes searched at a time: the mask of a block stays in the processor's cache, twice as fast as a chunk at once."""

T = TypeVar("T")


class Chunk(NamedTuple, Generic[T]):
    """Consecutive bytes of a file that start and end with a record."""

    data: Bytes
    parts: T
    """What the splitter found in them."""
    newlines: Positions
    """Positions of the newlines in `data`."""
    first_line: int
    """Number of the line that `data` starts with, from 1."""

    def line_at(self, positions: Positions) -> Positions:
        """Number of the line that each of `positions` stands in."""
        return self.first_line + np.searchsorted(self.newlines, positions)


Splitter = Callable[[Bytes, Positions, bool], tuple[int, T]]
"""Takes bytes that start with a record, the positions of their newlines, and whether the file ends with them.
Says how many bytes at the front are whole records, 0 for none yet, and where those are."""


class ByteStream:
    """One file, or standard input as `-`, read once from the front. Digest and size are those of the file on disk."""

    def __init__(self, path: str, encoding: str | None = None, *, hashed: bool = True) -> None:
        """`hashed=False` leaves the digest to the caller; then `sha256` means nothing."""
        self.path = path
        self.encoding = encoding
        self._hashed = hashed
        self._digest = hashlib.sha256()
        self._size = 0
        self._layers = ExitStack()
        self._top: Readable | None = None
        self._head = b""
        self._unpacked = True

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes read so far: of the file, after the last chunk."""
        return self._digest.hexdigest()

    @property
    def size(self) -> int:
        """Number of bytes read so far: of the file, after the last chunk."""
        return self._size

    def head(self) -> bytes:
        """The first bytes, up to `HEAD`, decompressed and as UTF-8 without a byte order mark."""
        if self._top is None:
            with self._explained():
                self._top = self._open()
                self._head = read(self._top, HEAD)
        return self._head

    def chunks(self, split: Splitter[T]) -> Iterator[Chunk[T]]:
        """The file in chunks of whole records, as `split` cuts them.

        Where it finds none, the buffer grows, so that a record may be longer than a chunk.
        """
        self.head()
        with self._explained(), self._layers:
            yield from prefetch(self._split(split))

    def seekable(self) -> Path | io.BytesIO:
        """The whole content as something that can be read at any place: the file, or a copy where it is packed.

        Digest and size are known afterwards.
        """
        copy = io.BytesIO(self.head())
        packed = self.path == "-" or not self._unpacked
        copy.seek(0, io.SEEK_END)
        with self._explained(), self._layers:
            assert self._top is not None
            while block := read(self._top, HEAD):
                if packed:
                    copy.write(block)
        return copy if packed else Path(self.path)

    def _split(self, split: Splitter[T]) -> Iterator[Chunk[T]]:
        rest: Bytes = np.frombuffer(self._head, np.uint8)
        size, line, last = min(FIRST, CHUNK), 1, False
        while not last:
            data, last = self._fill(rest, size)
            newlines = find(data, ord("\n"))
            whole, parts = split(data, newlines, last)
            rest, size = data[whole:], CHUNK if whole else 2 * size
            if whole:
                newlines = newlines[: np.searchsorted(newlines, whole)]
                yield Chunk(data[:whole], parts, newlines, line)
                line += len(newlines)

    def _fill(self, rest: Bytes, size: int) -> tuple[Bytes, bool]:
        """`rest` and what comes behind it, `size` bytes together, and whether the file ends there."""
        assert self._top is not None
        buffer = np.empty(max(size, len(rest) + HEAD), np.uint8)
        buffer[: len(rest)] = rest
        filled = len(rest)
        while filled < len(buffer):
            count = self._top.readinto(memoryview(buffer.data)[filled:])
            if not count:
                return buffer[:filled], True
            filled += count
        return buffer, False

    def _open(self) -> Readable:
        file = Hashed(self._layers.enter_context(_opened(self.path)), self.seen)
        start = read(file, HEAD)
        refuse_binary(self.path, start)
        unpacked = Pushed(start, file)
        plain = _decompressed(unpacked, start)
        self._unpacked = plain is unpacked
        first = read(plain, HEAD)
        if first.startswith(PARQUET):
            return Pushed(first, plain)
        if self.encoding is not None:
            return Recoded(Pushed(first, plain), self.path, self.encoding)
        refuse_wide_encoding(self.path, first)
        return Pushed(first.removeprefix(codecs.BOM_UTF8), plain)

    def seen(self, data: memoryview | bytes) -> None:
        """Count `data` into digest and size."""
        if self._hashed:
            self._digest.update(data)
        self._size += len(data)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SourceError:
            self._layers.close()
            raise
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            self._layers.close()
            raise SourceError(
                f"{self.path} is compressed, and damaged or cut off ({error}).", "Copy or export it again."
            ) from error
        except OSError as error:
            self._layers.close()
            raise SourceError(
                f"{self.path} cannot be read to its end: {error.strerror or error}.", "Check the disk or the network."
            ) from error


def prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each made in a thread while the one before it is used; the first is begun at once."""
    thread = ThreadPoolExecutor(1)
    return _in_turn(thread, items, thread.submit(next, items, None))


def _in_turn(thread: ThreadPoolExecutor, items: Iterator[T], pending: Future[T | None]) -> Generator[T, None, None]:
    try:
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item
    finally:
        # Not waited for: what a failed import leaves is finalised in the midst of anything, such as the start of
        # another thread, and the lock that is held there is the one that waiting for a thread needs.
        thread.shutdown(wait=False, cancel_futures=True)


def find(data: Bytes, byte: int) -> Positions:
    """Positions of `byte` in `data`."""
    blocks = [np.flatnonzero(data[at : at + BLOCK] == byte) + at for at in range(0, len(data), BLOCK)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def split_lines(data: Bytes, newlines: Positions, last: bool) -> tuple[int, None]:
    """The splitter of formats with one record a line."""
    if last:
        return len(data), None
    return (int(newlines[-1]) + 1 if len(newlines) else 0), None


def _opened(path: str) -> AbstractContextManager[Readable]:
    if path == "-" and sys.stdin is None:
        raise SourceError("Standard input is closed.", "Send something into it, or give a file.")
    if path == "-":
        return nullcontext(cast(Readable, sys.stdin.buffer))
    try:
        return Path(path).open("rb", buffering=0)
    except FileNotFoundError as error:
        raise SourceError(
            f"There is no file {path}.", "Check the path; a pattern needs quotes in some shells."
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path} cannot be opened: {error.strerror}.", "Check what it is and who may read it."
        ) from error


def _decompressed(file: Pushed, start: bytes) -> Readable:
    """By the first bytes and not by the name: browsers unpack a download and leave its name."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=io.BufferedReader(file, HEAD))  # a Pushed is a raw file
    is_zstd = start.startswith(zstandard.FRAME_HEADER) or (start[1:4] == SKIPPED and start[:1] in SKIPPED_FIRST)
    return Zstd(file) if is_zstd else file
