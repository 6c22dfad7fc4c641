"""A path and the store → earlier imports of the same path, which a new import replaces, joins, or is stopped by."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from duckdb import DuckDBPyConnection

from curate.ingest.readers.batch import REJECT_COLUMN
from curate.ingest.removal import detach
from curate.ingest.shapes.shape import ColumnMapping
from schemas.errors import SourceError
from schemas.text import plural

OnChanged = Literal["stop", "replace", "add"]
"""What happens if a path was imported before with other content or another mapping."""


@dataclass(frozen=True, slots=True)
class EarlierImport:
    """An import of the same path."""

    source: str
    sha256: str
    mapping: dict[str, Any]
    rows: int
    imported_at: datetime


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file whose path was imported before: the id of its new import, its digest and its mapping."""

    path: str
    source: str
    sha256: str
    mapping: ColumnMapping


def find_earlier(connection: DuckDBPyConnection, path: str) -> list[EarlierImport]:
    """The imports of this path, oldest first, without files of corrected rejects: these add to another import."""
    rows = connection.execute(
        """SELECT source, sha256, mapping, rows_read, imported_at, path FROM sources
           WHERE parse_filename(path) = parse_filename(?) AND NOT list_contains(columns, ?)
           ORDER BY seq""",
        [path, REJECT_COLUMN],
    ).fetchall()
    return [
        EarlierImport(source, sha256, json.loads(mapping), rows_read, imported_at)
        for source, sha256, mapping, rows_read, imported_at, known in rows
        if known == path or os.path.abspath(known) == os.path.abspath(path)  # noqa: PTH100 - Path.resolve follows links
    ]


def replace_earlier(
    connection: DuckDBPyConnection,
    earlier: Sequence[EarlierImport],
    file: ChangedFile,
    on_changed: OnChanged,
) -> list[int]:
    """The removals of the earlier imports if `file` replaces them; none if it is added to them.

    Raises `SourceError` if there are earlier imports and neither is requested.
    """
    if not earlier or on_changed == "add":
        return []
    if on_changed == "stop":
        raise _changed_error(earlier[-1], file)
    reason = f"replaced by the import {file.source[:12]} of {file.path}"
    return [detach(connection, each.source, reason) for each in earlier]


def _changed_error(earlier: EarlierImport, file: ChangedFile) -> SourceError:
    before = ColumnMapping.from_stored(earlier.mapping)
    if earlier.sha256 != file.sha256:
        change = "other content"
    elif before == file.mapping:
        change = "other options"
    else:
        change = f"another mapping ({before.as_options()})"
    return SourceError(
        f"{file.path} was imported before with {change}: import {earlier.source[:12]}, "
        f"{earlier.imported_at:%Y-%m-%d %H:%M}, {plural(earlier.rows, 'row')}.",
        "Add --replace to remove the earlier import in the same step, or --add to keep both; "
        "curate sources lists all imports.",
    )
