"""In: token rows and two models. Out: how far the second is from the first, in logits, probabilities and perplexity.

The rows are conversations that were held out. Logits are kept in float32 for as many tokens as fit into `BUDGET`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.errors import ExportError
from train.tokens.labels import IGNORE_INDEX

Logits = npt.NDArray[np.float32]
"""One row's logits: tokens x vocabulary."""

BUDGET = 2**29
"""Bytes of logits that are kept of the model that others are compared with."""

LONGEST = 512
"""Tokens of a row that are looked at."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of token ids, and beside each id whether it was learned (-100 where not)."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a model is from its reference.

    `largest` is the largest difference of a logit, `scale` the largest logit of the reference; `kl` the mean over
    all tokens of the Kullback-Leibler divergence from the reference, in nats; `same_choice` the share of tokens for
    which both would say the same next token; `perplexity` is over the tokens that were to be learned, exp of their
    mean loss.
    """

    rows: int
    tokens: int
    largest: float
    scale: float
    kl: float
    same_choice: float
    perplexity: float
    reference_perplexity: float

    def as_json(self) -> dict[str, Any]:
        """Its numbers by name."""
        return asdict(self)


def take_sample(rendered: pl.DataFrame, vocabulary: int, rows: int) -> Sample:
    """The first `rows` rows of a rendered frame, cut to `LONGEST` tokens, as many as fit into the budget.

    Raises `ExportError` when there is none.
    """
    room = max(2, BUDGET // (4 * vocabulary))
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    for row in rendered.head(rows).iter_rows(named=True):  # a handful of rows, each for a model
        length = min(len(row["input_ids"]), LONGEST, room)
        if length < 2:
            break
        ids.append(row["input_ids"][:length])
        labels.append(row["labels"][:length])
        room -= length
    if not ids:
        raise ExportError("The version has no conversation to compare the models on.", "Give --no-check.")
    return Sample(ids, labels)


def difference(sample: Sample, reference: Sequence[Logits], found: Sequence[Logits]) -> Difference:
    """How far `found` is from `reference`, each one array per row of the sample."""
    pairs = [(_log_probabilities(one), _log_probabilities(other)) for one, other in zip(reference, found, strict=True)]
    divergences = np.concatenate([(np.exp(one) * (one - other)).sum(axis=1) for one, other in pairs])
    choices = np.concatenate([one.argmax(axis=1) == other.argmax(axis=1) for one, other in pairs])
    return Difference(
        rows=len(sample.ids),
        tokens=sample.tokens,
        largest=float(max(np.abs(one - other).max() for one, other in zip(reference, found, strict=True))),
        scale=float(max(np.abs(one).max() for one in reference)),
        kl=max(0.0, float(divergences.mean())),
        same_choice=float(choices.mean()),
        perplexity=_perplexity(sample, [other for _, other in pairs]),
        reference_perplexity=_perplexity(sample, [one for one, _ in pairs]),
    )


def _log_probabilities(logits: Logits) -> Logits:
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalised: Logits = shifted - np.log(np.exp(shifted, dtype=np.float64).sum(axis=1, keepdims=True)).astype("f4")
    return normalised


def _perplexity(sample: Sample, rows: Sequence[Logits]) -> float:
    """Over the learned tokens, each judged by the logits of the token before it; over all, where none is learned."""
    losses = [
        -said[np.arange(len(ids) - 1), ids[1:]][np.asarray(labels[1:]) != IGNORE_INDEX]
        for said, ids, labels in zip(rows, sample.ids, sample.labels, strict=True)
    ]
    together = np.concatenate(losses)
    if together.size == 0:
        return float("nan")
    return float(np.exp(together.mean(dtype=np.float64)))


# ---------------------------------------------------------------------------------------------- models of PyTorch


def model_logits(model: Any, sample: Sample, progress: Callable[[int, int], None] = lambda *_: None) -> list[Logits]:
    """The logits of a model in memory, row by row: without padding, so that nothing moves them."""
    import torch

    rows = []
    with torch.inference_mode():
        for done, ids in enumerate(sample.ids, start=1):
            given = torch.tensor([list(ids)], device=model.device)
            rows.append(model(input_ids=given, use_cache=False).logits[0].float().cpu().numpy())
            progress(done, len(sample.ids))
    return rows


@contextmanager
def loaded(base: Path, adapter: Path | None = None, *, trust_remote_code: bool = False) -> Iterator[Any]:
    """A model in 16 bits on a GPU and in float32 on a CPU, with an adapter on it if one is given; freed afterwards."""
    import torch

    from train.model.base_model import load_model
    from train.model.log_capture import quiet

    with quiet():
        model = load_model(base, "lora", trust_remote_code=trust_remote_code)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter, use_safetensors=True)
    yield model.eval()
    del model
    gc.collect()
    torch.cuda.empty_cache()


def vocabulary_of(base: Path) -> int:
    """The number of logits of a model, from its config."""
    import json

    config: Mapping[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
