"""Rows of token ids and two models → how much the logits, probabilities and perplexity of the second differ.

The rows are held-out conversations. The reference logits are kept in float32, for as many tokens as fit in
`LOGITS_BYTES`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from schemas.errors import ExportError
from train.inference.generate import load_for_inference
from train.tokens.labels import IGNORE_INDEX

Logits = npt.NDArray[np.float32]
"""The logits of one row: tokens x vocabulary."""

LOGITS_BYTES = 2**29
"""Memory for the logits of the reference model."""

MAX_ROW_TOKENS = 512
"""Longer rows are truncated."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of token ids and their labels (-100 where a token is not trained on)."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """The number of tokens in all rows."""
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """How much a model differs from a reference.

    `largest` is the largest difference of a logit and `scale` the largest logit of the reference. `kl` is the mean over
    all tokens of the Kullback-Leibler divergence from the reference, in nats. `top1_agreement` is the share of tokens
    with the same most likely next token. The perplexities are exp of the mean loss over loss tokens.
    """

    rows: int
    tokens: int
    largest: float
    scale: float
    kl: float
    top1_agreement: Annotated[float, Field(alias="same_choice")]  # its key in measured.json
    perplexity: float
    reference_perplexity: float


def take_sample(rendered: pl.DataFrame, vocabulary: int, rows: int) -> Sample:
    """The first `rows` rows of a rendered frame, up to `MAX_ROW_TOKENS` tokens each and `LOGITS_BYTES` in total.

    Raises `ExportError` if there is none.
    """
    room = max(2, LOGITS_BYTES // (4 * vocabulary))
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for row in rendered.head(rows).iter_rows(named=True):  # a few rows, each of which is run through two models
        length = min(len(row["input_ids"]), MAX_ROW_TOKENS, room)
        if length < 2:
            break
        ids.append(row["input_ids"][:length])
        labels.append(row["labels"][:length])
        room -= length
    if not ids:
        raise ExportError("The version has no conversation to compare the models on.", "Give --no-check.")
    return Sample(ids, labels)


def compare_logits(sample: Sample, reference: Sequence[Logits], logits: Sequence[Logits]) -> LogitComparison:
    """Compare `logits` with `reference`; both have one array per row of the sample."""
    pairs = [(_log_softmax(one), _log_softmax(other)) for one, other in zip(reference, logits, strict=True)]
    divergences = np.concatenate([(np.exp(one) * (one - other)).sum(axis=1) for one, other in pairs])
    agreements = np.concatenate([one.argmax(axis=1) == other.argmax(axis=1) for one, other in pairs])
    return LogitComparison(
        rows=len(sample.ids),
        tokens=sample.tokens,
        largest=float(max(np.abs(one - other).max() for one, other in zip(reference, logits, strict=True))),
        scale=float(max(np.abs(one).max() for one in reference)),
        kl=max(0.0, float(divergences.mean())),
        top1_agreement=float(agreements.mean()),
        perplexity=_perplexity(sample, [other for _, other in pairs]),
        reference_perplexity=_perplexity(sample, [one for one, _ in pairs]),
    )


def _log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalised: Logits = shifted - np.log(np.exp(shifted, dtype=np.float64).sum(axis=1, keepdims=True)).astype("f4")
    return normalised


def _perplexity(sample: Sample, log_probabilities: Sequence[Logits]) -> float:
    """Perplexity over the loss tokens, each predicted from the token before it; NaN if there are none."""
    losses = [
        -row[np.arange(len(ids) - 1), ids[1:]][np.asarray(labels[1:]) != IGNORE_INDEX]
        for row, ids, labels in zip(log_probabilities, sample.ids, sample.labels, strict=True)
    ]
    flat = np.concatenate(losses)
    return float(np.exp(flat.mean(dtype=np.float64))) if flat.size else float("nan")


# ------------------------------------------------------------------------------------------------- PyTorch models


def compute_logits(model: Any, sample: Sample, progress: Callable[[int, int], None] = lambda *_: None) -> list[Logits]:
    """The logits of a loaded model for each row, one at a time: padding would change them."""
    import torch

    rows = []
    with torch.inference_mode():
        for done, ids in enumerate(sample.ids, start=1):
            input_ids = torch.tensor([list(ids)], device=model.device)
            rows.append(model(input_ids=input_ids, use_cache=False).logits[0].float().cpu().numpy())
            progress(done, len(sample.ids))
    return rows


@contextmanager
def open_model(base: Path, adapter: Path | None = None, *, trust_remote_code: bool = False) -> Iterator[Any]:
    """A loaded model, optionally with an adapter: 16 bits on a GPU, float32 on a CPU. Freed when the block ends."""
    import torch

    model = load_for_inference(base, "lora", adapter, trust_remote_code=trust_remote_code)
    yield model
    del model
    gc.collect()
    torch.cuda.empty_cache()


def read_vocabulary_size(base: Path) -> int:
    """The number of logits of a model, from its config."""
    config: Mapping[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
