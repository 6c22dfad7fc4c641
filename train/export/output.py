"""An export's place on disk: its default folder next to the store, and folders that appear only when complete."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.atomic import DISK_FULL
from schemas.errors import ExportError
from schemas.manifest import read_manifest

if TYPE_CHECKING:
    from train.export.source import ExportSource
    from train.inference.backends import Backend

IDENTITY_FILE = "identity"
"""The file in an unfinished folder that identifies the export being written there."""


def read_origin(path: Path) -> tuple[str, str | None]:
    """The run and the adapter digest in the manifest of an export's folder."""
    manifest = read_manifest(path)
    return manifest.run, manifest.adapter_digest


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """A kind of export: where it is written, how it is recognised, and the engine that loads it."""

    folder: str
    """Its folder next to the store."""
    engine: str
    """Its name in a parity report that lacks it."""
    command: str
    matches: Callable[[Path], bool]
    """Whether a path is an export of this kind."""
    open_backend: Callable[[Path], AbstractContextManager[Backend]]
    """The engine that loads an export."""
    find: Callable[[Path], Path | None] | None = None
    """The export in a run's default folder; by default the folder itself if it matches."""
    read_origin: Callable[[Path], tuple[str, str | None]] = read_origin
    """The run and the adapter digest that an export names."""
    is_expected: Callable[[ExportSource, Collection[str]], bool] = lambda _source, _existing: False
    """Whether a report suggests it for a run, given the `folder` names of its existing exports."""

    def find_default(self, store: Path, run: str) -> Path | None:
        """The export of a run in its default folder, or None."""
        folder = export_dir(store, self.folder, run)
        if self.find is not None:
            return self.find(folder)
        return folder if self.matches(folder) else None


def export_dir(store: Path, kind: str, run: str) -> Path:
    """The default folder of an export, such as `merged/r1` next to the store."""
    return store.resolve().parent / kind / run


def check_free(folder: Path) -> None:
    """Raise `ExportError` if `folder` is a file or a folder with content."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} already exists.", "Give another --to FOLDER; nothing is overwritten.")


@contextmanager
def resumable_dir(folder: Path, identity: str) -> Iterator[Path]:
    """The folder `FOLDER.partial` to write into. It is renamed to `folder` when the block ends.

    If the block raises or the process is killed, it is kept: the next call with the same identity continues with its
    files, one with another identity removes them first. Raises `ExportError` if `folder` is not free, another process
    writes to it, or the disk is full.
    """
    check_free(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    identity_file = partial / IDENTITY_FILE
    if partial.exists() and not (identity_file.exists() and identity_file.read_text(encoding="utf-8") == identity):
        if not identity_file.exists() and any(partial.iterdir()):
            raise ExportError(f"{partial} exists and is not an export.", "Move it, or give another --to FOLDER.")
        shutil.rmtree(partial)
    with explain_write_errors(folder):
        partial.mkdir(parents=True, exist_ok=True)
        with _lock(identity_file, identity):
            yield partial
            partial.rename(folder)
        (folder / IDENTITY_FILE).unlink()


@contextmanager
def _lock(identity_file: Path, identity: str) -> Iterator[None]:
    """Hold a lock on the identity file, so that a second process cannot write to the same folder."""
    with identity_file.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                f"Another process is writing to {identity_file.parent}.", "Wait until it ends, or give another --to."
            ) from error
        file.truncate(0)
        file.write(identity)
        file.flush()
        yield


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk and missing permissions into an `ExportError`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ExportError(
                f"The disk is full: {path} could not be written ({error.strerror}).",
                "Free some space, or give another --to; run the same command again to resume.",
            ) from error
        if isinstance(error, PermissionError):
            raise ExportError(f"{path} cannot be written: {error.strerror}.", "Give another --to.") from error
        raise


def to_json(value: object) -> str:
    """The text of a JSON file of an export."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
