"""The trainer's sequences → the same sequences, in the same order, shared among several processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from trl import SFTTrainer

from train.engines import Job
from train.engines.batch_size import BatchConfig
from train.engines.distributed import world_size
from train.engines.epoch_counts import steps_per_epoch
from train.model.checkpoints import checkpoint_step
from train.tokens.labels import IGNORE_INDEX


def share_sequences(trainer: SFTTrainer, job: Job, batch_config: BatchConfig) -> None:
    """Let several processes go through the sequences in the order of one process, each sequence once.

    Accelerate would give the last sequences to two processes. Filler is appended instead: two tokens without loss,
    which add nothing to the sums of a step.
    """
    if world_size() == 1:
        return
    count = len(trainer.train_dataset)
    filler = -count % (batch_config.batch * world_size())
    order = SeedableRandomSampler(range(count), data_seed=job.recipe.seed)
    if job.resume is not None:  # the trainer's own call does not reach it through the wrappers that resuming adds
        per_step = batch_config.batch * batch_config.accumulate * world_size()
        order.set_epoch(checkpoint_step(job.resume) // steps_per_epoch(count, per_step))
    if filler:
        dataset = trainer.train_dataset
        row = {name: [2] if name == "seq_lengths" else [0, 0] for name in dataset.column_names}
        row["labels"] = [IGNORE_INDEX] * 2
        trainer.train_dataset = concatenate_datasets(
            [dataset, Dataset.from_list([row] * filler, features=dataset.features)]
        )
    sampler = SamplerWithFiller(order, filler)
    trainer._get_train_sampler = lambda *_: sampler  # a RandomSampler would be replaced by one without filler


class SamplerWithFiller(torch.utils.data.Sampler):  # type: ignore[misc]
    """The order of a sampler, followed by the numbers of the filler, in every epoch."""

    def __init__(self, order: SeedableRandomSampler, filler: int) -> None:
        self.order, self.filler = order, filler

    def __len__(self) -> int:
        return len(self.order) + self.filler

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from range(len(self.order), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle again; Accelerate calls this before each epoch."""
        self.order.set_epoch(epoch)
