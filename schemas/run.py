"""Rows of the table `runs` → runs: name, status, adapter folder and manifest of each training of a version."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from duckdb import DuckDBPyConnection
from pydantic import ValidationError

from schemas.errors import StoreError, TrainError, VersionError
from schemas.manifest import Manifest, read_manifest
from schemas.store import folder_of

LOCK_FILE = "lock"
"""In the folder of an unfinished run: locked by the process that trains it, released when that process ends."""

Status = Literal["running", "interrupted", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run in the store. `adapter` is its folder, which exists only if the status is `done`.

    Both fields are resolved when the store is read: after a project was moved or copied, the folder is the one at the
    new location; a run that the store records as `running` but that no process works on is `interrupted`.
    """

    run: str
    status: Status
    adapter: Path
    manifest: Manifest

    @property
    def partial(self) -> Path:
        """The folder of the unfinished run."""
        return partial_of(self.adapter)

    def as_json(self) -> dict[str, Any]:
        """The run as plain values, including its manifest."""
        manifest = self.manifest.model_dump(mode="json")
        return {"run": self.run, "status": self.status, "adapter": str(self.adapter), "manifest": manifest}


def read_runs(connection: DuckDBPyConnection) -> list[Run]:
    """All runs of a store, oldest first. Raises `StoreError` if a manifest cannot be read."""
    rows = connection.execute(
        "SELECT run, status, adapter, manifest FROM runs ORDER BY try_cast(substr(run, 2) AS BIGINT)"
    ).fetchall()
    home = folder_of(connection)
    return [
        Run(run, *resolve_run(home, run, adapter, status), _manifest(run, text)) for run, status, adapter, text in rows
    ]


def resolve_run(home: Path, run: str, adapter: str, status: Status) -> tuple[Status, Path]:
    """Current status and folder of a run, from `status` and `adapter` in its row; `home` is the store's folder."""
    place = _place(home, run, Path(adapter))
    interrupted = status == "running" and not _is_worked_on(partial_of(place))  # a killed process could not write it
    return "interrupted" if interrupted else status, place


def _place(home: Path, run: str, written: Path) -> Path:
    """The run's folder: next to the store if it was there when it was written, otherwise the recorded path.

    A store is moved and copied together with its adapters. In a copy, the copy's own folder takes precedence over the
    recorded one, even if both exist.
    """
    sibling = home / "adapters" / written.name
    if written.parts[-2:] == ("adapters", run):
        return written if _exists(written) and not _exists(sibling) else sibling
    return sibling if not _exists(written) and _is_of(sibling, run) else written


def _is_of(adapter: Path, run: str) -> bool:
    """Whether the folder's manifest names this run; False if the manifest cannot be read."""
    try:
        return read_manifest(adapter).run == run
    except TrainError:
        return False


def _exists(adapter: Path) -> bool:
    """Whether the run's folder exists, finished or not."""
    return adapter.is_dir() or partial_of(adapter).is_dir()


def partial_of(adapter: Path) -> Path:
    """The folder of an unfinished run, next to where its adapter will be."""
    return adapter.with_name(f"{adapter.name}.partial")


def _is_worked_on(partial: Path) -> bool:
    """Whether a process works on the run's folder, or may; the lock taken for the test is released immediately."""
    import fcntl  # missing on Windows; needed only for runs that are not done

    try:
        with (partial / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # locked, not accessible, or a file system without locks: assume that a process works on it
        return True
    return False


def _manifest(run: str, text: str) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = ", ".join(".".join(map(str, details["loc"])) for details in error.errors())
        raise StoreError(
            f"The manifest of run {run} in the store was written by another release: {problems}.",
            f"Use the release that wrote it, or remove the run: DELETE FROM runs WHERE run = '{run}'",
        ) from error


def find_run(connection: DuckDBPyConnection, name: str) -> Run:
    """The run called `name`, such as r3. Raises `VersionError` that lists the existing runs."""
    runs = read_runs(connection)
    for run in runs:
        if run.run == name:
            return run
    have = f"The store has {', '.join(run.run for run in runs)}." if runs else "The store has no runs yet."
    raise VersionError(f"There is no run {name}.", f"{have} curate runs lists them.")


def next_run(connection: DuckDBPyConnection) -> str:
    """The name of the next run: r1, then r2 and so on."""
    query = "SELECT coalesce(max(try_cast(substr(run, 2) AS BIGINT)), 0) + 1 FROM runs"
    return f"r{connection.execute(query).fetchall()[0][0]}"


def write_run(connection: DuckDBPyConnection, run: Run) -> None:
    """Write a run's row, replacing an earlier one."""
    manifest = run.manifest
    earlier = connection.execute("DELETE FROM runs WHERE run = ? RETURNING seq", [run.run]).fetchall()
    connection.execute(
        """INSERT INTO runs (run, version, version_digest, adapter, adapter_digest, status, manifest, metrics,
                             started_at, finished_at, seq)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, coalesce(?, nextval('seq')))""",
        [
            run.run,
            manifest.data.version,
            manifest.data.digest,
            str(run.adapter),
            manifest.adapter_digest,
            run.status,
            manifest.as_json(),
            json.dumps(manifest.metrics),
            manifest.started,
            manifest.finished,
            earlier[0][0] if earlier else None,
        ],
    )
