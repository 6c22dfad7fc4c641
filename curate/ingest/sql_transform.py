"""Batches of a source and the SELECT of `--sql` → batches of its result, which keep the records they come from.

A row of the result names its records in the column `row_number`: a number, or a list of numbers. Records that no row
names are excluded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import duckdb
import polars as pl
import pyarrow as pa

from curate.ingest.column_names import MAX_LISTED, make_unique
from curate.ingest.convert import drop_export_columns, join_batches
from curate.ingest.readers import Batch
from curate.ingest.readers.arrow import ROWS as BATCH_ROWS
from curate.ingest.readers.arrow import read_rows
from curate.ingest.readers.batch import REJECT_COLUMN, UNUSABLE
from curate.ingest.select_statement import ROW_NUMBER, ROWS, is_ordered, without_end
from schemas.errors import SourceError
from schemas.text import join_names, quote_name, shorten

MOST_BYTES, MOST_TIMES = 512 << 20, 20
"""Bytes of a result: so many, or so many times those of the rows."""

MEMORY = "50%"
"""Memory of the SELECT; the rows of the file and the result have the rest."""

_running: set[duckdb.DuckDBPyConnection] = set()
"""Connections that run a SELECT in a thread, which does not see Ctrl-C."""


def interrupt_selects() -> None:
    """Stop the SELECT statements that run in threads."""
    for connection in tuple(_running):
        connection.interrupt()


@contextmanager
def _interruptible(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    _running.add(connection)
    try:
        yield
    finally:
        _running.discard(connection)


def transform_batches(path: str, batches: Iterator[Batch], sql: str | None) -> Iterator[Batch]:
    """The batches, or those of the result of the SELECT over all their rows. Raises `SourceError` if it fails.

    The cells of `rows` are text, nested values are JSON text, and `row_number` is the number of the record.
    """
    return batches if sql is None else _transformed(path, batches, sql)


def _transformed(path: str, batches: Iterator[Batch], sql: str) -> Iterator[Batch]:
    parts = list(batches)
    if not any(part.table.height for part in parts):
        yield from parts
        return
    whole = join_batches(parts)
    result = _run(path, whole, sql)
    sources = _find_records(path, result.column(ROW_NUMBER), whole.row)
    table = _to_text(path, result.drop_columns([ROW_NUMBER]))
    if not table.height:
        raise SourceError(f"{path}: {shorten(sql)!r} returns no rows.", "Change the SELECT of --sql.")
    if not is_ordered(sql):  # a sample comes in any order
        first = sources.group_by("position").agg(pl.col("record").min()).sort("record", "position")["position"]
        table = table[first]
        places = pl.DataFrame({"position": first}).with_row_index("place")
        sources = sources.join(places, on="position").select(position=pl.col("place").cast(pl.Int64), record="record")
    batch = _keep_records(whole, table, sources.sort("position", "record"))
    yield from [batch] if batch.sources is not None else _slices(batch)


def _run(path: str, whole: Batch, sql: str) -> pa.Table:
    """The result of the SELECT with unique column names and JSON strings as text; it can access `rows` only."""
    cells = drop_export_columns(whole.table)
    names = make_unique([ROW_NUMBER, *cells.columns])
    rows = pl.DataFrame([whole.row.alias(ROW_NUMBER), *map(pl.Series.alias, cells.get_columns(), names[1:])])
    closed = duckdb.connect(":memory:", config={"enable_external_access": "false", "memory_limit": MEMORY})
    with closed as connection, _interruptible(connection):
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET threads = 1")  # a sample with a seed is the same every time
        connection.execute("SET TimeZone = 'UTC'")
        connection.register(ROWS, rows.to_arrow(compat_level=pl.CompatLevel.newest()))
        connection.execute("SET lock_configuration = true")
        try:
            relation = connection.sql(without_end(sql))
            most = max(MOST_BYTES, MOST_TIMES * int(rows.estimated_size()))
            result = _fetch(path, relation.project(_select_list(path, relation)), sql, most)
        except duckdb.InterruptException as error:
            raise KeyboardInterrupt from error
        except duckdb.OutOfMemoryException as error:
            raise SourceError(
                f"{path}: {shorten(sql)!r} needs more than half of the memory of this machine.",
                "Return fewer rows or shorter texts, or split the file.",
            ) from error
        except duckdb.Error as error:
            raise SourceError(
                f"{path}: {shorten(sql)!r} cannot be run: {shorten(str(error).splitlines()[0])}",
                f"Columns of {ROWS}: {join_names(names, MAX_LISTED)}. Cells are text, nested values JSON text.",
            ) from error
    if ROW_NUMBER not in result.column_names:
        raise SourceError(
            f"{path}: {shorten(sql)!r} has no column {ROW_NUMBER}, which names the line of each row.",
            f"SELECT {ROW_NUMBER}, …, or list({ROW_NUMBER}) AS {ROW_NUMBER} with GROUP BY.",
        )
    return result


def _fetch(path: str, relation: duckdb.DuckDBPyRelation, sql: str, most: int) -> pa.Table:
    """The result; a join can make it larger than the memory, of which DuckDB limits only its own part."""
    reader = relation.to_arrow_reader(BATCH_ROWS)
    parts, size = [], 0
    for part in reader:
        parts.append(part)
        size += part.nbytes
        if size > most:
            raise SourceError(
                f"{path}: {shorten(sql)!r} returns more than {most:,} bytes, {MOST_TIMES} times the rows.",
                "Return fewer rows or shorter texts, or split the file.",
            )
    return pa.Table.from_batches(parts, reader.schema)


def _select_list(path: str, relation: duckdb.DuckDBPyRelation) -> str:
    """All columns of a relation; JSON strings without quotes, as the reader of JSON files writes them.

    Integers of 128 bits, such as sums, become text: Arrow has no type for all of them. Raises `SourceError` for lists
    and the like of such integers.
    """
    values = []
    for at, (name, kind) in enumerate(zip(relation.columns, map(str, relation.types), strict=True), 1):
        if "HUGEINT" in kind and kind not in ("HUGEINT", "UHUGEINT"):
            raise SourceError(
                f"{path}: the SELECT returns the column {name} with the type {kind}.",
                f"Cast it, for example: {name}::{kind.replace('UHUGEINT', 'HUGEINT').replace('HUGEINT', 'VARCHAR')}",
            )
        as_text = "HUGEINT" in kind and name.lower() != ROW_NUMBER
        values.append(f"#{at} ->> '$'" if kind == "JSON" else f"#{at}::VARCHAR" if as_text else f"#{at}")
    names = map(quote_name, make_unique(relation.columns))
    return ", ".join(f"{value} AS {name}" for value, name in zip(values, names, strict=True))


def _find_records(path: str, numbers: pa.ChunkedArray, row: pl.Series) -> pl.DataFrame:
    """Each `position` in the result with the `record` (its position in `row`) that it names, in Int64."""
    if not _is_integer(numbers.type.value_type if pa.types.is_list(numbers.type) else numbers.type):
        raise SourceError(
            f"{path}: {ROW_NUMBER} must be an integer or a list of integers; the SELECT returns {numbers.type}.",
            f"Return {ROW_NUMBER} of {ROWS} unchanged, or list({ROW_NUMBER}) AS {ROW_NUMBER} with GROUP BY.",
        )
    named = pl.DataFrame({ROW_NUMBER: pl.from_arrow(numbers)}).with_row_index("position")
    if isinstance(named.schema[ROW_NUMBER], pl.List):
        named = named.explode(ROW_NUMBER).unique(maintain_order=True)
    known = pl.DataFrame({ROW_NUMBER: row}).with_row_index("record")
    found = named.with_columns(pl.col(ROW_NUMBER).cast(pl.Int64, strict=False)).join(
        known, on=ROW_NUMBER, how="left", maintain_order="left"
    )
    if found["record"].null_count():
        wrong = named[ROW_NUMBER].gather(found["record"].is_null().arg_true())[0]
        raise SourceError(
            f"{path}: the SELECT returns the {ROW_NUMBER} {wrong}, which is not a number of a row.",
            f"Return {ROW_NUMBER} of {ROWS} unchanged, or a list of them.",
        )
    return found.select(pl.col("position", "record").cast(pl.Int64))


def _is_integer(type: pa.DataType) -> bool:
    """Whether values of the type have no fraction; DuckDB returns HUGEINT as a decimal, and NULL and [] as null."""
    return (
        pa.types.is_integer(type)
        or pa.types.is_null(type)
        or (pa.types.is_decimal(type) and (type.precision, type.scale) == (38, 0))
    )


def _to_text(path: str, result: pa.Table) -> pl.DataFrame:
    """The result as text, as the reader of Parquet files writes it."""
    others = [field.name for field in result.schema if not pa.types.is_string(field.type)]
    parts = [batch.table for batch in read_rows(result.select(others).to_batches(), path)] if others else []
    values = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(others, pl.String))
    texts = {name: pl.from_arrow(result.column(name)) for name in result.column_names if name not in others}
    return pl.DataFrame({name: texts[name] if name in texts else values[name] for name in result.column_names})


def _keep_records(whole: Batch, table: pl.DataFrame, sources: pl.DataFrame) -> Batch:
    """The batch of the table with the records that it uses; the others are excluded."""
    used = sources["record"].unique().sort()
    one_each = sources.height == used.len() == table.height
    records = sources["record"] if one_each else used
    numbers = pl.int_range(whole.row.len(), eager=True)
    unused = numbers.filter(~numbers.is_in(used.implode()))
    first = sources.unique("position", keep="first", maintain_order=True)["record"]
    kept = [name for name in (REJECT_COLUMN, UNUSABLE) if name in whole.table.columns]
    table = table.with_columns(whole.table[name].gather(first) for name in kept)
    return replace(
        whole,
        table=table,
        row=whole.row.gather(records),
        line=whole.line.gather(records),
        raw=lambda positions: whole.raw(records.gather(positions)),
        sources=None if one_each else sources.with_columns(record=used.search_sorted(sources["record"]).cast(pl.Int64)),
        excluded=pl.DataFrame({"row": whole.row.gather(unused), "line": whole.line.gather(unused)}),
    )


def _slices(batch: Batch) -> Iterator[Batch]:
    """The batch in parts, so that they are converted and written at the same time; the first has all other rows."""
    for start in range(0, batch.table.height, BATCH_ROWS):
        part = replace(
            batch,
            table=batch.table.slice(start, BATCH_ROWS),
            row=batch.row.slice(start, BATCH_ROWS),
            line=batch.line.slice(start, BATCH_ROWS),
            raw=partial(_raw_after, batch, start),
        )
        yield part if start == 0 else replace(part, rejects=batch.rejects.clear(), excluded=batch.excluded.clear())


def _raw_after(batch: Batch, start: int, positions: pl.Series) -> pl.Series:
    return batch.raw(positions + start)
