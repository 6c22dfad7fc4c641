"""Files → SHA-256 digests, computed in a thread.

Imports no heavy modules: the command line starts the first file before it loads Polars and DuckDB, which keeps one
core busy for half a second and leaves the other one free.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType

from schemas.errors import SourceError

BLOCK = 32 << 20
"""Bytes hashed at a time. Before each block the thread waits for the interpreter lock, up to 5 ms while modules are
loaded. With 8 MB, the digest of 472 MB took a quarter of a second longer, and the first rows waited for it."""

Stamp = tuple[int, int]
"""Size of a file, and time of its last change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The future digest of a file, and the stamp of the file before it was read."""

    stamp: Stamp
    sha256: Future[str]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.stamp[0]


class FileHasher:
    """Computes digests of files in the order in which they are started. Leaving its context stops the thread."""

    def __init__(self) -> None:
        self._digests: dict[str, Digest] = {}
        self._thread = ThreadPoolExecutor(1)
        self._stopped = Event()

    def __enter__(self) -> FileHasher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.shutdown()

    def start(self, path: str) -> Digest | None:
        """The digest of the file at `path`, started now or earlier; None if `path` is not a file."""
        try:
            is_file = Path(path).is_file()
        except OSError:  # the path cannot be accessed; the reader reports the error
            return None
        if not is_file:
            return None
        if path not in self._digests:
            self._digests[path] = Digest(stamp(path), self._thread.submit(self._sha256, path))
        return self._digests[path]

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with Path(path).open("rb", buffering=0) as file:
            block = bytearray(min(BLOCK, Path(path).stat().st_size + 1))  # clearing 32 MB takes 10 ms
            while not self._stopped.is_set() and (count := file.readinto(block)):
                digest.update(memoryview(block)[:count])
        return digest.hexdigest()


def stamp(path: str) -> Stamp:
    """The stamp of a file, by which a change is detected. Raises `OSError` if there is no file."""
    state = Path(path).stat()
    return state.st_size, state.st_mtime_ns


def check_unchanged(digest: Digest, path: str) -> None:
    """Raise `SourceError` if the file does not exist, or has changed since its digest was started."""
    try:
        is_same = digest.stamp == stamp(path)
    except OSError:
        is_same = False
    if not is_same:
        raise SourceError(f"{path} was changed during the import.", "Run the command again when the file is complete.")
