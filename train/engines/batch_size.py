"""In: what the recipe says of batch and memory, and what a short trial measured. Out: how large a forward pass is.

What is learned does not depend on it: packs per optimiser step stay what the recipe says. `batch = "auto"` measures
a few sizes on the GPU, without checkpointing first, takes the fastest that fits and remembers it for this model,
chip, recipe and these versions. On a CPU nothing is measured, so that a run has the same bits every time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from schemas.atomic import write_text
from schemas.errors import TrainError
from schemas.recipe import AUTO_COUNTS_AS, TrainSection
from train.tokens.chat_template import cache_folder

Checkpointing = bool | str
"""How activations are kept: False keeps all, True computes them again, "unsloth" moves them to the host as well."""

TRIED = 32
"""How many packs, or conversations where they are not packed, a trial draws from: a few passes of the largest size."""

SAME_SPEED = 0.02
"""A larger pass has to be faster by this share to be worth its memory; repeated trials differ by about as much."""


@dataclass(frozen=True, slots=True)
class Size:
    """How an optimiser step is done: `accumulate` passes of `batch` packs on each GPU."""

    batch: int
    accumulate: int
    checkpointing: Checkpointing

    def halved(self) -> Size | None:
        """The same step in less memory, or None where nothing is left to give."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2, accumulate=self.accumulate * 2)
        return None if self.checkpointing else replace(self, checkpointing=True)


