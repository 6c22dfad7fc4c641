"""Rejecting: the rows that no import could take, grouped, listed, and written back in their own columns to be repaired.

A repaired file is imported like any other; the column `_curate_reject` says which reject a row brings back, and the
import closes it.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.column_mapping import ColumnMapping
from curate.ingest.convert import EXPORT_COLUMNS
from curate.ingest.reject_rows import Row, excerpts, split
from schemas.atomic import write_hint, write_text
from schemas.errors import ExportError, SourceError

FORMATS = (".csv", ".jsonl")
FORMULA_STARTS = ("=", "+", "-", "@")
"""What a spreadsheet takes for the start of a formula."""


@dataclass(frozen=True, slots=True)
class RejectFilter:
    """Which rejects: of a source (its id, the start of it, or its path), of a code; closed ones too."""

    source: str | None = None
    code: str | None = None
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ExportedRejects:
    """What an export of rejects wrote."""

    path: str
    rows: int
    raw_only: int
    """rows that stand whole in `_curate_raw`"""
    formulas: int
    """cells of a CSV file that a spreadsheet would take for formulas"""
    options: str
    """the options of `curate import` that read the file as its source was read"""

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


def group_rejects(connection: DuckDBPyConnection, wanted: RejectFilter) -> list[dict[str, Any]]:
    """Rejects by source and code, most frequent first: path, code, rows, the first places.

    Of the first of them reason, raw text, and `excerpt`, the place in it that the reason speaks of.
    """
    _check(connection, wanted)
    groups = _selected(
        connection,
        wanted,
        """SELECT path, source, code, count(*) AS rows, list("row" ORDER BY "row")[:5] AS first_rows,
                  list(line ORDER BY "row")[:5] AS first_lines, arg_min(reason, "row") AS reason,
                  arg_min(raw, "row") AS raw, count(closed_by) AS closed, mapping, columns, min("row") AS "row"
           FROM wanted GROUP BY path, source, code, mapping, columns ORDER BY rows DESC, path, code""",
    )
    return _with_excerpts(groups)


def list_rejects(connection: DuckDBPyConnection, wanted: RejectFilter, limit: int | None) -> list[dict[str, Any]]:
    """Single rejects in the order of the files: path, row, line, code, reason, raw, closed_by, excerpt."""
    _check(connection, wanted)
    end = "" if limit is None else f"LIMIT {limit}"
    query = f"""SELECT path, source, "row", line, code, reason, raw, closed_by, mapping, columns FROM wanted
                ORDER BY imported_at, path, "row" {end}"""
    return _with_excerpts(_selected(connection, wanted, query))


def export_rejects(
    connection: DuckDBPyConnection, wanted: RejectFilter, path: Path, *, replace: bool = False
) -> ExportedRejects:
    """Write rejects to `path`, CSV or JSONL, in their source's own columns, with `EXPORT_COLUMNS` behind them.

    A row that cannot be split into its columns stands whole in `_curate_raw`. A JSON object goes into a JSONL file
    as the text it was, with two keys more. Cells are exact: what begins with `=` stays so. Raises `ExportError`
    when there is nothing to write, the suffix is another one, the sources were read in several ways (one file has
    one way back), or the file is there and `replace` is not said.
    """
    _check(connection, wanted)
    if path.suffix not in FORMATS:
        raise ExportError(f"{path} ends neither in .csv nor in .jsonl.", "Give one of these: --export fix.csv")
    if _is_there(path) and not replace:
        raise ExportError(f"{path} is there already; it may hold your corrections.", "Another name, or --replace.")
    rejects = _selected(
        connection,
        wanted,
        'SELECT path, source, "row", reason, raw, columns, mapping FROM wanted ORDER BY imported_at, "row"',
    )
    if rejects.is_empty():
        raise ExportError("There are no such rejects.", "curate rejects shows those there are.")
    _check_alike(rejects, path)
    rows = [split(reject) for reject in rejects.iter_rows(named=True)]  # each by itself: one may be broken
    as_csv = path.suffix == ".csv"
    _write(path, _as_csv(rows) if as_csv else _as_jsonl(rows))
    return ExportedRejects(
        str(path),
        len(rows),
        raw_only=sum(row.cells is None for row in rows),
        formulas=sum(map(_formulas, rows)) if as_csv else 0,
        options=_options(rows, rejects["mapping"][0]),
    )


_SQL = """WITH wanted AS (
    SELECT rejects.*, sources.path, sources.columns, sources.mapping, sources.imported_at
    FROM rejects JOIN sources USING (source)
    WHERE ($closed OR closed_by IS NULL) AND ($code IS NULL OR code = $code) AND ($source IS NULL OR $source = path
          OR ends_with(path, '/' || $source) OR starts_with(source, $source))
) """


def _selected(connection: DuckDBPyConnection, wanted: RejectFilter, query: str) -> pl.DataFrame:
    parameters = {"source": wanted.source, "code": wanted.code, "closed": wanted.closed}
    frame: pl.DataFrame = connection.sql(_SQL + query, params=parameters).pl()
    return frame


def _with_excerpts(rejects: pl.DataFrame) -> list[dict[str, Any]]:
    told = rejects.with_columns(pl.Series("excerpt", excerpts(rejects), dtype=pl.String))
    return told.drop("mapping", "columns").to_dicts()


def _check(connection: DuckDBPyConnection, wanted: RejectFilter) -> None:
    """Refuse a source or a code that the store has not heard of, and say which there are."""
    if wanted.source is not None:
        known = connection.execute("SELECT path, source FROM sources ORDER BY imported_at").fetchall()
        named = (path == wanted.source or path.endswith(f"/{wanted.source}") for path, _ in known)
        if not any(named) and not any(source.startswith(wanted.source) for _, source in known):
            there = ", ".join(path for path, _ in known) or "none"
            raise SourceError(f"There is no source {wanted.source}.", f"There are: {there}.")
    if wanted.code is not None:
        codes = [code for (code,) in connection.execute("SELECT DISTINCT code FROM rejects ORDER BY code").fetchall()]
        if wanted.code not in codes:
            there = ", ".join(codes) or "none"
            raise SourceError(f"No row was rejected for {wanted.code}.", f"There are: {there}.")


def _check_alike(rejects: pl.DataFrame, path: Path) -> None:
    """Refuse to lay rows that were read in several ways into one file, and say the command for each source."""
    sources = rejects.unique("source", maintain_order=True).select("path", "source", "mapping").rows()
    if len({_way(mapping) for _, _, mapping in sources}) == 1:
        return
    paths = [source_path for source_path, _, _ in sources]
    names = [source if paths.count(source_path) > 1 else source_path for source_path, source, _ in sources]
    lines = [
        f"curate rejects --source {shlex.quote(name)} --export {path.stem}-{number}{path.suffix}"
        for number, name in enumerate(names, 1)
    ]
    raise ExportError(
        f"The rows are of {len(lines)} sources that were read in different ways; one file is read in one way.",
        "One file a source:\n    " + "\n    ".join(lines),
    )


def _way(mapping: str) -> str:
    """The shape and the fields of a source's mapping."""
    stored = json.loads(mapping)
    return json.dumps([stored["shape"], stored["fields"]], sort_keys=True)


