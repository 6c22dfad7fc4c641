"""An id or a place in a file → its rows in imports that were removed, with the date and reason of each removal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from duckdb import DuckDBPyConnection

_ROWS_SQL = """
    SELECT path, r."row", r.line, r.conversation, r.code, s.source, s.imported_at, s.removed_at, s.reason
    FROM removed_rows r JOIN removed_sources s USING (removal)
"""


@dataclass(frozen=True, slots=True)
class RemovedRow:
    """A row of a removed import: its place, its conversation or the code of its reject, and the removal."""

    path: str
    row: int
    line: int | None
    conversation: str | None
    code: str | None
    source: str
    imported_at: datetime
    removed_at: datetime
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {"removed": asdict(self)}


def find_removed_rows(connection: DuckDBPyConnection, conversation: str) -> list[RemovedRow]:
    """The removed rows of a conversation, oldest removal first."""
    return _read(connection, 'WHERE r.conversation = $id ORDER BY r.removal, r."row"', {"id": conversation})


def find_removed_ids(connection: DuckDBPyConnection, prefix: str, limit: int) -> list[str]:
    """The first ids that begin with `prefix` among the conversations of removed rows."""
    query = """SELECT DISTINCT conversation FROM removed_rows WHERE starts_with(conversation, ?)
               ORDER BY conversation LIMIT ?"""
    return [id_ for (id_,) in connection.execute(query, [prefix, limit]).fetchall()]


def find_removed_at(connection: DuckDBPyConnection, file: str, by: str, number: int) -> list[RemovedRow]:
    """The removed rows of the path `file`, or a path that ends with it, at a row number (`#`) or a line (`:`)."""
    start = 'r."row"' if by == "#" else 'coalesce(r.line, r."row")'
    where = f"""WHERE (path = $file OR ends_with(path, '/' || $file)) AND {start} = $number
                ORDER BY r.removal, r."row" """
    return _read(connection, where, {"file": file, "number": number})


def _read(connection: DuckDBPyConnection, where: str, params: dict[str, Any]) -> list[RemovedRow]:
    return [RemovedRow(**row) for row in connection.sql(_ROWS_SQL + where, params=params).pl().to_dicts()]
