"""Looks at the machine: nothing comes in, findings go out: what is installed, what clashes, and what to type.

Versions are read from the installed packages' metadata and the torch build from its version file, so nothing
heavy is imported and a broken torch is described instead of met.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import metadata, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from curate.review.argilla import process
from schemas.environment import DISTRIBUTION, count_cores, install_command, installed_version
from schemas.errors import StoreError
from schemas.store import reading
from schemas.text import plural

EXTRAS = {
    "train": "tune a model",
    "unsloth": "train with Unsloth",
    "review": "let people label",
    "gguf": "write and check GGUF files",
    "dev": "work on curate itself",
}
MIB, GIB = 2**20, 2**30

State = Literal["ok", "note", "clash"]
MARKS: dict[State, str] = {"ok": "✓", "note": "·", "clash": "✗"}


AMPERE = 8.0
"""Compute capability from which torch's flash attention runs."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `note`: good to know, or not there; `clash`: something will not work."""

    about: str
    state: State
    found: str
    advice: str = ""

    def as_text(self) -> str:
        """The finding for a terminal, the advice on a line of its own.

        >>> print(Finding("trl", "clash", "1.15.0", "pip install 'trl<1.15'").as_text())
        ✗ trl            1.15.0
                         → pip install 'trl<1.15'
        """
        advice = f"\n{'':17}→ {self.advice}" if self.advice else ""
        return f"{MARKS[self.state]} {self.about:14} {self.found}{advice}"


def diagnose(store: Path) -> list[Finding]:
    """Everything worth knowing before a command fails on it, in the order of a command's way."""
    return [
        _python(),
        *_packages(),
        *_extras(),
        *_torch(),
        _gpu(),
        *_attention(),
        *_licences(),
        _store(store),
        _labelling_server(),
        _machine(store),
    ]


def extra_of(package: str) -> str | None:
    """The extra that installs `package`, if one of ours does.

    >>> extra_of("torch"), extra_of("unsloth_zoo"), extra_of("polars")
    ('train', 'unsloth', None)
    """
    return next((extra for needed, extra in _requirements() if _same(needed.name, package)), None)


