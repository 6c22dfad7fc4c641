"""A run or a merged model → GGUF files, one with 16 bits and one per quantisation, each with its measured difference.

llama.cpp converts, quantises and computes logits. All files are compared on held-out conversations: the 16-bit file
with the merged model, the others with the 16-bit file. An importance matrix is computed from the training split, so
that the conversations used for the comparison have not influenced the files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import polars as pl

from schemas.atomic import atomic_file
from schemas.errors import ExportError
from schemas.manifest import Manifest, read_manifest
from schemas.text import plural
from schemas.timing import timed
from train.export.activations import ROWS, collect_activation_stats, truncate_rows
from train.export.llamacpp.convert import OUT_TYPES, convert
from train.export.llamacpp.imatrix import Imatrix, rename_to_gguf, write_imatrix
from train.export.llamacpp.locate import FILE_TYPES, find_converter, find_quantiser
from train.export.llamacpp.logits import compute_gguf_logits, quantise
from train.export.llamacpp.server import count_threads, run_cpu_server
from train.export.logit_diff import (
    LogitComparison,
    compare_logits,
    compute_logits,
    open_model,
    read_vocabulary_size,
    take_sample,
)
from train.export.merge import merge, read_dtype
from train.export.output import ExportTarget, explain_write_errors, export_dir
from train.export.quant_choice import GgufFile, recommend
from train.export.source import ExportSource, find_source, render_held_out, render_train
from train.inference.backends import LlamaCppBackend
from train.inference.generate import find_stop_ids

MANIFEST_KEY = "curate.manifest"
"""The metadata key of a GGUF with the entire manifest; others, such as `curate.version`, have parts of it."""

MAX_CONVERSION_KL = 0.01
"""A 16-bit file with a larger divergence from the merged model is refused: rounding does not explain it."""

PROGRESS_SECONDS = 5.0
"""Seconds between two progress messages."""

Report = Callable[[str], None]


def export_gguf(
    store: Path,
    target: str,
    kinds: Sequence[str],
    *,
    to: Path | None = None,
    llama_cpp: Path | None = None,
    imatrix: bool = False,
    rows: int = 8,
    check: bool = True,
    report: Report = lambda _message: None,
) -> list[GgufFile]:
    """Write the GGUF files of the run that `target` names: 16 bits, followed by `kinds` (q4_k_m …).

    They are written to `to` (default: `gguf/RUN` next to the store), from the merged model in `merged/RUN`, which is
    created if it is missing. With `imatrix` an importance matrix from the version's conversations guides rounding. With
    `check` the files are compared on `rows` held-out conversations, and files measured earlier follow in the result.
    Raises `ExportError` for an unknown kind, if llama.cpp is missing or fails, or if the disk is full.
    """
    check_kinds(kinds)
    converter, quantiser = find_converter(llama_cpp), find_quantiser(llama_cpp)
    source = find_source(store, target)
    held_out = render_held_out(store, source) if check else None
    model = _find_or_merge(store, source, report)
    folder = (to or export_dir(store, "gguf", source.name)).resolve()
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        original = _convert(converter, model, folder, source, report)
        matrix = _compute_imatrix(store, model, original, source, report) if imatrix else None
        run_quantiser = partial(quantise, quantiser, original, threads=count_threads(), imatrix=matrix)
        name = f"{source.name}-imatrix" if matrix else source.name
        files = {kind: _quantise(run_quantiser, folder / f"{name}-{kind}.gguf", kind, source, report) for kind in kinds}
    paths = {read_kind(original): original, **files}
    return recommend(_compare_files(held_out, model, source, paths, rows=rows, report=report), source)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `ExportError` for a kind that is not in `FILE_TYPES`."""
    for kind in kinds:
        if kind not in FILE_TYPES:
            raise ExportError(f"{kind} is not a known quantisation.", f"Known: {', '.join(sorted(FILE_TYPES))}.")


def read_kind(path: Path) -> str:
    """The kind in a file's name.

    >>> read_kind(Path("gguf/r1/r1-q4_k_m.gguf"))
    'q4_k_m'
    """
    return path.stem.rpartition("-")[2]


def _find_or_merge(store: Path, source: ExportSource, report: Report) -> Path:
    """The merged model next to the store, created if it is missing; for a full fine-tune the run's own folder.

    Raises `ExportError` if the existing one was merged from another adapter.
    """
    if source.is_full_finetune:
        return source.adapter
    folder = export_dir(store, "merged", source.name)
    if not folder.exists():
        report(f"Merging into {folder}")
        return merge(store, str(source.adapter), to=folder).folder
    if read_manifest(folder).adapter_digest != source.manifest.adapter_digest:
        raise ExportError(f"{folder} was merged from another adapter.", "Move it; curate merge creates a new one.")
    return folder


def build_metadata(manifest: Manifest) -> dict[str, str]:
    """The metadata of a GGUF that names its training data."""
    return {
        "curate.version": manifest.data.version,
        "curate.digest": manifest.data.digest,
        "curate.run": manifest.run,
        "curate.adapter_digest": str(manifest.adapter_digest),
        "curate.template_digest": manifest.rendering.template_digest,
        "curate.tokenizer_digest": manifest.rendering.tokenizer_digest,
        MANIFEST_KEY: json.dumps(manifest.model_dump(mode="json", exclude={"files"}), ensure_ascii=False),
    }


