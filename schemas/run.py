"""A run: one training of one version, and its manifest, which says what the adapter was made of.

The manifest stands beside the adapter and in the store. It names everything that decides the adapter's bits, each
with a digest, and what came out. It holds no secrets: no environment and no token of any service; of paths only those
that the recipe gives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from duckdb import DuckDBPyConnection
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import StoreError, TrainError, VersionError
from schemas.recipe import TrainSection, digest
from schemas.store import folder_of

MANIFEST_FILE = "manifest.json"

LEDGER_FILE = "ledger.parquet"
"""What a training leaves beside its manifest: the fate of every conversation."""

LOCK_FILE = "lock"
"""In the folder of an unfinished run: locked by the process that works on it, and free as soon as that is no more."""

SEEN = "seen_conversations"
"""The metric that says of how many conversations the steps saw all. `seen` was packs or windows, in runs of before."""

SEEN_PARTS, PARTS = "seen_parts", "parts"
"""Where long ones are split: of the windows that all of them have, how many the steps saw, and how many there are."""

Status = Literal["running", "interrupted", "done", "failed"]


class Facts(BaseModel):
    """A part of the manifest: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataFacts(Facts):
    """Which conversations: the version, its digest, and how many lie on each side of its split."""

    version: str
    digest: str
    counts: dict[str, int]


class ModelFacts(Facts):
    """The base model: its name as the recipe gave it, and SHA-256 over its safetensors and config."""

    name: str
    digest: str


class RenderingFacts(Facts):
    """How conversations became tokens: template, tokenizer and mask policy, each with what identifies it."""

    template: str
    template_digest: str
    tokenizer_digest: str
    mask_policy: str
    date: str  # what a template that asks for today is told


class TokenFacts(Facts):
    """What was trained: SHA-256 over ids and labels in the order handed over, and how many there were."""

    digest: str
    conversations: int
    tokens: int
    learned: int
    dropped: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Seen:
    """How many of the conversations handed over the steps of an adapter saw; `part` is `whole` after one epoch."""

    part: int
    whole: int
    epochs: float
    unit: str = "conversations"  # of runs made before these were counted: packs, or windows

    @property
    def all_of_it(self) -> bool:
        """Whether nothing was left unseen."""
        return self.part >= self.whole

    @property
    def words(self) -> str:
        """The beginning of a sentence, as `16 of 4,773 conversations` or `4,773 conversations`."""
        return f"{'' if self.all_of_it else f'{self.part:,} of '}{self.whole:,} {self.unit}"


class MachineFacts(Facts):
    """Where it ran. Threads decide the bits of a CPU's result."""

    device: str
    device_name: str
    memory_gib: float
    processor: str
    system: str
    python: str
    threads: int
    gpus: int = 1  # processes that trained together, on a CPU too
    sharding: str = "none"


