"""In: a model and held-out conversations. Out: the mean loss per learned token, and the best adapter so far on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch

from train.engines.distributed import is_sharded, rank, total, world
from train.tokens.labels import IGNORE_INDEX

BATCH_TOKENS = 4096
"""Tokens, padding included, of one pass over held-out conversations: their logits take 1 GiB at most."""

SCORE = "evaluation.json"


def held_out_loss(model: Any, rows: pl.DataFrame) -> float:
    """The mean loss per learned token of `rows`, in nats; every token counts the same, long conversations or short.

    Several processes share the rows and agree on the sum; where they share the model, all go through all rows, since
    none gets through a layer alone. Padding stands behind the words, where nothing that is
    learned can see it. Leaves the model in the mode in which it was.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    loss, learned = 0.0, 0
    # A loop over batches of rows: each goes through the model by itself.
    for ids, labels in _batches(rows if is_sharded() else rows[rank() :: world()]):
        count = int((labels[:, 1:] != IGNORE_INDEX).sum())  # nothing comes before the first token
        if count:
            with torch.no_grad():
                out = model(input_ids=ids.to(device), labels=labels.to(device), use_cache=False)
            loss += out.loss.item() * count
            learned += count
    model.train(training)
    loss, learned_by_all = total([loss, float(learned)], device)
    return loss / max(learned_by_all, 1.0)


def _batches(rows: pl.DataFrame) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels, conversations of like length together, padded behind."""
    ordered = rows.sort(pl.col("input_ids").list.len(), maintain_order=True)
    longest_first = ordered.reverse().select("input_ids", "labels")
    start = 0
    while start < longest_first.height:
        width = len(longest_first["input_ids"][start])
        batch = longest_first[start : start + max(1, BATCH_TOKENS // max(width, 1))]
        yield _padded(batch["input_ids"], 0), _padded(batch["labels"], IGNORE_INDEX)
        start += batch.height


def _padded(lists: pl.Series, filler: int) -> torch.Tensor:
    parts = [torch.tensor(values, dtype=torch.int64) for values in lists.to_list()]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=filler)


def keep_best(save: Any, folder: Path, step: int, loss: float) -> None:
    """Put the adapter into `folder` in place of the one there, whole or not at all. `save(folder)` writes it."""
    unfinished = folder.with_name(f"{folder.name}.part")
    if rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    save(unfinished)
    if rank() == 0:
        (unfinished / SCORE).write_text(json.dumps({"step": step, "loss": loss}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)


def take_best(folder: Path, adapter: Path, last_loss: float) -> tuple[int, float] | None:
    """Copy the best adapter to `adapter` if it is better than the last one: its step and loss, else None."""
    if not (folder / SCORE).exists():
        return None
    best = json.loads((folder / SCORE).read_text(encoding="utf-8"))
    if best["loss"] >= last_loss:
        return None
    shutil.copytree(folder, adapter, ignore=shutil.ignore_patterns(SCORE), dirs_exist_ok=True)
    return int(best["step"]), float(best["loss"])
