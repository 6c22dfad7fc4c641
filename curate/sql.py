"""Querying: an SQL question to the store comes in, rows go out. Nothing can be changed that way."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection, StatementType

from curate.ingest.column_names import make_unique
from schemas.errors import StoreError

SLICE = 10_000
"""Rows that are fetched at a time, so that a large answer is printed without holding it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Column names, each once, and the rows as they are fetched; the store must stay open meanwhile."""

    columns: list[str]
    rows: Iterator[tuple[Any, ...]]

    def first(self, limit: int | None = None) -> Iterator[tuple[Any, ...]]:
        """At most `limit` rows; they are fetched as they are taken."""
        return itertools.islice(self.rows, limit)

    def as_json(self, limit: int | None = None) -> list[dict[str, Any]]:
        """At most `limit` rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.first(limit)]


def ask(connection: DuckDBPyConnection, query: str) -> Answer:
    """The answer to one SELECT (also DESCRIBE, SUMMARIZE, SHOW TABLES).

    Raises `StoreError` for anything that is no question, and for one that DuckDB cannot answer; the rows raise it too,
    where it shows only behind the first of them.
    """
    with _explained(connection, query):
        connection.execute("SET python_enable_replacements = false")  # else a table may be a variable of this module
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != StatementType.SELECT:
            raise StoreError(
                "curate sql only reads: give it one SELECT.", "Import, select and freeze change the store."
            )
        asked = connection.sql(query)  # bound, not yet run
        cells = ", ".join(_cell(number, str(type)) for number, type in enumerate(asked.types, 1))
        connection.register(_ASKED, asked)
        result = connection.execute(f'SELECT {cells} FROM "{_ASKED}"')
        columns = make_unique(column[0] for column in asked.description)
    return Answer(columns, _fetched(connection, query, result))


def _cell(number: int, type: str) -> str:
    """A column by its place, with what Python cannot hold as text.

    For times that have a zone DuckDB would want another package, and a span of months or of many years is no timedelta.
    """
    as_text = _TYPES.sub(lambda found: found[0] if found[0][0] in "'\"" else "VARCHAR", type)
    return f"#{number}" if as_text == type else f"CAST(#{number} AS {as_text})"


_ASKED = "what was asked"
"""The view of the question: no table of a store is called so."""

_TYPES = re.compile(r"""TIMESTAMP WITH TIME ZONE|\bINTERVAL\b(?! )|"(?:[^"]|"")*"|'(?:[^']|'')*'""")
"""Such a type, or a name in quotes that may only look like it."""


def _fetched(connection: DuckDBPyConnection, query: str, result: DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    with _explained(connection, query):
        while rows := result.fetchmany(SLICE):
            yield from rows


@contextmanager
def _explained(connection: DuckDBPyConnection, query: str) -> Iterator[None]:
    """Tell what DuckDB finds wrong with the question, and what shows the names that it may use."""
    try:
        yield
    except duckdb.BinderException as error:  # the tables are there, a column or a type is not what was thought
        tables: list[str] = []
        with suppress(duckdb.Error):  # where a join uses a column that is not there, they are not told either
            tables = sorted(connection.get_table_names(query))
        shown = ", ".join(f"curate sql 'DESCRIBE {table}'" for table in tables)
        said = str(error).strip().replace("bindings: : ", "bindings: ")  # DuckDB's slip where the table is named
        lists = "lists the columns" if len(tables) == 1 else "list the columns of each"
        raise StoreError(said, f"{shown} {lists}." if shown else _TABLES) from error
    except duckdb.Error as error:
        raise StoreError(str(error).strip(), _TABLES) from error


_TABLES = "curate sql 'SHOW TABLES' lists the tables, curate sql 'DESCRIBE sources' the columns of one."