def read_metadata(path: Path) -> Mapping[str, str]:
    """The text values in a GGUF's metadata. Raises `ExportError` if the file is not a GGUF."""
    from gguf import GGUFReader, GGUFValueType

    try:
        fields = GGUFReader(path).fields.values()
    except (ValueError, OSError) as error:
        raise ExportError(f"{path} is not a valid GGUF: {error}.", "curate gguf RUN writes one.") from error
    return {field.name: field.contents() for field in fields if field.types == [GGUFValueType.STRING]}


@timed("converting")
def _convert(converter: Path, model: Path, folder: Path, source: ExportSource, report: Report) -> Path:
    """The 16-bit GGUF: bf16 for a model in bf16, otherwise f16."""
    kind = "bf16" if OUT_TYPES.get(read_dtype(model)) == "bf16" else "f16"
    path = folder / f"{source.name}-{kind}.gguf"
    if not _exists(path, source):
        report(f"Converting to {kind}")
        stop = find_stop_ids(source.renderer)[0]
        with atomic_file(path) as temporary:
            convert(converter, model, temporary, kind, metadata=build_metadata(source.manifest), stop=stop)
    return path


def _compute_imatrix(store: Path, model: Path, original: Path, source: ExportSource, report: Report) -> Path:
    """The importance matrix in llama.cpp's format, next to the GGUF files."""
    path = original.with_name(f"{source.name}.imatrix")
    if not _exists(path, source):
        rows = truncate_rows(render_train(store, source, ROWS))
        report(f"Computing the importance matrix from {plural(len(rows), 'conversation')} of the training split")
        with open_model(model, trust_remote_code=bool(source.manifest.recipe["trust_remote_code"])) as loaded:
            stats = collect_activation_stats(loaded, rows, _limit_rate(report, "Processed"))
        matrix = Imatrix(rename_to_gguf(stats, original), len(rows), sum(map(len, rows)))
        with atomic_file(path) as temporary:
            write_imatrix(temporary, matrix, build_metadata(source.manifest))
    return path


@timed("quantising")
def _quantise(run: Callable[[Path, str], None], path: Path, kind: str, source: ExportSource, report: Report) -> Path:
    if not _exists(path, source):
        report(f"Quantising to {kind}")
        with atomic_file(path) as temporary:
            run(temporary, kind)
    return path


def _exists(path: Path, source: ExportSource) -> bool:
    """Whether a file of this adapter exists already. Raises `ExportError` for a file of another adapter."""
    if not path.exists():
        return False
    if read_metadata(path).get("curate.adapter_digest") != source.manifest.adapter_digest:
        raise ExportError(f"{path} already exists, from another adapter.", "Give another --to FOLDER.")
    return True


def _limit_rate(report: Report, verb: str) -> Callable[[int, int], None]:
    """A progress callback that reports the count and the time left every `PROGRESS_SECONDS`."""
    started = reported = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported >= PROGRESS_SECONDS and done < total:
            reported = now
            left = timedelta(seconds=round((now - started) / done * (total - done)))
            report(f"{verb} {done:,} of {total:,}, {left} left")

    return progress


# ------------------------------------------------------------------------------------------------------ comparison


@timed("comparing files")
def _compare_files(
    held_out: pl.DataFrame | None,
    model: Path,
    source: ExportSource,
    paths: Mapping[str, Path],
    *,
    rows: int,
    report: Report,
) -> list[GgufFile]:
    """Each file with its size and comparison: the first with the merged model, the others with the first."""
    if held_out is None:
        return [GgufFile(kind, path, path.stat().st_size, None) for kind, path in paths.items()]
    sample = take_sample(held_out, read_vocabulary_size(model), rows)
    report("Computing the logits of the merged model")
    with open_model(model, trust_remote_code=bool(source.manifest.recipe["trust_remote_code"])) as loaded:
        reference = compute_logits(loaded, sample, _limit_rate(report, "Compared"))
    files: list[GgufFile] = []
    for kind, path in paths.items():
        report(f"Measuring {kind}")
        logits = compute_gguf_logits(path, sample, count_threads())
        comparison = compare_logits(sample, reference, logits)
        if not files:
            _check_conversion(comparison, path)
            reference = logits
        files.append(GgufFile(kind, path, path.stat().st_size, comparison))
    return files


def _check_conversion(comparison: LogitComparison, path: Path) -> None:
    if not comparison.kl <= MAX_CONVERSION_KL:
        path.unlink()
        raise ExportError(
            f"llama.cpp's logits differ from those of the merged model: {comparison.kl:.3g} nats per token, "
            f"{comparison.largest:.3g} in a logit.",
            "This llama.cpp does not support this model correctly; --llama-cpp DIR selects a newer one.",
        )


@contextmanager
def _open_backend(path: Path) -> Iterator[LlamaCppBackend]:
    with run_cpu_server(path) as client:
        yield LlamaCppBackend(f"llama.cpp, {path.name}", client)


def _read_origin(path: Path) -> tuple[str, str | None]:
    text = read_metadata(path).get(MANIFEST_KEY)
    if text is None:
        raise ExportError(f"{path} does not name the run that it was made from.", "curate gguf RUN writes one.")
    manifest = json.loads(text)
    return manifest["run"], manifest["adapter_digest"]


GGUF = ExportTarget(
    folder="gguf",
    engine="llama.cpp",
    command="curate gguf",
    matches=lambda path: path.suffix == ".gguf",
    open_backend=_open_backend,
    find=lambda folder: max(folder.glob("*.gguf"), key=lambda file: file.stat().st_size, default=None),  # 16 bits
    read_origin=_read_origin,
    is_expected=lambda _source, _existing: True,
)
