"""GGUF files of a run and their measured differences → the recommended file, also for later commands.

The measurements are stored next to the files, so that `curate ollama` and `curate serve` use the file that
`curate gguf` recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from schemas.atomic import write_text
from schemas.errors import ExportError
from train.export.logit_diff import LogitComparison
from train.export.output import export_dir
from train.export.source import ExportSource

MAX_KL, MAX_PERPLEXITY_RATIO = 0.02, 1.01
"""The recommended file is the smallest whose divergence from 16 bits is at most this (nats per token), and whose
perplexity is at most this many times as high: smaller differences are within the noise of another random seed."""

DEFAULT_KINDS = ("q4_k_m", "q5_k_m", "q8_0", "f16", "bf16")
"""The order in which kinds are used if none is requested and none was measured."""

SIXTEEN_BIT_KINDS = ("f16", "bf16")
"""The kinds that the others are compared with."""

MEASURED_FILE = "measured.json"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF: its kind, path, size, and comparison with its reference (None if it was not measured).

    In `MEASURED_FILE` the comparison is called `difference` and the recommendation `take`.
    """

    kind: str
    path: Path
    bytes: int
    comparison: Annotated[LogitComparison | None, Field(alias="difference")]
    recommended: Annotated[bool, Field(alias="take")] = False

    @property
    def perplexity_increase(self) -> float | None:
        """The relative increase in perplexity over the reference, negative if it is lower."""
        comparison = self.comparison
        return None if comparison is None else comparison.perplexity / comparison.reference_perplexity - 1

    @property
    def exceeded_limits(self) -> list[str]:
        """The measures that exceed their limit, "KL" or "PPL"."""
        comparison = self.comparison
        if comparison is None:
            return []
        max_perplexity = MAX_PERPLEXITY_RATIO * comparison.reference_perplexity
        passed = {"KL": comparison.kl <= MAX_KL, "PPL": comparison.perplexity <= max_perplexity}  # False for NaN
        return [name for name, is_within in passed.items() if not is_within]

    def as_json(self) -> dict[str, Any]:
        """The fields and the perplexity increase."""
        return asdict(self) | {"perplexity_increase": self.perplexity_increase}


class MeasuredFiles(BaseModel):
    """The content of `MEASURED_FILE`: the files of one adapter, the 16-bit one first."""

    adapter_digest: str | None
    files: tuple[GgufFile, ...]


def recommend(files: Sequence[GgufFile], source: ExportSource) -> list[GgufFile]:
    """The measured files, followed by those measured earlier that still exist; one of them is `recommended`.

    It is the smallest one within the limits (`MAX_KL`). The measurements are stored in `MEASURED_FILE`.
    """
    if files[0].comparison is None:
        return list(files)
    folder, new = files[0].path.parent, {file.path for file in files}
    known = [*files, *(file for file in _read_measured(folder, source) if file.path not in new)]
    relative = tuple(replace(file, path=Path(file.path.name)) for file in known)
    measured = MeasuredFiles(adapter_digest=source.manifest.adapter_digest, files=relative)
    write_text(folder / MEASURED_FILE, measured.model_dump_json(indent=2, by_alias=True) + "\n")
    return _mark_recommended(known)


def _read_measured(folder: Path, source: ExportSource) -> list[GgufFile]:
    """The files measured earlier that still exist with the same size."""
    path = folder / MEASURED_FILE
    if not path.exists():
        return []
    try:
        measured = MeasuredFiles.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ExportError(f"{path} was not written by curate gguf.", "Remove it.") from error
    if measured.adapter_digest != source.manifest.adapter_digest:
        return []
    files = [replace(file, path=folder / file.path.name) for file in measured.files]
    return [file for file in files if file.path.exists() and file.path.stat().st_size == file.bytes]


def _mark_recommended(files: Sequence[GgufFile]) -> list[GgufFile]:
    """The files, of which the smallest that has 16 bits or is within the limits is marked."""
    good = [file for file in files if file.kind in SIXTEEN_BIT_KINDS or not file.exceeded_limits]
    best = min(good, key=lambda file: file.bytes, default=None)
    return [replace(file, recommended=file is best) for file in files]


def find_gguf(
    store: Path, source: ExportSource, quant: str = "", report: Callable[[str], None] = lambda _: None
) -> Path:
    """The GGUF of a run: of the kind `quant` if given, otherwise the recommended one, otherwise by `DEFAULT_KINDS`.

    `report` receives the chosen file and the reason. Raises `ExportError` if there is none.
    """
    folder = export_dir(store, "gguf", source.name)
    measured = [] if quant else _mark_recommended(_read_measured(folder, source))
    recommended = [file.path for file in measured if file.recommended]
    kinds = [quant] if quant else DEFAULT_KINDS
    names = [f"{source.name}-{imatrix}{kind}.gguf" for kind in kinds for imatrix in ("", "imatrix-")]
    path = next((path for path in [*recommended, *(folder / name for name in names)] if path.exists()), None)
    if path is None:
        raise ExportError(
            f"There is no {f'{quant} ' if quant else ''}GGUF in {folder}.",
            f"curate gguf {source.name} --quant {quant or 'q4_k_m'}",
        )
    reason = "selected by --quant" if quant else "recommended by curate gguf" if recommended else "nothing was measured"
    others = [other.stem.removeprefix(f"{source.name}-") for other in sorted(folder.glob("*.gguf")) if other != path]
    report(f"Using {path.name}: {reason}." + (f" --quant selects another: {', '.join(others)}." if others else ""))
    return path
