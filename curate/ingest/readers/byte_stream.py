"""A file → its bytes as UTF-8, in chunks of complete records; hashed, decompressed and decoded while it is read.

Each step is a layer with the method `readinto`: file, hash, gzip or zstd, encoding. A plain UTF-8 file is read
directly into the buffer of a chunk. A thread reads the next chunk while the current one is parsed: reading, hashing
and searching release the interpreter lock.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import sys
import weakref
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import zstandard

from curate.ingest.readers.compression import ObservedReader, PushbackReader, Readable, open_xz, open_zstd, read_bytes
from curate.ingest.readers.encoding import TranscodingReader, check_not_utf16, encoding_error, is_utf8
from curate.ingest.readers.file_kind import ZIP, check_member, check_not_binary, choose_member, is_workbook
from curate.ingest.readers.limits import DEFAULT, ExpansionReader, Limits
from schemas.errors import SourceError

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

NEWLINE = ord("\n")

CHUNK = 32 << 20
"""Bytes per chunk. About fifty Polars queries run per chunk: 16 MB take 3 to 7 % longer, 64 MB only more memory."""

FIRST_CHUNK = 4 << 20
"""Bytes of the first chunk: few, so that the stages after reading start early, but enough to detect the columns."""

HEAD = 1 << 20
"""Bytes from which the format is detected."""

SKIPPABLE_FRAME, SKIPPABLE_FIRST_BYTE = b"\x2a\x4d\x18", bytes(range(0x50, 0x60))
"""A Zstandard file may start with a frame of other data: the first byte is one of sixteen (RFC 8878, 3.1.2)."""

SEARCH_BLOCK = 1 << 19
"""Bytes searched at a time: the mask of a block fits into the processor cache, twice as fast as a chunk at once."""

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, lzma.LZMAError, zipfile.BadZipFile)
"""Errors of compressed files that are damaged."""

WINDOW_MESSAGES = ("requires too much memory", "Memory usage limit")
"""Parts of the messages of zstd and xz about a window above the limit."""

T = TypeVar("T")


class Chunk(NamedTuple, Generic[T]):
    """Consecutive bytes of a file: complete records."""

    data: Bytes
    parts: T
    """Further output of the splitter."""
    newlines: Positions
    """Positions of the newlines in `data`."""
    first_line: int
    """Line number of the start of `data`, from 1."""

    def line_at(self, positions: Positions) -> Positions:
        """Line number of each of `positions`."""
        return self.first_line + np.searchsorted(self.newlines, positions)


Splitter = Callable[[Bytes, Positions, bool], tuple[int, T]]
"""Bytes that start with a record, positions of their newlines, whether the file ends with them → the number of bytes
at the start that are complete records (0: none), and a description of these records."""


class ByteStream:
    """A file, or standard input (`-`), read once from start to end. Digest and size are those of the file on disk."""

    def __init__(
        self,
        path: str,
        encoding: str | None = None,
        *,
        hashed: bool = True,
        binary: tuple[bytes, ...] = (),
        limits: Limits = DEFAULT,
    ) -> None:
        """`hashed=False` leaves the digest to the caller; `sha256` is then invalid.

        `binary`: first bytes of the formats that are not decoded as text.
        """
        self.path = path
        self.name = path
        """The name by which the format is known: of the file, or of the one in an archive."""
        self.encoding = encoding
        self.limits = limits
        self._hashed = hashed
        self._binary = binary
        self._digest = hashlib.sha256()
        self._size = 0
        self._layers = ExitStack()
        self._top: Readable | None = None
        self._head = b""
        self._is_plain = True
        self._buffers = _Buffers()

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes read so far; of the file after the last chunk."""
        return self._digest.hexdigest()

    @property
    def size(self) -> int:
        """Number of bytes read so far; of the file after the last chunk."""
        return self._size

    def head(self) -> bytes:
        """The first bytes, up to `HEAD`, decompressed and as UTF-8 without a byte order mark."""
        if self._top is None:
            with self._wrapped_errors():
                self._top = self._open()
                self._head = read_bytes(self._top, HEAD)
        return self._head

    @property
    def is_short(self) -> bool:
        """Whether `head` is the whole file."""
        return len(self.head()) < HEAD

    def chunks(self, split: Splitter[T], skip: int = 0, *, lines: bool = False) -> Iterator[Chunk[T]]:
        """The file in chunks of complete records, as determined by `split`, without its first `skip` bytes.

        The buffer grows until it contains a complete record, so a record may be longer than a chunk. With `lines`, of
        a line above the limit only so many bytes are read that its record is above the limit.
        """
        self.head()
        with self._wrapped_errors(), self._layers:
            pieces = self._split(split, skip, self.limits.record if lines else None)
            yield from pieces if self.is_short else prefetch(pieces)

    def seekable(self) -> Path | io.BytesIO:
        """The content with random access: the path, or a copy in memory of compressed files and standard input.

        Digest and size are final afterwards.
        """
        copy = io.BytesIO(self.head())
        needs_copy = self.path == "-" or not self._is_plain
        copy.seek(0, io.SEEK_END)
        with self._wrapped_errors(), self._layers:
            assert self._top is not None
            while block := read_bytes(self._top, HEAD):
                if needs_copy:
                    copy.write(block)
        return copy if needs_copy else Path(self.path)

    def text(self, most: int) -> str | None:
        """The whole text; None if it has more than `most` bytes. Raises `SourceError` if it is not UTF-8."""
        data = bytearray()
        for chunk in self.chunks(_split_anywhere):
            data += chunk.data.tobytes() if len(data) <= most else b""
        if len(data) > most:
            return None
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise encoding_error(self.path, bytes(data), 1 + data.count(b"\n", 0, error.start), self.blocks) from error

    def _split(self, split: Splitter[T], skip: int, longest_line: int | None) -> Iterator[Chunk[T]]:
        rest: Bytes = np.frombuffer(self._head, np.uint8)[skip:]
        size, line, last, is_cut = min(FIRST_CHUNK, CHUNK), 1 + self._head.count(b"\n", 0, skip), False, False
        while not last:
            if is_cut:
                rest, last, is_cut = *self._drop_line(rest), False
            data, last = (rest, last) if last else self._fill(rest, size)
            newlines = find_byte(data, NEWLINE)
            open_line = len(data) - (newlines[-1] + 1 if len(newlines) else 0)
            if longest_line is not None and open_line > longest_line and not last:
                data[-1], is_cut = NEWLINE, True
                newlines = np.append(newlines, len(data) - 1)
            end, parts = split(data, newlines, last)
            rest, size = data[end:], CHUNK if end else 2 * size
            if end:
                newlines = newlines[: np.searchsorted(newlines, end)]
                yield Chunk(data[:end], parts, newlines, line)
                line += len(newlines)

    def _drop_line(self, rest: Bytes) -> tuple[Bytes, bool]:
        """`rest` and the bytes that follow the current line, and whether the file ends there."""
        last = False
        while not last:
            data, last = self._fill(rest[:0], CHUNK)
            newlines = find_byte(data, NEWLINE)
            if len(newlines):
                return np.concatenate([rest, data[newlines[0] + 1 :]]), last
        return rest, True

    def _fill(self, rest: Bytes, size: int) -> tuple[Bytes, bool]:
        """`rest` and the bytes after it, `size` bytes in total, and whether the file ends there."""
        assert self._top is not None
        buffer = self._buffers.take(max(size, len(rest) + HEAD))
        buffer[: len(rest)] = rest
        filled = len(rest)
        while filled < len(buffer):
            count = self._top.readinto(memoryview(buffer.data)[filled:])
            if not count:
                return buffer[:filled], True
            filled += count
        return buffer, False

    def blocks(self) -> Iterator[bytes]:
        """The decompressed bytes of the file, read again from the start; none for standard input."""
        if self.path == "-":
            return
        again = ByteStream(self.path, hashed=False, limits=self.limits)
        with again._wrapped_errors(), again._layers:
            plain = again._open_plain()
            while block := read_bytes(plain, HEAD):
                yield block

    def _open(self) -> Readable:
        plain = self._open_plain()
        first = read_bytes(plain, HEAD)
        if first.startswith(self._binary) or is_workbook(first):
            return PushbackReader(first, plain)
        if self.encoding is not None and not is_utf8(self.encoding):
            return TranscodingReader(PushbackReader(first, plain), self.path, self.encoding)
        check_not_utf16(self.path, first)
        return PushbackReader(first.removeprefix(codecs.BOM_UTF8), plain)

    def _open_plain(self) -> Readable:
        """The decompressed bytes of the file."""
        observed = ObservedReader(self._layers.enter_context(_open_file(self.path)), self.update_digest)
        start = read_bytes(observed, HEAD)
        check_not_binary(self.path, start)
        file = PushbackReader(start, observed)
        is_zip = start.startswith(ZIP) and not is_workbook(start)
        plain = self._unzip(file) if is_zip else _decompress(file, start, self.limits.window)
        self._is_plain = plain is file
        return plain if self._is_plain else ExpansionReader(plain, self.path, self.limits, lambda: self._size)

    def _unzip(self, file: Readable) -> Readable:
        """The only file of an archive, which is read completely for its digest."""
        content = io.BytesIO()
        while block := read_bytes(file, HEAD):
            if self.path == "-":
                content.write(block)
        archive = self._layers.enter_context(zipfile.ZipFile(content if self.path == "-" else self.path))
        self.name = choose_member(self.path, archive.namelist())
        try:
            member = cast(Readable, self._layers.enter_context(archive.open(self.name)))
            start = read_bytes(member, HEAD)
        except RuntimeError as error:  # a password, or a kind of compression that zipfile does not know
            raise SourceError(
                f"{self.path} cannot be extracted: {error}.", "Extract the archive, and import the extracted file."
            ) from error
        check_member(self.path, self.name, start)
        return PushbackReader(start, member)

    def update_digest(self, data: memoryview | bytes) -> None:
        """Add `data` to digest and size."""
        if self._hashed:
            self._digest.update(data)
        self._size += len(data)

    @contextmanager
    def _wrapped_errors(self) -> Iterator[None]:
        try:
            yield
        except SourceError:
            self._layers.close()
            raise
        except DAMAGED as error:
            self._layers.close()
            if any(words in str(error) for words in WINDOW_MESSAGES):
                raise SourceError(
                    f"{self.path} needs a window of more than {self.limits.window:,} bytes to be decompressed.",
                    f"If the memory suffices, add --set import.max_window={16 * self.limits.window}.",
                ) from error
            raise SourceError(
                f"{self.path} is compressed, and damaged or truncated ({error}).", "Copy or export it again."
            ) from error
        except OSError as error:
            self._layers.close()
            raise SourceError(
                f"{self.path} cannot be read completely: {error.strerror or error}.", "Check the disk or the network."
            ) from error


