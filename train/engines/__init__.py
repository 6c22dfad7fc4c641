"""Training engines by name: a `Job` (token ids, labels, base model, recipe) → the adapter in `job.adapter` and a `Fit`.

An engine is a file with a function `load` and a line in `ENGINES`. It imports its heavy packages inside that function.
Two engines never share a process, because Unsloth patches the libraries of the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines.batch_size import BatchConfig, CheckpointingMode
from train.engines.trl import load as load_with_transformers
from train.engines.unsloth import load as load_with_unsloth
from train.model.base_model import Method


@dataclass(frozen=True, slots=True)
class Step:
    """A finished optimiser step. `tokens` and `seconds` are those of this process since it started or resumed."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    left: float = 0.0  # estimated remaining seconds
    memory: float = 0.0  # GiB, the peak of this process: GPU memory if there is a GPU
    eval_loss: float | None = None  # held-out loss, if it was computed after this step

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """The input of an engine. `rows` and `held_out` have the columns `input_ids` and `labels`."""

    rows: pl.DataFrame
    held_out: pl.DataFrame
    model: Path
    recipe: TrainSection
    method: Method
    checkpoints: Path  # folder to write checkpoints to
    adapter: Path  # folder to write the adapter to
    resume: Path | None  # a complete checkpoint to resume from
    report: Callable[[Step], None]
    batch_config: BatchConfig | None = None  # of the run that is resumed or repeated
    autotune_key: str | None = None  # cache key of the autotune measurements
    evaluations: Mapping[int, float] = field(default_factory=dict)  # held-out losses by step, up to `resume`
    tensorboard: Path | None = None
    samples: Mapping[str, Any] | None = None  # of `collect_samples`, compared with the tokenizer first
    on_size_chosen: Callable[..., None] = lambda *_: None  # called with each batch size: `BatchSizeLog.write`
    should_stop: Callable[[], bool] = lambda: False  # asked after every step


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its adapter, ready to train.

    `checkpointing_modes` are the gradient checkpointing modes to try, the fastest first and the one that needs least
    memory last; `set_checkpointing` switches the model to one of them. `facts` are added to the manifest.
    """

    model: Any
    tokenizer: Any
    checkpointing_modes: Sequence[CheckpointingMode]
    set_checkpointing: Callable[[CheckpointingMode], None]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fit:
    """The output of an engine. Losses are in nats per loss token; `facts` are the settings that were really used.

    `epoch_counts` has, for each row of the job in order, how often the steps that made the adapter trained on it.
    """

    metrics: dict[str, float]
    facts: dict[str, Any]
    epoch_counts: list[int]


def _train_with_sft_trainer(job: Job, loaded: Loaded) -> Fit:
    from train.engines.trainer import train  # after the engine's own imports: Unsloth must precede trl and peft

    return train(job, loaded)


@dataclass(frozen=True, slots=True)
class Engine:
    """A training engine: how it loads a model and trains it, and its abilities."""

    load: Callable[[Job], Loaded]  # raises `TrainError` if the engine cannot be imported in this process
    train: Callable[[Job, Loaded], Fit] = _train_with_sft_trainer
    packages: tuple[str, ...] = ()  # whose versions can change the result, besides those of every engine
    packs_on_cpu: bool = True  # on a GPU every engine packs
    can_shard: bool = False  # one model across several GPUs (FSDP)
    distributed_on_cpu: bool = True  # several processes without a GPU

    def fit(self, job: Job) -> Fit:
        """Train an adapter and save it in `job.adapter`.

        Raises `TrainError` if the engine cannot be loaded, or would train on other tokens than those of the job.
        """
        return self.train(job, self.load(job))


ENGINES = {
    "unsloth": Engine(
        load_with_unsloth,
        packages=("unsloth", "unsloth_zoo"),
        packs_on_cpu=False,
        can_shard=True,
        distributed_on_cpu=False,
    ),
    "transformers": Engine(load_with_transformers),
}


def find_engine(name: str) -> Engine:
    """The engine called `name`. Raises `TrainError` that lists the known engines."""
    if name not in ENGINES:
        raise TrainError(
            f"There is no engine called {name!r}.", f"Known engines: {', '.join(ENGINES)} (train.engine in the recipe)."
        )
    return ENGINES[name]


def token_digest(rows: pl.DataFrame) -> str:
    """SHA-256 over the lengths, then the ids, then the labels of the rows in their order, little-endian.

    >>> token_digest(pl.DataFrame({"input_ids": [[1, 2]], "labels": [[-100, 2]]}))[:12]
    '2806d3df3af1'
    """
    hashed = sha256(rows["input_ids"].list.len().cast(pl.Int64).to_numpy().astype("<i8").tobytes())
    for column in ("input_ids", "labels"):
        hashed.update(rows[column].explode().to_numpy().astype("<i4").tobytes())
    return hashed.hexdigest()
