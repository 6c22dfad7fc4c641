"""Surveying: what the store holds, in one look, and which command comes next."""

from __future__ import annotations

import json
from typing import Any

from duckdb import DuckDBPyConnection

from schemas.run import partial_of, resolve_run
from schemas.store import folder_of

SOURCES_SQL = """
    SELECT path, shape, rows_read, conversations, rows_duplicate, rows_rejected,
           (SELECT count(*) FROM rejects r WHERE r.source = s.source AND r.closed_by IS NULL) AS open_rejects,
           imported_at::VARCHAR AS imported_at, source
    FROM sources s ORDER BY s.imported_at, path
"""
COUNTS_SQL = """
    SELECT (SELECT count(*) FROM conversations) AS conversations,
           (SELECT count(*) FROM current_verdicts WHERE kept) AS kept,
           (SELECT count(*) FROM current_verdicts WHERE by_whom IS NOT NULL) AS judged,
           (SELECT count(*) FROM (
               SELECT verdict FROM verdicts WHERE by_whom <> 'rule'
               QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY decided_at DESC, rowid DESC) = 1
           ) WHERE verdict <> 'undecided') AS judged_by_people,
           (SELECT count(*) FROM scorers) AS scorers,
           (SELECT count(*) FROM conversations WHERE id NOT IN (SELECT conversation FROM scores)) AS unscored,
           (SELECT count(*) FROM rejects WHERE closed_by IS NULL) AS open_rejects,
           (SELECT count(*) FROM rejects WHERE closed_by IS NOT NULL) AS closed_rejects,
           (SELECT count(*) FROM rejects r JOIN sources s USING (source)
            JOIN sources later ON later.source = r.closed_by
            WHERE later.imported_at >= s.imported_at AND later.sha256 <> s.sha256) AS corrected_rejects
"""
"""Closed rejects count as corrected if a later file imported the row. The others were rejected again and are open under
their first place (closed by an earlier source), or the same file was read in another way."""

PEOPLE_SQL = """
    SELECT (SELECT count(DISTINCT (review_set, conversation)) FROM review_records) AS asked,
           (SELECT count(DISTINCT (dataset, conversation)) FROM latest_reviews WHERE status = 'submitted') AS answered,
           (SELECT count(*) FROM latest_reviews WHERE status = 'submitted') AS answers,
           (SELECT list(DISTINCT reviewer ORDER BY reviewer) FROM latest_reviews WHERE status = 'submitted') AS people,
           (SELECT list(review_set ORDER BY review_set) FROM review_sets) AS sets,
           (SELECT list({'verdict': verdict, 'count': number} ORDER BY verdict) FROM (
               SELECT verdict, count(*) AS number FROM (
                   SELECT verdict FROM verdicts WHERE by_whom <> 'rule'
                   QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY decided_at DESC, rowid DESC) = 1
               ) WHERE verdict <> 'undecided' GROUP BY verdict)) AS verdicts
"""
VERSIONS_SQL = """
    SELECT version, name, digest, counts, frozen_at::VARCHAR AS frozen_at FROM versions
    ORDER BY versions.frozen_at, version
"""
RULES_SQL = "SELECT rules FROM selections ORDER BY selected_at DESC, rowid DESC LIMIT 1"
UNRULED_SQL = """
    SELECT count(*) FROM conversations WHERE (parent IS NULL OR id IN (SELECT conversation FROM origins))
    AND id NOT IN (SELECT conversation FROM verdicts WHERE by_whom = 'rule') AND EXISTS (FROM selections)
"""
"""What came in after the latest selection and waits for the next one."""

MOVED_SQL = """
    SELECT count(*) FROM (SELECT conversation FROM current_verdicts WHERE kept) AS present
    FULL JOIN (SELECT conversation FROM members WHERE version = ?) AS frozen USING (conversation)
    WHERE present.conversation IS NULL OR frozen.conversation IS NULL
"""
"""On how many conversations what is kept now and a version differ."""

RUNS_SQL = (
    "SELECT run, version, status, adapter, started_at::VARCHAR AS started_at FROM runs ORDER BY runs.started_at, run"
)


def survey(connection: DuckDBPyConnection) -> dict[str, Any]:
    """What the store holds: `sources`, `versions`, `runs` as lists, `counts`, `people`, and the `next` command.

    `people` are who answered in which review sets, how much of what was asked, and which verdicts of theirs stand.
    """
    found: dict[str, Any] = {
        "sources": _rows(connection, SOURCES_SQL),
        "counts": _rows(connection, COUNTS_SQL)[0],
        "people": _people(connection),
        "versions": _rows(connection, VERSIONS_SQL),
        "runs": [_as_it_is(connection, run) for run in _rows(connection, RUNS_SQL)],
    }
    return {**found, "next": _next_command(connection, found)}


def _rows(connection: DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(query).pl().to_dicts()
    return rows


def _as_it_is(connection: DuckDBPyConnection, run: dict[str, Any]) -> dict[str, Any]:
    """The run as it is now: nobody may be at work on it any more, and the project may have been moved."""
    status, adapter = resolve_run(folder_of(connection), run["run"], run["adapter"], run["status"])
    begun = partial_of(adapter)
    return {**run, "status": status, "adapter": str(begun if begun.is_dir() and not adapter.is_dir() else adapter)}


def _people(connection: DuckDBPyConnection) -> dict[str, Any]:
    (people,) = _rows(connection, PEOPLE_SQL)
    verdicts = {entry["verdict"]: entry["count"] for entry in people["verdicts"] or []}
    return {**people, "people": people["people"] or [], "sets": people["sets"] or [], "verdicts": verdicts}


def _next_command(connection: DuckDBPyConnection, found: dict[str, Any]) -> str:
    """The first step of the way from file to adapter that has not been taken, or has to be taken again."""
    counts, versions, runs = found["counts"], found["versions"], found["runs"]
    if not counts["conversations"]:
        return "curate import FILE"
    if counts["unscored"]:
        return "curate score"
    if not counts["judged"] or _number(connection, UNRULED_SQL):
        return "curate select" if counts["judged"] else "curate select --dry-run"
    if not versions or _is_behind(connection, versions[-1]["version"]):
        return f"curate freeze {versions[-1]['name'] if versions else 'NAME'}"
    newest = versions[-1]["version"]
    done = [run for run in runs if run["version"] == newest and run["status"] == "done"]
    return f"curate verify {done[-1]['run']}" if done else f"curate train {newest}"


def _number(connection: DuckDBPyConnection, query: str, *parameters: str) -> int:
    ((number,),) = connection.execute(query, parameters).fetchall()
    return int(number)


def _is_behind(connection: DuckDBPyConnection, version: str) -> bool:
    """Whether a freeze would make another version: rules or people have kept others since, or the rules are others."""
    ((recipe,),) = connection.execute("SELECT recipe FROM versions WHERE version = ?", [version]).fetchall()
    frozen = json.loads(recipe).get("select", {}).get("rules", {})
    selected = connection.sql(RULES_SQL).fetchall()
    rules = json.loads(selected[0][0]) if selected else {}
    return rules != frozen or _number(connection, MOVED_SQL, version) > 0
