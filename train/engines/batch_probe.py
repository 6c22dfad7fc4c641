"""A loaded model and some of its rows → speed and peak memory of each batch size, measured on the GPU.

Measuring changes nothing: gradients are discarded, no optimiser steps are taken, the random state is restored. The
memory that the optimiser will need and a margin are reserved meanwhile, so what fits here fits in the run.
"""

from __future__ import annotations

import gc
import logging
import resource
import time
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from typing import Any

import polars as pl
import torch

from schemas.recipe import TrainSection
from train.engines import Job, Loaded
from train.engines.batch_size import (
    AUTOTUNE_SAMPLES,
    BatchConfig,
    Measurement,
    cache_measurements,
    configured_batch,
    measure_batches,
    read_measurements,
)
from train.engines.distributed import is_sharded, rank, world_size
from train.tokens.labels import IGNORE_INDEX

logger = logging.getLogger(__name__)

WARM_UP, TIMED = 2, 3
"""Passes of each batch size: the first two, of different shapes, compile kernels; the fastest of the others counts."""

ADAM_BYTES = 8
"""Bytes per trained weight of AdamW's two moments in fp32."""

MARGIN = 0.03
"""Share of the usable GPU memory that is kept free: packs differ in size, and memory fragments."""


def autotune(job: Job, loaded: Loaded, make_trainer: Callable[[BatchConfig, pl.DataFrame], Any]) -> list[Measurement]:
    """Measurements of this or an earlier run; empty without a GPU or if the recipe or run determines the batch size."""
    if job.recipe.batch != "auto" or job.batch_config is not None or not torch.cuda.is_available() or is_sharded():
        return []
    cached = read_measurements(job.autotune_key) if job.autotune_key else None
    if cached is not None:
        return cached
    logger.info("Auto-tuning the batch size …")
    smallest = configured_batch(job.recipe, world_size(), loaded.checkpointing_modes[-1])
    trainer = make_trainer(smallest, autotune_rows(job.rows, job.recipe))
    measurements = measure_batches(
        job.recipe,
        world_size(),
        loaded.checkpointing_modes,
        lambda batch_config: _of_first_process(measure(trainer, batch_config, loaded.set_checkpointing)),
    )
    if job.autotune_key and rank() == 0:
        cache_measurements(job.autotune_key, measurements)
    return measurements


def _of_first_process(measurement: Measurement) -> Measurement:
    """The first process's measurement, so that all of them choose the same batch size."""
    if world_size() == 1:
        return measurement
    box = [measurement]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def autotune_rows(rows: pl.DataFrame, recipe: TrainSection) -> pl.DataFrame:
    """Rows to measure with: without packing the longest, which others are padded to; with packing a random sample."""
    if not recipe.packing:
        return rows.sort(pl.col("input_ids").list.len(), descending=True).head(AUTOTUNE_SAMPLES)
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=0)
    tokens = AUTOTUNE_SAMPLES * recipe.max_length
    return shuffled.filter(pl.col("input_ids").list.len().cum_sum().shift(1, fill_value=0) < tokens)


def measure(trainer: Any, batch_config: BatchConfig, set_checkpointing: Callable[[Any], None]) -> Measurement:
    """The measurement of one batch size with the rows of `trainer`; speed and memory are None if it does not fit."""
    set_checkpointing(batch_config.checkpointing)
    device = next(trainer.model.parameters()).device
    _free_memory(trainer.model)
    speed: float | None = None
    memory: float | None = None
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
            reserved = _reserve(trainer.model, device)
            speed = _measure_speed(trainer, batch_config.batch, device)
            memory = peak_memory() - _margin(device) / 2**30
            del reserved
    except torch.OutOfMemoryError:
        mode = " with gradient checkpointing" if batch_config.checkpointing else ""
        logger.info("A batch of %d does not fit%s.", batch_config.batch, mode)
    _free_memory(trainer.model)
    return Measurement(batch_config, speed, memory)


def _reserve(model: Any, device: torch.device) -> torch.Tensor:
    """A tensor of the size of the optimiser's state and the margin."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return torch.empty(trained * ADAM_BYTES + _margin(device), dtype=torch.uint8, device=device)


def _margin(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    allowed = torch.cuda.get_per_process_memory_fraction(device)
    return int(MARGIN * allowed * torch.cuda.get_device_properties(device).total_memory)


def _measure_speed(trainer: Any, batch: int, device: torch.device) -> float:
    """Tokens per second of forward and backward passes over `batch` rows of the trainer's dataset at a time."""
    rows = cycle(range(len(trainer.train_dataset)))
    seconds_per_token = []
    for number in range(WARM_UP + TIMED):
        inputs = trainer.data_collator([trainer.train_dataset[n] for n in islice(rows, batch)])
        tokens = int(inputs["input_ids"].numel())
        _synchronize(device)
        started = time.perf_counter()
        _forward_backward(trainer, {name: value.to(device) for name, value in inputs.items() if torch.is_tensor(value)})
        _synchronize(device)
        if number >= WARM_UP:
            seconds_per_token.append((time.perf_counter() - started) / tokens)
    return 1 / min(seconds_per_token)


def _forward_backward(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """One pass in the precision of training."""
    loss_tokens = (inputs["labels"] != IGNORE_INDEX).sum()
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float16
    with torch.autocast(loss_tokens.device.type, dtype=dtype, enabled=trainer.args.bf16 or trainer.args.fp16):
        loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=loss_tokens)
    loss.backward()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free_memory(model: Any) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float:
    """The peak memory of this process so far in GiB: of the GPU if there is one, otherwise of the process itself."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
