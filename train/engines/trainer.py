"""A job and a loaded model → the trained adapter and its `Fit`: run TRL's trainer, resume, use less memory if needed.

Imported by an engine after its own packages, since Unsloth must be imported before TRL.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import PrinterCallback
from trl import SFTTrainer

from train.engines import Fit, Job, Loaded, find_engine
from train.engines.arguments import sft_arguments
from train.engines.batch_probe import autotune
from train.engines.batch_size import BatchConfig, OutOfGpuMemoryError, configured_batch, pick_fastest
from train.engines.callbacks import TrainingCallback
from train.engines.distributed import graceful_stop, is_sharded, rank, world_size
from train.engines.embeddings import base_embedding, cast_to_fp32, embedding_facts, set_embedding_rate
from train.engines.epoch_counts import count_epochs, steps_per_epoch
from train.engines.evaluation import copy_best, held_out_loss, measure_losses
from train.engines.sampler import share_sequences
from train.engines.token_check import check_packing, check_tokens, is_packed, sum_tokens, to_dataset
from train.model.checkpoints import mark_complete
from train.tokens.template_check import check_token_ids

logger = logging.getLogger(__name__)


def train(job: Job, loaded: Loaded) -> Fit:
    """Choose the batch size, train from the start or from `job.resume`, save the adapter, measure the losses.

    Raises `TrainError` if the trainer would train on other tokens, `OutOfGpuMemoryError` if no batch size fits, and
    KeyboardInterrupt if it was stopped, after a checkpoint.
    """
    if job.samples is not None:
        check_token_ids(job.samples, loaded.tokenizer)
    configured = configured_batch(job.recipe, world_size(), loaded.checkpointing_modes[-1])
    base_loss = None  # of the untrained model
    if job.method == "full":
        sft_arguments(job, configured)  # several processes form their group here
        base_loss = held_out_loss(loaded.model, job.held_out)
    measurements = autotune(job, loaded, lambda config, rows: make_trainer(job, loaded, config, rows)[0])
    batch_config = job.batch_config or (pick_fastest(measurements) if measurements else configured)
    job.on_size_chosen(batch_config, None, [measurement.as_json() for measurement in measurements])
    finished = _run_until_finished(job, loaded, batch_config)
    facts = _facts(job, loaded, finished)
    metrics = _save_best(job, finished, base_loss)
    steps = int(metrics.get("best_step", finished.trainer.state.global_step))
    per_step = finished.batch_config.batch * finished.batch_config.accumulate * world_size()
    sequences = finished.trainer.train_dataset.select(range(finished.sequences)).to_polars()  # without filler
    epoch_counts = count_epochs(job.rows, sequences, per_step, steps, job.recipe.seed)
    epochs = steps / steps_per_epoch(finished.sequences, per_step)
    return Fit(metrics | {"epochs": epochs}, facts, epoch_counts.to_list())


@dataclass(frozen=True, slots=True)
class _OutOfMemory:
    """A run that ended because the GPU ran out of memory: a checkpoint of the last finished step, held-out losses."""

    error: OutOfGpuMemoryError
    checkpoint: Path | None
    evaluations: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class _Finished:
    """A run that finished. `sequences` is the number of sequences in an epoch."""

    trainer: SFTTrainer
    callback: TrainingCallback
    sequences: int
    batch_config: BatchConfig


def _run_until_finished(job: Job, loaded: Loaded, batch_config: BatchConfig) -> _Finished:
    """Train, and resume with a smaller batch size whenever the GPU runs out of memory.

    Raises `OutOfGpuMemoryError` if there is no smaller one.
    """
    while isinstance(outcome := _run(job, loaded, batch_config), _OutOfMemory):
        gc.collect()
        torch.cuda.empty_cache()
        error = outcome.error
        if error.smaller is None:
            raise error
        logger.info("%s", error.sentence)
        batch_config = error.smaller
        job = replace(job, resume=outcome.checkpoint or job.resume, evaluations=outcome.evaluations)
        step_down = {"step": error.step, "batch": batch_config.batch, "accumulate": batch_config.accumulate}
        job.on_size_chosen(batch_config, step_down, ())
    return outcome


def _run(job: Job, loaded: Loaded, batch_config: BatchConfig) -> _Finished | _OutOfMemory:
    """Train with one batch size. Raises KeyboardInterrupt if the run was stopped."""
    loaded.set_checkpointing(batch_config.checkpointing)
    trainer, callback = make_trainer(job, loaded, batch_config, job.rows)
    check_tokens(job.rows, trainer.train_dataset)
    sequences = len(trainer.train_dataset)
    share_sequences(trainer, job, batch_config)
    try:
        with graceful_stop(callback.request_stop):
            trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    except torch.OutOfMemoryError as error:
        step = trainer.state.global_step
        out_of_memory = OutOfGpuMemoryError(batch_config, _smaller(loaded, batch_config), step, job.recipe.max_length)
        if world_size() > 1:  # the other processes wait for this one: all end, and resume from the last checkpoint
            raise out_of_memory from error
    else:
        if callback.stopped:
            raise KeyboardInterrupt
        return _Finished(trainer, callback, sequences, batch_config)
    return _OutOfMemory(out_of_memory, _save_last_step(trainer, job), callback.evaluations)


def make_trainer(
    job: Job, loaded: Loaded, batch_config: BatchConfig, rows: pl.DataFrame
) -> tuple[SFTTrainer, TrainingCallback]:
    """TRL's trainer on `rows`, packed as the recipe says, and its callback."""
    if job.tensorboard is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(job.tensorboard)
    callback = TrainingCallback(
        job, tokens=sum_tokens(rows).tokens, save=lambda folder: save_weights(loaded.model, folder)
    )
    trainer = SFTTrainer(
        model=loaded.model,
        args=sft_arguments(job, batch_config),
        train_dataset=to_dataset(rows),
        processing_class=loaded.tokenizer,
        callbacks=[callback],
    )
    if job.recipe.embedding_learning_rate is not None:
        if job.method != "full":
            cast_to_fp32(trainer.model)
        set_embedding_rate(trainer, job.recipe.embedding_learning_rate)
    callback.log = trainer.log
    trainer.remove_callback(PrinterCallback)
    if job.recipe.packing and (find_engine(job.recipe.engine).packs_on_cpu or torch.cuda.is_available()):
        check_packing(trainer)
    return trainer, callback


