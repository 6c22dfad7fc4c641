"""Settings of the whole process: import guard, garbage collection, memory allocation and threads."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells: 128 + SIGINT."""

GC_THRESHOLD = 10_000
"""New objects between two garbage collections: a tenth as many collections as by default while modules are imported."""

ROOT = Path(__file__).resolve().parents[2]
SIBLINGS = ("schemas", "train")


def check_packages() -> None:
    """Exit with code 1 and two lines if a file such as `train.py` hides one of our packages, whose names are common."""
    for name, origin in find_hidden_packages().items():
        sys.exit(
            f"Error: Python finds the package `{name}` in {origin}, which hides the one that curate needs.\n"
            f"  → Rename it, remove its folder from PYTHONPATH, or install curate-sft in a separate environment."
        )


def find_hidden_packages() -> dict[str, str]:
    """Our packages that Python imports from elsewhere, with the place where it finds them."""
    origins = {name: _find_origin(name) for name in SIBLINGS}
    return {name: origin for name, origin in origins.items() if Path(origin).resolve() != ROOT / name / "__init__.py"}


def _find_origin(name: str) -> str:
    spec = find_spec(name)
    return "nowhere" if spec is None else spec.origin or "a folder without __init__.py"


def tune_garbage_collection() -> None:
    """Collect garbage less often; to be called before the commands are imported."""
    gc.set_threshold(GC_THRESHOLD)


def tune_import() -> None:
    """Set what Polars and NumPy read when they are loaded, for `curate import`; variables that are set already stay.

    Polars' allocator keeps memory for the next batch: returning it and requesting it again page by page took a tenth
    of the time. OpenBLAS starts no threads: they have no work here, but spin for a while. The few objects that an
    import creates after its modules need no garbage collection.
    """
    gc.set_threshold(10 * GC_THRESHOLD)
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@dataclass(slots=True)
class ProcessEnd:
    """How the process ends after a command that succeeded."""

    is_short: bool = False
    """set by a command that has nothing left to finish: its contexts are closed, and its output is printed"""


process_end = ProcessEnd()


def end_process() -> None:
    """End the process with code 0, without the garbage collections of Python's own exit: 0.15 s after an import.

    The store is committed and closed by then, and the output is flushed here. Functions of `atexit`, finalizers and
    threads that still run are skipped. Returns if the output cannot be written; Python reports that at its exit.
    """
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
