"""GPUs and their memory, and base models that this machine's GPU can train."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from schemas.errors import TrainError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: memory in GiB according to the driver, and dense 16-bit TFLOP/s of its data sheet, None if unknown."""

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
"""Dense bf16 with fp32 accumulation (T4: fp16), from NVIDIA's data sheets and architecture papers."""

MODELS = {
    "Qwen/Qwen3-32B": 28,
    "Qwen/Qwen3-14B": 14,
    "Qwen/Qwen3-8B": 9,
    "Qwen/Qwen3-4B-Instruct-2507": 5,
    "Qwen/Qwen3-0.6B": 2,
}
"""Examples of base models, and GiB with which QLoRA with the defaults of the recipe trains each: `curate plan --gpu`
estimates 20.8, 11.0, 7.0, 3.6 and 1.2 for a batch size of 1."""

FOR_CPU = "HuggingFaceTB/SmolLM2-135M-Instruct"


def find_gpu(name: str) -> Gpu:
    """The GPU that `--gpu` names. Raises `TrainError` that lists the known ones."""
    if name == "this":
        return detect_gpu()
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    memory = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)", name.lower())
    if memory:
        return Gpu(f"a GPU of {memory[1]} GiB", float(memory[1]), None)
    raise TrainError(f"There is no known GPU {name!r}.", f"Known: this, {', '.join(GPUS)}, or a memory size: 24g.")


def detect_gpu() -> Gpu:
    """The first GPU of this machine. Raises `TrainError` without one."""
    tool = shutil.which("nvidia-smi")
    options = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    output = subprocess.run([tool, *options], capture_output=True, text=True, check=False).stdout if tool else ""
    if not output.strip():
        raise TrainError("nvidia-smi finds no GPU on this machine.", f"Name one: --gpu {next(iter(GPUS))}")
    name, _, memory = output.splitlines()[0].partition(", ")
    known = next((gpu for gpu in GPUS.values() if name.startswith(gpu.name)), None)
    return Gpu(name, float(memory) / 1024, known.tflops if known else None)


def suggest_model() -> str:
    """A sentence with base models for this machine."""
    try:
        gpu = detect_gpu()
    except TrainError:
        return f"Without a GPU only small models train, such as {FOR_CPU}."
    fitting = [name for name, least in MODELS.items() if gpu.memory >= least] or [FOR_CPU]
    smaller = f", or smaller: {fitting[1]}" if len(fitting) > 1 else ""
    return f"For {gpu.name} with {gpu.memory:.0f} GiB, for example {fitting[0]}{smaller}."
