"""torchrun's environment variables → rank and world size; sums over all processes, and a stop by a signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def graceful_stop(request_stop: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call `request_stop`; no effect outside the main thread, which gets the signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [(number, signal.signal(number, lambda *_: request_stop())) for number in signals]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
