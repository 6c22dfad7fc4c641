"""The recipe's batch keys and autotune measurements → the batch size of a forward pass.

The result of training does not depend on it: packs per optimiser step are fixed by the recipe. `batch = "auto"`
measures a few batch sizes on the GPU, first without gradient checkpointing, uses the fastest that fits, and caches the
measurements by model, GPU, recipe and package versions. On a CPU nothing is measured: a run repeats bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from schemas.atomic import write_text
from schemas.errors import TrainError
from schemas.recipe import AUTO_COUNTS_AS, TrainSection
from train.tokens.chat_template import cache_folder

CheckpointingMode = bool | str
"""Gradient checkpointing: False keeps activations, True recomputes them, "unsloth" also offloads them to the host."""

AUTOTUNE_SAMPLES = 32
"""Packs, or conversations without packing, that autotune draws from: a few passes of the largest batch size."""

SAME_SPEED = 0.02
"""A larger batch size must be faster by this share to be worth its memory; repeated measurements differ by as much."""


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """How an optimiser step is computed: `accumulate` forward passes of `batch` packs on each GPU."""

    batch: int
    accumulate: int
    checkpointing: CheckpointingMode

    def halve(self) -> BatchConfig | None:
        """The same step in less memory, or None if batch is 1 and checkpointing is on."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2, accumulate=self.accumulate * 2)
        return None if self.checkpointing else replace(self, checkpointing=True)


