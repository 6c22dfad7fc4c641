"""A frozen version, a base model and the recipe → an adapter with its manifest, and a row in `runs`.

Order of work: read the version and close the store, render, build the ledger, acquire a run, train, save, write the
row. A run is trained in `FOLDER.partial`, which is renamed to `FOLDER` at the end, so a folder without that suffix is
complete. The same command resumes an interrupted run at its last complete checkpoint; the adapter is the same as that
of an uninterrupted run.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import polars as pl

from schemas.atomic import DISK_FULL, write_text
from schemas.digest import digest
from schemas.environment import installed_version
from schemas.errors import CurateError, TrainError
from schemas.manifest import (
    MANIFEST_FILE,
    DataFacts,
    Manifest,
    ModelFacts,
    RenderingFacts,
    TokenFacts,
    read_manifest,
)
from schemas.recipe import TrainSection
from schemas.run import Run, write_run
from schemas.store import writing
from schemas.timing import timed
from train.engines import Fit, Job, Step, find_engine, token_digest
from train.engines.batch_size import (
    AUTOTUNE_SAMPLES,
    BatchConfig,
    BatchSizeLog,
    OutOfGpuMemoryError,
    configured_batch,
)
from train.model.adapter import adapter_digest, save_adapter
from train.model.base_model import find_model, model_digest, pick_method
from train.model.checkpoints import checkpoint_step, newest_complete
from train.model.log_capture import quiet
from train.plan.preflight import collect_samples
from train.plan.prepare import prepare_version
from train.runs.machine import machine_facts, package_versions, set_threads
from train.runs.run_folder import Start, acquire_run, locked
from train.runs.torchrun import SINGLE_PROCESS, Processes, check_devices, fit_distributed
from train.tokens.chat_template import PINNED_DATE, Template
from train.tokens.labels import IGNORE_INDEX
from train.tokens.ledger import add_epoch_counts, check_limits, coverage_metrics, trainable
from train.tokens.render import MASK_POLICY, Progress

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
"""The losses of a run, one line per step."""

LOG_FILE = "training.log"
"""The output of the libraries during a run."""

ALMOST_FULL = 1 << 20
"""Free bytes of a disk below which a failure is taken to be that of a full disk."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A training run before it starts: its tokens, and a manifest with everything that is known so far."""

    rows: pl.DataFrame
    held_out: pl.DataFrame
    ledger: pl.DataFrame
    model: Path
    template: Template
    recipe: TrainSection
    samples: Mapping[str, Any]  # of `preflight.collect_samples`
    manifest: Manifest
    batch_config: BatchConfig | None = None  # of the run that is repeated
    processes: Processes = SINGLE_PROCESS


def train_version(
    store: Path,
    label: str,
    recipe: TrainSection,
    *,
    overrides: Sequence[str] = (),
    to: Path | None = None,
    start: Start = "auto",
    threads: int | None = None,
    processes: Processes = SINGLE_PROCESS,
    expected: Manifest | None = None,
    report: Callable[[Step], None] = lambda _: None,
    rendering: Progress = lambda *_: None,
) -> Run:
    """Train an adapter on version `label` and return its run, with the status `done`.

    `to` is the adapter's folder (default: `adapters/RUN` next to the store). `start` "auto" resumes an unfinished run
    with the same identity if there is one, "resume" requires one, "fresh" begins a new one. `threads` overrides the
    recipe's. `expected` is the manifest of a run to repeat: other data, model or tokens raise an error. Raises
    `TrainError` for every explained failure; after training began, the run's row then has the status `failed`.
    """
    prepared = prepare_run(
        store, label, recipe, overrides=overrides, threads=threads, processes=processes, rendering=rendering
    )
    if expected is not None:
        _check_same(expected, prepared)
        facts = expected.engine
        batch_config = BatchConfig(facts["batch"], facts["accumulate"], facts.get("checkpointing", False))
        prepared = replace(prepared, batch_config=batch_config)  # it decides the last bits of the result
    run = acquire_run(store, prepared.manifest, to, start)
    with locked(run) as lock:
        if (run.adapter / MANIFEST_FILE).exists():  # interrupted after the folder was renamed, before the row
            return _write_finished(store, replace(run, status="done", manifest=read_manifest(run.adapter)))
        return _write_finished(store, _train(store, run, prepared, lock, report))


