"""A job and a number of GPUs → the `Fit` of a training run that torchrun distributes over several processes.

The command keeps the store, the ledger, the seeds and the manifest. It writes the job to a folder and starts torchrun;
every process reads the same tokens from the folder and checks their digest. All processes shuffle with the same seed
and take turns, so a step trains on the same packs as with one GPU. Without a GPU the processes share the CPU.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from schemas.atomic import write_text
from schemas.errors import CurateError, TrainError
from schemas.recipe import TrainSection
from train.engines import ENGINES, Fit, Job, Step, find_engine, token_digest
from train.engines.batch_size import BatchConfig, OutOfGpuMemoryError
from train.engines.distributed import graceful_stop, rank

Sharding = Literal["ddp", "fsdp"]

POLL_INTERVAL = 0.2
"""Seconds between two looks at the files that the processes write."""

JOIN_TIMEOUT = 600.0
"""Seconds that a joining machine waits for the first one."""

FOLDER, STOP, STEPS, FIT, SIZE = "together", "stop", "steps.jsonl", "fit.json", "size.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Processes:
    """How a training run is distributed: `gpus` processes on each of `nodes` machines, of which this is number `node`.

    With `ddp` each process has its own model, with `fsdp` they share one. `master` is HOST:PORT of the first machine.
    """

    gpus: int = 1
    sharding: Sharding = "ddp"
    nodes: int = 1
    node: int = 0
    master: str | None = None

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return self.gpus * self.nodes


SINGLE_PROCESS = Processes()


def make_processes(gpus: int, sharding: str, nodes: int = 1, node: int = 0, master: str | None = None) -> Processes:
    """The processes for the options of `curate train`. Raises `TrainError` if the options contradict each other."""
    if sharding not in ("ddp", "fsdp"):
        raise TrainError(f"There is no sharding called {sharding!r}.", "Known: ddp, fsdp.")
    if nodes > 1 and master is None:
        raise TrainError("--nodes > 1 requires --master HOST:PORT.", "--master HOST:29500, the same on all machines.")
    if node >= nodes:
        hint = "Nodes are counted from 0; node 0 has the store."
        raise TrainError(f"--node {node} is out of range for --nodes {nodes}.", hint)
    return Processes(gpus, "fsdp" if sharding == "fsdp" else "ddp", nodes, node, master)


def join_training(adapter: Path | None, processes: Processes) -> None:
    """Join a training run that another machine began with the same options, and return when it ends.

    The machines share only the run's folder: `adapter` is the `--to` of the first machine. Raises `TrainError` if the
    training does not begin or fails.
    """
    if adapter is None:
        raise TrainError("A joining machine needs the folder of the run.", "--to FOLDER, the same on all machines.")
    run_folder = adapter.resolve().with_name(f"{adapter.name}.partial")
    deadline = time.monotonic() + JOIN_TIMEOUT
    while not run_folder.is_dir():
        if time.monotonic() > deadline:
            raise TrainError(f"No training began in {run_folder}.", "Start the first machine with the same --to.")
        time.sleep(POLL_INTERVAL)
    logger.info("Joining the training run in %s …", run_folder)
    log = run_folder / f"training-{processes.node}.log"
    with log.open("a", encoding="utf-8") as output:
        finished = subprocess.run(
            _command(run_folder / FOLDER, processes),
            env=_environment(processes),
            stdout=output,
            stderr=output,
            check=False,
        )
    if finished.returncode:
        raise TrainError(f"The training ended on this machine with exit code {finished.returncode}.", f"See {log}.")


def fit_distributed(job: Job, processes: Processes, log: Path, lock: IO[str]) -> Fit:
    """Train `job` with all `processes` and return the `Fit` of the first one.

    The processes inherit `lock`, so the run stays locked until all of them have ended. Raises `TrainError` as an engine
    does, `OutOfGpuMemoryError` if one ran out of memory, KeyboardInterrupt if they were stopped, after a checkpoint.
    """
    check_devices(processes, job.recipe)
    folder = _write_job(job, processes)
    with log.open("a", encoding="utf-8") as output:
        torchrun = subprocess.Popen(
            _command(folder, processes),
            env=_environment(processes),
            stdout=output,
            stderr=output,
            start_new_session=True,  # only this process gets Ctrl-C; it requests a stop after the same step by a file
            pass_fds=[lock.fileno()],
        )
        _follow(torchrun, job, folder)
    return _outcome(torchrun, folder, log)


def _environment(processes: Processes) -> dict[str, str]:
    return os.environ | ({"UNSLOTH_FSDP2": "1"} if processes.sharding == "fsdp" else {})


def check_devices(processes: Processes, recipe: TrainSection) -> None:
    """Raise `TrainError` if there are fewer GPUs than requested, or the engine cannot distribute the training run."""
    import torch

    on_gpu, engine = torch.cuda.is_available(), find_engine(recipe.engine)
    if on_gpu and torch.cuda.device_count() < processes.gpus:
        raise TrainError(
            f"--gpus {processes.gpus} exceeds the {torch.cuda.device_count()} of this machine.",
            f"--gpus {torch.cuda.device_count()}",
        )
    if not on_gpu and not engine.distributed_on_cpu:
        others = ", ".join(name for name, other in ENGINES.items() if other.distributed_on_cpu)
        raise TrainError(
            f"The engine {recipe.engine} trains with one process on a CPU, and with several only on GPUs.",
            f"--engine {others}, or --gpus 1",
        )
    if processes.sharding == "fsdp" and not engine.can_shard:
        others = ", ".join(name for name, other in ENGINES.items() if other.can_shard)
        raise TrainError(
            f"The engine {recipe.engine} cannot shard a model.",
            f"--engine {others}, or omit --sharding: each GPU then holds the complete model.",
        )
    if processes.sharding == "fsdp" and recipe.embedding_learning_rate is not None:
        raise TrainError(
            "A sharded model cannot train its embedding at a separate learning rate.",
            "Omit --sharding: each GPU then holds the complete model; or remove embedding_learning_rate.",
        )


def _write_job(job: Job, processes: Processes) -> Path:
    """Write the job to a folder for every process, without files of an earlier attempt."""
    folder = job.checkpoints.parent / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job.rows.write_parquet(folder / "rows.parquet")
    job.held_out.write_parquet(folder / "held_out.parquet")
    names = ("model", "method", "checkpoints", "adapter", "resume", "autotune_key", "tensorboard", "samples")
    content = {name: getattr(job, name) for name in names} | {
        "recipe": job.recipe.model_dump(mode="json"),
        "size": asdict(job.batch_config) if job.batch_config else None,
        "evaluations": sorted(job.evaluations.items()),
        "digest": token_digest(job.rows),
        "parent": os.getpid(),
        "nodes": processes.nodes,
    }
    write_text(folder / "job.json", json.dumps(content, default=str))
    return folder


def _command(folder: Path, processes: Processes) -> list[str]:
    """The command that starts torchrun, with one of our processes per GPU."""
    if processes.nodes > 1:
        host, _, port = str(processes.master).partition(":")
        rendezvous = [f"--nnodes={processes.nodes}", f"--node-rank={processes.node}", f"--master-addr={host}"]
        rendezvous += [f"--master-port={port or 29500}"]
    else:
        rendezvous = ["--standalone"]
    process = [sys.executable, "-P", "-c", "from train.runs.torchrun import main; main()", str(folder)]
    logs = folder.with_name(f"torchrun-{processes.node}")  # otherwise torchrun leaves a temporary folder
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", f"--log-dir={logs}"]
    return [*torchrun, *rendezvous, f"--nproc-per-node={processes.gpus}", "--no-python", *process]


def _follow(torchrun: subprocess.Popen[bytes], job: Job, folder: Path) -> None:
    """Report what the first process writes, until all have ended."""
    with graceful_stop(partial(_request_stop, torchrun, folder)):
        steps, size_is_known = _Tail(folder / STEPS), False
        while True:
            ended = torchrun.poll() is not None
            if not size_is_known and (folder / SIZE).exists():
                chosen = json.loads((folder / SIZE).read_text(encoding="utf-8"))
                job.on_size_chosen(BatchConfig(**chosen["size"]), None, chosen["trial"])
                size_is_known = True
            for line in steps.read_lines():
                job.report(Step(**json.loads(line)))
            if ended:
                return
            time.sleep(POLL_INTERVAL)


def _request_stop(torchrun: subprocess.Popen[bytes], folder: Path) -> None:
    """Request a stop by a file; a second call terminates the processes and raises KeyboardInterrupt."""
    if (folder / STOP).exists():
        torchrun.terminate()
        raise KeyboardInterrupt
    (folder / STOP).touch()


class _Tail:
    """The complete lines that were appended to a file since the last call."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def read_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        self.offset += len(complete)
        return complete.decode().splitlines()


