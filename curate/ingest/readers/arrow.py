"""Arrow tables to batches of text: the part that Parquet files and datasets share. DuckDB writes the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from curate.ingest.column_names import make_unique
from curate.ingest.readers.batch import Batch, rejects_frame
from schemas.errors import SourceError


def read_rows(tables: Iterable[pa.RecordBatch], path: str) -> Iterator[Batch]:
    """A batch for each table: nested values as JSON text, anything else as SQL writes it, not-a-number as null.

    `raw` gives a row as a JSON object. Raises `SourceError` for a column that is damaged or that DuckDB cannot read.
    """
    connection = duckdb.connect()
    row = 1
    for rows in tables:
        if rows.num_rows:
            _refuse_damaged(path, rows, row)
            try:
                batch = _batch(connection, _readable(rows), row)
            except duckdb.NotImplementedException as error:
                raise _unknown(path, rows.schema) from error
            yield batch
            row += rows.num_rows


def _refuse_damaged(path: str, rows: pa.RecordBatch, first: int) -> None:
    """Raise `SourceError` where a text is not UTF-8: Polars and DuckDB take the word of Arrow's type for it."""
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            where = f"{path}, rows {first:,} to {first + rows.num_rows - 1:,}"
            raise SourceError(f"{where}: the column {name} is damaged: {error}.", "Write the file again.") from error


def _readable(rows: pa.RecordBatch) -> pa.Table:
    """The rows under distinct names, and numbers in types that DuckDB has."""
    return pa.table([_known(column) for column in rows.columns], names=make_unique(rows.schema.names))


def _known(column: pa.Array) -> pa.Array:
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    return column.cast(pa.string()) if pa.types.is_decimal256(column.type) else column


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


def _unknown(path: str, schema: pa.Schema) -> SourceError:
    """The error for the first column whose type DuckDB does not have."""
    field = next(field for field in schema if not _is_known(field.type))
    what = f"{path}: the column {field.name} has the type {field.type}, which DuckDB does not have."
    return SourceError(what, "Write it in another type, or leave it out.")


def _is_known(type: pa.DataType) -> bool:
    try:
        duckdb.from_arrow(_readable(pa.record_batch([pa.array([], type)], ["cells"])))
    except duckdb.NotImplementedException:
        return False
    return True


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