@timed("preparing the run")
def prepare_run(
    store: Path,
    label: str,
    recipe: TrainSection,
    *,
    overrides: Sequence[str] = (),
    threads: int | None = None,
    processes: Processes = SINGLE_PROCESS,
    rendering: Progress = lambda *_: None,
) -> PreparedRun:
    """Everything before training: the version rendered, the ledger, every digest.

    Raises `TrainError` if the ledger exceeds the recipe's limits, or no conversation can be trained on.
    """
    find_engine(recipe.engine)
    model = find_model(recipe.model, trust_remote_code=recipe.trust_remote_code)  # fail before torch is loaded
    if processes.world_size > 1:
        check_devices(processes, recipe)
    configured_batch(recipe, processes.world_size, checkpointing=False)  # fail before the version is read
    count = set_threads(threads or recipe.threads)
    logger.info("Rendering %s …", label)
    prepared = prepare_version(store, label, recipe, rendering)
    check_limits(prepared.ledger, recipe, prepared.build_ledger)
    rows = trainable(prepared.rendered, prepared.ledger)
    trained = rows.filter(pl.col("split") == "train")
    if trained.is_empty():
        raise TrainError(f"{prepared.version.label} has no conversation to train on.", "curate plan shows the reasons.")
    version, template = prepared.version, prepared.template
    return PreparedRun(
        rows=trained,
        held_out=rows.filter(pl.col("split") == "held_out"),
        ledger=prepared.ledger,
        model=model,
        template=template,
        recipe=recipe,
        samples=collect_samples(prepared),
        manifest=Manifest(
            curate=installed_version("curate-sft") or "missing",
            data=DataFacts(version=version.label, digest=version.digest, counts=version.counts),
            model=ModelFacts(name=recipe.model, digest=model_digest(model)),
            rendering=RenderingFacts(
                template=template.name,
                template_digest=template.digest,
                tokenizer_digest=prepared.tokenizer.digest,
                mask_policy=MASK_POLICY,
                date=f"{PINNED_DATE:%Y-%m-%d}",
            ),
            tokens=token_facts(trained, prepared.ledger),
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


def token_facts(rows: pl.DataFrame, ledger: pl.DataFrame) -> TokenFacts:
    """The digest and counts of the tokens that the engine trains on.

    Conversations are counted, not windows: one with a dropped window counts both as trained and as dropped.
    """
    outcomes = ledger.filter(pl.col("split") == "train").select("conversation", "outcome").unique()["outcome"]
    return TokenFacts(
        digest=token_digest(rows),
        conversations=rows["id"].n_unique(),
        tokens=int(rows["input_ids"].list.len().sum()),
        loss_tokens=int(rows["labels"].explode().ne(IGNORE_INDEX).sum()),
        dropped=int((outcomes == "dropped").sum()),
        truncated=int((outcomes == "truncated").sum()),
    )


def _check_same(expected: Manifest, prepared: PreparedRun) -> None:
    parts = {"data", "model", "rendering", "tokens"}
    before, now = expected.model_dump(include=parts), prepared.manifest.model_dump(include=parts)
    if prepared.template.matches(expected.rendering.template_digest):  # older manifests: digest without the pinned date
        now["rendering"]["template_digest"] = expected.rendering.template_digest
    changed = sorted(part for part in parts if before[part] != now[part])
    if changed:
        raise TrainError(
            f"Run {expected.run} cannot be repeated because of changes in: {', '.join(changed)}.",
            f"curate verify {expected.run} lists the differences.",
        )


# ------------------------------------------------------------------------------------------------------- the run


def _train(store: Path, run: Run, prepared: PreparedRun, lock: IO[str], report: Callable[[Step], None]) -> Run:
    """Train and save the adapter. A failure is written to the run's row with its reason; an interruption is not."""
    try:
        fit, losses = _fit(run, prepared, lock, report)
        return _save(run, prepared, fit, losses)
    except KeyboardInterrupt:
        logger.info("Run %s is interrupted; run the same command again to resume it.", run.run)
        raise
    except Exception as error:
        explained = error if isinstance(error, CurateError) else _explain(run, error)
        reason = error.what if isinstance(error, CurateError) else _first_line(error)
        manifest = run.manifest.model_copy(update={"failure": reason, "finished": datetime.now(UTC)})
        with suppress(CurateError), writing(store) as connection:  # the disk may be full
            write_run(connection, replace(run, status="failed", manifest=manifest))
        if explained is error:
            raise
        raise explained from error


def _explain(run: Run, error: Exception) -> TrainError:
    """The error of a library as one of ours; torch reports a full disk as a position in its file."""
    reason = _first_line(error)
    disk_is_full = isinstance(error, OSError) and error.errno in DISK_FULL
    if disk_is_full or shutil.disk_usage(run.partial).free < ALMOST_FULL:
        return TrainError(
            f"The disk of {run.partial} is full: {reason}.",
            "Free some space; the same command resumes at the last complete checkpoint.",
        )
    return TrainError(
        f"Run {run.run} failed: {reason.rstrip('.')}.",
        f"--debug shows the traceback, {run.partial / LOG_FILE} the output of the libraries.",
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _fit(
    run: Run, prepared: PreparedRun, lock: IO[str], report: Callable[[Step], None]
) -> tuple[Fit, dict[str, float]]:
    """Run the engine; if one of several processes runs out of GPU memory, restart them with a smaller batch size."""
    log = BatchSizeLog(run.partial / "size.json")
    while True:
        try:
            fit, losses = _fit_once(run, prepared, log, lock, report)
        except OutOfGpuMemoryError as error:
            _step_down(error, log, prepared.processes)
        else:
            return replace(fit, facts=fit.facts | {"trial": log.measurements, "steps_down": log.steps_down}), losses


def _step_down(error: OutOfGpuMemoryError, log: BatchSizeLog, processes: Processes) -> None:
    """Store the smaller batch size. Raises if there is none, or if other machines must be restarted too."""
    smaller = error.smaller
    if smaller is None:
        raise error
    log.write(smaller, {"step": error.step, "batch": smaller.batch, "accumulate": smaller.accumulate})
    if processes.nodes > 1:
        hint = f"Run the command on all machines again: they resume with batch {smaller.batch}."
        raise TrainError(error.what, hint) from error
    logger.info("%s", error.sentence)


@timed("training")
def _fit_once(
    run: Run, prepared: PreparedRun, batch_size_log: BatchSizeLog, lock: IO[str], report: Callable[[Step], None]
) -> tuple[Fit, dict[str, float]]:
    """Run the engine in the run's partial folder, from its last complete checkpoint if there is one."""
    checkpoints = run.partial / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    resume = newest_complete(checkpoints)
    if resume is not None:
        logger.info("Resuming run %s from step %d.", run.run, checkpoint_step(resume))
    metrics = _MetricsLog(run.partial / METRICS_FILE, report, last_step=checkpoint_step(resume) if resume else 0)
    adapter = run.partial / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    job = Job(
        rows=prepared.rows,
        held_out=prepared.held_out,
        model=prepared.model.resolve(),
        recipe=prepared.recipe,
        method=pick_method(prepared.recipe.method),
        checkpoints=checkpoints,
        adapter=adapter,
        resume=resume,
        report=metrics,
        batch_config=batch_size_log.batch_config or prepared.batch_config,
        autotune_key=autotune_key(prepared.manifest, prepared.recipe, prepared.rows),
        evaluations=metrics.evaluations(),
        samples=prepared.samples,
        tensorboard=run.adapter.parent / "tensorboard" / run.run,
        on_size_chosen=batch_size_log.write,
    )
    log = run.partial / LOG_FILE
    logger.info("Loading %s …", prepared.recipe.model)
    if prepared.processes.world_size > 1:
        return fit_distributed(job, prepared.processes, log, lock), metrics.losses()
    with quiet(log):
        return find_engine(prepared.recipe.engine).fit(job), metrics.losses()


def autotune_key(manifest: Manifest, recipe: TrainSection, rows: pl.DataFrame) -> str:
    """The digest of everything that the fastest batch size depends on: model, GPU, versions and recipe keys.

    Without packing also the lengths of the longest `rows`, because each batch is padded to its longest row.
    """
    keys = {"engine", "method", "max_length", "rank", "packing", "max_memory", "deterministic", "extra"}
    return digest(
        {
            "model": manifest.model.digest,
            "chip": [manifest.machine.device_name, manifest.machine.memory_gib],
            "gpus": [manifest.machine.gpus, manifest.machine.sharding],
            "packages": manifest.packages,
            "recipe": recipe.model_dump(mode="json", include=keys),
            "packs": recipe.packs_per_step,
            "embedding": recipe.embedding_learning_rate is not None,
            "longest": None
            if recipe.packing
            else rows["input_ids"].list.len().top_k(AUTOTUNE_SAMPLES).sort().to_list(),
        }
    )


class _MetricsLog:
    """Appends each step to `metrics.jsonl`, then calls `report`; lines after `last_step` are removed first."""

    def __init__(self, path: Path, report: Callable[[Step], None], last_step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.path, self.report = path, report
        write_text(path, "".join(f"{line}\n" for line in lines[:last_step]))

    def __call__(self, step: Step) -> None:
        """Append one step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")
        self.report(step)

    def evaluations(self) -> dict[int, float]:
        """The held-out losses so far, by step."""
        steps = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return {step["step"]: step["eval_loss"] for step in steps if step.get("eval_loss") is not None}

    def losses(self) -> dict[str, float]:
        """The number of steps, their mean loss, and the mean loss of the last tenth."""
        steps = pl.read_ndjson(self.path)
        last = steps.tail(max(1, steps.height // 10))
        return {
            "steps": float(steps.height),
            "train_loss": float(steps.select(pl.mean("loss")).item()),
            "train_loss_end": float(last.select(pl.mean("loss")).item()),
        }


@timed("saving the adapter")
def _save(run: Run, prepared: PreparedRun, fit: Fit, losses: dict[str, float]) -> Run:
    """Complete the adapter with manifest, card and ledger, and move it to its folder."""
    ledger = add_epoch_counts(prepared.ledger, fit.epoch_counts)
    metrics = losses | fit.metrics | coverage_metrics(ledger)
    manifest = run.manifest.model_copy(
        update={"engine": fit.facts, "metrics": metrics, "finished": datetime.now(UTC), "failure": None}
    )
    adapter = run.partial / "adapter"
    shutil.copy(run.partial / METRICS_FILE, adapter)
    manifest = save_adapter(adapter, manifest, prepared.model, prepared.template, ledger)
    adapter.replace(run.adapter)
    shutil.rmtree(run.partial)
    return replace(run, status="done", manifest=manifest)


@timed("writing the run")
def _write_finished(store: Path, run: Run) -> Run:
    """Check a finished run's adapter and write its row: the only place that does."""
    shutil.rmtree(run.partial, ignore_errors=True)
    if adapter_digest(run.adapter) != run.manifest.adapter_digest:
        raise TrainError(f"The adapter in {run.adapter} does not match its manifest.", "Train it again.")
    with writing(store) as connection:
        write_run(connection, run)
    return run
