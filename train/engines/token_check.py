"""The rows of a job and the trainer's dataset → an error unless both have the same tokens, labels and boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from datasets import Dataset, Features, List, Value
from trl import SFTTrainer

from schemas.errors import TrainError
from train.tokens.labels import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Sums that must be equal before and after the trainer's preparation.

    `squared_lengths` changes as soon as two conversations are joined or one is divided.
    """

    conversations: int
    tokens: int
    loss_tokens: int
    ids: int
    loss_ids: int
    squared_lengths: int


def check_tokens(rows: pl.DataFrame, dataset: Dataset) -> None:
    """Raise `TrainError` if the trainer's dataset has other tokens, labels or boundaries than `rows`."""
    before, after = sum_tokens(rows), sum_tokens(dataset.to_polars())
    if before != after:
        raise TrainError(
            f"The trainer changed its input: {before.conversations:,} conversations of {before.tokens:,} tokens with "
            f"{before.loss_tokens:,} loss tokens went in, {after.conversations:,} of {after.tokens:,} with "
            f"{after.loss_tokens:,} came out.",
            "A setting truncates, drops or joins conversations; check train.extra and max_length.",
        )


def sum_tokens(rows: pl.DataFrame) -> TokenSums:
    """The sums of rows or packs; packs have the lengths of their conversations in `seq_lengths`."""
    trained = pl.col("labels").filter(pl.col("labels") != IGNORE_INDEX)
    sums = rows.select(pl.col("input_ids", "labels").explode().cast(pl.Int64)).select(
        pl.len().alias("tokens"),
        trained.len().alias("loss_tokens"),
        pl.col("input_ids").sum().alias("ids"),
        trained.sum().alias("loss_ids"),
    )
    packed = "seq_lengths" in rows.columns
    lengths = (rows["seq_lengths"].explode() if packed else rows["input_ids"].list.len()).cast(pl.Int64)
    squared_lengths = int((lengths * lengths).sum())
    return TokenSums(conversations=len(lengths), squared_lengths=squared_lengths, **sums.row(0, named=True))


def to_dataset(rows: pl.DataFrame) -> Dataset:
    """One conversation per row as `input_ids` and `labels`: the form in which TRL keeps their boundaries."""
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_polars(rows.select("input_ids", "labels")).cast(features)


def is_packed(trainer: SFTTrainer) -> bool:
    """Whether several conversations share a sequence, and their lengths are known."""
    return bool(trainer.args.packing) and "seq_lengths" in trainer.train_dataset.column_names


def check_packing(trainer: SFTTrainer) -> None:
    """Raise `TrainError` if the trainer does not pack."""
    if not is_packed(trainer):
        raise TrainError(
            "The trainer switched packing off without a warning.",
            "Check train.extra for a data collator or metrics; or set train.packing=false.",
        )
