"""In: a base model and an engine. Out: the proof that conversations of one pack do not see each other there.

The pack goes through the engine's own trainer: its collator, its model, its attention, its precision. Four documents
of random tokens share it. Each in turn is replaced by other tokens, and the losses of the rest must not move; each is
asked alone, and its loss must be the same but for rounding. Then all four are handed over as one document: there the
later losses must move, or the check would see nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines.batch_size import Size
from train.model.base_model import find_model, pick_method
from train.model.log_capture import quiet
from train.tokens.labels import IGNORE_INDEX
from train.tokens.tokenizer import Tokenizer

LENGTHS = (96, 64, 80, 48)
"""Tokens of the documents; of different lengths, so that none can take another's place."""

UNMOVED = 1e-6
"""The largest move of a loss, in nats, that counts as none: the same kernels on the same numbers give the same bits."""

ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""How far a document's loss may be from its loss alone, in nats: other kernels add up in another order."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the pack: its loss alone and packed, and its largest move when another is changed."""

    tokens: int
    alone: float
    packed: float
    moved: float


@dataclass(frozen=True, slots=True)
class Isolation:
    """What was found. Without packing there are no documents, and nothing that could be seen."""

    model: str
    engine: str
    device: str
    dtype: str
    packed: bool
    documents: tuple[Document, ...] = ()
    moved_when_joined: float = 0.0  # the control: the last document's move when all are one and the first is changed

    @property
    def isolated(self) -> bool:
        """Whether every document is blind for the others, and the check would have seen it otherwise."""
        rounding = ROUNDING[self.dtype]
        blind = all(d.moved <= UNMOVED and abs(d.packed - d.alone) <= rounding for d in self.documents)
        return not self.packed or (blind and self.moved_when_joined > UNMOVED)

    def as_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return {**asdict(self), "isolated": self.isolated, "unmoved": UNMOVED, "rounding": ROUNDING[self.dtype]}


def check_isolation(recipe: TrainSection) -> Isolation:
    """Check the model and the engine that the recipe names, on this machine.

    Raises `TrainError` when the model or the engine is not there.
    """
    folder = find_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    documents = _documents(folder, recipe.seed)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        trainer, packed = _trainer(folder, recipe, documents, Path(scratch))
        found = _Losses(trainer)
        facts = {"model": recipe.model, "engine": recipe.engine, "device": found.device, "dtype": found.dtype}
        if not packed:
            return Isolation(**facts, packed=False)
        row = trainer.train_dataset[0]
        pack = _cut(row["input_ids"], row["seq_lengths"])
        return Isolation(
            **facts,
            packed=True,
            documents=tuple(_measured(pack, number, found) for number in range(len(pack))),
            moved_when_joined=_joined(pack, found),
        )


def _documents(folder: Path, seed: int) -> list[list[int]]:
    """Random ordinary tokens: what they say does not matter, and no special token gives a template away."""
    backend = Tokenizer.load(folder).backend
    special = backend.get_added_tokens_decoder().keys()
    ordinary = np.array([n for n in range(backend.get_vocab_size()) if n not in special])
    draw = np.random.default_rng(seed)
    return [draw.choice(ordinary, size).tolist() for size in LENGTHS]


def _trainer(folder: Path, recipe: TrainSection, documents: list[list[int]], scratch: Path) -> tuple[Any, bool]:
    """The engine's trainer with the documents in one pack, and whether they are."""
    from train.engines import Job, find_loader

    rows = pl.DataFrame(
        {"input_ids": documents, "labels": documents},
        schema_overrides=dict.fromkeys(("input_ids", "labels"), pl.List(pl.Int32)),
    )
    plain = {key: value for key, value in recipe.extra.items() if key != "lora_dropout"}
    asked = {"packing": True, "max_length": sum(LENGTHS), "batch": 1, "accumulate": 1, "extra": plain, "track": ()}
    job = Job(
        rows=rows,
        held_out=rows.head(0),
        model=folder.resolve(),
        recipe=recipe.model_copy(update={**asked, "effective_batch": None}),
        method=pick_method(recipe.method),
        checkpoints=scratch,
        adapter=scratch,
        resume=None,
        report=lambda _: None,
    )
    loaded = find_loader(recipe.engine)(job)
    from train.engines.trainer import is_packed, make_trainer

    loaded.switch(loaded.kinds[0])
    trainer, _ = make_trainer(job, loaded, Size(1, 1, loaded.kinds[0]), rows)
    if is_packed(trainer) and len(trainer.train_dataset) != 1:
        raise TrainError("The trainer did not put the documents into one pack.", "Look at train.extra.")
    return trainer, is_packed(trainer)


class _Losses:
    """Asks the trainer's model for the loss of single documents of a pack, in the precision of training."""

    def __init__(self, trainer: Any) -> None:
        parameter = next(trainer.model.parameters())
        self.trainer, self.device = trainer, parameter.device.type
        self.dtype = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else "float32"

    def of_document(self, pack: Sequence[Sequence[int]], number: int) -> float:
        """The mean loss of one document of a pack; the others are seen, or should not be."""
        ids = [token for document in pack for token in document]
        start = sum(map(len, pack[:number]))
        return self._of(ids, range(start, start + len(pack[number])), [len(document) for document in pack])

    def of_tail(self, ids: Sequence[int], count: int) -> float:
        """The mean loss of the last tokens of one document."""
        return self._of(ids, range(len(ids) - count, len(ids)), [len(ids)])

    def _of(self, ids: Sequence[int], learned: range, lengths: Sequence[int]) -> float:
        import torch

        labels = [token if place in learned else IGNORE_INDEX for place, token in enumerate(ids)]
        row = {"input_ids": list(ids), "labels": labels, "seq_lengths": list(lengths)}
        batch = self._on_device(self.trainer.data_collator([row]))
        count = (batch["labels"] != IGNORE_INDEX).sum()
        kind = torch.float16 if self.dtype == "float16" else torch.bfloat16
        with torch.no_grad(), torch.autocast(self.device, dtype=kind, enabled=self.dtype != "float32"):
            return float(self.trainer.compute_loss(self.trainer.model, batch, num_items_in_batch=count))

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        device = next(self.trainer.model.parameters()).device
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _cut(ids: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """The documents of a pack, in its order."""
    return [list(ids[start:end]) for start, end in pairwise([0, *accumulate(lengths)])]


def _changed(pack: Sequence[Sequence[int]], number: int) -> list[list[int]]:
    """The pack with one document's tokens in the opposite order, and no other touched."""
    return [list(reversed(ids)) if place == number else list(ids) for place, ids in enumerate(pack)]


def _measured(pack: Sequence[Sequence[int]], number: int, loss: _Losses) -> Document:
    packed = loss.of_document(pack, number)
    others = (other for other in range(len(pack)) if other != number)
    moves = (abs(loss.of_document(_changed(pack, other), number) - packed) for other in others)
    return Document(len(pack[number]), loss.of_tail(pack[number], len(pack[number])), packed, max(moves))


def _joined(pack: Sequence[Sequence[int]], loss: _Losses) -> float:
    """How far the loss of all as one document moves, on the last one's tokens, when the first one's are changed."""

    def last(documents: Sequence[Sequence[int]]) -> float:
        return loss.of_tail([token for ids in documents for token in ids], len(documents[-1]))

    return abs(last(pack) - last(_changed(pack, 0)))
