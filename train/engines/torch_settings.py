"""The recipe's `max_memory` and `deterministic` → settings of torch for this process, made before a model is loaded."""

from __future__ import annotations

import os

import torch

from schemas.errors import TrainError
from schemas.recipe import TrainSection


def apply_torch_settings(recipe: TrainSection) -> None:
    """Limit the GPU memory of this process and select deterministic kernels. Must precede the first use of CUDA.

    Raises `TrainError` if `max_memory` exceeds the GPU's memory.
    """
    if recipe.max_memory is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
        if recipe.max_memory > total:
            raise TrainError(
                f"max_memory is {recipe.max_memory:g} GiB, but the GPU has {total:.1f} GiB.", "Remove train.max_memory."
            )
        torch.cuda.set_per_process_memory_fraction(recipe.max_memory / total)
    if recipe.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # slow on every new tensor, and changes no bit
        torch.backends.cudnn.benchmark = False