class MemoryFullError(TrainError):
    """The memory was full after `step` steps with passes of `size`. The same steps fit into `smaller` ones, if any."""

    def __init__(self, size: Size, smaller: Size | None, step: int, max_length: int) -> None:
        super().__init__(
            f"The GPU's memory is full at a batch of {size.batch} and max_length {max_length}.",
            "Take a smaller max_length or rank; or let curate choose: --set train.batch=auto.",
        )
        self.size, self.smaller, self.step, self.max_length = size, smaller, step, max_length

    def as_json(self) -> dict[str, Any]:
        """What it is made of, for another process."""
        smaller = asdict(self.smaller) if self.smaller else None
        return {"size": asdict(self.size), "smaller": smaller, "step": self.step, "max_length": self.max_length}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> MemoryFullError:
        """The one that another process wrote."""
        smaller = Size(**written["smaller"]) if written["smaller"] else None
        return cls(Size(**written["size"]), smaller, written["step"], written["max_length"])

    @property
    def sentence(self) -> str:
        """What happened, and how it goes on."""
        assert self.smaller is not None
        more = ", with checkpointing" if self.smaller.checkpointing and not self.size.checkpointing else ""
        return (
            f"The GPU's memory was full after step {self.step} at a batch of {self.size.batch}. It goes on from its "
            f"last checkpoint with {self.smaller.batch}, {self.smaller.accumulate} times a step{more}."
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """One size as it ran. `speed` is tokens per second and `memory` the peak in GiB; both None where it did not fit."""

    size: Size
    speed: float | None
    memory: float | None

    def as_json(self) -> dict[str, Any]:
        """The measurement as plain values."""
        return {**asdict(self.size), "tokens_per_second": self.speed, "gib": self.memory}


def written_size(recipe: TrainSection, gpus: int, checkpointing: Checkpointing) -> Size:
    """The size that the recipe states for `gpus` devices; of `batch = "auto"` what stands for it without a trial.

    Raises `TrainError` when packs per step cannot be shared out evenly.
    """
    share = _per_gpu(recipe, gpus)
    batch = AUTO_COUNTS_AS if recipe.batch == "auto" else recipe.batch
    if recipe.batch == "auto" or recipe.effective_batch is None:
        while share % batch:  # four packs a step on four GPUs are one each, whatever the batch was on one
            batch -= 1
    if share % batch:
        raise TrainError(
            f"{recipe.packs_per_step} packs per step cannot be done in passes of {batch} on {gpus} GPU(s).",
            f"Take a batch that divides {share}: --set train.batch=1, or --set train.batch=auto.",
        )
    return Size(batch, share // batch, checkpointing)


def _per_gpu(recipe: TrainSection, gpus: int) -> int:
    if recipe.packs_per_step % gpus:
        raise TrainError(
            f"{recipe.packs_per_step} packs per step cannot be shared out to {gpus} GPUs.",
            f"--set train.effective_batch={-(-recipe.packs_per_step // gpus) * gpus}",
        )
    return recipe.packs_per_step // gpus


def measure_sizes(
    recipe: TrainSection, gpus: int, kinds: Sequence[Checkpointing], measure: Callable[[Size], Measured]
) -> list[Measured]:
    """What `measure` says of the sizes worth trying: `kinds` from the fastest to the smallest, batches from 1 up.

    The next kind is tried only when the one before ran out of memory.
    """
    measured: list[Measured] = []
    for kind in kinds:
        tried = list(_measure_batches(_batches(recipe, gpus), kind, _per_gpu(recipe, gpus), measure))
        measured += tried
        if tried[-1].speed is not None:
            break
    return measured


def _measure_batches(
    batches: Sequence[int], kind: Checkpointing, share: int, measure: Callable[[Size], Measured]
) -> Iterator[Measured]:
    """Larger and larger passes, until one does not fit or is no faster than the one before."""
    before = 0.0
    for batch in batches:
        found = measure(Size(batch, share // batch, kind))
        yield found
        if found.speed is None or found.speed < before * (1 + SAME_SPEED):
            return
        before = found.speed


def _batches(recipe: TrainSection, gpus: int) -> list[int]:
    """1, 2, 4 …, as far as they divide what one GPU does in a step."""
    share = _per_gpu(recipe, gpus)
    return [2**power for power in range(share.bit_length()) if share % 2**power == 0]


def fastest(measured: Sequence[Measured]) -> Size:
    """The fastest size; of those that are as fast, the one with the least memory. Raises `TrainError` if none fits."""
    fitting = [found for found in measured if found.speed is not None]
    if not fitting:
        raise TrainError(
            "Not even one pack a pass fits into the GPU's memory, with checkpointing.",
            "Take a smaller max_length, rank or model, or a larger card; curate plan --gpu this says how far.",
        )
    best = max(found.speed or 0.0 for found in fitting)
    close = [found for found in fitting if (found.speed or 0.0) >= best * (1 - SAME_SPEED)]
    return min(close, key=lambda found: found.memory or 0.0).size


# ------------------------------------------------------------------------------------------------------ remembered


@dataclass(frozen=True, slots=True)
class Settled:
    """The file in a run's folder with the size that it goes on with, and how it came to that."""

    path: Path

    def write(
        self, size: Size, step_down: Mapping[str, Any] | None = None, trial: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Keep the size, behind the earlier ones the step down that led to it, and a trial if there was one."""
        steps_down = [*self.steps_down, *([step_down] if step_down else [])]
        kept = {"size": asdict(size), "steps_down": steps_down, "trial": [*trial] or self.trial}
        write_text(self.path, json.dumps(kept))

    @property
    def size(self) -> Size | None:
        """The size with which a run that was cut off went on last."""
        return Size(**self._read()["size"]) if self.path.exists() else None

    @property
    def steps_down(self) -> list[dict[str, Any]]:
        """Each time that the memory was full: after which step, and the size since then."""
        return list(self._read()["steps_down"]) if self.path.exists() else []

    @property
    def trial(self) -> list[dict[str, Any]]:
        """What was measured before the first step; a run that goes on measures nothing."""
        return list(self._read().get("trial", [])) if self.path.exists() else []

    def _read(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return read if "size" in read else {"size": read, "steps_down": []}  # it held the size alone once


def recall(key: str) -> list[Measured] | None:
    """What an earlier trial under this key measured, if there was one that can be read."""
    try:
        rows = json.loads(_place(key).read_text(encoding="utf-8"))
        return [_measured(row) for row in rows]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a damaged memory is no failure: it is measured again


def remember(key: str, measured: Sequence[Measured]) -> None:
    """Keep a trial for the next run of the same key, whole or not at all."""
    path = _place(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps([found.as_json() for found in measured], indent=1), encoding="utf-8")
    unfinished.replace(path)


def _place(key: str) -> Path:
    return cache_folder() / "trials" / f"{key[:32]}.json"


def _measured(row: Mapping[str, Any]) -> Measured:
    size = Size(row["batch"], row["accumulate"], row["checkpointing"])
    return Measured(size, row["tokens_per_second"], row["gib"])
