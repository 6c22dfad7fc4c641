"""A source id and the store → the result of its import: counts, reasons, examples."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.repair_advice import RepairAdvice
from curate.ingest.row_filter import EXCLUDED
from curate.ingest.shapes.roles import UNKNOWN_ROLE
from schemas.errors import SourceError
from schemas.text import plural

CLOSED_SQL = """
    SELECT count(*) FROM rejects JOIN sources USING (source) JOIN sources AS closing ON closing.source = closed_by
    WHERE closed_by = ? AND sources.seq <= closing.seq
"""
"""Rejects closed by a source, except those of later imports, which repeated rejects of the source itself."""


BY_REQUEST = (EXCLUDED, "lower-ranked", "no-winner")
"""Codes of rows that an option leaves out: --where, --shape best-branch, --shape winner."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of importing one file: rows_read = rows_kept + rows_duplicate + rows_rejected + rows_excluded."""

    path: str
    source: str
    sha256: str
    bytes: int
    shape: str
    mapping: dict[str, Any]
    columns: tuple[str, ...]
    rows_read: int
    rows_kept: int
    rows_duplicate: int
    rows_rejected: int
    conversations: int
    rows_excluded: int
    """rows that the SELECT of `sql` left out"""
    rejected: dict[str, int] = field(default_factory=dict)
    """code → rows"""
    partly_rejected: dict[str, int] = field(default_factory=dict)
    """code → rows with several conversations, of which some were rejected and others not; not among `rejected`"""
    warnings: dict[str, int] = field(default_factory=dict)
    """code → conversations"""
    warning_examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    """code → row, line and reason of the first conversation; not stored"""
    advice: dict[str, RepairAdvice] = field(default_factory=dict)
    """code of a reject or warning → repairs, tried on a sample; not stored"""
    repaired: dict[str, int] = field(default_factory=dict)
    """repair → rows"""
    unknown_roles: dict[str, int] = field(default_factory=dict)
    """name of a speaker that has no role → rejected rows, most frequent first"""
    closed: int = 0
    """rejects of earlier imports that these rows corrected"""
    imported_before: str | None = None
    """path of an identical earlier import; nothing was added"""
    replaced: list[str] = field(default_factory=list)
    """ids of earlier imports of this path that were removed"""
    disappeared: int = 0
    """conversations of those imports that no import has any more"""
    reject_examples: list[dict[str, Any]] = field(default_factory=list)
    """the first reject of every code: row, line, code, reason, raw, and whether it is `partly` rejected"""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """the first conversations, in a dry run"""


def find_import(connection: DuckDBPyConnection, source_id: str, path: str) -> ImportResult | None:
    """The result of an earlier import with this id, if there is one."""
    known = connection.execute("SELECT path FROM sources WHERE source = ?", [source_id]).fetchall()
    return replace(load_result(connection, source_id), path=path, imported_before=known[0][0]) if known else None


def load_result(connection: DuckDBPyConnection, source_id: str) -> ImportResult:
    """The result of an import, from the store. Most files have no rejects and need no queries about them."""
    query = "SELECT * EXCLUDE (imported_at, seq) FROM sources WHERE source = ?"
    row = connection.sql(query, params=[source_id]).pl().row(0, named=True)
    ((own, closed),) = connection.execute(
        """SELECT count(*) FILTER (source = $source), count(*) FILTER (closed_by = $source) FROM rejects
           WHERE source = $source OR closed_by = $source""",
        {"source": source_id},
    ).fetchall()
    result = ImportResult(
        **{**row, "mapping": json.loads(row["mapping"]), "warnings": json.loads(row["warnings"])},
        repaired=_count_repaired(connection, source_id),
        closed=connection.execute(CLOSED_SQL, [source_id]).fetchall()[0][0] if closed else 0,
    )
    return _add_rejects(connection, result) if own else result


def _count_repaired(connection: DuckDBPyConnection, source_id: str) -> dict[str, int]:
    """Repair → rows."""
    some = "SELECT 1 FROM origins WHERE source = ? AND repairs IS NOT NULL LIMIT 1"
    if not connection.execute(some, [source_id]).fetchall():
        return {}
    counts = connection.execute(
        """SELECT repair, count(*) FROM (
               SELECT unnest(repairs) AS repair FROM origins WHERE source = ? AND repairs IS NOT NULL
           ) GROUP BY repair ORDER BY repair""",
        [source_id],
    )
    return dict(counts.fetchall())


def _add_rejects(connection: DuckDBPyConnection, result: ImportResult) -> ImportResult:
    """The result with the codes of its rejects, an example of each, and the speakers without a role."""
    rejects = connection.sql(
        """SELECT "row", line, code, reason, raw, partly, count(*) OVER same AS count FROM (
               SELECT *, "row" IN (SELECT "row" FROM origins WHERE source = $source) AS partly FROM rejects
               WHERE source = $source)
           WINDOW same AS (PARTITION BY code, partly)
           QUALIFY row_number() OVER (PARTITION BY code, partly ORDER BY "row") = 1
           ORDER BY partly, count DESC, code""",
        params={"source": result.source},
    ).pl()
    counts = {partly: rejects.filter(pl.col("partly") == partly).select("code", "count") for partly in (False, True)}
    unknown_roles = connection.execute(
        """SELECT name, count(*) AS count FROM (
               SELECT unnest(names) AS name, "row", generate_subscripts(names, 1) AS position
               FROM (SELECT "row", string_split(regexp_extract(reason, ?, 1), ', ') AS names FROM rejects
                     WHERE source = ? AND code = 'unknown-role')
           ) GROUP BY name ORDER BY count DESC, min("row"), min(position)""",
        [UNKNOWN_ROLE, result.source],
    ).fetchall()
    return replace(
        result,
        rejected=dict(counts[False].iter_rows()),
        partly_rejected=dict(counts[True].iter_rows()),
        unknown_roles=dict(unknown_roles),
        reject_examples=rejects.drop("count").to_dicts(),
    )


def check_max_rejects(result: ImportResult, allowed: float) -> None:
    """Raise `SourceError` if a larger share of the rows was rejected, not counting those left out by request."""
    rejected = {code: count for code, count in result.rejected.items() if code not in BY_REQUEST}
    count = sum(rejected.values())
    share = count / max(result.rows_read, 1)
    if share > allowed:
        reasons = ", ".join(f"{count:,} {code}" for code, count in rejected.items())
        is_stored = result.imported_before is not None
        raise SourceError(
            f"{result.path}: {count:,} of {plural(result.rows_read, 'row')} ({share:.1%}) "
            f"{'were' if is_stored else 'would be'} rejected, more than the allowed {allowed:.1%}: {reasons}. "
            f"{'It was imported before; nothing was changed' if is_stored else 'The file was not imported'}.",
            f"Show an example of each with curate {'rejects' if is_stored else 'import --dry-run'}, or allow more with "
            "--max-rejects.",
        )
