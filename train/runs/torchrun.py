"""In: a job and how many GPUs. Out: what one engine alone would hand back, trained by torchrun on all of them.

The command that was typed keeps the store, the ledger, the seeds and the manifest. It writes the job into a folder and
starts torchrun; every process reads the same tokens from there and checks their digest. They shuffle by one seed and
take turns at the packs, so the packs of a step are those of one GPU. Without a GPU the processes share the CPU.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from schemas.errors import CurateError, TrainError
from schemas.recipe import TrainSection
from train.engines import Fit, Job, Step, find_engine, token_digest
from train.engines.batch_size import MemoryFullError, Size
from train.engines.distributed import rank

Sharding = Literal["ddp", "fsdp"]

PAUSE = 0.2
"""Seconds between looks at what the processes have written."""

PATIENCE = 600.0
"""Seconds that a machine which joins waits for the first one."""

FOLDER, STOP, STEPS, FIT, SIZE = "together", "stop", "steps.jsonl", "fit.json", "size.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Processes:
    """How a training is shared out: `gpus` processes on each of `nodes` machines, of which this is number `node`.

    `ddp` gives each a model of its own, `fsdp` shards one between them. `master` is HOST:PORT of the first machine.
    """

    gpus: int = 1
    sharding: Sharding = "ddp"
    nodes: int = 1
    node: int = 0
    master: str | None = None

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.gpus * self.nodes


ALONE = Processes()


def find_processes(gpus: int, sharding: str, nodes: int = 1, node: int = 0, master: str | None = None) -> Processes:
    """The processes that the options of `curate train` ask for. Raises `TrainError` where they do not fit together."""
    if sharding not in ("ddp", "fsdp"):
        raise TrainError(f"There is no sharding called {sharding!r}.", "Known: ddp, fsdp.")
    if nodes > 1 and master is None:
        raise TrainError("Several machines have to know the first one.", "--master HOST:29500, the same on all.")
    if node >= nodes:
        raise TrainError(f"--node {node} is none of {nodes}.", "They are counted from 0; the first has the store.")
    return Processes(gpus, "fsdp" if sharding == "fsdp" else "ddp", nodes, node, master)


def join(adapter: Path | None, processes: Processes) -> None:
    """Lend this machine to a training that another one began with the same options; ends with it.

    Only the run's folder is shared: `adapter` is what was given as `--to` there. Raises `TrainError` when it ends
    otherwise than done.
    """
    if adapter is None:
        raise TrainError("A machine that joins has to know the folder of the run.", "--to FOLDER, the same on all.")
    partial = adapter.resolve().with_name(f"{adapter.name}.partial")
    until = time.monotonic() + PATIENCE
    while not partial.is_dir():
        if time.monotonic() > until:
            raise TrainError(f"No training began in {partial}.", "Start the first machine, with the same --to.")
        time.sleep(PAUSE)
    logger.info("Joining the training in %s …", partial)
    log = partial / f"training-{processes.node}.log"
    with log.open("a", encoding="utf-8") as output:
        ended = subprocess.run(
            _command(partial / FOLDER, processes),
            env=_environment(processes),
            stdout=output,
            stderr=output,
            check=False,
        )
    if ended.returncode:
        raise TrainError(f"The training ended here with exit code {ended.returncode}.", f"{log} says more.")


def fit_together(job: Job, processes: Processes, log: Path, lock: IO[str]) -> Fit:
    """Train `job` with all `processes` and return what the first of them measured.

    `lock` is handed on, so that the run stays locked while one of them lives. Raises `TrainError` as an engine does,
    `MemoryFullError` when that was why they ended, and KeyboardInterrupt when they were stopped, after a checkpoint.
    """
    check_devices(processes, job.recipe)
    folder = _write_job(job, processes)
    with log.open("a", encoding="utf-8") as output:
        torchrun = subprocess.Popen(
            _command(folder, processes),
            env=_environment(processes),
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C comes here alone; they are asked by a file, and stop after the same step
            pass_fds=[lock.fileno()],
        )
        _follow(torchrun, job, folder)
    return _outcome(torchrun, folder, log)


def _environment(processes: Processes) -> dict[str, str]:
    return os.environ | ({"UNSLOTH_FSDP2": "1"} if processes.sharding == "fsdp" else {})


def check_devices(processes: Processes, recipe: TrainSection) -> None:
    """Raises `TrainError` when there are fewer GPUs than asked for, or the engine cannot share a model."""
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < processes.gpus:
        raise TrainError(
            f"--gpus {processes.gpus} is more than the {torch.cuda.device_count()} of this machine.",
            f"--gpus {torch.cuda.device_count()}",
        )
    if recipe.engine == "unsloth" and not torch.cuda.is_available():
        raise TrainError(
            "Unsloth trains on one CPU alone; it shares work between GPUs only.", "--engine transformers, or --gpus 1"
        )
    if processes.sharding == "fsdp" and recipe.engine != "unsloth":
        raise TrainError("Only the engine unsloth shards a model.", "Leave --sharding out: each GPU has the whole.")
    if processes.sharding == "fsdp" and recipe.embedding_learning_rate is not None:
        raise TrainError(
            "A model that is shared between GPUs has no embedding of its own rate.",
            "Leave --sharding out: each GPU has the whole; or leave embedding_learning_rate out.",
        )


def _write_job(job: Job, processes: Processes) -> Path:
    """The folder that every process reads; what an earlier attempt left there is replaced."""
    folder = job.checkpoints.parent / FOLDER
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    job.rows.write_parquet(folder / "rows.parquet")
    job.held_out.write_parquet(folder / "held_out.parquet")
    names = ("model", "method", "checkpoints", "adapter", "resume", "trial", "board", "samples")
    plain = {name: getattr(job, name) for name in names}
    written = plain | {
        "recipe": job.recipe.model_dump(mode="json"),
        "size": asdict(job.size) if job.size else None,
        "evaluations": sorted(job.evaluations.items()),
        "digest": token_digest(job.rows),
        "parent": os.getpid(),
        "nodes": processes.nodes,
    }
    unfinished = folder / "job.part"
    unfinished.write_text(json.dumps(written, default=str), encoding="utf-8")
    unfinished.replace(folder / "job.json")
    return folder


def _command(folder: Path, processes: Processes) -> list[str]:
    """Torchrun, with one process of ours for each GPU."""
    if processes.nodes > 1:
        host, _, port = str(processes.master).partition(":")
        meet = [f"--nnodes={processes.nodes}", f"--node-rank={processes.node}", f"--master-addr={host}"]
        meet += [f"--master-port={port or 29500}"]
    else:
        meet = ["--standalone"]
    start = [sys.executable, "-P", "-c", "from train.runs.torchrun import work; work()", str(folder)]
    own = folder.with_name(f"torchrun-{processes.node}")  # else it leaves a folder of its own among the temporary ones
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", f"--log-dir={own}"]
    return [*torchrun, *meet, f"--nproc-per-node={processes.gpus}", "--no-python", *start]


def _follow(torchrun: subprocess.Popen[bytes], job: Job, folder: Path) -> None:
    """Report what the first process writes, until all have ended. Ctrl-C asks them to stop, a second one ends them."""
    with _stopping(torchrun, folder):
        steps, settled = _Tail(folder / STEPS), False
        while True:
            ended = torchrun.poll() is not None
            if not settled and (folder / SIZE).exists():
                told = json.loads((folder / SIZE).read_text(encoding="utf-8"))
                job.settled(Size(**told["size"]), None, told["trial"])
                settled = True
            for line in steps.lines():
                job.report(Step(**json.loads(line)))
            if ended:
                return
            time.sleep(PAUSE)


@contextmanager
def _stopping(torchrun: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    import signal

    def ask(_number: int, _frame: Any) -> None:
        if (folder / STOP).exists():
            torchrun.terminate()
            raise KeyboardInterrupt
        (folder / STOP).touch()

    before = [(number, signal.signal(number, ask)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _Tail:
    """The whole lines that were added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0

    def lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.read)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode().splitlines()