def _outcome(torchrun: subprocess.Popen[bytes], folder: Path, log: Path) -> Fit:
    if (folder / FIT).exists():
        return Fit(**json.loads((folder / FIT).read_text(encoding="utf-8")))
    cause = _first_failure(folder)
    if cause is not None and cause["kind"] == "memory" and not (folder / STOP).exists():
        raise OutOfGpuMemoryError.from_json(cause["full"])
    if cause is not None and cause["kind"] not in ("stopped", "memory"):
        raise TrainError(cause["what"], cause["hint"])
    if (folder / STOP).exists() or (cause is not None and not torchrun.returncode):
        raise KeyboardInterrupt
    raise TrainError(
        f"The processes ended with exit code {torchrun.returncode} without an error message.", f"See {log}."
    )


def _first_failure(folder: Path) -> dict[str, Any] | None:
    """The failure that ended the processes: the first explained one, otherwise the first; None if none was recorded.

    When one process fails, torchrun stops the others, which then report a lost connection: a consequence, not a cause.
    """
    failures = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("failure-*.json")]
    explained = ("explained", "memory")
    return min(failures, key=lambda failure: (failure["kind"] not in explained, failure["time"]), default=None)


# ------------------------------------------------------------------------------------------- in each of the processes


def main() -> None:
    """The entry of each process: read the job, train with the others; the first process writes the `Fit`."""
    folder = Path(sys.argv[1])
    try:
        fit = _fit(folder)
    except KeyboardInterrupt:
        _write_failure(folder, "stopped")
    except OutOfGpuMemoryError as error:
        _write_failure(folder, "memory", full=error.as_json())
        raise
    except CurateError as error:
        _write_failure(folder, "explained", error.what, error.hint)
        raise
    except Exception as error:
        what = f"Process {rank()} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        _write_failure(folder, "other", what, "See training.log.")
        raise
    else:
        if rank() == 0:
            write_text(folder / FIT, json.dumps(asdict(fit)))


