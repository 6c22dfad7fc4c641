"""The installation and the machine → findings: installed packages, conflicts, and the command that fixes each.

Versions are read from package metadata and the torch build from its version file, so that nothing heavy is imported and
a broken torch is reported instead of raising.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import metadata, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from curate.review.argilla import process
from schemas.conversation import PRESENT_SQL
from schemas.environment import DISTRIBUTION, count_cores, install_command, installed_version
from schemas.errors import StoreError
from schemas.store import reading
from schemas.text import plural

EXTRAS = {
    "train": "train a model",
    "unsloth": "train with Unsloth",
    "review": "review conversations on a labelling server",
    "gguf": "write and check GGUF files",
    "dev": "develop curate",
}
MIB, GIB = 2**20, 2**30

State = Literal["ok", "note", "conflict"]

AMPERE = 8.0
"""Minimum compute capability for torch's flash attention."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `note`: optional or informative; `conflict`: some command will fail."""

    topic: str
    state: State
    value: str
    advice: str = ""
    """a command, or an instruction"""


def run_checks(store: Path) -> list[Finding]:
    """The findings of all checks, in the order in which commands need them."""
    return [
        _check_python(),
        *_check_packages(),
        *_check_extras(),
        *_check_torch(),
        _check_gpu(),
        *_check_attention(),
        *_check_licences(),
        _check_store(store),
        _check_labelling_server(),
        _check_machine(store),
    ]


def find_extra(package: str) -> str | None:
    """The extra that installs `package`, or None.

    >>> find_extra("torch"), find_extra("unsloth_zoo"), find_extra("polars")
    ('train', 'unsloth', None)
    """
    name = canonicalize_name(package)
    return next((extra for needed, extra in _requirements() if canonicalize_name(needed.name) == name), None)


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [needed.name for needed in _required_by(extra) if installed_version(needed.name) is None]


def _check_python() -> Finding:
    version = sys.version.split()[0]
    required = metadata(DISTRIBUTION)["Requires-Python"]
    if SpecifierSet(required).contains(version, prereleases=True):
        return Finding("Python", "ok", f"{version} in {sys.prefix}")
    return Finding(
        "Python", "conflict", f"{version}, but {required} is required", "Create an environment with a newer Python."
    )


def _check_packages() -> Iterator[Finding]:
    """One finding if all core packages are installed in compatible versions, otherwise one per incompatible package."""
    required = _required_by(None)
    conflicts = [conflict for needed in required if (conflict := _find_conflict(needed))]
    yield from conflicts
    if not conflicts:
        version = installed_version(DISTRIBUTION)
        yield Finding("packages", "ok", f"{DISTRIBUTION} {version}: {_versions(required)} and {len(required) - 3} more")


def _check_extras() -> Iterator[Finding]:
    """One finding per extra, and one per package of an extra that is installed in an incompatible version."""
    for extra, purpose in EXTRAS.items():
        required, missing = _required_by(extra), missing_packages(extra)
        conflicts = [
            conflict for needed in required if needed.name not in missing and (conflict := _find_conflict(needed))
        ]
        yield from conflicts
        if missing:
            value = f"not installed ({', '.join(missing)})" if len(missing) < len(required) else "not installed"
            yield Finding(f"extra {extra}", "note", value, f"to {purpose}: {install_command(extra)}")
        elif not conflicts:
            yield Finding(f"extra {extra}", "ok", _versions(required))


def _versions(required: Sequence[Requirement]) -> str:
    """The installed versions of the first three packages."""
    return ", ".join(f"{needed.name} {installed_version(needed.name)}" for needed in required[:3])


def _check_torch() -> Iterator[Finding]:
    """The build of torch, and whether torchvision is compatible with it."""
    version = installed_version("torch")
    if version is None:
        return
    cuda = _torch_cuda()
    yield Finding("torch", "ok", f"{version}, built for {'CUDA ' + cuda if cuda else 'the CPU'}")
    if installed_version("trl"):
        yield Finding(
            "packing",
            "note",
            "whether packed conversations are isolated depends on model, engine and machine",
            "curate check-packing MODEL checks it",
        )
    vision = installed_version("torchvision")
    if vision and not cuda and "+cpu" not in vision:
        yield Finding(
            "torchvision",
            "conflict",
            f"{vision} is built for CUDA and breaks the imports of unsloth, trl and transformers with this torch",
            "pip uninstall -y torchvision",
        )


