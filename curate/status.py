"""The store → its contents (sources, counts, reviews, versions, runs) and the next command."""

from __future__ import annotations

import json
from typing import Any

from duckdb import DuckDBPyConnection

from curate.selection import count_outdated_duplicates
from schemas.conversation import IMPORTED_SQL, PRESENT_SQL
from schemas.run import partial_of, resolve_run
from schemas.store import folder_of
from schemas.timing import timed
from schemas.version import has_subset

SOURCES_SQL = """
    SELECT path, shape, rows_read, conversations, rows_duplicate, rows_rejected,
           (SELECT count(*) FROM rejects r WHERE r.source = s.source AND r.closed_by IS NULL) AS open_rejects,
           imported_at, source
    FROM sources s ORDER BY s.seq
"""
COUNTS_SQL = f"""
    SELECT (SELECT count(*) FROM conversations c WHERE {PRESENT_SQL}) AS conversations,
           (SELECT count(*) FROM current_verdicts WHERE kept) AS kept,
           (SELECT count(*) FROM current_verdicts WHERE by_whom IS NOT NULL) AS with_verdict,
           (SELECT count(*) FROM scorers) AS scorers,
           (SELECT count(*) FROM conversations c
            WHERE {PRESENT_SQL} AND id NOT IN (SELECT conversation FROM scores)) AS unscored,
           (SELECT count(*) FROM rejects WHERE closed_by IS NULL) AS open_rejects,
           (SELECT count(*) FROM rejects WHERE closed_by IS NOT NULL) AS closed_rejects,
           (SELECT count(*) FROM rejects r JOIN sources s USING (source)
            JOIN sources later ON later.source = r.closed_by
            WHERE later.seq >= s.seq AND later.sha256 <> s.sha256
            AND list_contains(later.columns, '_curate_reject')) AS corrected_rejects
"""
"""A closed reject counts as corrected if a later file of corrections contains the row. Otherwise the row was rejected
again, so its first reject is open (it was closed by an earlier source), or the same file was imported with another
mapping."""

REVIEWS_SQL = """
    SELECT (SELECT count(DISTINCT (review_set, conversation)) FROM review_records WHERE NOT removed) AS conversations,
           (SELECT count(DISTINCT (dataset, conversation)) FROM latest_reviews WHERE status = 'submitted') AS answered,
           (SELECT count(*) FROM latest_reviews WHERE status = 'submitted') AS answers,
           (SELECT list(DISTINCT reviewer ORDER BY reviewer) FROM latest_reviews
            WHERE status = 'submitted') AS reviewers,
           (SELECT list(review_set ORDER BY review_set) FROM review_sets) AS sets,
           (SELECT list({'verdict': verdict, 'count': number} ORDER BY verdict) FROM (
               SELECT verdict, count(*) AS number FROM (
                   SELECT verdict FROM verdicts WHERE by_whom <> 'rule'
                   QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY seq DESC) = 1
               ) WHERE verdict <> 'undecided' GROUP BY verdict)) AS verdicts
"""
VERSIONS_SQL = """
    SELECT version, name, digest, counts, frozen_at FROM versions
    ORDER BY versions.seq
"""
RULES_SQL = "SELECT rules FROM selections ORDER BY seq DESC LIMIT 1"
UNSELECTED_SQL = f"""
    SELECT count(*) FROM conversations c WHERE {IMPORTED_SQL}
    AND id NOT IN (
        SELECT conversation FROM verdicts WHERE by_whom = 'rule'
        GROUP BY conversation HAVING arg_max(verdict, seq) <> 'undecided') AND EXISTS (FROM selections)
"""
"""Conversations that were imported, or imported again after a removal, since the latest selection."""

CHANGED_SQL = """
    SELECT count(*) FROM (SELECT conversation FROM current_verdicts WHERE kept) AS present
    FULL JOIN (SELECT conversation FROM members WHERE version = $version) AS frozen USING (conversation)
    WHERE present.conversation IS NULL OR frozen.conversation IS NULL
"""
"""Conversations that are kept now or in a version, but not in both."""

