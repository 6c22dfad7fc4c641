"""In: a run, or a merged model. Out: GGUF files, one in 16 bits and one per quantisation, and what each costs.

llama.cpp converts, quantises and answers; here it is decided what goes in, each file gets its name in one move, and
all are compared on held-out conversations: the 16-bit file with the merged model, the others with the 16-bit file.
An importance matrix is taken of the training split, so that what measures the files has not shaped them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from schemas.environment import count_cores
from schemas.errors import ExportError
from schemas.manifest import Manifest, read_manifest
from schemas.text import plural
from train.export.activations import ROWS, rows_to_weigh, weigh
from train.export.llamacpp.convert import OUT_TYPES, convert
from train.export.llamacpp.imatrix import Imatrix, by_gguf_names, write_imatrix
from train.export.llamacpp.locate import FILE_TYPES, find_converter, find_quantiser
from train.export.llamacpp.logits import evaluator, quantise
from train.export.logit_diff import Difference, Sample, difference, loaded, model_logits, take_sample, vocabulary_of
from train.export.merge import merge, stored_dtype
from train.export.quant_choice import Quantised, advise
from train.export.source import Source, beside, explained_disk, find_source, held_out_rows, train_rows
from train.inference.generate import find_stop_ids

MANIFEST_KEY = "curate.manifest"
"""The key of a GGUF's metadata with the whole manifest; others, such as `curate.version`, say its parts."""

FARTHEST_KL = 0.01
"""Divergence of the 16-bit file from the merged model above which the conversion is refused: it is not rounding."""

PULSE = 5.0
"""Seconds between two lines of progress."""

Report = Callable[[str], None]


def quantise_run(
    store: Path,
    target: str,
    kinds: Sequence[str],
    *,
    to: Path | None = None,
    llama_cpp: Path | None = None,
    imatrix: bool = False,
    rows: int = 8,
    check: bool = True,
    report: Report = lambda _words: None,
) -> list[Quantised]:
    """The GGUF files of `kinds` (q4_k_m …) of the run that `target` names, behind the one in 16 bits.

    Where they are compared, those that were measured in the folder before come last.

    They go to `to` (default: `gguf/RUN` by the store). A merged model in `merged/RUN` is taken, and made if there is
    none. With `imatrix` the kinds are rounded by an importance matrix of the version's own conversations. Raises
    `ExportError` for an unknown kind, where llama.cpp is missing or cannot, or the disk is full.
    """
    check_kinds(kinds)
    converter, quantiser = find_converter(llama_cpp), find_quantiser(llama_cpp)
    source = find_source(store, target)
    held_out = held_out_rows(store, source) if check else None
    merged = _merged(store, source, report)
    folder = (to or beside(store, "gguf", source.name)).resolve()
    with explained_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        first = _converted(converter, merged, folder, source, report)
        matrix = _imatrix(store, merged, first, source, report) if imatrix else None
        make = partial(quantise, quantiser, first, threads=threads(), imatrix=matrix)
        name = f"{source.name}-imatrix" if matrix else source.name
        files = {kind: _quantised(make, folder / f"{name}-{kind}.gguf", kind, source, report) for kind in kinds}
    measured = _measured(held_out, merged, source, {kind_of(first): first, **files}, rows=rows, report=report)
    return advise(measured, source)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `ExportError` for a kind that is none of `FILE_TYPES`."""
    for kind in kinds:
        if kind not in FILE_TYPES:
            raise ExportError(f"There is no quantisation {kind}.", f"Known: {', '.join(sorted(FILE_TYPES))}.")


def kind_of(path: Path) -> str:
    """The kind in a file's name.

    >>> kind_of(Path("gguf/r1/r1-q4_k_m.gguf"))
    'q4_k_m'
    """
    return path.stem.rpartition("-")[2]


def _merged(store: Path, source: Source, report: Report) -> Path:
    """The merged model by the store, made if it is not there; a run of all weights is one itself.

    Raises `ExportError` when what is there is of another training.
    """
    if source.whole:
        return source.adapter
    folder = beside(store, "merged", source.name)
    if not folder.exists():
        report(f"merging into {folder}")
        return merge(store, str(source.adapter), to=folder).folder
    if read_manifest(folder).adapter_digest != source.manifest.adapter_digest:
        raise ExportError(f"{folder} was merged from another adapter.", "Move it away; curate merge makes it anew.")
    return folder


def metadata_of(manifest: Manifest) -> dict[str, str]:
    """What a GGUF says of where it comes from."""
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
    """The texts in a GGUF's metadata. Raises `ExportError` for a file that is none."""
    from gguf import GGUFReader, GGUFValueType

    try:
        fields = GGUFReader(path).fields.values()
    except (ValueError, OSError) as error:
        raise ExportError(f"{path} is no GGUF: {error}.", "curate gguf RUN writes one.") from error
    return {field.name: field.contents() for field in fields if field.types == [GGUFValueType.STRING]}


