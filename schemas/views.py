"""Today's definitions of the store's views, created again after every migration."""

from __future__ import annotations

from duckdb import DuckDBPyConnection

LATEST_REVIEWS = """
    SELECT * FROM (
        SELECT * FROM reviews
        QUALIFY row_number() OVER (PARTITION BY dataset, conversation, reviewer, record IS NULL ORDER BY seq DESC) = 1
    ) AS latest
    WHERE NOT EXISTS (FROM removed_annotators r WHERE r.reviewer = latest.reviewer AND r.seq > latest.seq)
    QUALIFY row_number() OVER (PARTITION BY dataset, conversation, reviewer ORDER BY answered_at DESC, seq DESC) = 1
"""
"""The latest answer per review set, conversation and annotator: the one that was read last, whatever its time; of an
answer on a server and one in a spreadsheet the later one. Answers from before their annotator was removed are not in
the view."""

CURRENT_ANSWERS = """
    SELECT * FROM latest_reviews WHERE status = 'submitted'
    QUALIFY row_number() OVER (PARTITION BY conversation, reviewer ORDER BY answered_at DESC, dataset DESC) = 1
"""
"""The latest submitted answer per conversation and annotator, over all review sets."""

REMOVED_CONVERSATIONS = """
    WITH RECURSIVE links AS (
        SELECT parent AS original, id AS edit FROM conversations WHERE parent IS NOT NULL
        UNION SELECT conversation, edited_to FROM verdicts WHERE edited_to IS NOT NULL
    ), affected AS (
        SELECT conversation FROM retained
        UNION SELECT edit FROM links JOIN affected ON original = conversation
    ), present AS (
        SELECT conversation FROM affected WHERE conversation IN (SELECT conversation FROM origins)
        UNION SELECT edit FROM links JOIN affected ON edit = conversation
            WHERE original NOT IN (SELECT a.conversation FROM affected a)
        UNION SELECT edit FROM links JOIN present ON original = conversation
    )
    SELECT conversation FROM affected EXCEPT SELECT conversation FROM present
"""
"""Conversations whose imports were all removed, and edits of only such conversations.

They are stored because versions, reviews or edits need their text; no later command keeps, scores or counts them.
"""

CURRENT_VERDICTS = """
    WITH latest AS (
        SELECT conversation, verdict, edited_to, reason, by_whom, selection, seq
        FROM verdicts
        QUALIFY row_number() OVER (
            PARTITION BY conversation, by_whom = 'rule' ORDER BY seq DESC) = 1
    ), human_verdicts AS (
        SELECT conversation, verdict = 'keep' AS kept, reason, by_whom, seq
        FROM latest WHERE by_whom <> 'rule' AND verdict <> 'undecided'
        UNION ALL
        SELECT edited_to, true, reason, by_whom, seq
        FROM latest WHERE by_whom <> 'rule' AND verdict = 'edit'
    ), latest_human AS (
        SELECT * FROM human_verdicts
        QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY seq DESC, kept DESC) = 1
    ), latest_rule AS (SELECT * FROM latest WHERE by_whom = 'rule')
    SELECT
        c.id AS conversation,
        CASE
            WHEN h.kept IS NOT NULL THEN h.kept
            WHEN c.parent IS NOT NULL AND c.id NOT IN (SELECT conversation FROM origins) THEN false
            WHEN EXISTS (FROM latest_rule) THEN coalesce(r.verdict = 'keep', false)
            ELSE true
        END AS kept,
        coalesce(h.by_whom, r.by_whom) AS by_whom,   -- null: no verdict
        coalesce(h.reason, r.reason) AS reason
    FROM conversations c
    LEFT JOIN latest_human h ON h.conversation = c.id
    LEFT JOIN latest_rule r ON r.conversation = c.id
    WHERE c.id NOT IN (SELECT conversation FROM removed_conversations)
"""
"""Whether each conversation is kept, and by whose verdict: the only definition of "kept", which a freeze uses.

The latest human verdict overrides every rule; `undecided` withdraws it. The result of an edit replaces the conversation
it was made from, until the edit is withdrawn. Without a human verdict the latest rule verdict counts, and conversations
imported after the latest selection are not kept until the next one. Without any selection all are kept. Conversations
whose imports were removed are not in the view.
"""

VIEWS = {
    "latest_reviews": LATEST_REVIEWS,
    "current_answers": CURRENT_ANSWERS,
    "removed_conversations": REMOVED_CONVERSATIONS,
    "current_verdicts": CURRENT_VERDICTS,
}
"""Name -> definition, in order of dependency."""


def create_views(connection: DuckDBPyConnection) -> None:
    """Create the views, replacing earlier definitions."""
    for name, query in VIEWS.items():
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