def _as_jsonl(rows: list[Row]) -> str:
    return "".join(f"{_json_line(row)}\n" for row in rows)


def _json_line(row: Row) -> str:
    """The object as it was with our keys behind its own, or a new object of the cells."""
    if row.cells is None:
        return json.dumps({EXPORT_COLUMNS[2]: row.raw, **row.own}, ensure_ascii=False)
    if not row.is_json or set(EXPORT_COLUMNS) & set(json.loads(row.raw)):
        return json.dumps({**row.cells, **row.own}, ensure_ascii=False)
    body = row.raw.strip().removesuffix("}").rstrip().replace("\n", " ")
    own = json.dumps(row.own, ensure_ascii=False).removeprefix("{")
    return f"{body}{', ' if row.cells else ''}{own}"


def _as_csv(rows: list[Row]) -> str:
    """All rows under the union of their columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells or {}))
    if any(row.cells is None for row in rows):
        columns.append(EXPORT_COLUMNS[2])
    columns += EXPORT_COLUMNS[:2]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**(row.cells or {EXPORT_COLUMNS[2]: row.raw}), **row.own} for row in rows)
    return text.getvalue()


def _formulas(row: Row) -> int:
    return sum((cell or "").startswith(FORMULA_STARTS) for cell in (row.cells or {"": row.raw}).values())


def _options(rows: list[Row], mapping: str) -> str:
    """The options that read the exported rows as their source was read."""
    stored = json.loads(mapping)
    columns = {column for row in rows for column in row.cells or {}}
    return ColumnMapping(stored["shape"], {k: v for k, v in stored["fields"].items() if v in columns}).as_options()


def _write(path: Path, text: str) -> None:
    """Write the whole text, or leave no file."""
    try:
        write_text(path, text)
    except OSError as error:
        raise _unwritable(path, error) from error


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # of a name that is too long
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ExportError:
    return ExportError(f"{path} cannot be written: {error.strerror}.", write_hint(error, path))
