"""Arrow tables to batches of text: the part that Parquet files and datasets share. DuckDB writes the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from curate.importers.batch import Batch, rejects_frame


def read_rows(tables: Iterable[pa.RecordBatch]) -> Iterator[Batch]:
    """A batch for each table: nested values as JSON text, anything else as SQL writes it, not-a-number as null.

    `raw` gives a row as a JSON object.
    """
    connection = duckdb.connect()
    row = 1
    for rows in tables:
        if rows.num_rows:
            yield _batch(connection, pa.Table.from_batches([rows]), row)
            row += rows.num_rows


def _batch(connection: duckdb.DuckDBPyConnection, rows: pa.Table, first: int) -> Batch:
    numbered = rows.rename_columns([f"c{at}" for at in range(rows.num_columns)])
    connection.register("numbered", numbered)
    cells = ", ".join(_as_text(field) for field in numbered.schema)
    table: pl.DataFrame = connection.sql(f"SELECT {cells} FROM numbered").pl()
    table.columns = rows.column_names

    def raw(positions: pl.Series) -> pl.Series:
        return _as_json(rows.take(positions.to_arrow()))

    return Batch(
        table,
        pl.Series("row", first + np.arange(rows.num_rows), pl.Int64),
        pl.Series("line", [None] * rows.num_rows, pl.Int64),
        rejects_frame([]),
        raw,
    )


def _as_text(field: pa.Field) -> str:
    if pa.types.is_nested(field.type):
        return f"to_json({field.name})::VARCHAR AS {field.name}"
    if pa.types.is_floating(field.type):
        return f"(CASE WHEN NOT isnan({field.name}) THEN {field.name} END)::VARCHAR AS {field.name}"
    return f"{field.name}::VARCHAR AS {field.name}"


def _as_json(rows: pa.Table) -> pl.Series:
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        found: pl.DataFrame = connection.sql("SELECT to_json(rows)::VARCHAR AS raw FROM rows").pl()
        return found["raw"]
