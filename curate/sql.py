"""A read-only SQL query → rows of the store."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection, StatementType

from curate.ingest.column_names import make_unique
from curate.ingest.select_statement import without_end
from curate.rule_columns import VIEW
from schemas.errors import StoreError
from schemas.store import is_store_error

FETCH_ROWS = 10_000
"""Rows that are fetched at a time, so that a large result is not held in memory."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Unique column names, and the rows, which are fetched while they are read; the connection must stay open."""

    columns: list[str]
    json_columns: frozenset[int]
    """numbers of the columns whose texts are JSON"""
    rows: Iterator[tuple[Any, ...]]

    def first(self, limit: int | None = None) -> Iterator[tuple[Any, ...]]:
        """The first `limit` rows, or all."""
        return itertools.islice(self.rows, limit)

    def as_json(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The first `limit` rows, or all, as dictionaries; a column of the type JSON as its value."""
        rows = ([self._value(*cell) for cell in enumerate(row)] for row in self.first(limit))
        return [dict(zip(self.columns, row, strict=True)) for row in rows]

    def _value(self, column: int, cell: Any) -> Any:
        return json.loads(cell) if column in self.json_columns and cell is not None else cell


def run_query(connection: DuckDBPyConnection, query: str) -> QueryResult:
    """The result of one SELECT, DESCRIBE, SUMMARIZE or SHOW TABLES statement.

    Raises `StoreError` for other statements, and for a query that DuckDB cannot run. Iterating over the rows raises it
    if the error occurs after the first rows.
    """
    with _wrap_errors(connection, query):
        connection.execute("SET lock_configuration = true")
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != StatementType.SELECT:
            raise StoreError(
                "curate sql accepts one read-only statement, such as SELECT.",
                "curate import, select and freeze modify the store.",
            )
        relation = connection.sql(query)  # bound, but not run
        cells = ", ".join(_cell_sql(number, str(type)) for number, type in enumerate(relation.types, 1))
        result = connection.execute(f"SELECT {cells} FROM ({without_end(query)}\n)")  # a comment ends with the line
        columns = make_unique(column[0] for column in relation.description)
        json_columns = frozenset(number for number, type in enumerate(relation.types) if str(type) == "JSON")
    return QueryResult(columns, json_columns, _fetch(connection, query, result))


def _cell_sql(number: int, type: str) -> str:
    """A column by its number, cast to text if its type has no Python equivalent.

    DuckDB needs another package for times with a zone, and an interval of months or of many years is not a timedelta.
    A time with a zone becomes ISO 8601 in UTC; inside a list or struct, as DuckDB writes it.
    """
    if type == "TIMESTAMP WITH TIME ZONE":
        return f"strftime(timezone('UTC', #{number}), '%Y-%m-%dT%H:%M:%S.%fZ')"
    as_text = _TYPES.sub(lambda match: match[0] if match[0][0] in "'\"" else "VARCHAR", type)
    return f"#{number}" if as_text == type else f"CAST(#{number} AS {as_text})"


_TYPES = re.compile(r"""TIMESTAMP WITH TIME ZONE|\bINTERVAL\b(?! )|"(?:[^"]|"")*"|'(?:[^']|'')*'""")
"""A type without Python equivalent, or a quoted name, which may contain its words."""


def _fetch(connection: DuckDBPyConnection, query: str, result: DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    with _wrap_errors(connection, query):
        while rows := result.fetchmany(FETCH_ROWS):
            yield from rows


@contextmanager
def _wrap_errors(connection: DuckDBPyConnection, query: str) -> Iterator[None]:
    """Raise `StoreError` with DuckDB's message, and a command that lists valid names."""
    try:
        yield
    except duckdb.BinderException as error:  # the tables exist, a column or type does not
        tables = [VIEW] if VIEW in query.lower() else []  # DuckDB would name the tables of the view
        with suppress(duckdb.Error):  # fails too if a join uses an unknown column
            tables = tables or sorted(connection.get_table_names(query))
        commands = ", ".join(f"curate sql 'DESCRIBE {table}'" for table in tables)
        message = str(error).strip().replace("bindings: : ", "bindings: ")  # corrects a slip of DuckDB
        lists = "lists the columns" if len(tables) == 1 else "list the columns of each"
        raise StoreError(message, f"{commands} {lists}." if commands else _TABLES_HINT) from error
    except duckdb.PermissionException as error:
        place = re.search(r'"(.*)"', str(error))
        raise StoreError(
            f"The query, or a view that it uses, reads {place[1] if place else 'something other than the store'}.",
            "curate sql --allow-files allows a query to read files.",
        ) from error
    except duckdb.Error as error:
        if is_store_error(error):
            raise
        raise StoreError(str(error).strip(), _TABLES_HINT) from error


_TABLES_HINT = "curate sql --tables lists the tables, curate sql 'DESCRIBE sources' the columns of one."