def _fit(folder: Path) -> Fit:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # Accelerate numbers CPUs like GPUs, and torch cannot load a state that was saved on "cpu:1"
        torch.serialization.register_package(
            0, lambda _: None, lambda storage, location: storage if location.startswith("cpu:") else None
        )
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = _read_job(folder)
    return find_engine(job.recipe.engine).fit(job)


def _read_job(folder: Path) -> Job:
    """The job in the folder. Raises `TrainError` if its tokens do not have the recorded digest."""
    content = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rows = pl.read_parquet(folder / "rows.parquet")
    if token_digest(rows) != content["digest"]:
        raise TrainError(f"{folder}/rows.parquet has changed since it was written.", "Run the same command again.")
    return Job(
        rows=rows,
        held_out=pl.read_parquet(folder / "held_out.parquet"),
        model=Path(content["model"]),
        recipe=TrainSection.model_validate(content["recipe"]),
        method=content["method"],
        checkpoints=Path(content["checkpoints"]),
        adapter=Path(content["adapter"]),
        resume=Path(content["resume"]) if content["resume"] else None,
        report=partial(_append_step, folder / STEPS),
        batch_config=BatchConfig(**content["size"]) if content["size"] else None,
        autotune_key=content["autotune_key"],
        evaluations=dict(content["evaluations"]),
        tensorboard=Path(content["tensorboard"]) if content["tensorboard"] else None,
        samples=content["samples"],
        on_size_chosen=partial(_write_size, folder),
        should_stop=lambda: (folder / STOP).exists() or _is_orphan(content),
    )


def _append_step(path: Path, step: Step) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(step)) + "\n")


def _write_size(
    folder: Path, batch_config: BatchConfig, _step_down: Mapping[str, Any] | None, trial: Sequence[Mapping[str, Any]]
) -> None:
    """Write the batch size for the parent. It never changes: if a GPU runs out of memory, all processes end."""
    if rank() == 0:
        write_text(folder / SIZE, json.dumps({"size": asdict(batch_config), "trial": [*trial]}))


def _is_orphan(content: dict[str, Any]) -> bool:
    """Whether the parent process has ended, so that the result could not be saved."""
    if content["nodes"] > 1:
        return False  # the parent may be on another machine
    try:
        os.kill(content["parent"], 0)
    except ProcessLookupError:
        return True
    return False


def _write_failure(folder: Path, kind: str, what: str = "", hint: str | None = None, **more: Any) -> None:
    failure = {"kind": kind, "what": what, "hint": hint, "time": time.time(), **more}
    write_text(folder / f"failure-{rank()}.json", json.dumps(failure))
