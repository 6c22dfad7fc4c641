"""A manifest → the row of its run, and its locked folder: those of an unfinished run that is the same, or new ones."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

from schemas.errors import TrainError
from schemas.manifest import Manifest
from schemas.run import LOCK_FILE, Run, next_run, read_runs, write_run
from schemas.store import writing
from train.model.checkpoints import has_complete

Start = Literal["auto", "resume", "fresh"]

LOCK_RETRY = 0.2
"""Seconds after which a process that only tested the lock has released it."""


def acquire_run(store: Path, manifest: Manifest, to: Path | None, start: Start) -> Run:
    """An unfinished run with the same identity, or a new one, stored with the status `running`."""
    with writing(store) as connection:
        runs = read_runs(connection)
        unfinished = [run for run in runs if run.status != "done" and run.manifest.identity == manifest.identity]
        if to is not None:
            unfinished = [run for run in unfinished if run.adapter == to.resolve()]
        if unfinished and start != "fresh":
            run = replace(unfinished[-1], status="running")
        elif start == "resume":
            raise TrainError(
                "There is no unfinished run of this version, recipe, model and machine.",
                "Omit --resume to begin one; curate runs lists all runs.",
            )
        else:
            run = _new_run(store, runs, next_run(connection), manifest, to, keep_checkpoints=start != "fresh")
        write_run(connection, run)
    return run


def _new_run(
    store: Path, runs: Sequence[Run], name: str, manifest: Manifest, to: Path | None, *, keep_checkpoints: bool
) -> Run:
    """A new run; what an earlier one that failed left in its folder is removed. Raises `TrainError` for checkpoints."""
    adapter = (to or store.parent / "adapters" / name).resolve()
    run = Run(name, "running", adapter, manifest.model_copy(update={"run": name}))
    earlier = [known for known in runs if known.adapter == adapter]
    if earlier and earlier[-1].status == "failed":
        if keep_checkpoints and has_complete(run.partial / "checkpoints"):
            raise TrainError(
                f"{run.partial} has complete checkpoints of run {earlier[-1].run}, which was trained differently.",
                "Give another --to FOLDER, or --fresh to remove them.",
            )
        shutil.rmtree(run.partial, ignore_errors=True)
    for folder in (adapter, run.partial):  # a .partial folder holds the checkpoints of another run
        if folder.exists() and any(folder.iterdir()):
            raise TrainError(f"{folder} already exists.", "Give another --to FOLDER, or remove this one first.")
    return run


@contextmanager
def locked(run: Run) -> Iterator[IO[str]]:
    """Lock the run's folder, so that no second process trains the run; the lock ends with the process."""
    run.partial.mkdir(parents=True, exist_ok=True)
    with (run.partial / LOCK_FILE).open("w") as file:
        try:
            _lock(file)
        except OSError as error:
            raise TrainError(
                f"Run {run.run} is being trained by another process ({run.partial} is locked).",
                "Wait for it, or begin another run with --fresh.",
            ) from error
        yield file


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        time.sleep(LOCK_RETRY)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
