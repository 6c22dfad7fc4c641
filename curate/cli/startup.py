"""Makes sure that `train` and `schemas` are ours: three plain names, which a user's own `train.py` can hide.

The roof imports this first of all, so that the failure is a sentence and not a traceback about a missing module.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
SIBLINGS = ("schemas", "train")


def hidden() -> dict[str, str]:
    """Our packages that Python finds somewhere else, or nowhere, and where: empty when all is well."""
    found = {name: _origin(name) for name in SIBLINGS}
    return {name: origin for name, origin in found.items() if Path(origin).resolve() != HOME / name / "__init__.py"}


def check() -> None:
    """Leave with two lines and exit code 1 when one of our packages is hidden."""
    for name, origin in hidden().items():
        sys.exit(
            f"Error: Python finds the package `{name}` in {origin}, which hides the one that curate needs.\n"
            f"  → Rename it, take its folder out of PYTHONPATH, or install curate-sft in an environment of its own."
        )


def _origin(name: str) -> str:
    spec = find_spec(name)
    return "nowhere" if spec is None else spec.origin or "a folder without __init__.py"


check()
