"""What a reader hands on: some consecutive records of a source as a table of text, and those it could not read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

REJECTS = {"row": pl.Int64, "line": pl.Int64, "code": pl.String, "reason": pl.String, "raw": pl.String}


class Reject(NamedTuple):
    """One record that could not be read; `code` is the rule, `reason` a sentence, `raw` the record as it stood."""

    row: int
    line: int | None
    code: str
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive records of a source, as they were read."""

    table: pl.DataFrame
    """The source's own columns; every cell is text or null, a nested JSON value is its JSON text."""
    row: pl.Series
    """Int64, number of the record in the source, from 1; as long as `table`."""
    line: pl.Series
    """Int64, physical line where the record starts, from 1; null where there are no lines."""
    rejects: pl.DataFrame
    """Columns `REJECTS`: records that could not be read at all. Their numbers are missing in `row`."""
    raw: Callable[[pl.Series], pl.Series]
    """Positions in `table`, from 0, to the records as they stood in the file."""


def rejects_frame(rejects: Sequence[Reject]) -> pl.DataFrame:
    """The rejects as a frame with the columns `REJECTS`, in the order of their rows."""
    return pl.DataFrame(sorted(rejects), schema=REJECTS, orient="row")