CHANGED_SINCE_SQL = """
    WITH version AS (FROM versions WHERE version = $version), was_dropped AS (
        SELECT conversation FROM verdicts WHERE seq < (SELECT seq FROM version) GROUP BY conversation
        HAVING coalesce(
            nullif(arg_max(verdict, seq) FILTER (by_whom <> 'rule'), 'undecided'),
            arg_max(verdict, seq) FILTER (by_whom = 'rule')) = 'drop'
    ), is_new AS (
        SELECT conversation FROM origins JOIN sources USING (source)
        GROUP BY conversation HAVING min(sources.seq) > (SELECT seq FROM version)
    ), present AS (SELECT conversation FROM current_verdicts WHERE kept)
    SELECT count(*) FROM (
        SELECT conversation FROM members WHERE version = $version AND conversation NOT IN (FROM present)
        UNION SELECT conversation FROM present WHERE conversation IN (FROM was_dropped UNION FROM is_new)
            AND conversation NOT IN (SELECT conversation FROM members WHERE version = $version))
"""
"""The same for a version with a sample or a mix, which leave out kept conversations: members that are no longer kept,
and conversations that are kept since."""

RUNS_SQL = "SELECT run, version, status, adapter, started_at FROM runs ORDER BY runs.seq"


@timed("reading contents and next step")
def read_status(connection: DuckDBPyConnection, model: str = "") -> dict[str, Any]:
    """The contents of the store: `sources`, `versions`, `runs` (lists), `counts`, `reviews`, and the `next` command.

    `model` is the base model of the recipe, without which a training has to name one.

    `reviews` has the review sets, the annotators, the number of answers, and the current human verdicts.
    """
    (reviews,) = _rows(connection, REVIEWS_SQL)
    (counts,) = _rows(connection, COUNTS_SQL)
    verdicts = {row["verdict"]: row["count"] for row in reviews["verdicts"] or []}
    lists = {name: reviews[name] or [] for name in ("reviewers", "sets")}
    status: dict[str, Any] = {
        "sources": _rows(connection, SOURCES_SQL),
        "counts": {**counts, "with_human_verdict": sum(verdicts.values())},
        "reviews": {**reviews, **lists, "verdicts": verdicts},
        "versions": [{**row, "counts": json.loads(row["counts"])} for row in _rows(connection, VERSIONS_SQL)],
        "runs": [_resolve(connection, run) for run in _rows(connection, RUNS_SQL)],
    }
    return {**status, "next": _next_command(connection, status, model)}


def _rows(connection: DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(query).pl().to_dicts()
    return rows


def _resolve(connection: DuckDBPyConnection, run: dict[str, Any]) -> dict[str, Any]:
    """The run with its current status and folder: its process may have ended, and the project may have been moved."""
    status, adapter = resolve_run(folder_of(connection), run["run"], run["adapter"], run["status"])
    partial = partial_of(adapter)
    return {**run, "status": status, "adapter": str(partial if partial.is_dir() and not adapter.is_dir() else adapter)}


def _next_command(connection: DuckDBPyConnection, status: dict[str, Any], model: str) -> str:
    """The first step from file to adapter that is missing or outdated.

    A training may be refused for reasons that only rendering finds, which `curate plan` shows.
    """
    counts, versions = status["counts"], status["versions"]
    if not counts["conversations"]:
        return "curate import FILE"
    if counts["unscored"]:
        return "curate score"
    if not counts["with_verdict"]:
        return "curate select --dry-run"
    if _count(connection, UNSELECTED_SQL) or count_outdated_duplicates(connection):
        return "curate select"
    if not versions or _is_outdated(connection, versions[-1]["version"]):
        return f"curate freeze {versions[-1]['name'] if versions else 'NAME'}"
    newest = versions[-1]["version"]
    done = [run for run in status["runs"] if run["version"] == newest and run["status"] == "done"]
    return f"curate verify {done[-1]['run']}" if done else f"curate plan {newest}{'' if model else ' --model FOLDER'}"


def _count(connection: DuckDBPyConnection, query: str) -> int:
    ((count,),) = connection.sql(query).fetchall()
    return int(count)


def _is_outdated(connection: DuckDBPyConnection, version: str) -> bool:
    """Whether the rules or the kept conversations have changed since a version."""
    ((recipe,),) = connection.execute("SELECT recipe FROM versions WHERE version = ?", [version]).fetchall()
    stated = json.loads(recipe)
    frozen = stated.get("select", {}).get("rules", {})
    latest = connection.sql(RULES_SQL).fetchall()
    rules = json.loads(latest[0][0]) if latest else {}
    query = CHANGED_SINCE_SQL if has_subset(stated) else CHANGED_SQL
    ((changed,),) = connection.execute(query, {"version": version}).fetchall()
    return rules != frozen or int(changed) > 0
