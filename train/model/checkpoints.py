"""Checkpoints → the newest complete one: the last file of each has the digests of all the others.

A process that is killed while it writes leaves a checkpoint that the trainer would consider complete. It is removed,
and the run resumes from the previous one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from schemas.atomic import write_text
from schemas.digest import file_digest

COMPLETE = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Flush a checkpoint's files to disk and write their digests into it."""
    for path in _files(checkpoint):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_text(checkpoint / COMPLETE, json.dumps(_digests(checkpoint), indent=1))


def newest_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None; newer ones are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=checkpoint_step, reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def has_complete(folder: Path) -> bool:
    """Whether a checkpoint in `folder` is complete; nothing is removed."""
    return any(map(is_complete, folder.glob("checkpoint-*")))


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint exists and is unchanged since it was marked."""
    marker = checkpoint / COMPLETE
    return marker.exists() and bool(json.loads(marker.read_text(encoding="utf-8")) == _digests(checkpoint))


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written.

    >>> checkpoint_step(Path("checkpoints/checkpoint-150"))
    150
    """
    return int(checkpoint.name.rpartition("-")[2])


def _digests(checkpoint: Path) -> dict[str, str]:
    return {str(path.relative_to(checkpoint)): file_digest(path) for path in _files(checkpoint)}


def _files(checkpoint: Path) -> Iterator[Path]:
    """All files of a checkpoint except its marker, including subfolders: a sharded state is a folder."""
    marker = checkpoint / COMPLETE
    return (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != marker)
