"""An import in the store → the store without it: its origins, its rejects, and the conversations only it contributed.

Two steps, so that another import can take the place of the removed one in between, in the same transaction: `detach`
removes the rows of the import, `sweep` the conversations that have no import left. Frozen versions, verdicts, reviews
and edits stay; the text of a conversation stays as long as one of them needs it, in the table `retained`, and the view
`removed_conversations` keeps it out of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from curate.ingest.readers.batch import REJECT_COLUMN
from curate.ingest.shapes import SHAPES
from curate.ingest.sources import find_source
from schemas.store import reading, writing

COMMAND_REASON = "removed with curate sources remove"

RULE = "rule"

ORPHANS_SQL = """
    SELECT DISTINCT conversation FROM origins WHERE source = $source
    AND conversation NOT IN (SELECT conversation FROM origins WHERE source <> $source)
"""
"""The conversations that no other import has."""

NEEDED_SQL = """
    SELECT conversation FROM members
    UNION SELECT conversation FROM reviews
    UNION SELECT conversation FROM review_records
    UNION SELECT conversation FROM verdicts WHERE by_whom <> 'rule'
    UNION SELECT edited_to FROM verdicts WHERE edited_to IS NOT NULL
    UNION SELECT parent FROM conversations WHERE parent IS NOT NULL
    UNION SELECT id FROM conversations WHERE parent IS NOT NULL
"""
"""Conversations whose text is needed without an import: by versions, reviews, human verdicts and edits."""


@dataclass(frozen=True, slots=True)
class RemovalReport:
    """What the removal of an import removes, and what stays."""

    source: str
    path: str
    rows: int
    """origins and rejects"""
    conversations: int
    """conversations that only this import contributed"""
    retained: int
    """those of them whose text stays, because versions, reviews or edits need it"""
    versions: list[str]
    """versions that contain some of them; they stay as they are"""
    duplicates_kept: int
    """duplicates of other imports that become kept rows"""
    reopened: int
    """rejects of other imports that were closed by this import and are open again"""
    written: bool


def remove_source(store: Path, name: str, *, dry_run: bool = False) -> RemovalReport:
    """Remove the import `name` (its id, the beginning of its id, or its path) in one transaction.

    With `dry_run` nothing is written. Raises `SourceError` if no import or several match.
    """
    if dry_run:
        with reading(store) as connection:
            return _preview(connection, find_source(connection, name))
    with writing(store) as connection:
        source = find_source(connection, name)
        report = _preview(connection, source)
        sweep(connection, [detach(connection, source["source"], COMMAND_REASON)])
        return replace(report, written=True)


def _preview(connection: DuckDBPyConnection, source: dict[str, Any]) -> RemovalReport:
    """The numbers of rows and conversations that a removal changes, counted before it."""
    params = {"source": source["source"]}

    def count(query: str) -> int:
        return int(connection.execute(query, params).fetchall()[0][0])

    versions = connection.execute(
        f"SELECT DISTINCT version FROM members WHERE conversation IN ({ORPHANS_SQL}) ORDER BY version", params
    ).fetchall()
    return RemovalReport(
        source["source"],
        source["path"],
        rows=source["rows_read"],
        conversations=source["only_here"],
        retained=count(f"SELECT count(*) FROM ({ORPHANS_SQL}) WHERE conversation IN ({NEEDED_SQL})"),
        versions=[version for (version,) in versions],
        duplicates_kept=count(
            """SELECT count(DISTINCT conversation) FROM origins WHERE source <> $source AND conversation IN (
                   SELECT conversation FROM origins WHERE source = $source AND NOT duplicate)"""
        ),
        reopened=count("SELECT count(*) FROM rejects WHERE closed_by = $source AND source <> $source"),
        written=False,
    )


def detach(connection: DuckDBPyConnection, source: str, reason: str, successor: str | None = None) -> int:
    """Record the import as removed and delete its rows; its orphaned conversations are in `retained` until `sweep`.

    Returns the number of the removal. A duplicate whose first row was removed becomes a kept row of its own import.
    `successor` is the import of the same file that takes its place.
    """
    params = {"source": source}
    ((removal,),) = connection.execute("SELECT coalesce(max(removal), 0) + 1 FROM removed_sources").fetchall()
    connection.execute(f"CREATE OR REPLACE TEMP TABLE orphans AS {ORPHANS_SQL}", params)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE lost AS SELECT DISTINCT conversation FROM origins"
        " WHERE source = $source AND NOT duplicate AND conversation NOT IN (SELECT conversation FROM orphans)",
        params,
    )
    connection.execute(
        """INSERT INTO removed_sources BY NAME
           SELECT * EXCLUDE (bytes, columns, warnings) REPLACE (
               (SELECT count(*) FROM orphans) AS conversations), $removal AS removal, $reason AS reason
           FROM sources WHERE source = $source""",
        {**params, "removal": removal, "reason": reason},
    )
    connection.execute(
        """INSERT INTO removed_rows
           SELECT $removal, "row", line, conversation, NULL FROM origins WHERE source = $source
           UNION ALL SELECT $removal, "row", line, NULL, code FROM rejects WHERE source = $source
           UNION ALL SELECT $removal, "row", line, NULL, 'excluded-by-sql' FROM excluded_rows WHERE source = $source""",
        {**params, "removal": removal},
    )
    connection.execute("INSERT INTO retained FROM orphans")
    _reopen_rejects(connection, source, successor)
    for table in ("origins", "rejects", "excluded_rows", "sources"):
        connection.execute(f"DELETE FROM {table} WHERE source = $source", params)
    _keep_duplicates(connection)
    return int(removal)


def _reopen_rejects(connection: DuckDBPyConnection, source: str, successor: str | None) -> None:
    """Open the rejects that the import closed, unless another import contains all rows of the same file again.

    Rejects of a file of corrections of the import are about its rows, which are those of the successor, if any.
    """
    connection.execute(
        """UPDATE rejects SET closed_by = (
               SELECT coalesce(
                   if(any_value(list_contains(own.columns, $reject_column)), $successor, NULL),
                   arg_min(other.source, other.seq))
               FROM sources AS own LEFT JOIN sources AS other
               ON other.sha256 = own.sha256 AND other.seq > own.seq AND other.source <> $source
               WHERE own.source = rejects.source)
           WHERE closed_by = $source AND source <> $source""",
        {"source": source, "successor": successor, "reject_column": REJECT_COLUMN},
    )


def moved_conversations(connection: DuckDBPyConnection) -> dict[str, int]:
    """Path → conversations whose first import the last `detach` removed, and is that of this path now."""
    rows = connection.execute(
        "SELECT path, count(*) FROM next_rows JOIN sources USING (source) GROUP BY path ORDER BY path"
    ).fetchall()
    return dict(rows)


def _keep_duplicates(connection: DuckDBPyConnection) -> None:
    """Make the next row of each conversation in `lost` its kept row, and count the changed imports again.

    If several rows can form a conversation, all rows of the conversation in the next import are kept rows.
    """
    connection.execute("""
        CREATE OR REPLACE TEMP TABLE next_rows AS
        SELECT conversation, arg_min(source, origins.rowid) AS source, min(origins.rowid) AS number
        FROM origins WHERE conversation IN (SELECT conversation FROM lost) GROUP BY conversation""")
    connection.execute(
        """UPDATE origins SET duplicate = false FROM next_rows
           WHERE origins.conversation = next_rows.conversation AND origins.source = next_rows.source
           AND (origins.rowid = next_rows.number
                OR next_rows.source IN (SELECT s.source FROM sources s WHERE s.shape IN (SELECT unnest(?))))""",
        [[name for name, shape in SHAPES.items() if shape.spans_rows]],
    )
    connection.execute("""
        UPDATE sources SET rows_kept = c.kept, rows_duplicate = c.duplicate, conversations = conversations + c.gained
        FROM (SELECT source, count(*) FILTER (new) AS kept, count(*) FILTER (NOT new) AS duplicate,
                     (SELECT count(*) FROM next_rows n WHERE n.source = accepted.source) AS gained
              FROM (SELECT source, bool_or(NOT duplicate) AS new FROM origins
                    WHERE source IN (SELECT n.source FROM next_rows n) GROUP BY source, "row") AS accepted
              GROUP BY source) AS c
        WHERE sources.source = c.source""")


def sweep(connection: DuckDBPyConnection, removals: list[int]) -> int:
    """Delete the conversations that have no import left after `removals`; returns how many there are.

    The text of those that a version, review or edit needs stays. The rule verdicts of all are withdrawn, so that the
    next selection judges a conversation that is imported again.
    """
    connection.execute("DELETE FROM retained WHERE conversation IN (SELECT conversation FROM origins)")
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE swept AS
           SELECT DISTINCT conversation FROM removed_rows
           WHERE removal IN (SELECT unnest(?)) AND conversation IN (SELECT conversation FROM retained)""",
        [removals],
    )
    _withdraw_rule_verdicts(connection)
    _adjust_clustering(connection)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE deleted AS FROM swept WHERE conversation NOT IN (FROM ({NEEDED_SQL}))"
    )
    connection.execute("DELETE FROM conversations WHERE id IN (SELECT conversation FROM deleted)")
    for table in ("scores", "retained"):
        connection.execute(f"DELETE FROM {table} WHERE conversation IN (SELECT conversation FROM deleted)")
    ((count,),) = connection.execute("SELECT count(*) FROM swept").fetchall()
    return int(count)