def missing_of(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [needed.name for needed, of in _requirements() if of == extra and installed_version(needed.name) is None]


def _same(one: str, other: str) -> bool:
    return one.replace("_", "-").lower() == other.replace("_", "-").lower()


def _python() -> Finding:
    found = sys.version.split()[0]
    wanted = metadata(DISTRIBUTION)["Requires-Python"]
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", "ok", f"{found} in {sys.prefix}")
    return Finding("Python", "clash", f"{found}, needed is {wanted}", "Make an environment with a newer Python.")


def _packages() -> Iterator[Finding]:
    """One line when every core package is there in a version that fits, else one line for each that is not."""
    wanted = [needed for needed, extra in _requirements() if extra is None]
    wrong = [_misfit(needed) for needed in wanted]
    yield from (finding for finding in wrong if finding)
    if not any(wrong):
        named = ", ".join(f"{needed.name} {installed_version(needed.name)}" for needed in wanted[:3])
        yield Finding(
            "packages", "ok", f"{DISTRIBUTION} {installed_version(DISTRIBUTION)}: {named} and {len(wanted) - 3} more"
        )


def _extras() -> Iterator[Finding]:
    """One line for each extra, and one more for each of its packages that is there in the wrong version."""
    for extra, purpose in EXTRAS.items():
        wanted = [needed for needed, of in _requirements() if of == extra]
        missing = missing_of(extra)
        clashing = [finding for needed in wanted if (finding := _misfit(needed)) and needed.name not in missing]
        yield from clashing
        if missing:
            found = f"not installed ({', '.join(missing)})" if len(missing) < len(wanted) else "not installed"
            yield Finding(f"extra {extra}", "note", found, f"to {purpose}: {install_command(extra)}")
        elif not clashing:
            named = ", ".join(f"{needed.name} {installed_version(needed.name)}" for needed in wanted[:3])
            yield Finding(f"extra {extra}", "ok", named)


def _torch() -> Iterator[Finding]:
    """Which build torch is, and whether torchvision fits it."""
    found = installed_version("torch")
    if found is None:
        return
    cuda = _torch_cuda()
    yield Finding("torch", "ok", f"{found}, built for {'CUDA ' + cuda if cuda else 'the CPU'}")
    if installed_version("trl"):
        yield Finding(
            "packing",
            "note",
            "whether packed conversations are blind for each other depends on model, engine and machine",
            "curate check-packing MODEL proves it",
        )
    vision = installed_version("torchvision")
    if vision and not cuda and "+cpu" not in vision:
        yield Finding(
            "torchvision",
            "clash",
            f"{vision} is built for CUDA and breaks `import unsloth`, trl and transformers beside this torch",
            "pip uninstall -y torchvision",
        )


def _torch_cuda() -> str | None:
    """The CUDA version in torch's own version file, without importing torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    written = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return written.group(1) if written else None


def _gpu() -> Finding:
    try:
        cards = _cards()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", "note", f"nvidia-smi does not answer: {error}", "Look at the driver: nvidia-smi")
    if not cards:
        return Finding("GPU", "note", "none: small models train on the CPU; qlora on a large one wants an NVIDIA card")
    found = "; ".join(cards)
    if installed_version("torch") and _torch_cuda() is None:
        return Finding(
            "GPU", "clash", f"{found}, but torch is built for the CPU", "pip install --force-reinstall torch"
        )
    return Finding("GPU", "ok", found)


def _cards(what: str = "name,memory.total,driver_version") -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, f"--query-gpu={what}", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _attention() -> Iterator[Finding]:
    """Whether the conversations of a pack go through attention in one call, or each in one of its own."""
    try:
        oldest = min((float(card) for card in _cards("compute_cap")), default=None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return  # the finding about the GPU says it
    if oldest is None or not installed_version("unsloth"):
        return
    taken = next((name for name in ("flash-attn", "xformers") if installed_version(name)), None)
    if taken or (oldest >= AMPERE and _torch_has_varlen()):
        yield Finding("attention", "ok", f"one call a pack, by {taken or 'torch'}")
        return
    yield Finding(
        "attention",
        "note",
        "one call a conversation: a pack of short ones takes thousands of small kernels a step, and the GPU waits",
        "pip install --upgrade torch" if oldest >= AMPERE else "pip install xformers, in the version for this torch",
    )


def _torch_has_varlen() -> bool:
    """Whether torch's own attention takes a whole pack, in its file, without importing torch."""
    spec = find_spec("torch")
    path = Path(spec.origin).parent / "nn" / "attention" / "varlen.py" if spec and spec.origin else None
    return path is not None and path.exists() and "window_size" in path.read_text(encoding="utf-8")


def _licences() -> Iterator[Finding]:
    if installed_version("unsloth"):
        yield Finding(
            "licences",
            "note",
            "unsloth is AGPL-3.0 in part, unsloth_zoo LGPL/AGPL; curate is Apache-2.0 and only imports them",
            "--set train.engine=transformers trains without them",
        )


def _store(path: Path) -> Finding:
    if not path.exists():
        return Finding("store", "note", f"none at {path}", "curate import FILE makes it")
    try:
        with reading(path) as connection:
            ((found,),) = connection.sql("SELECT count(*) FROM conversations").fetchall()
    except StoreError as error:
        return Finding("store", "clash", error.what, error.hint)
    return Finding("store", "ok", f"{path}, {plural(found, 'conversation')}, {_size(path)}")


def _size(path: Path) -> str:
    """How large a file is, in MiB up to one GiB."""
    size = path.stat().st_size
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"


def _labelling_server() -> Finding:
    if process.is_made():
        return Finding("labelling server", "ok", f"set up in {process.environment()}")
    return Finding("labelling server", "note", "not set up", "curate review serve does it, about a minute, once")


def _machine(store: Path) -> Finding:
    free = shutil.disk_usage(store.absolute().parent if store.absolute().parent.is_dir() else Path.cwd()).free
    found = f"{plural(count_cores(), 'core')}, {_memory()}, {free / GIB:.0f} GiB free on the disk of the store"
    if free < GIB:
        return Finding("machine", "clash", found, "Free some disk: a store needs about the size of its sources.")
    return Finding("machine", "ok", found)


def _memory() -> str:
    if sys.platform == "win32":
        return "memory unknown"  # Windows has no sysconf
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB memory"


def _requirements() -> Iterable[tuple[Requirement, str | None]]:
    """What this release asks for, each with the extra that asks for it."""
    for line in requires(DISTRIBUTION) or ():
        needed = Requirement(line)
        marker = re.search(r"extra == ['\"](\w+)['\"]", line)
        if marker or needed.marker is None or needed.marker.evaluate():
            yield needed, marker.group(1) if marker else None


def _misfit(needed: Requirement) -> Finding | None:
    """What is wrong with the installed version of `needed`, if anything."""
    found = installed_version(needed.name)
    if found is not None and needed.specifier.contains(found, prereleases=True):
        return None
    advice = f"pip install '{needed.name}{needed.specifier}'"
    if needed.name == "trl" and found == "1.15.0":
        return Finding("trl", "clash", "1.15.0 cannot train without a Triton device", advice)
    return Finding(needed.name, "clash", f"{found or 'missing'}, needed is {needed.specifier}", advice)
