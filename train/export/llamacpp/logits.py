"""A GGUF and rows of token ids → llama.cpp's logits; a GGUF → quantised files. Uses the package cyllama."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.environment import install_command
from schemas.errors import ExportError
from train.export.llamacpp.imatrix import IMATRIX_KEY, read_imatrix, requantise
from train.export.llamacpp.locate import FILE_TYPES
from train.export.logit_diff import Logits, Sample

GGML_TYPE_F32 = 0
"""The type of the key-value cache: a 16-bit cache would add its own rounding errors to the measurement."""


def quantise(
    program: Path | None, source: Path, to: Path, kind: str, threads: int, *, imatrix: Path | None = None
) -> None:
    """Quantise the GGUF `source` to `kind` in `to`, with a program or with cyllama, rounded by a matrix if given.

    Raises `ExportError` if llama.cpp fails; an incomplete file may then remain at `to`.
    """
    if program is not None:
        _run_program(program, source, to, (kind, str(threads)), imatrix)
    elif imatrix is None:
        _run_cyllama(source, to, kind, threads)
    else:  # cyllama chooses the type of each weight, then the weights in the matrix are quantised again
        plain = to.with_name(f"{to.name}.plain")
        try:
            _run_cyllama(source, plain, kind, threads)
            requantise(read_imatrix(imatrix), source, plain, to, threads)
        finally:
            plain.unlink(missing_ok=True)


def _run_program(program: Path, source: Path, to: Path, options: tuple[str, str], imatrix: Path | None) -> None:
    """Run llama-quantize. It stores the path of the matrix in the file, so it runs in the matrix's folder."""
    arguments = []
    if imatrix:
        description = f"{IMATRIX_KEY}=str:{read_imatrix(imatrix).as_text()}"
        arguments = ["--imatrix", imatrix.name, "--override-kv", description]
    command = [str(program.resolve()), *arguments, str(source), str(to), *options]
    done = subprocess.run(command, cwd=imatrix.parent if imatrix else None, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ExportError(f"{program} cannot quantise {source.name} to {options[0]}: {message}", "Try a newer one.")


def _run_cyllama(source: Path, to: Path, kind: str, threads: int) -> None:
    llama = _import_cyllama()
    parameters = llama.LlamaModelQuantizeParams()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], threads
    try:
        llama.model_quantize(str(source), str(to), parameters)
    except RuntimeError as error:
        raise ExportError(
            f"llama.cpp cannot quantise {source.name} to {kind}: {error}.",
            "The disk may be full, or the model newer than this llama.cpp: --llama-cpp DIR selects another.",
        ) from error


def compute_gguf_logits(path: Path, sample: Sample, threads: int) -> list[Logits]:
    """The logits of each row of the sample, tokens x vocabulary, on the CPU."""
    llama = _import_cyllama()
    longest = max(map(len, sample.ids))
    parameters = llama.LlamaModelParams()
    parameters.n_gpu_layers = 0
    try:
        model = _model_class(llama)(str(path), parameters)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"llama.cpp cannot load {path}: {error}.", "Try a newer llama.cpp.") from error
    context = llama.LlamaContext(model, _context_parameters(llama, longest, threads))
    batch = llama.LlamaBatch(n_tokens=longest, embd=0, n_seq_max=1)
    try:
        return [_row_logits(context, batch, ids) for ids in sample.ids]
    finally:
        for part in (batch, context, model):
            part.close()


def _row_logits(context: Any, batch: Any, ids: Sequence[int]) -> Logits:
    context.kv_cache_clear()
    batch.reset()
    for position, token in enumerate(ids):
        batch.add(token, position, [0], True)
    context.decode(batch)
    return np.array([context.get_logits_ith(position) for position in range(len(ids))], dtype=np.float32)


def _import_cyllama() -> Any:
    try:
        from cyllama.llama import llama_cpp
    except ImportError as error:
        raise ExportError(
            "The package cyllama, which measures quantised files, is not installed.", install_command("gguf")
        ) from error
    llama_cpp.disable_logging()
    return llama_cpp


def _model_class(llama: Any) -> Any:
    """Cyllama's model class with `n_vocab`, which `get_logits_ith` reads and release 0.2.18 lacks."""

    class Model(llama.LlamaModel):  # type: ignore[misc]  # a compiled class, known only when it is imported
        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    return Model


def _context_parameters(llama: Any, context: int, threads: int) -> Any:
    parameters = llama.LlamaContextParams()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.type_k = parameters.type_v = GGML_TYPE_F32
    parameters.flash_attn_type = 0
    return parameters
