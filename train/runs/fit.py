"""In: a frozen version, a base model, the recipe. Out: an adapter with its manifest beside it, and a row in the store.

The way: read the version and close the store, render, settle the ledger, claim a run, fit, save, write the row.
A run is worked on in `FOLDER.partial` and becomes `FOLDER` in one move, so a folder without that ending is whole.
A run that was cut off is taken up again by the same command, at its last whole checkpoint, and ends in the same
adapter as an undisturbed one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from schemas.digest import digest
from schemas.environment import count_cores, installed_version
from schemas.errors import CurateError, TrainError
from schemas.manifest import (
    MANIFEST_FILE,
    DataFacts,
    MachineFacts,
    Manifest,
    ModelFacts,
    RenderingFacts,
    TokenFacts,
    read_manifest,
)
from schemas.recipe import TrainSection
from schemas.run import LOCK_FILE, Run, next_run, read_runs, write_run
from schemas.store import writing
from schemas.version import Version
from train.engines import Fit, Job, Step, find_engine, token_digest
from train.engines.batch_size import TRIED, MemoryFullError, Settled, Size, written_size
from train.model.adapter import adapter_digest, save_adapter
from train.model.base_model import find_model, model_digest, pick_method
from train.model.checkpoints import newest_complete, step_of
from train.model.log_capture import quiet
from train.plan.plan import prepare
from train.runs.torchrun import ALONE, Processes, check_devices, fit_together
from train.tokens.chat_template import PINNED_DATE, Template
from train.tokens.labels import IGNORE_INDEX
from train.tokens.ledger import add_epoch_counts, check_limits, coverage_metrics, trainable
from train.tokens.render import MASK_POLICY, Progress
from train.tokens.template_parity import samples_of
from train.tokens.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Start = Literal["auto", "resume", "fresh"]

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes"),
    *("safetensors", "tokenizers", "numpy", "polars", "jinja2"),
)
"""Packages whose versions can change the result; the manifest names them."""


LOOK = 0.2
"""Seconds after which nobody holds a lock any more who only looked whether there is one."""


@dataclass(frozen=True, slots=True)
class Work:
    """A training that is decided and not begun: its tokens, and a manifest with all that is known before."""

    rows: pl.DataFrame
    held_out: pl.DataFrame
    ledger: pl.DataFrame
    model: Path
    template: Template
    recipe: TrainSection
    samples: Mapping[str, Any]  # of train.tokens.template_parity
    manifest: Manifest
    size: Size | None = None  # of a pass, where a run is repeated
    processes: Processes = ALONE


def train_version(
    store: Path,
    label: str,
    recipe: TrainSection,
    *,
    overrides: Sequence[str] = (),
    to: Path | None = None,
    start: Start = "auto",
    threads: int | None = None,
    processes: Processes = ALONE,
    expected: Manifest | None = None,
    report: Callable[[Step], None] = lambda _: None,
    rendering: Progress = lambda *_: None,
) -> Run:
    """Train an adapter on version `label` and return its run, with the status `done`.

    `to` is the adapter's folder (default: `adapters/RUN` beside the store). `start` "auto" takes up a run of the
    same identity that was cut off, "resume" insists on one, "fresh" begins anew. `threads` goes before the recipe's,
    `processes` says on how many GPUs. `expected` is the manifest of a run that is repeated: other data, model or
    tokens are refused. Raises `TrainError` for everything that can be explained; the run's row then says `failed`.
    """
    work = decide(store, label, recipe, overrides=overrides, threads=threads, processes=processes, rendering=rendering)
    if expected is not None:
        _check_same(expected, work)
        work = replace(work, size=size_of(expected))
    run = _claim(store, work.manifest, to, start)
    with _locked(run) as lock:
        if (run.adapter / MANIFEST_FILE).exists():  # cut off between the move and the row
            return _finish(store, replace(run, status="done", manifest=read_manifest(run.adapter)))
        return _finish(store, _fitted(store, run, work, lock, report))


def decide(
    store: Path,
    label: str,
    recipe: TrainSection,
    *,
    overrides: Sequence[str] = (),
    threads: int | None = None,
    processes: Processes = ALONE,
    rendering: Progress = lambda *_: None,
) -> Work:
    """Everything up to the training itself: the version rendered, the ledger settled, every digest taken.

    Raises `TrainError` when the ledger is over the recipe's limits, or nothing is left to train on.
    """
    find_engine(recipe.engine)
    model = find_model(recipe.model, trust_remote_code=recipe.trust_remote_code)  # refused before torch is loaded
    if processes.world > 1:
        check_devices(processes, recipe)
    written_size(recipe, processes.world, checkpointing=False)  # refused before anything is read
    count = use_threads(threads or recipe.threads)
    logger.info("Rendering %s …", label)
    prepared = prepare(store, label, recipe, rendering)
    check_limits(prepared.ledger, recipe, prepared.build_ledger)
    rows = trainable(prepared.rendered, prepared.ledger)
    learned = rows.filter(pl.col("split") == "train")
    if learned.is_empty():
        raise TrainError(f"{prepared.version.label} has nothing to train on.", "curate plan says why.")
    return Work(
        rows=learned,
        held_out=rows.filter(pl.col("split") == "held_out"),
        ledger=prepared.ledger,
        model=model,
        template=prepared.template,
        recipe=recipe,
        samples=samples_of(prepared),
        manifest=Manifest(
            curate=installed_version("curate-sft") or "missing",
            data=data_facts(prepared.version),
            model=ModelFacts(name=recipe.model, digest=model_digest(model)),
            rendering=rendering_facts(prepared.template, prepared.tokenizer),
            tokens=token_facts(learned, prepared.ledger),
            recipe=recipe.model_dump(mode="json"),
            recipe_digest=digest(recipe.model_dump(mode="json")),
            overrides=tuple(overrides),
            seed=recipe.seed,
            packages=package_versions(recipe.engine),
            machine=machine_facts(count, processes),
            run="",
            started=datetime.now(UTC),
        ),
        processes=processes,
    )


def size_of(manifest: Manifest) -> Size:
    """The size of a pass that a run ended with; it decides the last bits of a result."""
    facts = manifest.engine
    return Size(facts["batch"], facts["accumulate"], facts.get("checkpointing", False))


def _check_same(expected: Manifest, work: Work) -> None:
    parts = {"data", "model", "rendering", "tokens"}
    known, now = expected.model_dump(include=parts), work.manifest.model_dump(include=parts)
    if work.template.is_of(expected.rendering.template_digest):  # older manifests name it without the day
        now["rendering"]["template_digest"] = expected.rendering.template_digest
    other = sorted(part for part in parts if known[part] != now[part])
    if other:
        raise TrainError(
            f"Run {expected.run} cannot be repeated: its {', '.join(other)} are not what they were.",
            f"curate verify {expected.run} says what differs.",
        )


def data_facts(version: Version) -> DataFacts:
    """Which conversations were there to train on."""
    return DataFacts(version=version.label, digest=version.digest, counts=version.counts)


def rendering_facts(template: Template, tokenizer: Tokenizer) -> RenderingFacts:
    """What made the tokens, each with its digest."""
    return RenderingFacts(
        template=template.name,
        template_digest=template.digest,
        tokenizer_digest=tokenizer.digest,
        mask_policy=MASK_POLICY,
        date=f"{PINNED_DATE:%Y-%m-%d}",
    )


def token_facts(rows: pl.DataFrame, ledger: pl.DataFrame) -> TokenFacts:
    """The tokens that are handed to the engine: their digest and their sums.

    Conversations are counted, not windows: one of which a window is left out counts as trained and as dropped.
    """
    touched = ledger.filter(pl.col("split") == "train").select("conversation", "outcome").unique()["outcome"]
    return TokenFacts(
        digest=token_digest(rows),
        conversations=rows["id"].n_unique(),
        tokens=int(rows["input_ids"].list.len().sum()),
        loss_tokens=int(rows["labels"].explode().ne(IGNORE_INDEX).sum()),
        dropped=int((touched == "dropped").sum()),
        truncated=int((touched == "truncated").sum()),
    )


SPINS = 1_000
"""Rounds, some microseconds. Tiny model, two threads on two cores: 7,400 tokens a second on a quiet machine, as with
the default of 300,000, and 5,000 if they sleep at once; beside three busy loops 1,500 both ways, and 600 with the
default. The bits are the same."""


def use_threads(wanted: int | None) -> int:
    """Make torch use `wanted` threads (default: OMP_NUM_THREADS, else every core) and return how many that is.

    Threads without work spin for a moment and then sleep, unless GOMP_SPINCOUNT says otherwise: GNU's OpenMP spins for
    some milliseconds, which beside other work is the time that the other thread waits for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # this and the next are read when torch is imported
    count = wanted or int(os.environ.get("OMP_NUM_THREADS", "0")) or count_cores()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)
    return count


