"""torchrun's environment variables → the number of this process, the number of processes, and sums over all of them."""

from __future__ import annotations

import os
from typing import Any


def rank() -> int:
    """The number of this process, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Whether the processes share one model (FSDP)."""
    return world_size() > 1 and os.environ.get("UNSLOTH_FSDP2") == "1"


def all_reduce_sum(values: list[float], device: Any) -> list[float]:
    """The sum of each value over all processes, the same in every process."""
    if world_size() == 1:
        return values
    import torch

    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return list(map(float, sums.tolist()))
