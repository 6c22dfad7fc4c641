"""Checkpoints that are whole or do not count: each gets a last file with the digests of all the others.

A process that is killed while it writes leaves a checkpoint that looks complete to the trainer. Here it is found
out and removed, and the run goes on from the one before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from schemas.digest import file_digest

COMPLETE = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the digests of a checkpoint's files into it, after the files have reached the disk."""
    digests = {str(path.relative_to(checkpoint)): _settled_digest(path) for path in _files(checkpoint)}
    marker = checkpoint / f"{COMPLETE}.part"
    marker.write_text(json.dumps(digests, indent=1), encoding="utf-8")
    _settled_digest(marker)
    marker.replace(checkpoint / COMPLETE)


def newest_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None; newer ones that are cut off are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint is there, as it was when it was marked."""
    marker = checkpoint / COMPLETE
    if not marker.exists():
        return False
    digests = json.loads(marker.read_text(encoding="utf-8"))
    return bool(digests == {str(path.relative_to(checkpoint)): file_digest(path) for path in _files(checkpoint)})


def step_of(checkpoint: Path) -> int:
    """The optimiser step at which a checkpoint was written.

    >>> step_of(Path("checkpoints/checkpoint-150"))
    150
    """
    return int(checkpoint.name.rpartition("-")[2])


def _files(checkpoint: Path) -> Iterator[Path]:
    """All files of a checkpoint but its marker, those in folders too: a sharded state is a folder of shards."""
    markers = (checkpoint / COMPLETE, checkpoint / f"{COMPLETE}.part")
    return (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path not in markers)


def _settled_digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_digest(path)
