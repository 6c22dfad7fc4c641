"""Which of several processes this one is, as torchrun says it, and what they have to agree on."""

from __future__ import annotations

import os
from typing import Any


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Whether the processes share one model between them."""
    return world() > 1 and os.environ.get("UNSLOTH_FSDP2") == "1"


def total(values: list[float], device: Any) -> list[float]:
    """The sum of each value over all processes, the same on every one."""
    if world() == 1:
        return values
    import torch

    summed = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return list(map(float, summed.tolist()))
