"""Runs that failed or were interrupted → removed from the store with their unfinished folders; adapters stay."""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import dataclass
from pathlib import Path

from schemas.run import LOCK_FILE, Run, read_runs
from schemas.store import reading, writing
from schemas.timing import timed
from train.model.checkpoints import is_complete

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
    with (reading if dry_run else writing)(store) as connection:
        unfinished = [run for run in read_runs(connection) if run.status in ("failed", "interrupted")]
        report = TidyReport([_judge(run, checkpoints=checkpoints) for run in unfinished], written=not dry_run)
        for run in report.removed if report.written else []:
            if run.folder is not None:  # first: a row without a folder is removed by the next call, a folder is not
                shutil.rmtree(run.folder)
            connection.execute("DELETE FROM runs WHERE run = ?", [run.run])
    return report


def _judge(run: Run, *, checkpoints: bool) -> TidiedRun:
    folder = run.partial if (run.partial / LOCK_FILE).is_file() else None  # only a folder that a run has written
    size = 0 if folder is None else sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    reason = _reason_to_keep(run, folder, checkpoints=checkpoints)
    return TidiedRun(run.run, run.manifest.data.version, run.status, run.manifest.failure, folder, size, reason)


def _reason_to_keep(run: Run, folder: Path | None, *, checkpoints: bool) -> str:
    if run.adapter.exists():
        return "it has an adapter"
    if folder is None:
        return ""
    if _is_locked(folder):
        return "a process works on it"
    if not checkpoints and any(map(is_complete, folder.glob("checkpoints/checkpoint-*"))):
        return RESUMABLE
    return ""


def _is_locked(folder: Path) -> bool:
    with (folder / LOCK_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