def machine_facts(threads: int, processes: Processes = ALONE) -> MachineFacts:
    """This machine, as far as it can change a result."""
    import torch

    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else _memory()
    return MachineFacts(
        device="cuda" if on_gpu else "cpu",
        device_name=torch.cuda.get_device_name(0) if on_gpu else _processor(),
        memory_gib=round(memory / 2**30, 1),
        processor=_processor(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        threads=threads,
        gpus=processes.world,
        sharding=processes.sharding if processes.world > 1 else "none",
    )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def package_versions(engine: str) -> dict[str, str]:
    """The versions of the packages that the engine's result depends on."""
    names = [*PACKAGES, *(["unsloth", "unsloth_zoo"] if engine == "unsloth" else [])]
    return {name: installed_version(name) or "missing" for name in names}


# ------------------------------------------------------------------------------------------------------- the run


def _claim(store: Path, manifest: Manifest, to: Path | None, start: Start) -> Run:
    """The run to work on: one of the same identity that was cut off, or a new one, written down as running."""
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
                "Leave --resume out to begin one; curate runs lists all.",
            )
        else:
            run = _new_run(store, next_run(connection), manifest, to)
        write_run(connection, run)
    return run


def _new_run(store: Path, name: str, manifest: Manifest, to: Path | None) -> Run:
    folder = (to or store.parent / "adapters" / name).resolve()
    run = Run(name, "running", folder, manifest.model_copy(update={"run": name}))
    for taken in (folder, run.partial):  # what lies in a .partial are another run's checkpoints
        if taken.exists() and any(taken.iterdir()):
            raise TrainError(f"{taken} is already there.", "Give another --to FOLDER, or remove that one first.")
    return run


