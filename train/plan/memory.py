"""A model's config, a recipe and a GPU → an estimate of the memory of a training run, by part, and of its speed.

Nothing is loaded. The estimate models Unsloth's engine, fitted to measurements on an H200 with a Llama of 8 billion
parameters (tests/bench/RESULTS.md). There its error is at most 6 % for memory and 10 % for speed, elsewhere about 20 %.
`batch = "auto"` measures instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines.batch_size import SAME_SPEED, CheckpointingMode
from train.model.gpus import Gpu, find_gpu

GIB = 2**30


NF4_BYTES = 0.5 + (8 + 32 / 256) / 64 / 8
"""Bytes per weight in NF4 with double quantization: 4 bits, an 8-bit scale per 64 weights, fp32 per 256 scales."""

LOGITS, BUFFERS = 0.3 * GIB, 0.12 * GIB
"""Bytes: Unsloth computes the logits in chunks, and dequantizes one matrix at a time."""

EFFICIENCY, LAUNCH_SECONDS = 0.54, 1.2e-3
"""Share of the data sheet's speed that matrix products reach; seconds per layer and pass to launch the kernels."""

MEMORY_SHARE = 0.97
"""Share of the memory that may be used; `batch = "auto"` leaves as much free."""

BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model that decide memory and speed; `linear` is the number of weights that are quantized."""

    layers: int
    hidden: int
    inner: int
    queries: int  # width of all query heads together
    keys: int  # width of all key heads together, and of all value heads
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights of the matrices in the layers."""
        return self.layers * sum(a * b for a, b in self.matrices().values())

    @property
    def embeddings(self) -> int:
        """Weights of the embedding, and of the output head if it is separate."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The size of each matrix of a layer, by its name in an adapter."""
        h, i = self.hidden, self.inner
        attention = {"q_proj": (h, self.queries), "k_proj": (h, self.keys), "v_proj": (h, self.keys)}
        return attention | {"o_proj": (self.queries, h), "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory and speed of a training run on a GPU. `parts` are GiB used with every batch size."""

    gpu: Gpu
    limit: float  # GiB
    parts: dict[str, float]
    configs: list[dict[str, Any]]  # one per batch size and checkpointing mode
    best: dict[str, Any] | None  # the fastest configuration that fits


def estimate_memory(folder: Path, recipe: TrainSection, tokens: int, name: str) -> MemoryEstimate:
    """The estimate for `tokens` tokens per epoch with the model in `folder` on the GPU called `name`.

    `name` is one of `GPUS`, a memory size such as 24g, or "this". Raises `TrainError` for an unknown GPU and for a
    model that cannot be estimated.
    """
    gpu = find_gpu(name)
    if recipe.method == "full":
        raise TrainError("Memory is estimated for adapters, not for method full.", "Omit --gpu; batch = auto measures.")
    shape = read_model_shape(folder)
    parts = {name: size / GIB for name, size in _parts(shape, recipe).items()}
    limit = min(gpu.memory, recipe.max_memory or gpu.memory)
    trained = (recipe.steps * recipe.packs_per_step * recipe.max_length) if recipe.steps else tokens * recipe.epochs
    configs = [
        row | {"fits": row["gib"] <= MEMORY_SHARE * limit, "seconds": trained / speed if speed else None}
        for row in _configs(shape, recipe, gpu, sum(parts.values()))
        for speed in [row["tokens_per_second"]]
    ]
    return MemoryEstimate(gpu, limit, parts, configs, _best(configs))


def read_model_shape(folder: Path) -> ModelShape:
    """The shape in a model's `config.json`. Raises `TrainError` if it is missing, or of a mixture of experts."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        if any(key in config for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise TrainError(f"{folder} is a mixture of experts, whose memory is not estimated.", "Omit --gpu.")
        return ModelShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            inner=config["intermediate_size"],
            queries=heads * width,
            keys=(config.get("num_key_value_heads") or heads) * width,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (FileNotFoundError, ValueError, KeyError) as error:
        what = f"{folder} has no config.json with the size of the model ({error})."
        raise TrainError(what, "Use --model FOLDER with its config.json, or omit --gpu.") from error


def _parts(shape: ModelShape, recipe: TrainSection) -> Mapping[str, float]:
    """Bytes that do not depend on the batch size."""
    trained = _adapter_weights(shape, recipe) + _embedding_weights(shape, recipe)
    linear = NF4_BYTES if recipe.method in ("auto", "qlora") else 2
    optimizer = 2 if "8bit" in str(recipe.extra.get("optim", "")) else 8
    return {
        "weights": shape.linear * linear + shape.embeddings * 2,
        "adapter": trained * 4,
        "gradients": trained * 4,
        "optimizer": trained * optimizer,
        "logits": LOGITS + BUFFERS,
    }


def _adapter_weights(shape: ModelShape, recipe: TrainSection) -> int:
    matrices = shape.matrices()
    targets = recipe.extra.get("target_modules", list(matrices))
    return shape.layers * sum(recipe.rank * sum(matrices[name]) for name in targets if name in matrices)


def _embedding_weights(shape: ModelShape, recipe: TrainSection) -> int:
    """Trained weights of embedding and head: a copy of each, in addition to the base model's."""
    return 0 if recipe.embedding_learning_rate is None else shape.embeddings


def _configs(shape: ModelShape, recipe: TrainSection, gpu: Gpu, constant: float) -> Iterator[dict[str, Any]]:
    """One row per checkpointing mode and batch size that divides the packs of a step; `constant` is in GiB."""
    for mode in (False, "unsloth"):
        for batch in (number for number in BATCHES if recipe.packs_per_step % number == 0):
            tokens = batch * recipe.max_length
            activations = tokens * _activations(shape, mode) / GIB
            yield {
                "checkpointing": mode,
                "batch": batch,
                "accumulate": recipe.packs_per_step // batch,
                "activations": activations,
                "gib": constant + activations,
                "tokens_per_second": _speed(shape, recipe, gpu, tokens, mode),
            }


def _best(configs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest configuration that fits; of those about as fast, the one with the least memory."""
    fitting = [config for config in configs if config["fits"]]
    fastest = max((config["tokens_per_second"] or 0.0 for config in fitting), default=0.0)
    close = [config for config in fitting if (config["tokens_per_second"] or 0.0) >= fastest * (1 - SAME_SPEED)]
    return min(close, key=lambda config: (bool(config["checkpointing"]), config["gib"]), default=None)


def _activations(shape: ModelShape, mode: CheckpointingMode) -> float:
    """Bytes per token: of all layers, or with checkpointing of about one and a half."""
    layer = 2 * (2 * shape.inner + 6 * shape.hidden + 2 * shape.keys)
    return layer * (1.6 if mode else shape.layers)


def _speed(shape: ModelShape, recipe: TrainSection, gpu: Gpu, tokens: int, mode: CheckpointingMode) -> float | None:
    """Tokens per second: two operations per weight forward, two backward, two more to recompute activations.

    A trained head takes two more for its gradient.
    """
    if gpu.tflops is None:
        return None
    head = shape.vocabulary * shape.hidden
    operations = (shape.linear + head) * (6 if mode else 4) + (2 * head if _embedding_weights(shape, recipe) else 0)
    computing = tokens * operations / (EFFICIENCY * gpu.tflops * 1e12)
    return tokens / (computing + shape.layers * LAUNCH_SECONDS)