class _Buffers:
    """Memory for chunks. A buffer is used again when its array and all views of it, also those of Arrow, are gone.

    The system clears every page of new memory: 0.3 s of CPU for 500 MB.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, size: int) -> Bytes:
        """An array of `size` bytes with any content."""
        if size != CHUNK:
            return np.empty(size, np.uint8)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8).data
        array = np.frombuffer(memory, np.uint8)  # its views refer to it, and not to the memory
        weakref.finalize(array, self._free.append, memory)
        return array


_idle: list[ThreadPoolExecutor] = []
"""Threads that wait for work. Polars compiles regular expressions once per thread: 10 ms per small file."""


def prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each computed in one thread while the previous one is used; the first is started at once."""
    try:
        thread = _idle.pop()
    except IndexError:
        thread = ThreadPoolExecutor(1)
    return _read_ahead(thread, items, thread.submit(next, items, None))


def _read_ahead(thread: ThreadPoolExecutor, items: Iterator[T], pending: Future[T | None]) -> Generator[T, None, None]:
    try:
        while (item := _wait_for(pending)) is not None:
            pending = thread.submit(next, items, None)
            yield item
    except BaseException:
        # Do not wait: the generator of a failed import may be finalised at any point, for example while another
        # thread is started, which holds the lock that waiting for a thread needs. Do not keep the thread: it ends
        # when its executor is garbage together with the generator.
        thread.shutdown(wait=False, cancel_futures=True)
        raise
    _idle.append(thread)