@contextmanager
def _locked(run: Run) -> Iterator[IO[str]]:
    """Hold the run's folder, so that no second process works on it; the lock ends with the process."""
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
        time.sleep(LOOK)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fitted(store: Path, run: Run, work: Work, lock: IO[str], report: Callable[[Step], None]) -> Run:
    """Fit and save the adapter. A failure is written into the run's row with its reason; an interruption is not."""
    try:
        fit, losses = _fit(run, work, lock, report)
        return _saved(run, work, fit, losses)
    except KeyboardInterrupt:
        logger.info("Run %s is interrupted; the same command goes on with it.", run.run)
        raise
    except Exception as error:
        reason = error.what if isinstance(error, CurateError) else f"{type(error).__name__}: {error}".splitlines()[0]
        manifest = run.manifest.model_copy(update={"failure": reason, "finished": datetime.now(UTC)})
        with writing(store) as connection:
            write_run(connection, replace(run, status="failed", manifest=manifest))
        raise


def _fit(run: Run, work: Work, lock: IO[str], report: Callable[[Step], None]) -> tuple[Fit, dict[str, float]]:
    """Run the engine; several processes whose memory was full are started again, with smaller passes."""
    settled = Settled(run.partial / "size.json")
    while True:
        try:
            fit, losses = _fit_once(run, work, settled, lock, report)
        except MemoryFullError as full:
            _step_down(full, settled, work.processes)
        else:
            return replace(fit, facts=fit.facts | {"trial": settled.trial, "steps_down": settled.steps_down}), losses


def _step_down(full: MemoryFullError, settled: Settled, processes: Processes) -> None:
    """Write down the smaller size to go on with. Raises where there is none, or where others have to be started too."""
    smaller = full.smaller
    if smaller is None:
        raise full
    settled.write(smaller, {"step": full.step, "batch": smaller.batch, "accumulate": smaller.accumulate})
    if processes.nodes > 1:
        raise TrainError(full.what, f"Start all machines again: they go on with a batch of {smaller.batch}.") from full
    logger.info("%s", full.sentence)


