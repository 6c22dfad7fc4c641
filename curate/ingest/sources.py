"""The store → its imports, with the conversations that only one of them has; a name → one import."""

from __future__ import annotations

import json
import re
from typing import Any

from duckdb import DuckDBPyConnection

from schemas.errors import SourceError
from schemas.text import join_names, local_minute

ID_PREFIX = re.compile(r"[0-9a-fA-F]{4,64}")

SOURCES_SQL = """
    WITH only_here AS (
        SELECT source, count(*) AS conversations FROM (
            SELECT conversation, min(source) AS source FROM origins
            GROUP BY conversation HAVING min(source) = max(source)
        ) GROUP BY source
    )
    SELECT s.source, path, shape, rows_read, rows_kept, rows_duplicate, rows_rejected, rows_excluded,
           s.conversations,
           coalesce(o.conversations, 0) AS only_here, mapping, imported_at, seq,
           NULL::TIMESTAMPTZ AS removed_at, NULL::VARCHAR AS reason
    FROM sources s LEFT JOIN only_here o USING (source)
"""
REMOVED_SQL = """
    UNION ALL SELECT source, path, shape, rows_read, rows_kept, rows_duplicate, rows_rejected, rows_excluded, 0,
                     conversations, mapping, imported_at, seq, removed_at, reason
    FROM removed_sources
"""


def list_sources(connection: DuckDBPyConnection, *, removed: bool = False) -> list[dict[str, Any]]:
    """All imports, oldest first: id, path, counts, mapping, dates, and `only_here`, the conversations no other one has.

    With `removed` also the removed imports; their `only_here` is the number of conversations removed with them.
    """
    query = f"SELECT * EXCLUDE (seq) FROM ({SOURCES_SQL}{REMOVED_SQL if removed else ''}) ORDER BY seq, removed_at"
    rows: list[dict[str, Any]] = connection.sql(query).pl().to_dicts()
    return [{**row, "mapping": json.loads(row["mapping"])} for row in rows]


def find_source(connection: DuckDBPyConnection, name: str) -> dict[str, Any]:
    """The import with the id `name`, an id that begins with it, or the path `name`, also the end of the path.

    Raises `SourceError` if there is none, with the reason if it was removed, or if there are several.
    """
    found = [source for source in list_sources(connection, removed=True) if _matches(source, name)]
    present = [source for source in found if source["removed_at"] is None]
    if len(present) == 1:
        return present[0]
    if present:
        ids = ", ".join(f"{source['source'][:12]} ({source['path']})" for source in present)
        raise SourceError(f"{len(present)} imports match {name}: {ids}.", "Give the beginning of one id.")
    if found:
        last = found[-1]
        raise SourceError(
            f"The import {last['source'][:12]} of {last['path']} was removed on {local_minute(last['removed_at'])}:"
            f" {last['reason']}.",
            "curate sources --all lists removed imports.",
        )
    paths = [source["path"] for source in list_sources(connection)]
    raise SourceError(f"No import matches {name}.", f"Imports: {join_names(paths, 10) or 'none'}. See curate sources.")


def _matches(source: dict[str, Any], name: str) -> bool:
    path, id_ = str(source["path"]), str(source["source"])
    is_id = bool(ID_PREFIX.fullmatch(name)) and id_.startswith(name.lower())
    return is_id or path == name or path.endswith(f"/{name}")
