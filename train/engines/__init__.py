"""The engines that fit an adapter: one file each, all with the same two functions, registered by name.

In: a `Job`, which is token ids with their labels, a base model's folder and the recipe. Out: the adapter in
`job.adapter` and a `Fit`, the measurements and what the engine really did. An engine imports its heavy friends
inside `fit`, and two engines never share a process, since one of them patches the libraries of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines.batch_size import Size
from train.engines.trl import fit as fit_with_transformers
from train.engines.trl import load as load_with_transformers
from train.engines.unsloth import fit as fit_with_unsloth
from train.engines.unsloth import load as load_with_unsloth
from train.model.base_model import Method

if TYPE_CHECKING:
    from train.engines.trainer import Loaded


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step that is done. `tokens` counts what this process has trained on, `seconds` how long it took."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    left: float = 0.0  # seconds, at the pace so far
    memory: float = 0.0  # GiB, the peak of this process: of the GPU where there is one
    eval_loss: float | None = None  # on the held-out conversations, where it was taken after this step

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


Settle = Callable[[Size, Mapping[str, Any] | None, Sequence[Mapping[str, Any]]], None]
"""Told a size, the step down that led to it, and what a trial before it measured: `Settled.write`."""


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is asked to do. `rows` and `held_out` have the columns `input_ids` and `labels`.

    `checkpoints` and `adapter` are folders to write into; `resume` is a whole checkpoint to go on from. `size` is
    that of the run which is repeated or resumed. `trial` names what a measured size is remembered under, `evaluations`
    are the held-out losses by step up to `resume`, `board` is the folder for TensorBoard.
    """

    rows: pl.DataFrame
    held_out: pl.DataFrame
    model: Path
    recipe: TrainSection
    method: Method
    checkpoints: Path
    adapter: Path
    resume: Path | None
    report: Callable[[Step], None]
    size: Size | None = None
    trial: str | None = None
    evaluations: Mapping[int, float] = field(default_factory=dict)
    board: Path | None = None
    samples: Mapping[str, Any] | None = (
        None  # of train.tokens.template_parity: compared with the tokenizer before anything is trained
    )
    settled: Settle = lambda *_: None  # told each size before it is trained with
    asked: Callable[[], bool] = lambda: False  # whether to stop after this step


@dataclass(frozen=True, slots=True)
class Fit:
    """What an engine hands back: losses in nats per learned token, and the facts of how they came about.

    `seen` says of each of the job's rows, in their order, how often the steps saw it that made the adapter.
    """

    metrics: dict[str, float]
    facts: dict[str, Any]
    seen: list[int]


Engine = Callable[[Job], Fit]

ENGINES: dict[str, Engine] = {"unsloth": fit_with_unsloth, "transformers": fit_with_transformers}

LOADERS: dict[str, Callable[[Job], Loaded]] = {"unsloth": load_with_unsloth, "transformers": load_with_transformers}
"""What each engine does before it trains."""


def token_digest(rows: pl.DataFrame) -> str:
    """SHA-256 over the lengths, then the ids, then the labels of the rows in their order, little-endian.

    >>> token_digest(pl.DataFrame({"input_ids": [[1, 2]], "labels": [[-100, 2]]}))[:12]
    '2806d3df3af1'
    """
    hashed = sha256(rows["input_ids"].list.len().cast(pl.Int64).to_numpy().astype("<i8").tobytes())
    for column in ("input_ids", "labels"):
        hashed.update(rows[column].explode().to_numpy().astype("<i4").tobytes())
    return hashed.hexdigest()


def find_loader(name: str) -> Callable[[Job], Loaded]:
    """What the engine called `name` loads. Raises `TrainError` naming those that are known."""
    find_engine(name)
    return LOADERS[name]


def find_engine(name: str) -> Engine:
    """The engine called `name`. Raises `TrainError` naming those that are known."""
    if name not in ENGINES:
        raise TrainError(
            f"There is no engine called {name!r}.", f"Known engines: {', '.join(ENGINES)} (train.engine in the recipe)."
        )
    return ENGINES[name]