def _fit_once(
    run: Run, work: Work, settled: Settled, lock: IO[str], report: Callable[[Step], None]
) -> tuple[Fit, dict[str, float]]:
    """Run the engine in the run's partial folder, from its last whole checkpoint if there is one."""
    checkpoints = run.partial / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    resume = newest_complete(checkpoints)
    if resume is not None:
        logger.info("Run %s goes on from step %d.", run.run, step_of(resume))
    record = _Record(run.partial / "metrics.jsonl", report, after=step_of(resume) if resume else 0)
    adapter = run.partial / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    job = Job(
        rows=work.rows,
        held_out=work.held_out,
        model=work.model.resolve(),
        recipe=work.recipe,
        method=pick_method(work.recipe.method),
        checkpoints=checkpoints,
        adapter=adapter,
        resume=resume,
        report=record,
        size=settled.size or work.size,
        trial=trial_key(work.manifest, work.recipe, work.rows),
        evaluations=record.evaluations(),
        samples=work.samples,
        board=run.adapter.parent / "tensorboard" / run.run,
        settled=settled.write,
    )
    log = run.partial / "training.log"
    logger.info("Loading %s …", work.recipe.model)
    if work.processes.world > 1:
        return fit_together(job, work.processes, log, lock), record.losses()
    with quiet(log):
        return find_engine(work.recipe.engine)(job), record.losses()


def trial_key(manifest: Manifest, recipe: TrainSection, rows: pl.DataFrame) -> str:
    """What the measured size of a pass depends on: the model, the chip, the versions, and what the recipe asks for.

    Unpacked, also how long the longest `rows` are: each pass is padded to its longest.
    """
    asked = {"engine", "method", "max_length", "rank", "packing", "max_memory", "deterministic", "extra"}
    return digest(
        {
            "model": manifest.model.digest,
            "chip": [manifest.machine.device_name, manifest.machine.memory_gib],
            "gpus": [manifest.machine.gpus, manifest.machine.sharding],
            "packages": manifest.packages,
            "recipe": recipe.model_dump(mode="json", include=asked),
            "packs": recipe.packs_per_step,
            "embedding": recipe.embedding_learning_rate is not None,
            "longest": None if recipe.packing else rows["input_ids"].list.len().top_k(TRIED).sort().to_list(),
        }
    )


class _Record:
    """Writes each step as a line of `metrics.jsonl`, then tells the caller; lines after a checkpoint are cut off."""

    def __init__(self, path: Path, report: Callable[[Step], None], after: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.path, self.report = path, report
        self.path.write_text("".join(f"{line}\n" for line in lines[:after]), encoding="utf-8")

    def evaluations(self) -> dict[int, float]:
        """The held-out losses that were taken so far, by step."""
        steps = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return {step["step"]: step["eval_loss"] for step in steps if step.get("eval_loss") is not None}

    def __call__(self, step: Step) -> None:
        """Write down one step."""
        fields = {name: getattr(step, name) for name in Step.__dataclass_fields__}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
        self.report(step)

    def losses(self) -> dict[str, float]:
        """How many steps there were, their mean loss, and that of the last tenth."""
        steps = pl.read_ndjson(self.path)
        last = steps.tail(max(1, steps.height // 10))
        return {
            "steps": float(steps.height),
            "train_loss": float(steps.select(pl.mean("loss")).item()),
            "train_loss_end": float(last.select(pl.mean("loss")).item()),
        }


def _saved(run: Run, work: Work, fit: Fit, losses: dict[str, float]) -> Run:
    """The adapter complete with manifest, card and ledger, moved to its place."""
    ledger = add_epoch_counts(work.ledger, fit.seen)
    metrics = losses | fit.metrics | coverage_metrics(ledger)
    manifest = run.manifest.model_copy(
        update={"engine": fit.facts, "metrics": metrics, "finished": datetime.now(UTC), "failure": None}
    )
    adapter = run.partial / "adapter"
    shutil.copy(run.partial / "metrics.jsonl", adapter)
    manifest = save_adapter(adapter, manifest, work.model, work.template, ledger)
    adapter.replace(run.adapter)
    shutil.rmtree(run.partial)
    return replace(run, status="done", manifest=manifest)


def _finish(store: Path, run: Run) -> Run:
    """The one place where a finished run is written into the store."""
    shutil.rmtree(run.partial, ignore_errors=True)
    if adapter_digest(run.adapter) != run.manifest.adapter_digest:
        raise TrainError(f"The adapter in {run.adapter} is not the one that its manifest names.", "Train it again.")
    with writing(store) as connection:
        write_run(connection, run)
    return run
