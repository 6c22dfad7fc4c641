"""A version → statistics for its dataset card: sources, rejected rows, scores and languages of its conversations."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from duckdb import DuckDBPyConnection

from schemas.text import quote_name
from schemas.version import Version

LINEAGE_SQL = """
    WITH RECURSIVE lineage AS (
        SELECT conversation AS member, conversation AS ancestor FROM members WHERE version = $version
        UNION
        SELECT member, parent FROM lineage JOIN conversations ON id = ancestor WHERE parent IS NOT NULL
    )
"""
"""Each member with itself and all conversations it was edited from, because only these have a source row."""


def describe_sources(connection: DuckDBPyConnection, version: Version) -> list[dict[str, Any]]:
    """The sources of the version's conversations, their row counts, and `here`: how many conversations they have."""
    rows = connection.sql(
        f"""{LINEAGE_SQL}
        SELECT path, shape, rows_read AS read, rows_kept AS kept, rows_duplicate AS duplicate,
            rows_rejected AS rejected, here, left(sha256, 12) AS sha256
        FROM (SELECT source, count(DISTINCT member) AS here
              FROM lineage JOIN origins ON origins.conversation = ancestor GROUP BY source)
        JOIN sources USING (source) ORDER BY path, sha256, source""",
        params={"version": version.label},
    ).pl()
    return [
        {**row, "source": PurePath(row["path"]).name} for row in rows.to_dicts()
    ]  # without the folder, which is private


def describe_rejects(connection: DuckDBPyConnection, version: Version) -> list[dict[str, Any]]:
    """The rejected rows of those sources by code, and how many of them were imported after a repair.

    A row of which other conversations were accepted is not a rejected row.
    """
    rows = connection.sql(
        f"""{LINEAGE_SQL}
        SELECT code, count(*) AS "rows", count(closed_by) AS "repaired since"
        FROM rejects ANTI JOIN origins USING (source, "row")
        WHERE source IN (SELECT source FROM lineage JOIN origins ON origins.conversation = ancestor)
        GROUP BY code ORDER BY 2 DESC, code""",
        params={"version": version.label},
    ).pl()
    return list(rows.to_dicts())


def describe_scores(connection: DuckDBPyConnection, version: Version) -> list[dict[str, Any]]:
    """Each numeric or boolean score of the version's conversations: count, min, median, mean, max."""
    numeric = """SELECT column_name FROM duckdb_columns() WHERE table_name = 'scores' AND column_name <> 'conversation'
                 AND (data_type IN ('BOOLEAN', 'DOUBLE', 'FLOAT') OR data_type LIKE '%INT%') ORDER BY column_index"""
    columns = [name for (name,) in connection.sql(numeric).fetchall()]
    return [row for column in columns if (row := _describe_score(connection, version, column))["conversations"]]


def describe_languages(connection: DuckDBPyConnection, version: Version) -> list[str]:
    """The languages of at least 1 % of the conversations, the most frequent first; empty if they were not scored."""
    has_language = "SELECT 1 FROM duckdb_columns() WHERE table_name = 'scores' AND column_name = 'language'"
    if not connection.sql(has_language).fetchall():
        return []
    rows = connection.execute(
        """SELECT language, count(*) AS count FROM scores JOIN members USING (conversation)
           WHERE version = ? AND regexp_full_match(language, '[a-z]{2,3}') GROUP BY language
           HAVING count >= 0.01 * (SELECT count(*) FROM members WHERE version = ?) ORDER BY count DESC, language""",
        [version.label, version.label],
    ).fetchall()
    return [language for language, _ in rows]


def describe_uses(connection: DuckDBPyConnection, version: Version) -> list[dict[str, Any]]:
    """How many train conversations an epoch uses once, twice and so on."""
    rows = connection.sql(
        """SELECT per_epoch, count(*) AS conversations FROM members WHERE version = ? AND split = 'train'
           GROUP BY per_epoch ORDER BY per_epoch""",
        params=[version.label],
    ).pl()
    return list(rows.to_dicts())


def _describe_score(connection: DuckDBPyConnection, version: Version, column: str) -> dict[str, Any]:
    value = f"{quote_name(column)}::DOUBLE"
    row = connection.sql(
        f"""SELECT count({value}) AS conversations, min({value}) AS min, median({value}) AS median,
                avg({value}) AS mean, max({value}) AS max
            FROM scores JOIN members USING (conversation) WHERE version = ?""",
        params=[version.label],
    ).pl()
    return {"score": column, **row.row(0, named=True)}
