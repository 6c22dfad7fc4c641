"""This machine and installation → the facts of the manifest that can change the bits of a result; torch's threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from schemas.environment import count_cores, installed_version
from schemas.manifest import MachineFacts
from train.engines import find_engine
from train.runs.torchrun import SINGLE_PROCESS, Processes

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes"),
    *("safetensors", "tokenizers", "numpy", "polars", "jinja2"),
)
"""Packages whose versions can change the result with any engine; the manifest lists them."""

SPIN_COUNT = 1_000
"""Rounds that an idle thread spins, some microseconds. Tiny model, two threads on two cores: 7,400 tokens per second
on an idle machine, equal to the default of 300,000, and 5,000 without spinning. With three busy loops running at the
same time: 1,500 with 1,000 rounds or none, and 600 with the default. The bits are the same."""


def set_threads(threads: int | None) -> int:
    """Make torch use `threads` threads (default: OMP_NUM_THREADS, else every core) and return the number.

    Idle threads spin briefly and then sleep, unless GOMP_SPINCOUNT is set: GNU's OpenMP spins for some milliseconds,
    which delays the other thread when other processes need the cores.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))  # torch reads these variables when it is imported
    count = threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or count_cores()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)
    return count


def machine_facts(threads: int, processes: Processes = SINGLE_PROCESS) -> MachineFacts:
    """The properties of this machine that can change a result."""
    import torch

    on_gpu = torch.cuda.is_available()
    main_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else main_memory
    return MachineFacts(
        device="cuda" if on_gpu else "cpu",
        device_name=torch.cuda.get_device_name(0) if on_gpu else _processor(),
        memory_gib=round(memory / 2**30, 1),
        processor=_processor(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        threads=threads,
        gpus=processes.world_size,
        sharding=processes.sharding if processes.world_size > 1 else "none",
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def package_versions(engine: str) -> dict[str, str]:
    """The installed versions of the packages that can change the engine's result."""
    names = (*PACKAGES, *find_engine(engine).packages)
    return {name: installed_version(name) or "missing" for name in names}
