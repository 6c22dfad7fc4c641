"""A path and the store → earlier imports of the same path, which a new import replaces, joins, or is stopped by."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from duckdb import DuckDBPyConnection

from curate.ingest.import_result import ImportResult
from curate.ingest.readers.batch import REJECT_COLUMN
from curate.ingest.removal import detach, moved_conversations, sweep
from curate.ingest.shapes.shape import ColumnMapping
from schemas.errors import SourceError
from schemas.text import local_minute, plural

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


def find_earlier(connection: DuckDBPyConnection, paths: Sequence[str]) -> dict[str, list[EarlierImport]]:
    """The imports of each path that has some, oldest first.

    Files of corrected rejects do not count: these add to another import.
    """
    rows = connection.execute(
        """SELECT source, sha256, mapping, rows_read, imported_at, path FROM sources
           WHERE parse_filename(path) IN (SELECT parse_filename(unnest(?))) AND NOT list_contains(columns, ?)
           ORDER BY seq""",
        [[*paths], REJECT_COLUMN],
    ).fetchall()
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths if rows else ():
        names[os.path.abspath(path)].append(path)  # noqa: PTH100 - Path.resolve follows links
    earlier: defaultdict[str, list[EarlierImport]] = defaultdict(list)
    for source, sha256, mapping, rows_read, imported_at, known in rows:
        for path in names.get(os.path.abspath(known), []):  # noqa: PTH100
            earlier[path].append(EarlierImport(source, sha256, json.loads(mapping), rows_read, imported_at))
    return earlier


@dataclass(frozen=True, slots=True)
class Replacement:
    """The removals of earlier imports that a new one replaces, and what else they change."""

    replaced: list[str] = field(default_factory=list)
    """ids of the earlier imports"""
    removals: list[int] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)
    """path of another import → conversations of which it is the first one now"""


def replace_earlier(
    connection: DuckDBPyConnection,
    earlier: Sequence[EarlierImport],
    file: ChangedFile,
    on_changed: OnChanged,
) -> Replacement:
    """Remove the rows of the earlier imports if `file` replaces them; nothing if it is added to them.

    Raises `SourceError` if there are earlier imports and neither is requested.
    """
    if not earlier or on_changed == "add":
        return Replacement()
    if on_changed == "stop":
        raise changed_error(earlier[-1], file)
    reason = f"replaced by the import {file.source[:12]} of {file.path}"
    replaced = Replacement([each.source for each in earlier])
    for source in replaced.replaced:
        replaced.removals.append(detach(connection, source, reason, successor=file.source))
        for path, count in moved_conversations(connection).items():
            if path != file.path:
                replaced.moved[path] = replaced.moved.get(path, 0) + count
    return replaced


def finish_replacement(connection: DuckDBPyConnection, replaced: Replacement, result: ImportResult) -> ImportResult:
    """Delete the conversations that disappeared with the replaced imports; the result with what was replaced."""
    disappeared = sweep(connection, replaced.removals)
    return replace(result, replaced=replaced.replaced, disappeared=disappeared, moved=replaced.moved)


def check_repeated(results: Iterable[ImportResult]) -> Iterator[ImportResult]:
    """The same results; `SourceError` if a file replaces the import that contains the rows of a file before it."""
    repeated: dict[str, ImportResult] = {}
    for result in results:
        for source in result.replaced:
            if source in repeated:
                raise _replaced_error(repeated[source], result)
        if result.imported_before is not None:
            repeated.setdefault(result.source, result)
        yield result


def _replaced_error(repeated: ImportResult, replacing: ImportResult) -> SourceError:
    return SourceError(
        f"{repeated.path} has the rows of the import {repeated.source[:12]} of {repeated.imported_before}, "
        f"which {replacing.path} replaces.",
        f"Name {replacing.path} before {repeated.path}, or import it with --replace alone first.",
    )


def changed_error(earlier: EarlierImport, file: ChangedFile) -> SourceError:
    """The error for a file whose path was imported before."""
    before = ColumnMapping.from_stored(earlier.mapping)
    if earlier.sha256 != file.sha256:
        change = "other content"
    elif before == file.mapping:
        change = "other options"
    else:
        change = f"another mapping ({before.as_options()})"
    return SourceError(
        f"{file.path} was imported before with {change}: import {earlier.source[:12]}, "
        f"{local_minute(earlier.imported_at)}, {plural(earlier.rows, 'row')}.",
        "Add --replace to remove the earlier import in the same step, or --add to keep both; "
        "curate sources lists all imports.",
    )
