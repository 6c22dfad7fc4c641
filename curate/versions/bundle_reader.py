"""An exported data file → its conversations, each with the id that the file states and the id of its content.

Files are read by the import readers, so the result is that of `curate import`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from curate.ingest.column_mapping import parse_table
from curate.ingest.readers import Batch, open_source
from curate.ingest.shapes.json_cells import filled_cells
from curate.ingest.shapes.shape import TOOLS, ColumnMapping
from curate.versions.formats.format import ExportFormat
from schemas.conversation import fold


def read_records(path: Path, export_format: ExportFormat) -> Iterator[pl.DataFrame]:
    """The records of a file in batches.

    Columns `row`, `line`, `stated_id` (in the record), `per_epoch` (1 if the record has none), `id` (of its content),
    `conversations`, `tools`, `problem` (why there is no conversation).
    """
    columns = {column: column for column in export_format.columns if column not in ("id", "tools")}
    mapping = ColumnMapping(export_format.shape, columns)
    for batch in open_source(str(path)).batches():
        broken = batch.rejects.select("row", "line", pl.col("reason").alias("problem"))
        yield pl.concat([_parse(batch, mapping), broken], how="diagonal")


def find_differences(records: pl.DataFrame) -> pl.DataFrame:
    """The records that cannot be read, or whose content has another id than the stated one."""
    is_unreadable = pl.col("id").is_null() | pl.col("problem").is_not_null()  # both ids may be null
    return records.filter(is_unreadable | pl.col("id").ne_missing(pl.col("stated_id")))


def _parse(batch: Batch, mapping: ColumnMapping) -> pl.DataFrame:
    parsed = parse_table(batch.table, mapping)
    rows = parsed.turns.select(pl.col("row").unique(maintain_order=True))
    tools = rows.join(_stored_tools(batch), on="row", how="left", maintain_order="left")["tools"]
    stated_id = batch.table["id"] if "id" in batch.table.columns else pl.lit(None, pl.String)
    times = batch.table["per_epoch"].cast(pl.Int32, strict=False) if "per_epoch" in batch.table.columns else pl.lit(1)
    records = pl.DataFrame({"row": batch.row, "line": batch.line}).with_columns(
        stated_id.alias("stated_id"), per_epoch=times.cast(pl.Int32)
    )
    return (
        records.with_row_index("position")
        .with_columns(pl.col("position").cast(pl.Int64))
        .join(fold(parsed.turns, tools), left_on="position", right_on="row", how="left", maintain_order="left")
        .join(parsed.problems, left_on="position", right_on="row", how="left", maintain_order="left")
        .select(
            "row", "line", "stated_id", "per_epoch", "id", "conversations", "tools", pl.col("reason").alias("problem")
        )
    )


def _stored_tools(batch: Batch) -> pl.DataFrame:
    """The tools as they were exported: an import may write the same definitions in another notation."""
    if "tools" not in batch.table.columns:
        return pl.DataFrame(schema=TOOLS)
    return filled_cells(batch.table["tools"]).rename({"cell": "tools"})
