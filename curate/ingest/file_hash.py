"""Hashing: the SHA-256 of files, made in a thread while other work is done.

Light to import: the roof begins the first file before Polars and DuckDB are loaded, which keeps one core busy for
half a second and leaves the other one free.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType

BLOCK = 32 << 20
"""Bytes hashed at a time: before each the thread waits for the interpreter, up to 5 ms while modules are loaded. With
8 MB the digest of 472 MB was known a quarter of a second later, and the first rows waited for it."""

Stamp = tuple[int, int]
"""Size of a file and time of its last change, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of a file to come, and the stamp that the file had before its first byte was read."""

    stamp: Stamp
    sha256: Future[str]


class FileHasher:
    """Makes digests of files in the order in which they are begun; leaving the block stops it."""

    def __init__(self) -> None:
        self._begun: dict[str, Digest] = {}
        self._thread = ThreadPoolExecutor(1)
        self._left = Event()

    def __enter__(self) -> FileHasher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._thread.shutdown()

    def start(self, path: str) -> Digest | None:
        """The digest of the file at `path`, begun now or before; None for what is no single file on a disk."""
        try:
            is_file = Path(path).is_file()
        except OSError:  # it cannot even be looked for; who opens it says so
            return None
        if not is_file:
            return None
        if path not in self._begun:
            self._begun[path] = Digest(stamp(path), self._thread.submit(self._sha256, path))
        return self._begun[path]

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with Path(path).open("rb", buffering=0) as file:
            block = bytearray(BLOCK)
            while not self._left.is_set() and (count := file.readinto(block)):
                digest.update(memoryview(block)[:count])
        return digest.hexdigest()


def stamp(path: str) -> Stamp:
    """What changes when a file does. Raises `OSError` where there is none."""
    state = Path(path).stat()
    return state.st_size, state.st_mtime_ns
