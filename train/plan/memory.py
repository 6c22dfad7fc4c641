"""In: a model's config, the recipe, a chip. Out: what training would take of memory, by part, and how fast it would be.

Nothing is loaded. The numbers are a model of Unsloth's engine, fitted to measurements on an H200 with a Llama of 8
billion parameters (tests/bench/RESULTS.md): there it is right within 5 % in memory and 10 % in speed, elsewhere it is
a guess of about a fifth. `batch = "auto"` measures instead.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines.batch_size import SAME_SPEED, CheckpointingMode

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: memory in GiB as the driver counts it, and dense 16-bit TFLOP/s by its data sheet, None if unknown."""

    name: str
    memory: float
    tflops: float | None


GPUS = {
    "b200-180g": Gpu("NVIDIA B200", 178.4, 2250),
    "h200-141g": Gpu("NVIDIA H200", 139.8, 989),
    "h100-80g": Gpu("NVIDIA H100 80GB HBM3", 79.2, 989),
    "h100-pcie-80g": Gpu("NVIDIA H100 PCIe", 79.2, 756),
    "a100-80g": Gpu("NVIDIA A100 80GB", 79.2, 312),
    "a100-40g": Gpu("NVIDIA A100 40GB", 39.4, 312),
    "l40s-48g": Gpu("NVIDIA L40S", 44.4, 362),
    "a10-24g": Gpu("NVIDIA A10", 22.1, 125),
    "l4-24g": Gpu("NVIDIA L4", 22.0, 121),
    "t4-16g": Gpu("Tesla T4", 14.6, 65),
    "rtx5090-32g": Gpu("NVIDIA GeForce RTX 5090", 31.4, 209),
    "rtx4090-24g": Gpu("NVIDIA GeForce RTX 4090", 23.5, 165),
    "rtx3090-24g": Gpu("NVIDIA GeForce RTX 3090", 23.6, 71),
}
"""Dense bf16 with fp32 sums (T4: fp16), from NVIDIA's data sheets and architecture papers."""

NF4_BYTES = 0.5 + (8 + 32 / 256) / 64 / 8
"""Of a weight in NF4 with double quantisation: 4 bits, an 8-bit scale for 64 of them, fp32 for 256 of those."""

LOGITS, BUFFERS = 0.3 * GIB, 0.12 * GIB
"""Unsloth makes the logits in pieces, and un-quantises a matrix at a time."""

REACHED, LAUNCHES = 0.54, 1.2e-3
"""Share of the data sheet that matrices reach; seconds a layer and pass that it costs to start the kernels."""

FILLED = 0.97
"""Share of the memory that may be taken: the trial of `batch = "auto"` leaves as much free."""

BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides memory and speed; `linear` counts the weights that are quantised."""

    layers: int
    hidden: int
    inner: int
    queries: int  # width of all query heads together
    keys: int  # the same of keys, and of values
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights of the matrices inside the layers."""
        return self.layers * sum(a * b for a, b in self.matrices().values())

    @property
    def embeddings(self) -> int:
        """Weights of the embedding, and of the head where it is another."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The size of each matrix of a layer, by the name that adapters know it by."""
        h, i = self.hidden, self.inner
        attention = {"q_proj": (h, self.queries), "k_proj": (h, self.keys), "v_proj": (h, self.keys)}
        return attention | {"o_proj": (self.queries, h), "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a training takes on a chip. `parts` are GiB that every size takes, `sizes` one row each."""

    gpu: Gpu
    limit: float
    parts: dict[str, float]
    configs: list[dict[str, Any]]
    best: dict[str, Any] | None  # the fastest that fits

    def as_json(self) -> dict[str, Any]:
        """The budget as plain values."""
        return asdict(self)


def estimate_memory(folder: Path, recipe: TrainSection, tokens: int, gpu: str) -> MemoryEstimate:
    """What training on `tokens` tokens an epoch with the model in `folder` takes on `gpu`.

    `gpu` is a name of `GPUS`, a memory such as 24g, or "this". Raises `TrainError` where the chip is unknown or the
    model's config is of a kind that this does not count.
    """
    chip = find_gpu(gpu)
    if recipe.method == "full":
        raise TrainError("The budget counts adapters, not method full.", "Leave --gpu out; batch = auto measures.")
    shape = read_model_shape(folder)
    parts = {name: size / GIB for name, size in _parts(shape, recipe).items()}
    allowed = min(chip.memory, recipe.max_memory or chip.memory)
    trained = (recipe.steps * recipe.packs_per_step * recipe.max_length) if recipe.steps else tokens * recipe.epochs
    sizes = [
        row | {"fits": row["gib"] <= FILLED * allowed, "seconds": trained / speed if speed else None}
        for row in _sizes(shape, recipe, chip, sum(parts.values()))
        for speed in [row["tokens_per_second"]]
    ]
    return MemoryEstimate(chip, allowed, parts, sizes, _best(sizes))


def find_gpu(gpu: str) -> Gpu:
    """The chip that `--gpu` names. Raises `TrainError` naming those that are known."""
    if gpu == "this":
        return _this_chip()
    if gpu.lower() in GPUS:
        return GPUS[gpu.lower()]
    memory = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)", gpu.lower())
    if memory:
        return Gpu(f"a GPU of {memory[1]} GiB", float(memory[1]), None)
    raise TrainError(f"There is no GPU called {gpu!r} here.", f"Known: this, {', '.join(GPUS)}, or a memory: 24g.")


