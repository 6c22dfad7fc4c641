"""Arrow record batches → batches of text, for Parquet files and datasets. DuckDB formats the values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from curate.ingest.column_names import make_unique
from curate.ingest.readers.batch import REJECTS, Batch, reject_large
from curate.ingest.readers.limits import DEFAULT, TOO_LARGE, Limits, check_expansion
from curate.ingest.shapes.frames import query_frames
from schemas.errors import SourceError

ROWS = 50_000
"""Maximum number of rows of a batch: a Parquet row group may contain the whole file."""

PART = 64 << 20
"""Bytes of text that are converted at a time."""

_LATER_NULL, _FIRST_NULL = r',"[^"\\]*":null', r'\{"[^"\\]*":null,?'
"""A key with null in DuckDB's JSON, after another key and at the start of an object; strings have escaped quotes."""


def read_rows(
    tables: Iterable[pa.RecordBatch], path: str, limits: Limits = DEFAULT, compressed: int = 0
) -> Iterator[Batch]:
    """One batch per record batch: nested values as JSON text, other values as DuckDB casts them to text, NaN as null.

    Every struct of an Arrow column has the keys of all of them, with null for those that its object does not have, so
    keys with null are omitted, also in `raw`. A map has its own keys: columns with maps keep their nulls.

    `raw` returns a row as a JSON object. `compressed`: bytes of a file that stores repeated values once.
    Raises `SourceError` for a damaged column or an unsupported type.
    """
    row, size = 1, 0
    for rows in tables:
        sizes = _repeated_bytes(rows)
        size += int(sizes.sum())
        check_expansion(path, compressed or size, size, limits)
        for part, is_large in _slices(rows, sizes, limits.record):
            if is_large:
                yield _reject_rows(part, row, limits)
            elif part.num_rows:
                _check_columns(path, part, row)
                try:
                    batch = _convert(_to_table(part), row)
                except duckdb.NotImplementedException as error:
                    raise _unsupported_type(path, part.schema) from error
                yield reject_large(batch, limits)
            row += part.num_rows


def _repeated_bytes(rows: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Bytes of each row in columns whose values are stored once, and may be repeated many times."""
    total = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
            sizes = pc.binary_length(column.dictionary).take(column.indices)
            total += sizes.fill_null(0).to_numpy(zero_copy_only=False)
    return total


def _is_text(type: pa.DataType) -> bool:
    return any(is_type(type) for is_type in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _slices(rows: pa.RecordBatch, sizes: npt.NDArray[np.int64], longest: int) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """The rows in parts, and whether those of a part are above the limit; others have about `PART` bytes of text."""
    is_large = sizes > longest
    part = np.cumsum(np.where(is_large, 0, sizes)) // PART
    starts = np.flatnonzero((np.diff(part, prepend=-1) != 0) | np.diff(is_large, prepend=False))
    for at, stop in itertools.pairwise([*starts.tolist(), rows.num_rows]):
        yield rows.slice(at, stop - at), bool(is_large[at])


def _reject_rows(rows: pa.RecordBatch, first: int, limits: Limits) -> Batch:
    """The batch of rows above the limit, of which no text is stored."""
    table = pl.DataFrame(schema=dict.fromkeys(make_unique(rows.schema.names), pl.String))
    numbers = pl.DataFrame({"row": first + np.arange(rows.num_rows)})
    rejects = numbers.select(
        "row", line=pl.lit(None, pl.Int64), code=pl.lit(TOO_LARGE), reason=pl.lit(limits.reason), raw=pl.lit("")
    )
    none = pl.Series([], dtype=pl.Int64)
    return Batch(table, none, none, rejects, lambda _: pl.Series([], dtype=pl.String))


def _check_columns(path: str, rows: pa.RecordBatch, first: int) -> None:
    """Raise `SourceError` for invalid UTF-8: Polars and DuckDB trust the type that Arrow declares."""
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            where = f"{path}, rows {first:,} to {first + rows.num_rows - 1:,}"
            raise SourceError(f"{where}: the column {name} is damaged: {error}.", "Write the file again.") from error


def _to_table(rows: pa.RecordBatch) -> pa.Table:
    """The rows with unique column names, and numbers in types that DuckDB supports."""
    return pa.table([_cast(column) for column in rows.columns], names=make_unique(rows.schema.names))


def _cast(column: pa.Array) -> pa.Array:
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    return column.cast(pa.string()) if pa.types.is_decimal256(column.type) else column


def _convert(rows: pa.Table, first: int) -> Batch:
    numbered = rows.rename_columns([f"c{at}" for at in range(rows.num_columns)])
    cells = ", ".join(_text_sql(field) for field in numbered.schema)
    table = query_frames(f"SELECT {cells} FROM numbered", numbered=numbered)
    table.columns = rows.column_names

    def raw(positions: pl.Series) -> pl.Series:
        return _rows_as_json(rows.take(positions.to_arrow()))

    return Batch(
        table,
        pl.Series("row", first + np.arange(rows.num_rows), pl.Int64),
        pl.Series("line", [None] * rows.num_rows, pl.Int64),
        pl.DataFrame(schema=REJECTS),
        raw,
    )


def _unsupported_type(path: str, schema: pa.Schema) -> SourceError:
    """The error for the first column with a type that DuckDB does not support."""
    field = next(field for field in schema if not _is_supported(field.type))
    return SourceError(
        f"{path}: the column {field.name} has the type {field.type}, which DuckDB does not support.",
        "Write it with another type, or omit it.",
    )


def _is_supported(type: pa.DataType) -> bool:
    try:
        duckdb.from_arrow(_to_table(pa.record_batch([pa.array([], type)], ["cells"])))
    except duckdb.NotImplementedException:
        return False
    return True


def _text_sql(field: pa.Field) -> str:
    if pa.types.is_nested(field.type):
        return f"{_nested_sql(field.name, field.type)} AS {field.name}"
    if pa.types.is_floating(field.type):
        return f"(CASE WHEN NOT isnan({field.name}) THEN {field.name} END)::VARCHAR AS {field.name}"
    return f"{field.name}::VARCHAR AS {field.name}"


def _nested_sql(name: str, type: pa.DataType) -> str:
    """The JSON text of a nested column, without the keys that only fill up its structs."""
    text, kinds = f"to_json({name})::VARCHAR", str(type)
    if "struct<" not in kinds or "map<" in kinds:
        return text
    return f"regexp_replace(regexp_replace({text}, '{_LATER_NULL}', '', 'g'), '{_FIRST_NULL}', '{{', 'g')"


def _rows_as_json(rows: pa.Table) -> pl.Series:
    names = [f"c{at}" for at in range(rows.num_columns)]
    cells = [
        f"{_nested_sql(name, field.type)}::JSON" if pa.types.is_nested(field.type) else name
        for name, field in zip(names, rows.schema, strict=True)
    ]
    keys = ["'" + name.replace("'", "''") + "'" for name in rows.column_names]
    pairs = ", ".join(f"{key}, {cell}" for key, cell in zip(keys, cells, strict=True))
    query = f"SELECT json_object({pairs})::VARCHAR AS raw FROM rows"
    return query_frames(query, rows=rows.rename_columns(names))["raw"]