def _withdraw_rule_verdicts(connection: DuckDBPyConnection) -> None:
    """Append an `undecided` rule verdict for each removed conversation that has another latest one."""
    connection.execute(
        """INSERT INTO verdicts (conversation, verdict, reason, by_whom)
           SELECT conversation, 'undecided', 'its import was removed', $rule FROM verdicts
           WHERE by_whom = $rule AND conversation IN (SELECT conversation FROM swept)
           GROUP BY conversation HAVING arg_max(verdict, seq) <> 'undecided'""",
        {"rule": RULE},
    )


def _adjust_clustering(connection: DuckDBPyConnection) -> None:
    """Take the removed conversations out of the near-duplicate clusters.

    If a removed one was kept instead of one that stays, the search has to be repeated: it then covers none.
    """
    for (method,) in connection.execute("SELECT method FROM clusterings").fetchall():  # one per kind of search
        connection.execute(
            """UPDATE clusterings SET conversations = if(
                   EXISTS (SELECT 1 FROM clusters WHERE method = $method
                           AND nearest IN (SELECT conversation FROM swept)
                           AND conversation NOT IN (SELECT conversation FROM swept)),
                   0,
                   conversations - (SELECT count(*) FROM (
                       SELECT conversation FROM removed_rows JOIN removed_sources USING (removal)
                       WHERE conversation IN (SELECT conversation FROM swept)
                       GROUP BY conversation HAVING min(seq) <= (
                           SELECT seq FROM clusterings WHERE method = $method))))
               WHERE method = $method""",
            {"method": method},
        )
    connection.execute("DELETE FROM clusters WHERE conversation IN (SELECT conversation FROM swept)")
