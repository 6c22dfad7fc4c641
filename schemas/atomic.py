"""Files and folders that appear complete or not at all: written in a hidden folder next to the target, then moved."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.text import shell_quote

UNFINISHED = ".curate-unfinished"
"""Suffix of the hidden folders."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, an exceeded quota and a file size limit."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8. Raises `OSError` and leaves an existing file at `path` unchanged."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path to write a file to. It replaces `path` when the block ends, and is removed if the block raises.

    The file is flushed to disk before it is moved. Raises `OSError` if nothing can be written.
    """
    with staging_path(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A new temporary folder. It becomes `path` when the block ends, and is removed if the block raises.

    `path` must not exist, unless it is an empty folder. Raises `OSError` if nothing can be written.
    """
    with staging_path(path) as temporary:
        temporary.mkdir()
        yield temporary
        temporary.rename(path)


def write_hint(error: OSError, path: Path) -> str:
    """The hint for a file or folder `path` that could not be written."""
    if error.errno in DISK_FULL:
        return "Free some space and run this again."
    if error.errno == errno.ENAMETOOLONG:
        return "Give a shorter name."
    if error.errno == errno.ENOENT and not path.parent.exists():
        return f"mkdir -p {shell_quote(str(path.parent))}"
    return "Check the folder and its rights."


@contextmanager
def staging_path(path: Path) -> Iterator[Path]:
    """A path with the name of `path` in a hidden folder next to it, for the caller to write and move.

    Folders left by killed processes are removed first: those that no process has locked. A lock is used because a
    process number refers to another process in every container. Raises `OSError` if nothing can be written.
    """
    for left in path.parent.glob(f".*{UNFINISHED}"):
        _remove_abandoned(left)
    folder, lock = _begin(path.parent)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # fails on a read-only file system, too
        if lock is not None:
            os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError):  # locked, no locks on this file system, or a file or link that is not ours
        lock = _hold(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _begin(parent: Path) -> tuple[Path, int | None]:
    """A new folder and its lock; the lock is None on a file system without locks, where nothing is ever removed."""
    while True:
        folder = parent / f".{secrets.token_hex(4)}{UNFINISHED}"
        folder.mkdir()
        try:
            lock = _hold(folder)
        except (BlockingIOError, FileNotFoundError):  # another process removed it before it was locked
            continue
        except OSError:
            return folder, None
        if lock is None or folder.exists():
            return folder, lock
        os.close(lock)


def _hold(folder: Path) -> int | None:
    """A lock on a folder, released when this process ends in any way; None on Windows, which has no such lock.

    Raises `OSError` if another process holds it.
    """
    if sys.platform == "win32":
        return None
    import fcntl  # missing on Windows

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