def _this_chip() -> Gpu:
    tool = shutil.which("nvidia-smi")
    asked = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run([tool, *asked], capture_output=True, text=True, check=False).stdout if tool else ""
    if not said.strip():
        raise TrainError("This machine has no NVIDIA GPU that answers.", f"Name one: --gpu {next(iter(GPUS))}")
    name, _, memory = said.splitlines()[0].partition(", ")
    known = next((chip for chip in GPUS.values() if name.startswith(chip.name)), None)
    return Gpu(name, float(memory) / 1024, known.tflops if known else None)


def read_model_shape(folder: Path) -> ModelShape:
    """The shape in a model's `config.json`. Raises `TrainError` where it is missing, or a mixture of experts."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        if any(key in config for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise TrainError(f"{folder} is a mixture of experts, which this does not count.", "Leave --gpu out.")
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
        what = f"{folder} has no config.json that says how large the model is ({error})."
        raise TrainError(what, "Give --model FOLDER with its config.json, or leave --gpu out.") from error


def _parts(shape: ModelShape, recipe: TrainSection) -> Mapping[str, float]:
    """Bytes that do not depend on the size of a pass."""
    trained = _adapter(shape, recipe) + _embedding(shape, recipe)
    linear = NF4_BYTES if recipe.method in ("auto", "qlora") else 2
    optimizer = 2 if "8bit" in str(recipe.extra.get("optim", "")) else 8
    return {
        "weights": shape.linear * linear + shape.embeddings * 2,
        "adapter": trained * 4,
        "gradients": trained * 4,
        "optimizer": trained * optimizer,
        "logits": LOGITS + BUFFERS,
    }


def _adapter(shape: ModelShape, recipe: TrainSection) -> int:
    matrices = shape.matrices()
    targets = recipe.extra.get("target_modules", list(matrices))
    return shape.layers * sum(recipe.rank * sum(matrices[name]) for name in targets if name in matrices)


def _embedding(shape: ModelShape, recipe: TrainSection) -> int:
    """Weights of embedding and head that are trained: a copy of each, beside the base model's."""
    return 0 if recipe.embedding_learning_rate is None else shape.embeddings


def _sizes(shape: ModelShape, recipe: TrainSection, chip: Gpu, always: float) -> Iterator[dict[str, Any]]:
    """One row for each kind of checkpointing and batch that divides the packs of a step; `always` is GiB."""
    for kind in (False, "unsloth"):
        for batch in (number for number in BATCHES if recipe.packs_per_step % number == 0):
            tokens = batch * recipe.max_length
            activations = tokens * _activations(shape, kind) / GIB
            yield {
                "checkpointing": kind,
                "batch": batch,
                "accumulate": recipe.packs_per_step // batch,
                "activations": activations,
                "gib": always + activations,
                "tokens_per_second": _speed(shape, recipe, chip, tokens, kind),
            }


def _best(sizes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest that fits; of those that are about as fast, the one with the least memory."""
    fitting = [size for size in sizes if size["fits"]]
    pace = [size["tokens_per_second"] or 0.0 for size in fitting]
    close = [size for size, speed in zip(fitting, pace, strict=True) if speed >= max(pace) * (1 - SAME_SPEED)]
    return min(close, key=lambda size: (bool(size["checkpointing"]), size["gib"]), default=None)


def _activations(shape: ModelShape, kind: CheckpointingMode) -> float:
    """Bytes a token: of all layers, or of the one at work and a half where the others are computed again."""
    layer = 2 * (2 * shape.inner + 6 * shape.hidden + 2 * shape.keys)
    return layer * (1.6 if kind else shape.layers)


def _speed(shape: ModelShape, recipe: TrainSection, chip: Gpu, tokens: int, kind: CheckpointingMode) -> float | None:
    """Tokens a second: two operations a weight forwards, two back to the inputs, two more to compute again.

    A head that is trained takes two more for its own gradient.
    """
    if chip.tflops is None:
        return None
    head = shape.vocabulary * shape.hidden
    operations = (shape.linear + head) * (6 if kind else 4) + (2 * head if _embedding(shape, recipe) else 0)
    computing = tokens * operations / (REACHED * chip.tflops * 1e12)
    return tokens / (computing + shape.layers * LAUNCHES)
