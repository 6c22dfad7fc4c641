"""Kept conversations → groups that a split must not separate, a function of content alone.

Conversations with nearly the same first question, in the same near-duplicate cluster, or connected by an edit form a
group, as do those that further links connect. `curate/versions/placement.py` places each group as a unit.
"""

from __future__ import annotations

import polars as pl
from duckdb import DuckDBPyConnection

from curate.selection import KEPT_SQL
from curate.versions.question_links import link_questions
from schemas.cluster import connected_components
from schemas.conversation import FIRST_QUESTION_SQL
from schemas.version import SPLITS

SPACES = r"[\s\p{Z}]{2,}|[\t-\r\x{85}\x{A0}\x{2000}-\x{200A}\x{2028}-\x{202F}\x{3000}]"
"""White space that is replaced by one space. A single plain space is not matched, which is four times faster."""

NORMAL_SQL = f"trim(regexp_replace(lower(nfc_normalize({FIRST_QUESTION_SQL})), '{SPACES}', ' ', 'g'))"
PROMPTS_SQL = f"""
    SELECT id AS conversation, sha256(coalesce(nullif({NORMAL_SQL}, ''), id)) AS prompt, parent IS NOT NULL AS edited
    FROM conversations
"""
"""The hash of each conversation's first question; a conversation without one is a group of its own."""

QUESTIONS_SQL = f"SELECT DISTINCT sha256({NORMAL_SQL}) AS prompt, {NORMAL_SQL} AS question FROM conversations"

LINKS_SQL = """
    SELECT conversation, 'cluster ' || method || ' ' || cluster AS link FROM clusters
    UNION ALL SELECT unnest([id, parent]), 'edit ' || parent FROM conversations WHERE parent IS NOT NULL
    UNION ALL SELECT unnest([conversation, edited_to]), 'edit ' || conversation FROM verdicts
    WHERE edited_to IS NOT NULL
    UNION ALL SELECT conversation, link FROM further_links
"""
"""Links between conversations with different questions: near-duplicate clusters, edits, and links that are passed."""

NO_LINKS = pl.DataFrame(schema={"conversation": pl.String, "link": pl.String})

LINKED_PROMPTS_SQL = f"""
    WITH links AS (
        SELECT prompt, link FROM ({LINKS_SQL}) JOIN prompts USING (conversation) UNION ALL FROM question_links)
    SELECT DISTINCT prompt AS member, link, if(prompt IN (SELECT prompt FROM prompts WHERE NOT edited), '', '~') AS rank
    FROM links
"""
"""`rank` sorts questions that only edits contain last, so that an edit never renames the group it joins."""


def group_members(connection: DuckDBPyConnection, links: pl.DataFrame = NO_LINKS) -> pl.DataFrame:
    """The kept conversations with their groups: columns `conversation`, `group`.

    `links` (`conversation`, `link`) connects further conversations: those with the same link. Groups are formed over
    all conversations of the store, not only the kept ones, so that a conversation stays in its group when others are
    dropped or imported, and an edit is in the group of the original. A group gets another name only if a new
    conversation with a smaller hash joins it or connects two groups.
    """
    connection.register("prompts", connection.sql(PROMPTS_SQL).pl())
    connection.register("question_links", link_questions(connection.sql(QUESTIONS_SQL)))
    connection.register("further_links", links)
    groups = connected_components(connection.sql(LINKED_PROMPTS_SQL).pl()).rename({"member": "prompt"})
    connection.register("prompt_groups", groups)
    members: pl.DataFrame = connection.sql(
        f"""
        SELECT conversation, coalesce("group", prompt) AS "group"
        FROM ({KEPT_SQL}) JOIN prompts USING (conversation) LEFT JOIN prompt_groups USING (prompt)
        """
    ).pl()
    for name in ("prompts", "question_links", "further_links", "prompt_groups"):
        connection.unregister(name)
    return members


def count_splits(members: pl.DataFrame) -> dict[str, int]:
    """The conversations of each split (`split`)."""
    return _count(members, pl.len())


def count_groups(members: pl.DataFrame) -> dict[str, int]:
    """The groups of each split (`split`, `group`)."""
    return _count(members, pl.col("group").n_unique())


def _count(members: pl.DataFrame, count: pl.Expr) -> dict[str, int]:
    counts = dict(members.group_by("split").agg(count.alias("count")).iter_rows())
    return {split: int(counts.get(split, 0)) for split in SPLITS}
