"""The ledger of a run, `ledger.parquet` next to its manifest → the outcome of every conversation and window."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from schemas.atomic import atomic_file
from schemas.errors import TrainError

LEDGER_FILE = "ledger.parquet"

LEDGER: dict[str, pl.DataType | type[pl.DataType]] = {
    "conversation": pl.String,
    "split": pl.String,
    "window": pl.Int32,  # number of the window (from 1), null if the conversation was not split
    "outcome": pl.String,  # kept, split, truncated or dropped
    "code": pl.String,  # unrendered, no-loss-tokens, special-text, too-long or windowed; null if kept
    "reason": pl.String,  # a sentence; null if kept
    "tokens": pl.Int64,  # as rendered; 0 if it cannot be rendered
    "cut": pl.Int64,  # tokens not trained on; all tokens if dropped
    "loss_tokens": pl.Int64,  # trained tokens that contribute to the loss
    "loss_tokens_cut": pl.Int64,  # tokens cut that would contribute to the loss
    "per_epoch": pl.Int64,  # how often an epoch uses the row, as decided by the version's mix
}
"""Columns of a ledger; an epoch trains on `tokens - cut` tokens, `per_epoch` times. After training it also has
`epoch_count`: how many times the steps trained on the row, null if it was held out or dropped."""

PER_EPOCH = "per_epoch"
"""Missing in ledgers of earlier releases, whose versions had no mix."""

OLD_COLUMNS = {"fate": "outcome", "learned": "loss_tokens", "learned_cut": "loss_tokens_cut", "seen": "epoch_count"}
OLD_CODES = {"nothing-learned": "no-loss-tokens"}
"""Names in ledgers of earlier releases."""


def read_ledger(path: Path, conversation: str | None = None) -> pl.DataFrame:
    """The ledger at `path`, or its rows for one conversation, with today's names of columns and codes.

    Raises `TrainError` if the file is missing or cannot be read.
    """
    try:
        ledger = pl.scan_parquet(path).rename(OLD_COLUMNS, strict=False)
        if PER_EPOCH not in ledger.collect_schema():
            ledger = ledger.with_columns(pl.lit(1, pl.Int64).alias(PER_EPOCH))
        if conversation is not None:
            ledger = ledger.filter(pl.col("conversation") == conversation)
        return ledger.with_columns(pl.col("^code$").cast(pl.String).replace(OLD_CODES)).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TrainError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def write_ledger(ledger: pl.DataFrame, folder: Path) -> Path:
    """Write the ledger into `folder` atomically and return its path. Raises `OSError` if it cannot be written."""
    path = folder / LEDGER_FILE
    with atomic_file(path) as temporary:
        ledger.write_parquet(temporary)
    return path