def _converted(converter: Path, merged: Path, folder: Path, source: Source, report: Report) -> Path:
    """The GGUF in 16 bits (32, where the base has 32 and is asked for): bf16 stays bf16, anything else is f16."""
    kind = "bf16" if OUT_TYPES.get(stored_dtype(merged)) == "bf16" else "f16"
    path = folder / f"{source.name}-{kind}.gguf"
    if _is_there(path, source):
        return path
    report(f"converting to {kind}")
    with _named_when_whole(path) as unfinished:
        stop = find_stop_ids(source.renderer)[0]
        convert(converter, merged, unfinished, kind, metadata=metadata_of(source.manifest), stop=stop)
    return path


def _imatrix(store: Path, merged: Path, first: Path, source: Source, report: Report) -> Path:
    """The importance matrix of the run, as llama.cpp's own programs read it, beside the files."""
    path = first.with_name(f"{source.name}.imatrix")
    if not _is_there(path, source):
        rows = rows_to_weigh(train_rows(store, source, ROWS))
        report(f"weighing by {plural(len(rows), 'conversation')} of the training split")
        with loaded(merged, trust_remote_code=bool(source.manifest.recipe["trust_remote_code"])) as model:
            squares = by_gguf_names(weigh(model, rows, _now_and_then(report, "weighed")), first)
        with _named_when_whole(path) as unfinished:
            write_imatrix(unfinished, Imatrix(squares, len(rows), sum(map(len, rows))), metadata_of(source.manifest))
    return path


def _quantised(make: Callable[[Path, str], None], path: Path, kind: str, source: Source, report: Report) -> Path:
    if not _is_there(path, source):
        report(f"quantising to {kind}")
        with _named_when_whole(path) as unfinished:
            make(unfinished, kind)
    return path


def _is_there(path: Path, source: Source) -> bool:
    """Whether a file was made before, of this very adapter; one of another is not written over."""
    if not path.exists():
        return False
    if read_metadata(path).get("curate.adapter_digest") != source.manifest.adapter_digest:
        raise ExportError(f"{path} is already there, of another adapter.", "Give another --to FOLDER.")
    return True


@contextmanager
def _named_when_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` in one move when the block ends well."""
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _now_and_then(report: Report, what: str) -> Callable[[int, int], None]:
    """A progress that tells `report` every `PULSE` seconds how many are done, and how long the others will take."""
    started = told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= PULSE and done < total:
            told = now
            left = timedelta(seconds=round((now - started) / done * (total - done)))
            report(f"{what} {done:,} of {total:,}, {left} left")

    return progress


def threads() -> int:
    """Threads for llama.cpp: OMP_NUM_THREADS, else every core that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or count_cores()


# ------------------------------------------------------------------------------------------------------ measuring


def _measured(
    held_out: pl.DataFrame | None, merged: Path, source: Source, files: Mapping[str, Path], *, rows: int, report: Report
) -> list[Quantised]:
    """Each file with its size and its difference: the first from the merged model, the others from the first."""
    if held_out is None:
        return [Quantised(kind, path, path.stat().st_size, None) for kind, path in files.items()]
    sample = take_sample(held_out, vocabulary_of(merged), rows)
    report("comparing with the merged model")
    with loaded(merged, trust_remote_code=bool(source.manifest.recipe["trust_remote_code"])) as model:
        reference = model_logits(model, sample, _now_and_then(report, "compared"))
    found: list[Quantised] = []
    for kind, path in files.items():
        report(f"measuring {kind}")
        said = _said(path, sample)
        apart = difference(sample, reference, said)
        if not found:
            _check_conversion(apart, path)
            reference = said
        found.append(Quantised(kind, path, path.stat().st_size, apart))
    return found


def _said(path: Path, sample: Sample) -> Any:
    with evaluator(path, sample, threads()) as model:
        return model.logits(sample)


def _check_conversion(apart: Difference, path: Path) -> None:
    if not apart.kl <= FARTHEST_KL:
        path.unlink()
        raise ExportError(
            f"llama.cpp answers otherwise than the merged model: {apart.kl:.3g} nats per token apart, "
            f"{apart.largest:.3g} in a logit.",
            "This llama.cpp does not convert or compute this model rightly: --llama-cpp DIR names a newer one.",
        )
