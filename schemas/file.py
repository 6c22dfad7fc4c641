"""What is written whole or not at all, by way of a hidden file beside it that has the writing process in its name."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, by way of a file beside it: what failed or was killed leaves no half of it.

    Raises `OSError`; then whatever was at `path` is still there.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    remove_abandoned(path.parent, f".{path.name}.")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a read-only file system refuses this too
            unfinished.unlink(missing_ok=True)


def remove_abandoned(folder: Path, before: str, after: str = "") -> None:
    """Remove what processes that were killed have left in `folder`: files and folders called before, PID, after.

    A process of another machine that shares the folder looks like one that is no more: its writing fails, and can be
    done again. On Windows nothing is removed: asking there for a process by its number would end it.
    """
    name = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # what writes there next says what is wrong with the folder
        for entry in folder.iterdir():
            found = name.fullmatch(entry.name)
            if found and not _is_running(int(found[1])):
                _remove(entry)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the latter: no number that a process has
        return False
    except PermissionError:
        return True
    return True


def _remove(entry: Path) -> None:
    """Remove a file or a folder with all that is in it; where that may not be, it stays."""
    with contextlib.suppress(OSError):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