def _torch_cuda() -> str | None:
    """The CUDA version in torch's version file, read without importing torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return cuda.group(1) if cuda else None


def _check_gpu() -> Finding:
    try:
        gpus = _query_gpus("name,memory.total,driver_version")
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", "note", f"nvidia-smi failed: {error}", "Check the driver: nvidia-smi")
    if not gpus:
        return Finding("GPU", "note", "none: small models train on the CPU; qlora of large models needs an NVIDIA GPU")
    value = "; ".join(gpus)
    if installed_version("torch") and _torch_cuda() is None:
        return Finding(
            "GPU", "conflict", f"{value}, but torch is built for the CPU", "pip install --force-reinstall torch"
        )
    return Finding("GPU", "ok", value)


def _query_gpus(fields: str) -> list[str]:
    """One line per GPU, or none without nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    return [line.strip() for line in output.splitlines() if line.strip()]


def _check_attention() -> Iterator[Finding]:
    """Whether a pack needs one attention call, or one per conversation."""
    try:
        oldest = min((float(capability) for capability in _query_gpus("compute_cap")), default=None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return  # reported by _check_gpu
    if oldest is None or not installed_version("unsloth"):
        return
    package = next((name for name in ("flash-attn", "xformers") if installed_version(name)), None)
    if package or (oldest >= AMPERE and _torch_has_varlen()):
        yield Finding("attention", "ok", f"one call per pack, by {package or 'torch'}")
        return
    yield Finding(
        "attention",
        "note",
        "one call per conversation: a pack of short ones needs thousands of small kernels per step, the GPU is idle",
        "pip install --upgrade torch" if oldest >= AMPERE else "pip install xformers, in the version for this torch",
    )


def _torch_has_varlen() -> bool:
    """Whether torch's attention accepts a complete pack, according to its source file, read without importing torch."""
    spec = find_spec("torch")
    path = Path(spec.origin).parent / "nn" / "attention" / "varlen.py" if spec and spec.origin else None
    return path is not None and path.exists() and "window_size" in path.read_text(encoding="utf-8")


def _check_licences() -> Iterator[Finding]:
    if installed_version("unsloth"):
        yield Finding(
            "licences",
            "note",
            "unsloth is partly AGPL-3.0, unsloth_zoo LGPL/AGPL; curate is Apache-2.0 and only imports them",
            "--set train.engine=transformers trains without them",
        )


def _check_store(path: Path) -> Finding:
    if not path.exists():
        return Finding("store", "note", f"none at {path}", "curate import FILE creates it")
    try:
        with reading(path) as connection:
            ((count,),) = connection.sql(f"SELECT count(*) FROM conversations c WHERE {PRESENT_SQL}").fetchall()
    except StoreError as error:
        return Finding("store", "conflict", error.what, error.hint)
    size = path.stat().st_size
    human_size = f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
    return Finding("store", "ok", f"{path}, {plural(count, 'conversation')}, {human_size}")


def _check_labelling_server() -> Finding:
    if process.is_installed():
        return Finding("labelling server", "ok", f"installed in {process.environment_dir()}")
    return Finding("labelling server", "note", "not installed", "curate review serve installs it in about a minute")


def _check_machine(store: Path) -> Finding:
    folder = store.absolute().parent
    free = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free
    value = f"{plural(count_cores(), 'core')}, {_memory()}, {free / GIB:.0f} GiB free on the disk of the store"
    if free < GIB:
        return Finding("machine", "conflict", value, "Free some disk space: a store is about as large as its sources.")
    return Finding("machine", "ok", value)


def _memory() -> str:
    if sys.platform == "win32":
        return "memory unknown"  # Windows has no sysconf
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB memory"


def _requirements() -> Iterable[tuple[Requirement, str | None]]:
    """The requirements of this release, each with its extra, or None for the core packages."""
    for line in requires(DISTRIBUTION) or ():
        needed = Requirement(line)
        marker = re.search(r"extra == ['\"](\w+)['\"]", line)
        if marker or needed.marker is None or needed.marker.evaluate():
            yield needed, marker.group(1) if marker else None


def _required_by(extra: str | None) -> list[Requirement]:
    return [needed for needed, extra_ in _requirements() if extra_ == extra]


def _find_conflict(needed: Requirement) -> Finding | None:
    """The finding about a missing package or an incompatible version, or None."""
    version = installed_version(needed.name)
    if version is not None and needed.specifier.contains(version, prereleases=True):
        return None
    advice = f"pip install '{needed.name}{needed.specifier}'"
    if needed.name == "trl" and version == "1.15.0":
        return Finding("trl", "conflict", "1.15.0 cannot train without a Triton device", advice)
    return Finding(needed.name, "conflict", f"{version or 'missing'}, but {needed.specifier} is required", advice)
