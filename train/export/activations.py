"""A model and rows of token ids → the mean square of each input of each linear layer.

A quantiser uses them to round the weights of strong inputs most exactly. llama.cpp calls this an importance matrix
(`tools/imatrix` in its repository). Here it is computed in PyTorch, from the model that is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from train.export.logit_diff import MAX_ROW_TOKENS

ROWS = 256
"""Conversations of the training split: with `MAX_ROW_TOKENS` at most 131,072 tokens, which take minutes on a CPU for a
model with a billion weights and seconds on a GPU. The first ones are a random sample, because ids are digests."""

MeanSquares = npt.NDArray[np.float32]
"""The mean square of each input of one layer."""


def collect_activation_stats(
    model: Any, rows: Sequence[Sequence[int]], progress: Callable[[int, int], None] = lambda *_: None
) -> Mapping[str, MeanSquares]:
    """The mean squares over all tokens, by the names of the model's linear layers; `progress` counts rows."""
    import torch

    with _sum_squares(model) as sums, torch.inference_mode():
        for done, ids in enumerate(rows, start=1):  # one row at a time: padding tokens would be counted
            model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
            progress(done, len(rows))
    tokens = sum(map(len, rows))
    return {name: (total / tokens).float().cpu().numpy() for name, total in sums.items()}


def truncate_rows(rendered: pl.DataFrame) -> list[list[int]]:
    """The ids of a rendered frame, up to `MAX_ROW_TOKENS` per row."""
    return rendered["input_ids"].list.head(MAX_ROW_TOKENS).to_list()


@contextmanager
def _sum_squares(model: Any) -> Iterator[dict[str, Any]]:
    """The sums of squared inputs by layer, updated by each forward pass inside the block."""
    import torch

    sums: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def add(_layer: Any, inputs: tuple[Any, ...]) -> None:
            squares = inputs[0].detach().double().square().reshape(-1, inputs[0].shape[-1]).sum(dim=0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
