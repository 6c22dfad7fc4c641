"""Runs that failed or were interrupted → removed from the store with their unfinished folders; adapters stay."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.run import LOCK_FILE, Run, read_runs
from schemas.store import reading, writing
from schemas.timing import timed
from train.model.checkpoints import has_complete

RESUMABLE = "it can be resumed"


@dataclass(frozen=True, slots=True)
class TidiedRun:
    """An unfinished run: `folder` is its unfinished folder, `bytes` the size of it; `kept_because` is empty or why."""

    run: str
    version: str
    status: str
    failure: str | None
    folder: Path | None
    bytes: int
    kept_because: str


@dataclass(frozen=True, slots=True)
class TidyReport:
    """The unfinished runs, oldest first; `written` is False for a dry run."""

    runs: list[TidiedRun]
    written: bool

    @property
    def removed(self) -> list[TidiedRun]:
        """The runs that are, or would be, removed."""
        return [run for run in self.runs if not run.kept_because]


@timed("removing unfinished runs")
def tidy_runs(store: Path, *, checkpoints: bool = False, dry_run: bool = False) -> TidyReport:
    """Remove failed and interrupted runs and their unfinished folders.

    Keeps a run that can be resumed, unless `checkpoints`, one whose folder has an adapter, and one that is trained now.
    """
    with reading(store) as connection:
        unfinished = [run for run in read_runs(connection) if run.status in ("failed", "interrupted")]
    tidied = [_tidy(run, checkpoints=checkpoints, dry_run=dry_run) for run in unfinished]
    report = TidyReport(tidied, written=not dry_run)
    if report.removed and report.written:
        with writing(store) as connection:  # after the folders: a row without one is removed by the next call
            removed = [run.run for run in report.removed if run.folder is None or not run.folder.exists()]
            connection.execute("DELETE FROM runs WHERE list_contains(?, run)", [removed])
    return report


def _tidy(run: Run, *, checkpoints: bool, dry_run: bool) -> TidiedRun:
    """Judge a run and remove its folder, whose lock is held: no process can begin to train in it meanwhile."""
    with _lock(run.partial) as is_free:
        tidied = _judge(run, checkpoints=checkpoints, is_free=is_free)
        if tidied.folder is not None and not tidied.kept_because and not dry_run:
            shutil.rmtree(tidied.folder)
    return tidied


def _judge(run: Run, *, checkpoints: bool, is_free: bool) -> TidiedRun:
    folder = run.partial if (run.partial / LOCK_FILE).is_file() else None  # only a folder that a run has written
    size = 0 if folder is None else sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    reason = _reason_to_keep(run, folder, checkpoints=checkpoints, is_free=is_free)
    return TidiedRun(run.run, run.manifest.data.version, run.status, run.manifest.failure, folder, size, reason)


def _reason_to_keep(run: Run, folder: Path | None, *, checkpoints: bool, is_free: bool) -> str:
    if run.adapter.exists():
        return "it has an adapter"
    if folder is None:
        return ""
    if not is_free:
        return "a process works on it"
    if not checkpoints and has_complete(folder / "checkpoints"):
        return RESUMABLE
    return ""


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the lock of an unfinished run's folder; False if a process trains in it, True also without such a folder."""
    if not (folder / LOCK_FILE).is_file():
        yield True
        return
    with (folder / LOCK_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