def _outcome(torchrun: subprocess.Popen[bytes], folder: Path, log: Path) -> Fit:
    if (folder / FIT).exists():
        return Fit(**json.loads((folder / FIT).read_text(encoding="utf-8")))
    cause = _cause(folder)
    if cause is not None and cause["kind"] == "memory" and not (folder / STOP).exists():
        raise MemoryFullError.from_json(cause["full"])
    if cause is not None and cause["kind"] not in ("stopped", "memory"):
        raise TrainError(cause["what"], cause["hint"])
    if (folder / STOP).exists() or (cause is not None and not torchrun.returncode):
        raise KeyboardInterrupt
    raise TrainError(
        f"The processes ended with exit code {torchrun.returncode} and no word of why.",
        f"{log} has all that they said.",
    )


def _cause(folder: Path) -> dict[str, Any] | None:
    """Why the processes ended: a failure that is known, else the first one; nothing where none has said.

    When one fails, torchrun stops the others, and they lose the connection to it: what they say then is no cause.
    """
    failures = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("failure-*.json")]
    known = ("explained", "memory")
    return min(failures, key=lambda failure: (failure["kind"] not in known, failure["time"]), default=None)


# ------------------------------------------------------------------------------------------- in each of the processes


def work() -> None:
    """What torchrun starts: read the job, train with the others, and let the first process write what came of it."""
    folder = Path(sys.argv[1])
    try:
        fit = _work(folder)
    except KeyboardInterrupt:
        _write_failure(folder, "stopped")
    except MemoryFullError as error:
        _write_failure(folder, "memory", full=error.as_json())
        raise
    except CurateError as error:
        _write_failure(folder, "explained", error.what, error.hint)
        raise
    except Exception as error:
        what = f"Process {rank()} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        _write_failure(folder, "other", what, "training.log says more.")
        raise
    else:
        if rank() == 0:
            _write(folder / FIT, asdict(fit))


