"""Frames and a query → its result, by a DuckDB in memory that all readers and shapes share."""

from __future__ import annotations

from functools import cache

import duckdb
import polars as pl
import pyarrow as pa


def query_frames(query: str, **frames: pl.DataFrame | pa.Table) -> pl.DataFrame:
    """The result of `query` in an in-memory DuckDB; the query may name the frames."""
    with open_cursor() as connection:
        for name, frame in frames.items():
            connection.register(name, frame)
        result: pl.DataFrame = connection.sql(query).pl()
    return result


def open_cursor() -> duckdb.DuckDBPyConnection:
    """A connection with its own tables, which costs nothing; opening a database takes 11 ms."""
    return _database().cursor()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET GLOBAL TimeZone = 'UTC'")  # times without a zone are the same on every machine
    return connection