class Manifest(Facts):
    """All that an adapter is made of. What is decided before training stands first, then what came of it."""

    format: Literal[1] = 1
    curate: str
    data: DataFacts
    model: ModelFacts
    rendering: RenderingFacts
    tokens: TokenFacts
    recipe: dict[str, Any]
    recipe_digest: str
    overrides: tuple[str, ...]
    seed: int
    packages: dict[str, str]
    machine: MachineFacts
    run: str
    started: datetime
    finished: datetime | None = None
    engine: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    files: dict[str, str] = {}
    adapter_digest: str | None = None
    failure: str | None = None

    @property
    def identity(self) -> str:
        """SHA-256 over what decides the result: two runs of one identity do the same work.

        Of the recipe only what is not as in a recipe without a word, so that a key that is new ends no run of before.
        """
        decided = {"data", "model", "rendering", "tokens", "packages", "machine", "curate"}
        usual = TrainSection().model_dump(mode="json")
        asked = {key: value for key, value in self.recipe.items() if key not in usual or usual[key] != value}
        return digest(self.model_dump(mode="json", include=decided) | {"recipe": asked})

    @property
    def seen(self) -> Seen:
        """What the steps saw that made the adapter: up to the best one, where held-out losses chose it."""
        counted = self.metrics.get(SEEN)
        if counted is None:
            return self._seen_sequences()
        whole, parts = self.tokens.conversations, self.metrics.get(PARTS)
        if parts is not None:
            unit = f"parts of {whole:,} conversations"
            return Seen(int(self.metrics[SEEN_PARTS]), int(parts), self.metrics["epochs"], unit)
        return Seen(int(counted), whole, self.metrics["epochs"])

    def _seen_sequences(self) -> Seen:
        """The same of a run made before conversations were counted: in what its steps were made of."""
        facts, steps = self.engine, int(self.metrics.get("best_step", self.metrics["steps"]))
        a_step = facts["batch"] * facts["accumulate"] * facts.get("gpus", 1)
        whole = facts.get("sequences", self.tokens.conversations)
        unit = "packs" if facts["packing"] else "windows" if self.recipe.get("long") == "split" else "conversations"
        return Seen(min(steps * a_step, whole), whole, steps / -(-whole // a_step), unit)

    def as_json(self) -> str:
        """The text of `manifest.json`."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Run:
    """What the store knows of a run. `adapter` is its folder, there only when the status is `done`.

    Both are told as they are when the store is read: where the project was moved or copied, the folder is in the new
    place; and a run of which the store still says `running`, but which nobody works on any more, is `interrupted`.
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
        """The run as plain values, its manifest whole."""
        manifest = self.manifest.model_dump(mode="json")
        return {"run": self.run, "status": self.status, "adapter": str(self.adapter), "manifest": manifest}


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an adapter's folder. Raises `TrainError` when there is none, or it cannot be read."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TrainError(f"{folder} has no {MANIFEST_FILE}.", "Give the folder that curate train wrote.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise TrainError(f"{path} is no manifest of this release: {str(error).splitlines()[0]}.") from error


def read_runs(connection: DuckDBPyConnection) -> list[Run]:
    """All runs of a store, oldest first. Raises `StoreError` when a manifest cannot be read."""
    rows = connection.execute(
        "SELECT run, status, adapter, manifest FROM runs ORDER BY try_cast(substr(run, 2) AS BIGINT)"
    ).fetchall()
    home = folder_of(connection)
    return [
        Run(run, *as_found(home, run, adapter, status), _manifest(run, text)) for run, status, adapter, text in rows
    ]


def as_found(home: Path, run: str, adapter: str, status: Status) -> tuple[Status, Path]:
    """The status and the folder of a run whose row in the store of the folder `home` says `status` and `adapter`."""
    place = _place(home, run, Path(adapter))
    interrupted = status == "running" and not _is_worked_on(partial_of(place))  # a killed process could not write it
    return "interrupted" if interrupted else status, place


def _place(home: Path, run: str, written: Path) -> Path:
    """Beside the store, which is moved and copied with its adapters, where it was so when it was written; else there.

    A copy has its own: where both the copy's folder and the one that was written are there, it is the copy's.
    """
    beside = home / "adapters" / written.name
    if written.parts[-2:] == ("adapters", run):
        return written if _is_there(written) and not _is_there(beside) else beside
    return beside if not _is_there(written) and _is_of(beside, run) else written


def _is_of(adapter: Path, run: str) -> bool:
    """Whether a folder says that it is of this run; one that says nothing that can be read does not."""
    try:
        return read_manifest(adapter).run == run
    except TrainError:
        return False


def _is_there(adapter: Path) -> bool:
    """Whether a run has its folder here, finished or not."""
    return adapter.is_dir() or partial_of(adapter).is_dir()


def partial_of(adapter: Path) -> Path:
    """The folder of an unfinished run, beside the place where its adapter will be."""
    return adapter.with_name(f"{adapter.name}.partial")


def _is_worked_on(partial: Path) -> bool:
    """Whether a process holds the run's folder, or may for all that is seen; the lock that asks is let go at once."""
    import fcntl  # Windows has it not; only a run that is not done is asked for it

    try:
        with (partial / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # it is held, may not be looked at, or the file system has no locks: then nobody knows
        return True
    return False


def _manifest(run: str, text: str) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = ", ".join(".".join(map(str, details["loc"])) for details in error.errors())
        raise StoreError(
            f"The manifest of run {run} in the store is not one of this release: {problems}.",
            f"Use the release that made it; or forget the run: DELETE FROM runs WHERE run = '{run}'",
        ) from error


def find_run(connection: DuckDBPyConnection, name: str) -> Run:
    """The run called `name`, such as r3. Raises `VersionError` naming those that are there."""
    runs = read_runs(connection)
    for run in runs:
        if run.run == name:
            return run
    have = f"The store has {', '.join(run.run for run in runs)}." if runs else "The store has no run yet."
    raise VersionError(f"There is no run {name}.", f"{have} curate runs lists them.")


def next_run(connection: DuckDBPyConnection) -> str:
    """The name of the next run: r1, then r2 and so on."""
    query = "SELECT coalesce(max(try_cast(substr(run, 2) AS BIGINT)), 0) + 1 FROM runs"
    return f"r{connection.execute(query).fetchall()[0][0]}"


def write_run(connection: DuckDBPyConnection, run: Run) -> None:
    """Write a run's row, in place of the one it had."""
    manifest = run.manifest
    connection.execute("DELETE FROM runs WHERE run = ?", [run.run])
    connection.execute(
        """INSERT INTO runs (run, version, version_digest, adapter, adapter_digest, status, manifest, metrics,
                             started_at, finished_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
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
        ],
    )


def installed_version(package: str) -> str | None:
    """The version of a package as it is installed here; None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
