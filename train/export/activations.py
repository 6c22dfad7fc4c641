"""In: a model and rows of tokens. Out: how strongly each input of each of its linear layers is used, as mean squares.

A quantiser that knows them rounds so that the weights that are multiplied by much are hit least: it is what llama.cpp
calls an importance matrix (`tools/imatrix` there). Here they are taken in PyTorch, from the model that is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from train.export.logit_diff import LONGEST

ROWS = 256
"""Conversations of the training split that are looked at: with `LONGEST` at most 131,072 tokens, minutes of a CPU for
a model of a billion weights and seconds of a GPU. The first are taken: their ids are digests, so any are as good."""

Squares = npt.NDArray[np.float32]
"""The mean square of each input of one layer."""


def weigh(
    model: Any, rows: Sequence[Sequence[int]], progress: Callable[[int, int], None] = lambda *_: None
) -> Mapping[str, Squares]:
    """The mean squares by the names of the model's linear layers, over all tokens; `progress` counts the rows."""
    import torch

    with _watched(model) as sums, torch.inference_mode():
        for done, ids in enumerate(rows, start=1):  # one at a time, without padding: its tokens would count
            model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
            progress(done, len(rows))
    tokens = sum(map(len, rows))
    return {name: (total / tokens).float().cpu().numpy() for name, total in sums.items()}


def rows_to_weigh(rendered: pl.DataFrame) -> list[list[int]]:
    """The rows of a rendered frame, cut to `LONGEST` tokens."""
    return rendered["input_ids"].list.head(LONGEST).to_list()


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, Any]]:
    """The sums of squared inputs by layer, growing with each forward pass while the block runs."""
    import torch

    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def add(_layer: Any, given: tuple[Any, ...]) -> None:
            squares = given[0].detach().double().square().reshape(-1, given[0].shape[-1]).sum(dim=0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
