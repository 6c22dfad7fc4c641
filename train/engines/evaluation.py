"""A model and held-out conversations → the mean loss per loss token; and the best adapter so far, on disk."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch

from train.engines.distributed import all_reduce_sum, is_sharded, rank, world_size
from train.tokens.labels import IGNORE_INDEX

logger = logging.getLogger(__name__)

BATCH_TOKENS = 4096
"""Tokens of one forward pass, padding included: their logits need 1 GiB at most."""

SCORE = "evaluation.json"


def measure_losses(model: Any, held_out: pl.DataFrame, base_loss: float | None) -> dict[str, float]:
    """The held-out loss with the adapter and without it; empty if there are no held-out conversations.

    `base_loss` is the loss without the adapter if all weights were trained: then it is computed before training.
    """
    if held_out.is_empty():
        return {}
    logger.info("Computing the loss on %s held-out rows …", f"{held_out.height:,}")
    if base_loss is None:
        with model.disable_adapter():
            base_loss = held_out_loss(model, held_out)
    return {"eval_loss": held_out_loss(model, held_out), "eval_loss_base": base_loss}


def held_out_loss(model: Any, rows: pl.DataFrame) -> float:
    """The mean loss per loss token of `rows`, in nats; every token has the same weight, in long and short rows.

    Several processes share the rows and add up their sums. If they share the model, all of them compute all rows,
    because each layer needs every process. Padding follows the tokens, so no loss token attends to it. Leaves the
    model in its current mode.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    loss, loss_tokens = 0.0, 0
    # A loop over batches of rows: each is a separate forward pass.
    for ids, labels in _batches(rows if is_sharded() else rows[rank() :: world_size()]):
        count = int((labels[:, 1:] != IGNORE_INDEX).sum())  # the first token has no prediction
        if count:
            with torch.no_grad():
                out = model(input_ids=ids.to(device), labels=labels.to(device), use_cache=False)
            loss += out.loss.item() * count
            loss_tokens += count
    model.train(training)
    total_loss, total_tokens = all_reduce_sum([loss, float(loss_tokens)], device)
    return total_loss / max(total_tokens, 1.0)


def _batches(rows: pl.DataFrame) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of conversations of similar length, the longest first, padded at the end."""
    ordered = rows.sort(pl.col("input_ids").list.len(), maintain_order=True)
    longest_first = ordered.reverse().select("input_ids", "labels")
    start = 0
    while start < longest_first.height:
        width = len(longest_first["input_ids"][start])
        batch = longest_first[start : start + max(1, BATCH_TOKENS // max(width, 1))]
        yield _pad(batch["input_ids"], 0), _pad(batch["labels"], IGNORE_INDEX)
        start += batch.height


def _pad(lists: pl.Series, padding: int) -> torch.Tensor:
    tensors = [torch.tensor(values, dtype=torch.int64) for values in lists.to_list()]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def keep_best(save: Any, folder: Path, step: int, loss: float) -> None:
    """Replace the adapter in `folder`, atomically. `save(folder)` writes it; several processes may share the work."""
    unfinished = folder.with_name(f"{folder.name}.part")
    if rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    save(unfinished)
    if rank() == 0:
        (unfinished / SCORE).write_text(json.dumps({"step": step, "loss": loss}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)


def copy_best(folder: Path, adapter: Path, last_loss: float) -> tuple[int, float] | None:
    """Copy the best adapter to `adapter` if it is better than the last one: its step and loss, otherwise None."""
    if not (folder / SCORE).exists():
        return None
    best = json.loads((folder / SCORE).read_text(encoding="utf-8"))
    if best["loss"] >= last_loss:
        return None
    shutil.copytree(folder, adapter, ignore=shutil.ignore_patterns(SCORE), dirs_exist_ok=True)
    return int(best["step"]), float(best["loss"])
