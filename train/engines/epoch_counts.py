"""The trainer's sequences and the number of steps → how often the steps trained on each conversation.

The order of an epoch follows from the seed and the number of sequences alone, with one GPU or several, resumed or not.
Therefore the counts are computed after the run instead of being recorded batch by batch.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from accelerate.data_loader import SeedableRandomSampler

from train.tokens.labels import split_at

COLUMNS = ("input_ids", "labels")


def count_epochs(rows: pl.DataFrame, sequences: pl.DataFrame, per_step: int, steps: int, seed: int) -> pl.Series:
    """How often `steps` steps of `per_step` sequences trained on each of `rows`, in the order of the rows.

    `sequences` are the trainer's: packs or single rows. Conversations are matched by ids and labels. Equal
    conversations are matched in order, which makes no difference to what was trained.
    """
    documents = _number_equal_rows(_split_packs(sequences))
    counts = pl.Series(sequence_counts(sequences.height, per_step, steps, seed))
    counted = documents.with_columns(epochs=counts.gather(documents["sequence"])).drop("sequence")
    keys = ["key", "other key", "number"]
    epochs = _number_equal_rows(rows).join(counted, on=keys, how="left", maintain_order="left")["epochs"]
    assert not epochs.null_count(), "a conversation of the job is in no sequence of the trainer"
    return epochs


def sequence_counts(sequences: int, per_step: int, steps: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each sequence was trained on: once per complete epoch, and once more at the start of the last one.

    >>> sequence_counts(5, 2, 3, seed=1).tolist(), sequence_counts(5, 2, 4, seed=1).sum().item()
    ([1, 1, 1, 1, 1], 7)
    """
    epochs, remaining_steps = divmod(steps, steps_per_epoch(sequences, per_step))
    order = SeedableRandomSampler(range(sequences), data_seed=seed)
    order.set_epoch(epochs)
    counts = np.full(sequences, epochs, np.int64)
    counts[list(order)[: remaining_steps * per_step]] += 1
    return counts


def steps_per_epoch(sequences: int, per_step: int) -> int:
    """Steps that train on every sequence once; the last one may be smaller."""
    return -(-sequences // per_step)


def _split_packs(sequences: pl.DataFrame) -> pl.DataFrame:
    """The conversations of all sequences, each with the number of its sequence."""
    if "seq_lengths" not in sequences.columns:
        return sequences.select(*COLUMNS).with_row_index("sequence")
    lengths = sequences["seq_lengths"]
    numbers = np.repeat(np.arange(sequences.height), lengths.list.len().to_numpy())
    borders = np.concatenate([[0], lengths.explode().to_numpy().cumsum(dtype=np.int64)])
    return pl.DataFrame(
        {"sequence": numbers} | {name: split_at(sequences[name].explode(), borders) for name in COLUMNS}
    )


def _number_equal_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """128 bits of hash of each row's ids and labels, and its number among equal rows."""
    hashed = rows.with_columns(
        pl.col("input_ids").cast(pl.List(pl.Int32)).hash(0).alias("key"),
        pl.col("labels").cast(pl.List(pl.Int32)).hash(1).alias("other key"),
    ).drop(COLUMNS)
    return hashed.with_columns(pl.int_range(pl.len()).over("key", "other key").alias("number"))
