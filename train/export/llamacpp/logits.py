"""In: a GGUF and rows of token ids. Out: llama.cpp's logits, and files with fewer bits. Through the package cyllama."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from schemas.environment import install_command
from schemas.errors import ExportError
from train.export.llamacpp.imatrix import IMATRIX_KEY, read_imatrix, round_by
from train.export.llamacpp.locate import FILE_TYPES, Quantiser
from train.export.logit_diff import Logits, Sample

IN_FLOAT32 = 0
"""`GGML_TYPE_F32`: what is measured is the file, not a cache of keys and values in 16 bits."""


def quantise(
    quantiser: Quantiser, source: Path, to: Path, kind: str, threads: int, *, imatrix: Path | None = None
) -> None:
    """Write `source` with the weights of `kind` to `to`, rounded by an importance matrix if there is one.

    Raises `ExportError` when llama.cpp cannot.
    """
    try:
        if quantiser.program is not None:
            _by_program(quantiser.program, source, to, (kind, str(threads)), imatrix)
        elif imatrix is None:
            _by_cyllama(source, to, kind, threads)
        else:
            _by_both(source, to, kind, threads, imatrix)
    except ExportError:
        to.unlink(missing_ok=True)
        raise


def _by_program(program: Path, source: Path, to: Path, how: tuple[str, str], imatrix: Path | None) -> None:
    """The program notes the name of the matrix in the file, so it is called from its folder, by its name alone."""
    said = f"{IMATRIX_KEY}=str:{read_imatrix(imatrix).as_text()}" if imatrix else ""
    weighed = ["--imatrix", imatrix.name, "--override-kv", said] if imatrix else []
    command = [str(program.resolve()), *weighed, str(source), str(to), *how]
    done = subprocess.run(command, cwd=imatrix.parent if imatrix else None, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ExportError(f"{program} cannot make {how[0]} of {source.name}: {said}", "A newer llama.cpp may.")


def _by_cyllama(source: Path, to: Path, kind: str, threads: int) -> None:
    llama = _cyllama()
    wanted = llama.LlamaModelQuantizeParams()
    wanted.ftype, wanted.nthread = FILE_TYPES[kind], threads
    try:
        llama.model_quantize(str(source), str(to), wanted)
    except RuntimeError as error:
        raise ExportError(
            f"llama.cpp cannot make {kind} of {source.name}: {error}.",
            "The disk may be full, or the model newer than this llama.cpp: --llama-cpp DIR names another.",
        ) from error


def _by_both(source: Path, to: Path, kind: str, threads: int, imatrix: Path) -> None:
    """Cyllama says which type each weight has, and the weights of the matrix are rounded again."""
    unweighed = to.with_name(f"{to.name}.unweighed")
    try:
        _by_cyllama(source, unweighed, kind, threads)
        round_by(read_imatrix(imatrix), source, unweighed, to, threads)
    finally:
        unweighed.unlink(missing_ok=True)


@contextmanager
def evaluator(path: Path, sample: Sample, threads: int) -> Iterator[GgufModel]:
    """The model of a GGUF, ready for rows as long as those of `sample`."""
    model = GgufModel(path, max(map(len, sample.ids)), threads)
    try:
        yield model
    finally:
        model.close()


class GgufModel:
    """A GGUF in llama.cpp, on the CPU: the logits of a row of tokens."""

    def __init__(self, path: Path, longest: int, threads: int) -> None:
        llama = _cyllama()
        wanted = llama.LlamaModelParams()
        wanted.n_gpu_layers = 0
        try:
            self._model = _model_class(llama)(str(path), wanted)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"llama.cpp cannot load {path}: {error}.", "A newer llama.cpp may.") from error
        self._context = llama.LlamaContext(self._model, _context(llama, longest, threads))
        self._batch = llama.LlamaBatch(n_tokens=longest, embd=0, n_seq_max=1)

    def logits(self, sample: Sample) -> list[Logits]:
        """The logits of each row of the sample, tokens x vocabulary."""
        return [self._row(list(ids)) for ids in sample.ids]

    def _row(self, ids: list[int]) -> Logits:
        self._context.kv_cache_clear()
        self._batch.reset()
        for place, token in enumerate(ids):
            self._batch.add(token, place, [0], True)
        self._context.decode(self._batch)
        return np.array([self._context.get_logits_ith(place) for place in range(len(ids))], dtype=np.float32)

    def close(self) -> None:
        """Give its memory back."""
        for part in (self._batch, self._context, self._model):
            part.close()


def _cyllama() -> Any:
    try:
        from cyllama.llama import llama_cpp
    except ImportError as error:
        raise ExportError(
            "The package cyllama is not installed; it measures what quantising costs.", install_command("gguf")
        ) from error
    llama_cpp.disable_logging()
    return llama_cpp


def _model_class(llama: Any) -> Any:
    """Its model with `n_vocab`, which its own `get_logits_ith` asks for and 0.2.18 does not have."""

    class Model(llama.LlamaModel):  # type: ignore[misc]  # a compiled class, known only when it is imported
        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    return Model


def _context(llama: Any, longest: int, threads: int) -> Any:
    wanted = llama.LlamaContextParams()
    wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = longest
    wanted.n_threads = wanted.n_threads_batch = threads
    wanted.type_k = wanted.type_v = IN_FLOAT32
    wanted.flash_attn_type = 0
    return wanted
