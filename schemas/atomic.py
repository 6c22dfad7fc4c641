"""What is written whole or not at all, by way of a hidden folder beside it that is held while somebody writes in it."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".curate-unfinished"
"""How the hidden folders end in which something is written: a name that no person gives."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that takes no more, or a limit on what may be on it."""


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, by way of a file beside it: what failed or was killed leaves no half of it.

    Raises `OSError`; then whatever was at `path` is still there.
    """
    with unfinished(path) as place:
        with place.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        place.replace(path)


def what_to_do(error: OSError, path: Path) -> str:
    """The hint for a person whose file or folder `path` could not be written."""
    if error.errno in FULL:
        return "Free some space and run this again."
    if error.errno == errno.ENAMETOOLONG:
        return "Give a shorter name."
    if error.errno == errno.ENOENT and not path.parent.exists():
        return f"mkdir -p {shlex.quote(str(path.parent))}"
    return "Check the folder and its rights."


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A place of the name of `path` in a hidden folder beside it, to be written and then moved.

    What killed processes have left there goes first: a folder of ours that nobody holds. The lock tells, and not the
    number of a process, which means another one in every container. Raises `OSError` where nothing can be written.
    """
    for left in path.parent.glob(f".*{UNFINISHED}"):
        _remove_abandoned(left)
    folder, lock = _begin(path.parent)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a read-only file system refuses this too
        if lock is not None:
            os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError):  # it is held, or there are no locks here, or it is a file or a link and none of ours
        lock = _hold(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _begin(parent: Path) -> tuple[Path, int | None]:
    """A new folder, and the lock on it; None on a file system without locks, where nothing is ever removed."""
    while True:
        folder = parent / f".{secrets.token_hex(4)}{UNFINISHED}"
        folder.mkdir()
        try:
            lock = _hold(folder)
        except (BlockingIOError, FileNotFoundError):  # somebody took it for abandoned before it was held
            continue
        except OSError:
            return folder, None
        if lock is None or folder.exists():
            return folder, lock
        os.close(lock)


def _hold(folder: Path) -> int | None:
    """A lock on a folder, which ends with this process however it ends; None on Windows, which has none.

    Raises `OSError` when somebody else has it.
    """
    if sys.platform == "win32":
        return None
    import fcntl  # Windows has it not

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