def _work(folder: Path) -> Fit:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # Accelerate numbers CPUs as if they were GPUs, and torch cannot read back what was saved on "cpu:1"
        torch.serialization.register_package(
            0, lambda _: None, lambda stored, place: stored if place.startswith("cpu:") else None
        )
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = _read_job(folder)
    return find_engine(job.recipe.engine)(job)


def _read_job(folder: Path) -> Job:
    """The job of the folder. Raises `TrainError` when its tokens are not the ones that were written."""
    written = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rows = pl.read_parquet(folder / "rows.parquet")
    if token_digest(rows) != written["digest"]:
        raise TrainError(f"{folder}/rows.parquet is not what was written there.", "Start the same command again.")
    return Job(
        rows=rows,
        held_out=pl.read_parquet(folder / "held_out.parquet"),
        model=Path(written["model"]),
        recipe=TrainSection.model_validate(written["recipe"]),
        method=written["method"],
        checkpoints=Path(written["checkpoints"]),
        adapter=Path(written["adapter"]),
        report=_Steps(folder / STEPS),
        size=Size(**written["size"]) if written["size"] else None,
        trial=written["trial"],
        evaluations=dict(written["evaluations"]),
        settled=partial(_write_size, folder),
        resume=Path(written["resume"]) if written["resume"] else None,
        samples=written["samples"],
        board=Path(written["board"]) if written["board"] else None,
        asked=lambda: (folder / STOP).exists() or _is_orphan(written),
    )


def _write_size(
    folder: Path, size: Size, _step_down: Mapping[str, Any] | None, trial: Sequence[Mapping[str, Any]]
) -> None:
    """For the process that was typed. A full memory ends all of these, so that none steps down by itself."""
    if rank() == 0:
        _write(folder / SIZE, {"size": asdict(size), "trial": [*trial]})


def _is_orphan(written: dict[str, Any]) -> bool:
    """Whether the command that was typed is gone, so that nobody would take the result."""
    if written["nodes"] > 1:
        return False  # it may be on another machine
    try:
        os.kill(written["parent"], 0)
    except ProcessLookupError:
        return True
    return False


class _Steps:
    """Writes each step as a line for the process that was typed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, step: Step) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")


def _write_failure(folder: Path, kind: str, what: str = "", hint: str | None = None, **more: Any) -> None:
    said = {"kind": kind, "what": what, "hint": hint, "time": time.time(), **more}
    _write(folder / f"failure-{rank()}.json", said)


def _write(path: Path, value: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value), encoding="utf-8")
    unfinished.replace(path)
