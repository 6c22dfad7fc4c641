"""In: what a trainer trains on, and how many steps it took. Out: how often the steps saw each conversation.

The order of an epoch follows from the seed and the number of sequences alone, on one GPU or several, cut off and
resumed or not. So it is computed once a run is over instead of being recorded batch by batch.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from accelerate.data_loader import SeedableRandomSampler

from train.tokens.labels import split_at

WORDS = ("input_ids", "labels")


def times_seen(rows: pl.DataFrame, sequences: pl.DataFrame, a_step: int, steps: int, seed: int) -> pl.Series:
    """How often each of `rows` was seen by `steps` steps of `a_step` sequences each, in the order of the rows.

    `sequences` are the trainer's, packs or single rows. A conversation is found in them by its ids and labels; of
    equal ones each has its own place, and which is whose makes no difference to what was learned.
    """
    documents = _numbered(_documents(sequences))
    taken = pl.Series("seen", sequence_counts(sequences.height, a_step, steps, seed))
    found = documents.with_columns(seen=taken.gather(documents["sequence"])).drop("sequence")
    seen = _numbered(rows).join(found, on=["key", "other key", "number"], how="left", maintain_order="left")["seen"]
    assert not seen.null_count(), "a conversation that was handed over is in no sequence of the trainer"
    return seen


def sequence_counts(sequences: int, a_step: int, steps: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each sequence was taken: once in each whole epoch, and those that the last one begins with once more.

    >>> sequence_counts(5, 2, 3, seed=1).tolist(), sequence_counts(5, 2, 4, seed=1).sum().item()
    ([1, 1, 1, 1, 1], 7)
    """
    epochs, left = divmod(steps, steps_of_epoch(sequences, a_step))
    order = SeedableRandomSampler(range(sequences), data_seed=seed)
    order.set_epoch(epochs)
    counts = np.full(sequences, epochs, np.int64)
    counts[list(order)[: left * a_step]] += 1
    return counts


def steps_of_epoch(sequences: int, a_step: int) -> int:
    """Steps that go through all sequences once; the last one may be smaller."""
    return -(-sequences // a_step)


def _documents(sequences: pl.DataFrame) -> pl.DataFrame:
    """The conversations of all sequences, one under the other, each with the number of its sequence."""
    if "seq_lengths" not in sequences.columns:
        return sequences.select(*WORDS).with_row_index("sequence")
    lengths = sequences["seq_lengths"]
    numbers = np.repeat(np.arange(sequences.height), lengths.list.len().to_numpy())
    borders = np.concatenate([[0], lengths.explode().to_numpy().cumsum(dtype=np.int64)])
    return pl.DataFrame({"sequence": numbers} | {name: split_at(sequences[name].explode(), borders) for name in WORDS})


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """128 bits of each row's words, and which of its equals it is."""
    keyed = rows.with_columns(
        pl.col("input_ids").cast(pl.List(pl.Int32)).hash(0).alias("key"),
        pl.col("labels").cast(pl.List(pl.Int32)).hash(1).alias("other key"),
    ).drop(WORDS)
    return keyed.with_columns(pl.int_range(pl.len()).over("key", "other key").alias("number"))
