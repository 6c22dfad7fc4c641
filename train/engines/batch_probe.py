"""In: a loaded model and some of its rows. Out: how fast each size of a forward pass is, and in how much memory.

A trial learns nothing: gradients are thrown away, no optimiser steps, the state of what is drawn by lot is put back.
It holds as much memory back as the optimiser will want and a margin, so what fits in the trial fits in the run.
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
from train.engines.batch_size import TRIED, Measured, Size
from train.tokens.labels import IGNORE_INDEX

logger = logging.getLogger(__name__)

WARM_UP, TIMED = 2, 3
"""Passes of each size: kernels are compiled in the first two, of different shapes; the fastest of the others counts."""

ADAM_BYTES = 8
"""Of AdamW's two moments in fp32, for each weight that is trained."""

MARGIN = 0.03
"""Share of what may be used of the GPU that stays free: packs differ, and memory falls to pieces."""


def enough_rows(rows: pl.DataFrame, recipe: TrainSection) -> pl.DataFrame:
    """Rows for a trial: the longest where each is padded to them, else a draw with lengths as in the whole."""
    if not recipe.packing:
        return rows.sort(pl.col("input_ids").list.len(), descending=True).head(TRIED)
    drawn = rows.sample(fraction=1.0, shuffle=True, seed=0)
    enough = TRIED * recipe.max_length
    return drawn.filter(pl.col("input_ids").list.len().cum_sum().shift(1, fill_value=0) < enough)


def measure(trainer: Any, size: Size, switch: Callable[[Any], None]) -> Measured:
    """One size as it runs here with the rows of `trainer`; without speed where memory was not enough."""
    switch(size.checkpointing)
    device = next(trainer.model.parameters()).device
    _clean(trainer.model)
    speed: float | None = None
    memory: float | None = None
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
            held = _held_back(trainer.model, device)
            speed = _speed(trainer, size.batch, device)
            memory = peak_memory() - _margin(device) / 2**30
            del held
    except torch.OutOfMemoryError:
        logger.info("A batch of %d does not fit%s.", size.batch, " with checkpointing" if size.checkpointing else "")
    _clean(trainer.model)
    return Measured(size, speed, memory)


def _held_back(model: Any, device: torch.device) -> torch.Tensor:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return torch.empty(trained * ADAM_BYTES + _margin(device), dtype=torch.uint8, device=device)


def _margin(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    allowed = torch.cuda.get_per_process_memory_fraction(device)
    return int(MARGIN * allowed * torch.cuda.get_device_properties(device).total_memory)


def _speed(trainer: Any, batch: int, device: torch.device) -> float:
    """Tokens per second of forward and backward passes over `batch` rows of the trainer's dataset at a time."""
    rows = cycle(range(len(trainer.train_dataset)))
    seconds = []
    for number in range(WARM_UP + TIMED):
        inputs = trainer.data_collator([trainer.train_dataset[n] for n in islice(rows, batch)])
        tokens = int(inputs["input_ids"].numel())
        _wait(device)
        started = time.perf_counter()
        _pass(trainer, {name: value.to(device) for name, value in inputs.items() if torch.is_tensor(value)})
        _wait(device)
        if number >= WARM_UP:
            seconds.append((time.perf_counter() - started) / tokens)
    return 1 / min(seconds)


def _pass(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Forward and backward, in the precision in which the trainer will do it."""
    learned = (inputs["labels"] != IGNORE_INDEX).sum()
    kind = torch.bfloat16 if trainer.args.bf16 else torch.float16
    with torch.autocast(learned.device.type, dtype=kind, enabled=trainer.args.bf16 or trainer.args.fp16):
        loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=learned)
    loss.backward()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clean(model: Any) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float:
    """The most memory that this process has held so far, in GiB: the GPU's, else the machine's."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
