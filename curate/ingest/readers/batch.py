"""The output of a reader: consecutive records of a source as a table of text, and the records it could not read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from curate.ingest.readers.limits import EXCERPT, TOO_LARGE, Limits

REJECTS = {"row": pl.Int64, "line": pl.Int64, "code": pl.String, "reason": pl.String, "raw": pl.String}
"""Records that cannot be read: `code` names the violated rule, `reason` is a sentence, `raw` the original text."""

EXPORT_COLUMNS = REJECT_COLUMN, REASON_COLUMN, RAW_COLUMN = ("_curate_reject", "_curate_reason", "_curate_raw")
"""Columns that `curate rejects --export` adds: the reject that a row corrects, its reason, and its text."""

UNUSABLE = "_curate_unusable"
"""Column of a table, only with rows whose cells had values that cannot be stored: JSON text of column → reason."""

EXCLUDED_ROWS = {"row": pl.Int64, "line": pl.Int64}


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of a source."""

    table: pl.DataFrame
    """The columns of the source; every cell is text or null, a nested value is JSON text."""
    row: pl.Series
    """Int64, number of the record in the source, from 1; as long as `table`, unless `sources` is given."""
    line: pl.Series
    """Int64, line of the file on which the record starts, from 1; null for formats without lines."""
    rejects: pl.DataFrame
    """`REJECTS`, sorted by row: records that cannot be read. The field `row` does not contain their numbers."""
    raw: Callable[[pl.Series], pl.Series]
    """Positions in `row`, from 0 → the original text of these records."""
    sources: pl.DataFrame | None = None
    """`position` (in `table`), `record` (position in `row`): the records that each row of the table comes from; None if
    each row is the record at the same position."""
    excluded: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EXCLUDED_ROWS))
    """`EXCLUDED_ROWS`: records that the SELECT of `--sql` left out."""

    @property
    def records(self) -> int:
        """Number of records of the source."""
        return self.row.len() + self.rejects.height + self.excluded.height

    def texts_at(self, positions: pl.Series) -> pl.DataFrame:
        """The records at these positions in `row`: `row`, `line`, `raw`."""
        return pl.DataFrame(
            {"row": self.row.gather(positions), "line": self.line.gather(positions), "raw": self.raw(positions)}
        )


def batch_of_rows(
    names: Sequence[str], rows: Sequence[Sequence[str | None]], before: int, lines: Sequence[int] | None = None
) -> Batch:
    """The batch of rows of texts, after `before` other rows of the source; `raw` returns a row as a JSON object.

    A row may have fewer cells than there are names; the others are empty.
    """
    columns = {name: [row[at] if at < len(row) else "" for row in rows] for at, name in enumerate(names)}
    table = pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String))

    def raw(positions: pl.Series) -> pl.Series:
        texts = [json.dumps(row, ensure_ascii=False) for row in table[positions.to_list()].iter_rows(named=True)]
        return pl.Series("raw", texts, dtype=pl.String)

    return Batch(
        table,
        pl.Series("row", range(before + 1, before + len(rows) + 1), dtype=pl.Int64),
        pl.Series("line", [None] * len(rows) if lines is None else lines, dtype=pl.Int64),
        pl.DataFrame(schema=REJECTS),
        raw,
    )


def reject_large(batch: Batch, limits: Limits) -> Batch:
    """The batch, in which rows above the limit of a record are rejects with the start of their cells."""
    if batch.table.estimated_size() <= limits.record:
        return batch
    size = pl.sum_horizontal(pl.lit(0), pl.all().str.len_bytes())
    is_large = batch.table.select(size > limits.record).to_series()
    if not is_large.any():
        return batch
    kept, large = ((rows).arg_true().cast(pl.Int64) for rows in (~is_large, is_large))
    rejects = pl.DataFrame({"row": batch.row.gather(large), "line": batch.line.gather(large)}).with_columns(
        code=pl.lit(TOO_LARGE),
        reason=pl.lit(limits.reason),
        raw=batch.table.filter(is_large)
        .select(pl.concat_str(pl.all().str.head(EXCERPT), separator=" ", ignore_nulls=True))
        .to_series(),
    )
    return replace(
        batch,
        table=batch.table.filter(~is_large),
        row=batch.row.gather(kept),
        line=batch.line.gather(kept),
        rejects=pl.concat([batch.rejects, rejects]).sort("row"),
        raw=lambda positions: batch.raw(kept.gather(positions)),
    )
