"""Source ids and the store → the results of their imports: counts, reasons, examples."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
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
    SELECT closed_by, count(*) FROM rejects JOIN sources USING (source)
    JOIN sources AS closing ON closing.source = closed_by
    WHERE closed_by IN ({ids}) AND sources.seq <= closing.seq
    AND list_contains(closing.columns, '_curate_reject') >= list_contains(sources.columns, '_curate_reject')
    GROUP BY closed_by
"""
"""Rejects closed by each source, except those of later imports, which repeated rejects of the source itself."""


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
    moved: dict[str, int] = field(default_factory=dict)
    """path of another import → conversations of which it became the first import; not stored"""
    reject_examples: list[dict[str, Any]] = field(default_factory=list)
    """the first reject of every code: row, line, code, reason, raw, and whether it is `partly` rejected"""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """the first conversations, in a dry run"""


def find_import(connection: DuckDBPyConnection, source_id: str, path: str) -> ImportResult | None:
    """The result of an earlier import with this id, if there is one."""
    known = load_results(connection, [source_id]).get(source_id)
    return known and replace(known, path=path, imported_before=known.path)


def load_results(connection: DuckDBPyConnection, sources: Sequence[str]) -> dict[str, ImportResult]:
    """The results of those imports that are in the store, by id. Most have no rejects and need no queries about them.

    Ids are constants of the queries: DuckDB then skips most rows of large tables.
    """
    if not sources:
        return {}
    ids = placeholders(sources)
    query = f"SELECT * EXCLUDE (imported_at, seq) FROM sources WHERE source IN ({ids})"
    rows = connection.sql(query, params=[*sources]).pl()
    ((own, closed),) = connection.execute(
        f"""SELECT count(*) FILTER (source IN ({ids})), count(*) FILTER (closed_by IN ({ids})) FROM rejects
            WHERE source IN ({ids}) OR closed_by IN ({ids})""",
        4 * [*sources],
    ).fetchall()
    closing = dict(connection.execute(CLOSED_SQL.format(ids=ids), [*sources]).fetchall()) if closed else {}
    repaired = _count_repaired(connection, sources)
    results = {
        row["source"]: ImportResult(
            **{**row, "mapping": json.loads(row["mapping"]), "warnings": json.loads(row["warnings"])},
            repaired=repaired.get(row["source"], {}),
            closed=closing.get(row["source"], 0),
        )
        for row in rows.iter_rows(named=True)
    }
    return _add_rejects(connection, results) if own else results


def placeholders(values: Sequence[str]) -> str:
    """A parameter of a query for each value.

    >>> placeholders(["a", "b"])
    '?, ?'
    """
    return ", ".join("?" * len(values))


def _count_repaired(connection: DuckDBPyConnection, sources: Sequence[str]) -> dict[str, dict[str, int]]:
    """Source → repair → rows."""
    ids = placeholders(sources)
    some = f"SELECT 1 FROM origins WHERE source IN ({ids}) AND repairs IS NOT NULL LIMIT 1"
    if not connection.execute(some, [*sources]).fetchall():
        return {}
    counts = connection.execute(
        f"""SELECT source, repair, count(*) FROM (
                SELECT source, unnest(repairs) AS repair FROM origins WHERE source IN ({ids}) AND repairs IS NOT NULL
            ) GROUP BY source, repair ORDER BY repair""",
        [*sources],
    )
    repaired: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for source, name, count in counts.fetchall():
        repaired[source][name] = count
    return repaired


def _add_rejects(connection: DuckDBPyConnection, results: dict[str, ImportResult]) -> dict[str, ImportResult]:
    """The results with the codes of their rejects, an example of each, and the speakers without a role."""
    ids = placeholders([*results])
    groups = connection.sql(
        f"""WITH own AS (SELECT source, "row", code FROM rejects WHERE source IN ({ids})),
            accepted AS (SELECT source, "row" FROM origins WHERE source IN ({ids})),
            partial AS (SELECT source, "row", true AS partly FROM own SEMI JOIN accepted USING (source, "row")),
            marked AS (SELECT source, "row", code, coalesce(partly, false) AS partly
                       FROM own LEFT JOIN partial USING (source, "row"))
            SELECT source, min("row") AS "row", code, partly, count(*) AS count FROM marked
            GROUP BY source, code, partly ORDER BY partly, count DESC, code""",
        params=2 * [*results],
    ).pl()
    rows = ", ".join(map(str, groups["row"].unique()))
    texts = connection.sql(  # rows are constants, so that DuckDB loads no other texts: all of them may not fit
        f'SELECT source, "row", code, line, reason, raw FROM rejects WHERE source IN ({ids}) AND "row" IN ({rows})',
        params=[*results],
    ).pl()
    rejects = groups.join(texts, on=["source", "row", "code"], maintain_order="left")
    unknown_roles = connection.sql(
        f"""SELECT source, name, count(*) AS count FROM (
                SELECT source, unnest(names) AS name, "row", generate_subscripts(names, 1) AS position
                FROM (SELECT source, "row", string_split(regexp_extract(reason, ?, 1), ', ') AS names FROM rejects
                      WHERE source IN ({ids}) AND code = 'unknown-role')
            ) GROUP BY source, name ORDER BY count DESC, min("row"), min(position)""",
        params=[UNKNOWN_ROLE, *results],
    ).pl()
    roles = unknown_roles.partition_by("source", as_dict=True, include_key=False)
    found = rejects.partition_by("source", maintain_order=True, as_dict=True, include_key=False)
    return results | {
        source: _with_rejects(results[source], own, roles.get((source,), unknown_roles.clear().drop("source")))
        for (source,), own in found.items()
    }


def _with_rejects(result: ImportResult, rejects: pl.DataFrame, unknown_roles: pl.DataFrame) -> ImportResult:
    counts = {partly: rejects.filter(pl.col("partly") == partly).select("code", "count") for partly in (False, True)}
    return replace(
        result,
        rejected=dict(counts[False].iter_rows()),
        partly_rejected=dict(counts[True].iter_rows()),
        unknown_roles=dict(unknown_roles.iter_rows()),
        reject_examples=rejects.select("row", "line", "code", "reason", "raw", "partly").to_dicts(),
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
