"""A base model and an engine → the losses that show whether packed conversations attend to each other.

The pack is computed by the engine's own trainer: its collator, model, attention and precision. It consists of four
documents of random tokens. Each in turn is replaced by other tokens, and the losses of the rest must not change; each
is also computed alone, and its loss must be equal except for rounding. As a control, all four are joined to one
document: then the later losses must change, otherwise the check would detect nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines import Job, find_engine
from train.engines.batch_size import BatchConfig
from train.model.base_model import find_model, pick_method
from train.model.log_capture import quiet
from train.tokens.labels import IGNORE_INDEX
from train.tokens.tokenizer import Tokenizer

LENGTHS = (96, 64, 80, 48)
"""Tokens of the documents; their lengths differ, so that they cannot be mistaken for each other."""

UNMOVED = 1e-6
"""The largest change of a loss, in nats, that counts as none: equal kernels on equal numbers give equal bits."""

ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""The allowed difference of a document's loss from its loss alone, in nats: other kernels sum in another order."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the pack: its loss alone and packed, and the largest change of it when another one is replaced."""

    tokens: int
    alone: float
    packed: float
    moved: float


@dataclass(frozen=True, slots=True)
class Isolation:
    """The result of the check. Without packing there are no documents."""

    model: str
    engine: str
    device: str
    dtype: str
    packed: bool
    documents: tuple[Document, ...] = ()
    moved_when_joined: float = 0.0  # control: change of the last document's loss when all are one document

    @property
    def isolated(self) -> bool:
        """Whether no document depends on another, and the control shows that the check would detect it."""
        rounding = ROUNDING[self.dtype]
        unchanged = all(d.moved <= UNMOVED and abs(d.packed - d.alone) <= rounding for d in self.documents)
        return not self.packed or (unchanged and self.moved_when_joined > UNMOVED)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {**asdict(self), "isolated": self.isolated, "unmoved": UNMOVED, "rounding": ROUNDING[self.dtype]}


def check_isolation(recipe: TrainSection) -> Isolation:
    """Check the recipe's model and engine on this machine.

    Raises `TrainError` if the model or the engine cannot be loaded.
    """
    folder = find_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    documents = _draw_documents(folder, recipe.seed)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        trainer, packed = _make_trainer(folder, recipe, documents, Path(scratch))
        losses = _Losses(trainer)
        facts = {"model": recipe.model, "engine": recipe.engine, "device": losses.device, "dtype": losses.dtype}
        if not packed:
            return Isolation(**facts, packed=False)
        row = trainer.train_dataset[0]
        borders = pairwise([0, *accumulate(row["seq_lengths"])])
        pack = [list(row["input_ids"][start:end]) for start, end in borders]
        return Isolation(
            **facts,
            packed=True,
            documents=tuple(_measure_document(pack, number, losses) for number in range(len(pack))),
            moved_when_joined=_measure_joined(pack, losses),
        )


def _draw_documents(folder: Path, seed: int) -> list[list[int]]:
    """Random tokens, without special tokens."""
    backend = Tokenizer.load(folder).backend
    special = backend.get_added_tokens_decoder().keys()
    ordinary = np.array([n for n in range(backend.get_vocab_size()) if n not in special])
    generator = np.random.default_rng(seed)
    return [generator.choice(ordinary, length).tolist() for length in LENGTHS]


def _make_trainer(folder: Path, recipe: TrainSection, documents: list[list[int]], scratch: Path) -> tuple[Any, bool]:
    """The engine's trainer with the documents in one pack, and whether it packs."""
    rows = pl.DataFrame(
        {"input_ids": documents, "labels": documents},
        schema_overrides=dict.fromkeys(("input_ids", "labels"), pl.List(pl.Int32)),
    )
    extra = {key: value for key, value in recipe.extra.items() if key != "lora_dropout"}
    changes = {"packing": True, "max_length": sum(LENGTHS), "batch": 1, "accumulate": 1, "extra": extra, "track": ()}
    job = Job(
        rows=rows,
        held_out=rows.head(0),
        model=folder.resolve(),
        recipe=recipe.model_copy(update={**changes, "effective_batch": None}),
        method=pick_method(recipe.method),
        checkpoints=scratch,
        adapter=scratch,
        resume=None,
        report=lambda _: None,
    )
    loaded = find_engine(recipe.engine).load(job)
    from train.engines.token_check import is_packed
    from train.engines.trainer import make_trainer

    mode = loaded.checkpointing_modes[0]
    loaded.set_checkpointing(mode)
    trainer, _ = make_trainer(job, loaded, BatchConfig(1, 1, mode), rows)
    if is_packed(trainer) and len(trainer.train_dataset) != 1:
        raise TrainError("The trainer did not put the documents into one pack.", "Check train.extra.")
    return trainer, is_packed(trainer)


class _Losses:
    """The losses that the trainer's model gives single documents of a pack, in the precision of training."""

    def __init__(self, trainer: Any) -> None:
        parameter = next(trainer.model.parameters())
        self.trainer, self.device = trainer, parameter.device.type
        self.dtype = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else "float32"

    def of_document(self, pack: Sequence[Sequence[int]], number: int) -> float:
        """The mean loss of one document of a pack."""
        ids = [token for document in pack for token in document]
        start = sum(map(len, pack[:number]))
        return self._of(ids, range(start, start + len(pack[number])), [len(document) for document in pack])

    def of_tail(self, ids: Sequence[int], count: int) -> float:
        """The mean loss of the last tokens of one document."""
        return self._of(ids, range(len(ids) - count, len(ids)), [len(ids)])

    def _of(self, ids: Sequence[int], trained: range, lengths: Sequence[int]) -> float:
        import torch

        labels = [token if place in trained else IGNORE_INDEX for place, token in enumerate(ids)]
        row = {"input_ids": list(ids), "labels": labels, "seq_lengths": list(lengths)}
        device = next(self.trainer.model.parameters()).device
        inputs = self.trainer.data_collator([row])
        batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        count = (batch["labels"] != IGNORE_INDEX).sum()
        dtype = torch.float16 if self.dtype == "float16" else torch.bfloat16
        with torch.no_grad(), torch.autocast(self.device, dtype=dtype, enabled=self.dtype != "float32"):
            return float(self.trainer.compute_loss(self.trainer.model, batch, num_items_in_batch=count))


def _reverse_document(pack: Sequence[Sequence[int]], number: int) -> list[list[int]]:
    """The pack with the tokens of one document in reverse order."""
    return [list(reversed(ids)) if place == number else list(ids) for place, ids in enumerate(pack)]


def _measure_document(pack: Sequence[Sequence[int]], number: int, losses: _Losses) -> Document:
    packed = losses.of_document(pack, number)
    others = (other for other in range(len(pack)) if other != number)
    changes = (abs(losses.of_document(_reverse_document(pack, other), number) - packed) for other in others)
    return Document(len(pack[number]), losses.of_tail(pack[number], len(pack[number])), packed, max(changes))


def _measure_joined(pack: Sequence[Sequence[int]], losses: _Losses) -> float:
    """The change of the loss on the last document's tokens when the first is replaced, all joined to one document."""

    def loss_at_end(documents: Sequence[Sequence[int]]) -> float:
        return losses.of_tail([token for ids in documents for token in ids], len(documents[-1]))

    return abs(loss_at_end(pack) - loss_at_end(_reverse_document(pack, 0)))