def _save_last_step(trainer: SFTTrainer, job: Job) -> Path | None:
    """A checkpoint of the last finished step, None before the first; memory ran out in the step after it."""
    step = trainer.state.global_step
    checkpoint = job.checkpoints / f"checkpoint-{step}"
    if not step or checkpoint.exists():
        return checkpoint if step else None
    trainer.model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    trainer._save_checkpoint(trainer.model, trial=None)
    mark_complete(checkpoint)
    return checkpoint


def _smaller(loaded: Loaded, batch_config: BatchConfig) -> BatchConfig | None:
    """The same step in less memory with a checkpointing mode of this engine; None if there is none."""
    smaller = batch_config.halve()
    if smaller is not None and smaller.checkpointing and not batch_config.checkpointing:
        mode = loaded.checkpointing_modes[-1]
        return replace(smaller, checkpointing=mode) if mode else None
    return smaller


def save_weights(model: Any, folder: Path) -> None:
    """Write the adapter as safetensors: by the first process, or by all of them if the model is sharded."""
    if rank() == 0 or is_sharded():
        model.save_pretrained(folder, safe_serialization=True)


def _save_best(job: Job, finished: _Finished, base_loss: float | None) -> dict[str, float]:
    """Save the adapter, the best one if held-out losses were computed during the run, and return the losses."""
    model = finished.trainer.model
    save_weights(model, job.adapter)  # first: sharded weights no longer require gradients once the adapter was off
    losses = measure_losses(model, job.held_out, base_loss)
    evaluated = bool(finished.callback.evaluations)
    best = copy_best(finished.callback.best, job.adapter, losses["eval_loss"]) if evaluated else None
    if best is None:
        return losses
    step, loss = best
    return losses | {"eval_loss": loss, "best_step": float(step), "last_eval_loss": losses["eval_loss"]}


def _facts(job: Job, loaded: Loaded, finished: _Finished) -> dict[str, Any]:
    """The settings that were really used, where the recipe leaves them open or the engine overrides them."""
    trainer = finished.trainer
    trained = [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    adapter = [parameter for name, parameter in trained if "lora_" in name] or [parameter for _, parameter in trained]
    embedding = {"embedding": embedding_facts(trainer)} if job.recipe.embedding_learning_rate is not None else {}
    return {
        "method": job.method,
        "packing": is_packed(trainer),
        "sequences": finished.sequences,
        "trainable_parameters": sum(parameter.numel() for _, parameter in trained),
        "adapter_dtype": str(adapter[0].dtype).removeprefix("torch."),
        "base_dtype": str(base_embedding(trainer.model).weight.dtype).removeprefix("torch."),
        "optimizer": str(trainer.args.optim).rsplit(".", 1)[-1].lower(),
        "schedule": str(trainer.args.lr_scheduler_type).rsplit(".", 1)[-1].lower(),
        "target_modules": [] if job.method == "full" else sorted(trainer.model.peft_config["default"].target_modules),
        **asdict(finished.batch_config),
        **embedding,
        **loaded.facts,
        "gpus": world_size(),
    }
