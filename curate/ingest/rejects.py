"""Rejects in the store → groups, lists, and files in the columns of the source, for correction and import.

A corrected file is imported like any other file; its column `_curate_reject` identifies the reject of each row, which
the import closes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.readers.batch import EXPORT_COLUMNS, RAW_COLUMN
from curate.ingest.reject_rows import RejectRow, build_excerpts, parse_reject
from curate.ingest.repairs import STORED_REPAIRS
from curate.ingest.row_filter import EXCLUDED
from curate.ingest.shapes.cell_path import base_column
from curate.ingest.shapes.shape import ColumnMapping
from schemas.atomic import write_hint, write_text
from schemas.errors import ExportError, SourceError
from schemas.text import is_formula, shell_quote

EXPORT_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class RejectFilter:
    """Selects rejects by source (its id, the start of its id, or its path), by code, and whether they are closed."""

    source: str | None = None
    code: str | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ExportedRejects:
    """The result of an export of rejects."""

    path: str
    rows: int
    raw_only: int
    """rows with their whole text in `_curate_raw`"""
    nulls: int
    """rows with NaN or an infinity, which are written as null"""
    formulas: int
    """cells of a CSV file that a spreadsheet would interpret as formulas"""
    options: str
    """options of `curate import` that read the file like its source"""


def group_rejects(connection: DuckDBPyConnection, reject_filter: RejectFilter) -> list[dict[str, Any]]:
    """Rejects by source and code, most frequent first: path, code, number of rows, the first rows and lines.

    `reason`, `raw` and `excerpt` (the place of the error) are those of the first reject.
    """
    _check_filter(connection, reject_filter)
    groups = _select(
        connection,
        reject_filter,
        """SELECT path, source, code, count(*) AS rows, list("row" ORDER BY "row")[:5] AS first_rows,
                  list(line ORDER BY "row")[:5] AS first_lines, arg_min(reason, "row") AS reason,
                  arg_min(raw, "row") AS raw, count(closed_by) AS closed, mapping, columns, min("row") AS "row"
           FROM selected GROUP BY path, source, code, mapping, columns ORDER BY rows DESC, path, code""",
    )
    return _with_excerpts(groups)


def list_rejects(
    connection: DuckDBPyConnection, reject_filter: RejectFilter, limit: int | None
) -> list[dict[str, Any]]:
    """Single rejects in the order of the files: path, row, line, code, reason, raw, closed_by, excerpt."""
    _check_filter(connection, reject_filter)
    query = f"""SELECT path, source, "row", line, code, reason, raw, closed_by, mapping, columns FROM selected
                ORDER BY seq, "row" {"" if limit is None else f"LIMIT {limit}"}"""
    return _with_excerpts(_select(connection, reject_filter, query))


def export_rejects(
    connection: DuckDBPyConnection,
    reject_filter: RejectFilter,
    path: Path,
    *,
    replace: bool = False,
    dry_run: bool = False,
) -> ExportedRejects:
    """Write rejects to a CSV or JSONL file, in the columns of their source followed by `EXPORT_COLUMNS`.

    A row that cannot be split into columns is written to `_curate_raw`. A JSON object is written to a JSONL file in
    its original text, with two more keys. Cells are exact, including a leading `=`. Raises `ExportError` if no reject
    matches, the suffix is unknown, the sources have different mappings (one file can have only one), or the file
    exists and `replace` is false. `dry_run` writes nothing.
    """
    _check_filter(connection, reject_filter)
    if path.suffix not in EXPORT_SUFFIXES:
        raise ExportError(f"{path} has neither the suffix .csv nor .jsonl.", "For example: --export fix.csv")
    if _exists(path) and not replace:
        raise ExportError(f"{path} already exists and may contain corrections.", "Use another name, or --replace.")
    rejects = _select(
        connection,
        reject_filter,
        'SELECT path, source, "row", code, reason, raw, columns, mapping FROM selected ORDER BY seq, "row"',
    )
    if rejects.is_empty():
        raise ExportError("No reject matches.", "List all rejects with curate rejects.")
    _check_same_mapping(rejects, path)
    rows = [parse_reject(reject) for reject in rejects.iter_rows(named=True)]  # one by one: each may be broken
    as_csv = path.suffix == ".csv"
    text = _to_csv(rows) if as_csv else "".join(f"{_to_json(row)}\n" for row in rows)
    try:
        if not dry_run:
            write_text(path, text)
    except OSError as error:
        raise _write_error(path, error) from error
    return ExportedRejects(
        str(path),
        len(rows),
        raw_only=sum(row.cells is None for row in rows),
        nulls=sum(row.cells is not None and row.raw != raw for row, raw in zip(rows, rejects["raw"], strict=True)),
        formulas=sum(map(_count_formulas, rows)) if as_csv else 0,
        options=import_options(
            _columns(rows), rejects["mapping"][0], with_where=not (rejects["code"] == EXCLUDED).all()
        ),
    )


_SQL = """WITH selected AS (
    SELECT rejects.*, sources.path, sources.columns, sources.mapping, sources.seq
    FROM rejects JOIN sources USING (source)
    WHERE ($closed OR closed_by IS NULL) AND ($code IS NULL OR code = $code) AND ($source IS NULL OR $source = path
          OR ends_with(path, '/' || $source) OR starts_with(source, $source))
) """


def _select(connection: DuckDBPyConnection, reject_filter: RejectFilter, query: str) -> pl.DataFrame:
    frame: pl.DataFrame = connection.sql(_SQL + query, params=asdict(reject_filter)).pl()
    return frame


def _with_excerpts(rejects: pl.DataFrame) -> list[dict[str, Any]]:
    excerpts = pl.Series("excerpt", build_excerpts(rejects), dtype=pl.String)
    return rejects.with_columns(excerpts).drop("mapping", "columns").to_dicts()


def _check_filter(connection: DuckDBPyConnection, reject_filter: RejectFilter) -> None:
    """Raise `SourceError` for an unknown source or code."""
    if (name := reject_filter.source) is not None:
        known = connection.execute("SELECT path, source FROM sources ORDER BY seq").fetchall()
        if not any(path == name or path.endswith(f"/{name}") or source.startswith(name) for path, source in known):
            paths = ", ".join(path for path, _ in known) or "none"
            raise SourceError(f"Unknown source {name}.", f"Imported sources: {paths}.")
    if reject_filter.code is not None:
        codes = [code for (code,) in connection.execute("SELECT DISTINCT code FROM rejects ORDER BY code").fetchall()]
        if reject_filter.code not in codes:
            raise SourceError(f"No reject has the code {reject_filter.code}.", f"Codes: {', '.join(codes) or 'none'}.")


def _check_same_mapping(rejects: pl.DataFrame, path: Path) -> None:
    """Raise `ExportError` for sources with different mappings, with an export command for each source."""
    sources = rejects.unique("source", maintain_order=True).select("path", "source", "mapping").rows()
    mappings = [json.loads(mapping) for _, _, mapping in sources]
    if len({json.dumps(ColumnMapping.from_stored(mapping).stored(), sort_keys=True) for mapping in mappings}) == 1:
        return
    paths = [source_path for source_path, _, _ in sources]
    names = [source if paths.count(source_path) > 1 else source_path for source_path, source, _ in sources]
    lines = [
        f"curate rejects --source {shell_quote(name)} --export {path.stem}-{number}{path.suffix}"
        for number, name in enumerate(names, 1)
    ]
    raise ExportError(
        f"The rejects are from {len(lines)} sources with different mappings; a file can have only one mapping.",
        "Export one file per source:\n    " + "\n    ".join(lines),
    )


def _to_json(row: RejectRow) -> str:
    """The original object with additional keys at its end, or a new object of the cells."""
    if row.cells is None:
        return json.dumps({**row.values, **row.export_columns}, ensure_ascii=False)
    if not row.is_json or set(EXPORT_COLUMNS) & set(json.loads(row.raw)):
        return json.dumps({**row.cells, **row.export_columns}, ensure_ascii=False)
    body = row.raw.strip().removesuffix("}").rstrip().replace("\n", " ")
    added = json.dumps(row.export_columns, ensure_ascii=False).removeprefix("{")
    return f"{body}{', ' if row.cells else ''}{added}"


def _to_csv(rows: list[RejectRow]) -> str:
    """All rows, under the union of their columns."""
    columns = _columns(rows)
    if any(row.cells is None for row in rows):
        columns.append(RAW_COLUMN)
    columns += dict.fromkeys(column for row in rows for column in row.export_columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row.values, **row.export_columns} for row in rows)
    return text.getvalue()


def _columns(rows: list[RejectRow]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in (*row.columns, *(row.cells or ()))))


def _count_formulas(row: RejectRow) -> int:
    return sum(is_formula(cell or "") for cell in (row.cells or {"": row.raw}).values())


def import_options(columns: Sequence[str], mapping: str, *, with_where: bool) -> str:
    """The options that read exported rows with these columns like their source, from its stored mapping.

    The file is written in the standard dialect. A condition that excluded all of its rows would exclude them again.
    """
    stored = json.loads(mapping)
    where = [f"--where {shell_quote(stored['where'])}"] if with_where and stored.get("where") else []
    system = [f"--system {shell_quote(stored['system'])}"] if stored.get("system") else []
    more = [*where, *system, *(f"--repair {name}" for name in stored[STORED_REPAIRS])]
    if sql := stored.get("sql"):  # its result has the columns of the mapping
        return " ".join([ColumnMapping.from_stored(stored).as_options(), *more, f"--sql {shell_quote(sql)}"])
    fields = {name: column for name, column in stored["fields"].items() if base_column(column, columns)}
    return " ".join([replace(ColumnMapping.from_stored(stored), fields=fields).as_options(), *more])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # the name is too long
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> ExportError:
    return ExportError(f"{path} cannot be written: {error.strerror}.", write_hint(error, path))