class OutOfGpuMemoryError(TrainError):
    """The GPU ran out of memory after `step` steps. `smaller` computes the same steps in less memory, if possible."""

    def __init__(self, batch_config: BatchConfig, smaller: BatchConfig | None, step: int, max_length: int) -> None:
        super().__init__(
            f"The GPU is out of memory with batch {batch_config.batch} and max_length {max_length}.",
            "Use a smaller max_length or rank, or an auto-tuned batch size: --set train.batch=auto.",
        )
        self.batch_config, self.smaller, self.step, self.max_length = batch_config, smaller, step, max_length

    def as_json(self) -> dict[str, Any]:
        """The arguments as plain values, for another process."""
        smaller = asdict(self.smaller) if self.smaller else None
        return {"size": asdict(self.batch_config), "smaller": smaller, "step": self.step, "max_length": self.max_length}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OutOfGpuMemoryError:
        """The error that another process wrote with `as_json`."""
        smaller = BatchConfig(**value["smaller"]) if value["smaller"] else None
        return cls(BatchConfig(**value["size"]), smaller, value["step"], value["max_length"])

    @property
    def sentence(self) -> str:
        """The event and the batch size with which training resumes."""
        assert self.smaller is not None
        more = ", gradient checkpointing" if self.smaller.checkpointing and not self.batch_config.checkpointing else ""
        return (
            f"The GPU ran out of memory after step {self.step} with batch {self.batch_config.batch}. Resuming from the "
            f"last checkpoint with batch {self.smaller.batch}, accumulate {self.smaller.accumulate}{more}."
        )


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured batch size. `speed` is in tokens per second, `memory` the peak in GiB; None if it did not fit."""

    batch_config: BatchConfig
    speed: float | None
    memory: float | None

    def as_json(self) -> dict[str, Any]:
        """The measurement as plain values."""
        return {**asdict(self.batch_config), "tokens_per_second": self.speed, "gib": self.memory}


def configured_batch(recipe: TrainSection, gpus: int, checkpointing: CheckpointingMode) -> BatchConfig:
    """The batch size of the recipe on `gpus` devices; for `batch = "auto"` the one that is used without measuring.

    Raises `TrainError` if the packs per step cannot be divided evenly.
    """
    share = _packs_per_gpu(recipe, gpus)
    batch = AUTO_COUNTS_AS if recipe.batch == "auto" else recipe.batch
    if recipe.batch == "auto" or recipe.effective_batch is None:
        while share % batch:  # four packs per step on four GPUs are one on each, with any batch
            batch -= 1
    if share % batch:
        raise TrainError(
            f"{recipe.packs_per_step} packs per step cannot be divided into batches of {batch} on {gpus} GPU(s).",
            f"Use a batch that divides {share}: --set train.batch=1, or --set train.batch=auto.",
        )
    return BatchConfig(batch, share // batch, checkpointing)


def _packs_per_gpu(recipe: TrainSection, gpus: int) -> int:
    if recipe.packs_per_step % gpus:
        raise TrainError(
            f"{recipe.packs_per_step} packs per step cannot be divided among {gpus} GPUs.",
            f"--set train.effective_batch={-(-recipe.packs_per_step // gpus) * gpus}",
        )
    return recipe.packs_per_step // gpus


def measure_batches(
    recipe: TrainSection,
    gpus: int,
    modes: Sequence[CheckpointingMode],
    measure: Callable[[BatchConfig], Measurement],
) -> list[Measurement]:
    """Measurements of batch 1, 2, 4 and so on, until one does not fit or is not faster than the previous one.

    The next of `modes` is tried only if the previous one ran out of memory.
    """
    measurements: list[Measurement] = []
    share = _packs_per_gpu(recipe, gpus)
    for mode in modes:
        previous = 0.0
        for batch in (2**power for power in range(share.bit_length()) if share % 2**power == 0):
            measurements.append(measure(BatchConfig(batch, share // batch, mode)))
            speed = measurements[-1].speed
            if speed is None or speed < previous * (1 + SAME_SPEED):
                break
            previous = speed
        if measurements[-1].speed is not None:
            break
    return measurements


def pick_fastest(measurements: Sequence[Measurement]) -> BatchConfig:
    """The fastest batch size; among equally fast ones, that with the least memory. Raises `TrainError` if none fits."""
    fitting = [measurement for measurement in measurements if measurement.speed is not None]
    if not fitting:
        raise TrainError(
            "A batch of 1 with gradient checkpointing does not fit into the GPU's memory.",
            "Use a smaller max_length, rank or model, or a GPU with more memory: curate plan --gpu this estimates it.",
        )
    best = max(measurement.speed or 0.0 for measurement in fitting)
    close = [measurement for measurement in fitting if (measurement.speed or 0.0) >= best * (1 - SAME_SPEED)]
    return min(close, key=lambda measurement: measurement.memory or 0.0).batch_config


@dataclass(frozen=True, slots=True)
class BatchSizeLog:
    """The file in an unfinished run's folder with its current batch size, the steps down and the measurements."""

    path: Path

    def write(
        self,
        batch_config: BatchConfig,
        step_down: Mapping[str, Any] | None = None,
        measurements: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Store the batch size, append the step down that led to it, and store the measurements if there are any."""
        steps_down = [*self.steps_down, *([step_down] if step_down else [])]
        trial = [*measurements] or self.measurements
        write_text(self.path, json.dumps({"size": asdict(batch_config), "steps_down": steps_down, "trial": trial}))

    @property
    def batch_config(self) -> BatchConfig | None:
        """The last batch size of an interrupted run."""
        size = self._read().get("size")
        return BatchConfig(**size) if size else None

    @property
    def steps_down(self) -> list[dict[str, Any]]:
        """Each time that the GPU ran out of memory: the step after which it did, and the batch size from then on."""
        return list(self._read().get("steps_down", []))

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """The autotune measurements before the first step; a resumed run measures nothing."""
        return list(self._read().get("trial", []))

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return {"size": content} if "batch" in content else content  # older runs: only the size


def read_measurements(key: str) -> list[Measurement] | None:
    """The cached autotune measurements of this key; None if there are none or the file is damaged."""
    try:
        rows = json.loads(_cache_path(key).read_text(encoding="utf-8"))
        return [
            Measurement(
                BatchConfig(row["batch"], row["accumulate"], row["checkpointing"]), row["tokens_per_second"], row["gib"]
            )
            for row in rows
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def cache_measurements(key: str, measurements: Sequence[Measurement]) -> None:
    """Store autotune measurements for later runs with the same key."""
    path = _cache_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([measurement.as_json() for measurement in measurements], indent=1))


def _cache_path(key: str) -> Path:
    return cache_folder() / "trials" / f"{key[:32]}.json"
