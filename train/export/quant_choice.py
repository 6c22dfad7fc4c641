"""In: GGUF files of a run and what each costs. Out: which of them to take, now and by the commands that come later.

What was measured is kept beside the files, so `curate ollama` and `curate serve` take what `curate gguf` has said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.errors import ExportError
from train.export.logit_diff import Difference
from train.export.source import Source, beside

KL_TO_TAKE, PERPLEXITY_TO_TAKE = 0.02, 1.01
"""The file to take is the smallest whose divergence from 16 bits is at most this (nats per token), and whose
perplexity is at most this many times as high: what differs less is lost in the noise of another seed."""

PREFERRED = ("q4_k_m", "q5_k_m", "q8_0", "f16", "bf16")
"""Kinds of GGUF in the order in which they are taken, when nobody says which and none was measured."""

WHOLE = ("f16", "bf16")
"""Kinds of 16 bits, which the others are compared with."""

MEASURED_FILE = "measured.json"


@dataclass(frozen=True, slots=True)
class Quantised:
    """A GGUF: its kind, where it is, its size, and how far it is from its reference (None: not asked)."""

    kind: str
    path: Path
    bytes: int
    difference: Difference | None
    take: bool = False

    def as_json(self) -> dict[str, Any]:
        """Its facts by name."""
        return asdict(self) | {"path": str(self.path), "more_perplexity": more_perplexity(self.difference)}


class Measured(BaseModel):
    """What is kept in `MEASURED_FILE`: the files of one adapter, the one in 16 bits first."""

    adapter_digest: str | None
    files: tuple[Quantised, ...]


def advise(files: Sequence[Quantised], source: Source) -> list[Quantised]:
    """The files just measured and, behind them, those measured before that are still there; one has `take`.

    It is the smallest that is as good as the one in 16 bits (`KL_TO_TAKE`); what was measured is kept.
    """
    if files[0].difference is None:
        return list(files)
    folder, new = files[0].path.parent, {file.path for file in files}
    known = [*files, *(file for file in _measured(folder, source) if file.path not in new)]
    kept = Measured(adapter_digest=source.manifest.adapter_digest, files=tuple(map(_by_name, known)))
    (folder / MEASURED_FILE).write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return _with_advice(known)


def _by_name(file: Quantised) -> Quantised:
    return replace(file, path=Path(file.path.name))


def _measured(folder: Path, source: Source) -> list[Quantised]:
    """What was measured of the files in a folder before, as far as they are there and as they were."""
    path = folder / MEASURED_FILE
    if not path.exists():
        return []
    try:
        kept = Measured.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ExportError(f"{path} is not what curate gguf has written.", "Remove it.") from error
    files = [replace(file, path=folder / file.path.name) for file in kept.files]
    mine = kept.adapter_digest == source.manifest.adapter_digest
    return [file for file in files if mine and file.path.exists() and file.path.stat().st_size == file.bytes]


def _with_advice(files: Sequence[Quantised]) -> list[Quantised]:
    """The files, with `take` on the smallest that is in 16 bits or as good."""
    good = [file for file in files if file.kind in WHOLE or not failed_limits(file.difference)]
    best = min(good, key=lambda file: file.bytes, default=None)
    return [replace(file, take=file is best) for file in files]


def failed_limits(found: Difference | None) -> list[str]:
    """The limits that a file is over, by the names that the table has for them."""
    if found is None:
        return []
    most = {"KL": KL_TO_TAKE, "PPL": PERPLEXITY_TO_TAKE * found.reference_perplexity}
    is_in = {"KL": found.kl <= most["KL"], "PPL": found.perplexity <= most["PPL"]}  # NaN is in none
    return [name for name, kept in is_in.items() if not kept]


def more_perplexity(found: Difference | None) -> float | None:
    """By which share the perplexity is higher than the reference's; below 0 where it is lower."""
    return None if found is None else found.perplexity / found.reference_perplexity - 1


def gguf_of_run(store: Path, source: Source, quant: str = "", report: Callable[[str], None] = lambda _: None) -> Path:
    """The GGUF of a run: of the kind that is asked for, else the one that `advise` said to take, else by `PREFERRED`.

    `report` is told which and why. Raises `ExportError` where there is none.
    """
    folder = beside(store, "gguf", source.name)
    advised = [] if quant else [file.path for file in _with_advice(_measured(folder, source)) if file.take]
    paths = [*advised, *_candidates(folder, source.name, [quant] if quant else PREFERRED)]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise ExportError(
            f"There is no GGUF {f'of {quant} ' if quant else ''}in {folder}.",
            f"curate gguf {source.name} --quant {quant or 'q4_k_m'}",
        )
    why = "as asked" if quant else "the one to take by what was measured" if advised else "nothing was measured"
    others = [other.stem.removeprefix(f"{source.name}-") for other in sorted(folder.glob("*.gguf")) if other != path]
    report(f"Takes {path.name}: {why}." + (f" --quant takes another: {', '.join(others)}." if others else ""))
    return path


def _candidates(folder: Path, name: str, kinds: Sequence[str]) -> list[Path]:
    return [folder / f"{name}-{matrix}{kind}.gguf" for kind in kinds for matrix in ("", "imatrix-")]