def _wait_for(pending: Future[T]) -> T:
    """The result; Ctrl-C ends the wait: Polars lets signals restart system calls, so a wait without end ignores it."""
    while not pending.done():
        wait([pending], timeout=0.2)
    return pending.result()


def find_byte(data: Bytes, byte: int) -> Positions:
    """Positions of `byte` in `data`."""
    return find_bytes(data, lambda block: block == byte)


def find_bytes(data: Bytes, mask: Callable[[Bytes], npt.NDArray[Any]]) -> Positions:
    """Positions of the bytes in `data` for which `mask` is true (not 0)."""
    blocks = [np.flatnonzero(mask(data[at : at + SEARCH_BLOCK])) + at for at in range(0, len(data), SEARCH_BLOCK)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def _split_anywhere(data: Bytes, newlines: Positions, last: bool) -> tuple[int, None]:  # noqa: ARG001
    return len(data), None


def split_lines(data: Bytes, newlines: Positions, last: bool) -> tuple[int, None]:
    """The splitter of formats with one record per line."""
    if last:
        return len(data), None
    return (int(newlines[-1]) + 1 if len(newlines) else 0), None


def _open_file(path: str) -> AbstractContextManager[Readable]:
    if path == "-" and sys.stdin is None:
        raise SourceError("Standard input is closed.", "Pipe data into the command, or give a file.")
    if path == "-":
        return nullcontext(cast(Readable, sys.stdin.buffer))
    try:
        return Path(path).open("rb", buffering=0)
    except FileNotFoundError as error:
        raise SourceError(
            f"There is no file {path}.", "Check the path; some shells require quotes around a pattern."
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path} cannot be opened: {error.strerror}.", "Check its type and its permissions."
        ) from error


def _decompress(file: PushbackReader, start: bytes, window: int) -> Readable:
    """Detect the compression by the first bytes, not the name: browsers decompress downloads and keep the name."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=io.BufferedReader(file, HEAD))  # a PushbackReader is a raw file
    if start.startswith(b"BZh"):
        return cast(Readable, bz2.BZ2File(io.BufferedReader(file, HEAD)))
    if start.startswith(b"\xfd7zXZ"):
        return open_xz(file, window)
    has_skippable_frame = start[1:4] == SKIPPABLE_FRAME and start[:1] in SKIPPABLE_FIRST_BYTE
    return open_zstd(file, window) if has_skippable_frame or start.startswith(zstandard.FRAME_HEADER) else file
