"""The machine that this runs on."""

from __future__ import annotations

import os
import sys


def count_cores() -> int:
    """How many cores this process may use: what a container or taskset leaves of the machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
