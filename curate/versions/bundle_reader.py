"""Rereading: a file that `curate export` wrote comes in, its conversations and the ids that it claims go out.

The file is read as by every import (`curate.ingest.readers`, `curate.ingest.column_mapping`), so this reads what
`curate import` would read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from curate.ingest.column_mapping import ColumnMapping, ParsedTable, parse_table
from curate.ingest.readers import Batch, open_source
from curate.versions.formats.format import Exporter
from schemas.conversation import fold


def reread(path: Path, exporter: Exporter) -> Iterator[pl.DataFrame]:
    """The records of a file, some ten thousand at a time.

    Columns `row`, `line`, `said` (the id that the record gives), `id` (the one that its content gives),
    `conversations`, `tools`, `problem` (why there is no conversation).
    """
    mapping = ColumnMapping(exporter.shape, {column: column for column in exporter.columns if column != "id"})
    for batch in open_source(str(path)).batches():
        broken = batch.rejects.select("row", "line", pl.col("reason").alias("problem"))
        yield pl.concat([_reread(batch, mapping), broken], how="diagonal")


def differing(records: pl.DataFrame) -> pl.DataFrame:
    """The records that cannot be read, or whose content does not give the id that they claim."""
    unread = pl.col("id").is_null() | pl.col("problem").is_not_null()  # without an id it may claim none either
    return records.filter(unread | pl.col("id").ne_missing(pl.col("said")))


def _reread(batch: Batch, mapping: ColumnMapping) -> pl.DataFrame:
    read = parse_table(batch.table, mapping)
    said = batch.table["id"] if "id" in batch.table.columns else pl.lit(None, pl.String)
    records = pl.DataFrame({"row": batch.row, "line": batch.line}).with_columns(said.alias("said"))
    positions = records.with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
    return (
        positions.join(_folded(read), left_on="position", right_on="row", how="left", maintain_order="left")
        .join(read.problems, left_on="position", right_on="row", how="left", maintain_order="left")
        .select("row", "line", "said", "id", "conversations", "tools", pl.col("reason").alias("problem"))
    )


def _folded(read: ParsedTable) -> pl.DataFrame:
    rows = read.turns.select(pl.col("row").unique(maintain_order=True))
    return fold(read.turns, rows.join(read.tools, on="row", how="left", maintain_order="left")["tools"])
