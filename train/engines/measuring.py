"""In: a loaded model and some of its rows. Out: how fast each size of a forward pass is, and in how much memory.

A trial learns nothing: gradients are thrown away, no optimiser steps, the state of what is drawn by lot is put back.
It holds as much memory back as the optimiser will want and a margin, so what fits in the trial fits in the run.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import cycle, islice
from typing import Any

import polars as pl
import torch

from schemas.recipe import TrainSection
from train.engines.evaluating import UNLEARNED
from train.sizing import Measured, Size

logger = logging.getLogger(__name__)

WARM_UP, TIMED = 2, 3
"""Passes of each size: kernels are compiled in the first two, of different shapes; the fastest of the others counts."""

PACKS = 32
"""How many packs a trial draws from: a few passes of the largest size."""

ADAM_BYTES = 8
"""Of AdamW's two moments in fp32, for each weight that is trained."""

MARGIN = 0.03
"""Share of the GPU that is left free: packs differ in how many conversations they hold, and memory falls to pieces."""


def enough_rows(rows: pl.DataFrame, recipe: TrainSection) -> pl.DataFrame:
    """Rows for a trial: the longest where each is padded to them, else a draw with lengths as in the whole."""
    if not recipe.packing:
        return rows.sort(pl.col("input_ids").list.len(), descending=True).head(PACKS)
    drawn = rows.sample(fraction=1.0, shuffle=True, seed=0)
    enough = PACKS * recipe.max_length
    return drawn.filter(pl.col("input_ids").list.len().cum_sum().shift(1, fill_value=0) < enough)


def measure(trainer: Any, size: Size, switch: Callable[[Any], None]) -> Measured:
    """One size as it runs on this GPU with the rows of `trainer`; without speed where memory was not enough."""
    switch(size.checkpointing)
    _clean(trainer.model)
    torch.cuda.reset_peak_memory_stats()
    state = torch.cuda.get_rng_state(), torch.get_rng_state()
    speed: float | None = None
    memory: float | None = None
    try:
        held = _held_back(trainer.model)
        speed = _speed(trainer, size.batch)
        memory = (torch.cuda.max_memory_reserved() - _margin()) / 2**30
        del held
    except torch.OutOfMemoryError:
        logger.info("A batch of %d does not fit%s.", size.batch, " with checkpointing" if size.checkpointing else "")
    finally:
        torch.cuda.set_rng_state(state[0])
        torch.set_rng_state(state[1])
    _clean(trainer.model)
    return Measured(size, speed, memory)


def _held_back(model: Any) -> torch.Tensor:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return torch.empty(trained * ADAM_BYTES + _margin(), dtype=torch.uint8, device="cuda")


def _margin() -> int:
    return int(MARGIN * torch.cuda.get_device_properties(0).total_memory)


def _speed(trainer: Any, batch: int) -> float:
    """Tokens per second of forward and backward passes over `batch` rows of the trainer's dataset at a time."""
    rows = cycle(range(len(trainer.train_dataset)))
    seconds = []
    for number in range(WARM_UP + TIMED):
        inputs = trainer.data_collator([trainer.train_dataset[n] for n in islice(rows, batch)])
        tokens = int(inputs["input_ids"].numel())
        torch.cuda.synchronize()
        started = time.perf_counter()
        _pass(trainer, {name: value.cuda() for name, value in inputs.items() if torch.is_tensor(value)})
        torch.cuda.synchronize()
        if number >= WARM_UP:
            seconds.append((time.perf_counter() - started) / tokens)
    return 1 / min(seconds)


def _pass(trainer: Any, inputs: Mapping[str, Any]) -> None:
    learned = (inputs["labels"] != UNLEARNED).sum()
    precision: AbstractContextManager[Any] = torch.autocast(
        "cuda", dtype=torch.bfloat16 if trainer.args.bf16 else torch.float16
    )
    with precision:
        loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=learned)
    loss.backward()


def _clean(model: Any) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
