"""The store's tables, as the list of steps that made them: each function is applied once, in order, for ever.

A step that has been released is never edited; a change is a new function at the end of `MIGRATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from duckdb import DuckDBPyConnection

TURNS_SQL = 'STRUCT("from" VARCHAR, "value" VARCHAR, train BOOLEAN, tool_call_id VARCHAR)[]'


def import_tables(connection: DuckDBPyConnection) -> None:
    """What was read: files, conversations, where each came from, and the rows that were refused."""
    connection.execute(f"""
        CREATE TABLE sources (
            source VARCHAR NOT NULL,          -- content id of file, shape and mapping: the same import has the same id
            path VARCHAR NOT NULL,            -- as it was given
            sha256 VARCHAR NOT NULL,          -- of the file's bytes
            bytes BIGINT NOT NULL,
            shape VARCHAR NOT NULL,           -- alpaca, pairs, sharegpt, messages, transcript, long
            mapping JSON NOT NULL,            -- role of each column, encoding, mends
            columns VARCHAR[] NOT NULL,       -- the file's own columns, in its order
            rows_read BIGINT NOT NULL,        -- = rows_kept + rows_duplicate + rows_rejected
            rows_kept BIGINT NOT NULL,
            rows_duplicate BIGINT NOT NULL,
            rows_rejected BIGINT NOT NULL,
            conversations BIGINT NOT NULL,    -- new ones; less than rows_kept where many rows make one conversation
            warnings JSON NOT NULL,           -- code -> count
            imported_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE conversations (
            id VARCHAR NOT NULL,              -- 32 hex digits of the content's SHA-256
            conversations {TURNS_SQL} NOT NULL,
            tools VARCHAR,                    -- JSON text
            parent VARCHAR                    -- the conversation that a person edited into this one
        );
        CREATE TABLE origins (
            source VARCHAR NOT NULL,
            row BIGINT NOT NULL,              -- record number in the source, from 1
            line BIGINT,                      -- physical line where the record starts, from 1; null without lines
            conversation VARCHAR NOT NULL,
            duplicate BOOLEAN NOT NULL,       -- another row brought the same conversation before
            metadata JSON,                    -- the columns that are not part of the conversation
            mends VARCHAR[],                  -- what was mended, by name
            raw VARCHAR                       -- the record as it was read, kept where it was mended
        );
        CREATE TABLE rejects (
            source VARCHAR NOT NULL,
            row BIGINT NOT NULL,
            line BIGINT,
            code VARCHAR NOT NULL,            -- the rule, such as empty-answer
            reason VARCHAR NOT NULL,          -- a sentence
            raw VARCHAR NOT NULL,             -- the record as it was read
            closed_by VARCHAR                 -- the source that brought it back mended
        );
    """)


def curation_tables(connection: DuckDBPyConnection) -> None:
    """What was thought of it: scores, near-duplicate clusters, verdicts and people's reviews."""
    connection.execute("""
        CREATE TABLE scorers (
            "column" VARCHAR PRIMARY KEY,     -- the column of `scores` that holds the values
            scorer VARCHAR NOT NULL,
            parameters JSON NOT NULL,
            digest VARCHAR NOT NULL,          -- of scorer, its parameters and its revision
            computed_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE scores (conversation VARCHAR NOT NULL);
        CREATE TABLE clusters (
            conversation VARCHAR NOT NULL,
            method VARCHAR NOT NULL,
            cluster VARCHAR NOT NULL          -- id of the cluster's first conversation
        );
        CREATE TABLE verdicts (
            conversation VARCHAR NOT NULL,
            verdict VARCHAR NOT NULL,         -- keep, drop or edit
            reason VARCHAR NOT NULL,          -- the rule's text, or what the person said
            by_whom VARCHAR NOT NULL,         -- rule, or a person's name
            edited_to VARCHAR,                -- the conversation that takes its place
            selection VARCHAR,                -- which run of `curate select` said so
            decided_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE reviews (
            conversation VARCHAR NOT NULL,
            dataset VARCHAR NOT NULL,
            reviewer VARCHAR NOT NULL,
            response VARCHAR NOT NULL,        -- the labelling server's id of the answer
            answers JSON NOT NULL,
            status VARCHAR NOT NULL,          -- submitted, discarded or draft
            answered_at TIMESTAMPTZ NOT NULL
        );
    """)


def version_tables(connection: DuckDBPyConnection) -> None:
    """What was frozen and what it was compiled to."""
    connection.execute("""
        CREATE TABLE versions (
            version VARCHAR PRIMARY KEY,      -- name@number
            name VARCHAR NOT NULL,
            number INTEGER NOT NULL,
            digest VARCHAR NOT NULL,          -- SHA-256 over the sorted members, their splits and the recipe
            parent VARCHAR,
            recipe JSON NOT NULL,             -- the part of the recipe that made the data
            counts JSON NOT NULL,             -- split -> conversations
            frozen_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE members (
            version VARCHAR NOT NULL,
            conversation VARCHAR NOT NULL,
            split VARCHAR NOT NULL            -- train or held_out
        );
        CREATE TABLE runs (
            run VARCHAR PRIMARY KEY,          -- r1, r2, …
            version VARCHAR NOT NULL,
            version_digest VARCHAR NOT NULL,
            adapter VARCHAR NOT NULL,         -- folder
            adapter_digest VARCHAR,           -- null until the run is done
            status VARCHAR NOT NULL,          -- running, done, failed
            manifest JSON NOT NULL,
            metrics JSON NOT NULL,
            started_at TIMESTAMPTZ NOT NULL,
            finished_at TIMESTAMPTZ
        );
    """)


def standing_view(connection: DuckDBPyConnection) -> None:
    """Where every conversation stands: what a freeze takes, and whose word it was. The one definition of "kept".

    A person's latest word outranks every rule. The conversation that an edit made takes the place of the one it was
    made from; when the edit is taken back, it leaves again. Without a person's word the latest rule verdict counts,
    and what came in after the latest selection waits for the next one. Without any selection all are kept.
    """
    connection.execute("""
        CREATE VIEW standing AS
        WITH own AS (
            SELECT conversation, verdict, edited_to, reason, by_whom, selection, decided_at, rowid AS number
            FROM verdicts
            QUALIFY row_number() OVER (
                PARTITION BY conversation, by_whom = 'rule' ORDER BY decided_at DESC, rowid DESC) = 1
        ), words AS (
            SELECT conversation, verdict = 'keep' AS kept, reason, by_whom, decided_at, number
            FROM own WHERE by_whom <> 'rule'
            UNION ALL
            SELECT edited_to, true, reason, by_whom, decided_at, number
            FROM own WHERE by_whom <> 'rule' AND verdict = 'edit'
        ), said AS (
            SELECT * FROM words
            QUALIFY row_number() OVER (
                PARTITION BY conversation ORDER BY decided_at DESC, number DESC, kept DESC) = 1
        ), ruled AS (SELECT * FROM own WHERE by_whom = 'rule')
        SELECT
            c.id AS conversation,
            CASE
                WHEN said.kept IS NOT NULL THEN said.kept
                WHEN c.parent IS NOT NULL AND c.id NOT IN (SELECT conversation FROM origins) THEN false
                WHEN EXISTS (FROM ruled) THEN coalesce(ruled.verdict = 'keep', false)
                ELSE true
            END AS kept,
            coalesce(said.by_whom, ruled.by_whom) AS by_whom,   -- null: nobody has judged it
            coalesce(said.reason, ruled.reason) AS reason
        FROM conversations c
        LEFT JOIN said ON said.conversation = c.id
        LEFT JOIN ruled ON ruled.conversation = c.id
    """)


def review_tables(connection: DuckDBPyConnection) -> None:
    """What was put before people and where, and which of their words counts: the latest of each person."""
    connection.execute("""
        CREATE TABLE review_sets (
            review_set VARCHAR PRIMARY KEY,   -- the set's name, here and on the server
            server VARCHAR,                   -- address; null for spreadsheets
            remote VARCHAR,                   -- the server's id of the set
            questions JSON NOT NULL,          -- as they were asked
            overlap INTEGER NOT NULL,         -- how many answers a conversation waits for
            activity VARCHAR,                 -- the server's mark at the latest pull: the same mark, nothing new
            pulled_at TIMESTAMPTZ,
            made_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE review_records (
            review_set VARCHAR NOT NULL,
            conversation VARCHAR NOT NULL,
            record VARCHAR,                   -- the server's id; null for spreadsheets
            queue VARCHAR NOT NULL,           -- why it was chosen, such as disagreement
            blind BOOLEAN NOT NULL,           -- shown without suggestions
            suggestions JSON NOT NULL,        -- what was suggested, by whom
            digest VARCHAR NOT NULL,          -- of all that was shown: the same again need not be sent
            gone BOOLEAN NOT NULL DEFAULT false,  -- deleted on the server
            pushed_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        ALTER TABLE reviews ADD COLUMN record VARCHAR;      -- the server's id of what the person saw
        ALTER TABLE reviews ADD COLUMN blind BOOLEAN;       -- whether the person saw no suggestions
        ALTER TABLE reviews ADD COLUMN pulled_at TIMESTAMPTZ;
        ALTER TABLE verdicts ADD COLUMN review VARCHAR;     -- the review set whose pull wrote it
        CREATE VIEW latest_reviews AS                       -- one row per set, conversation and person
            SELECT * FROM reviews
            QUALIFY row_number() OVER (
                PARTITION BY dataset, conversation, reviewer ORDER BY rowid DESC) = 1;
        CREATE VIEW opinions AS                             -- one row per conversation and person, over all sets
            SELECT * FROM latest_reviews WHERE status = 'submitted'
            QUALIFY row_number() OVER (
                PARTITION BY conversation, reviewer ORDER BY answered_at DESC, dataset DESC) = 1;
    """)


def selection_table(connection: DuckDBPyConnection) -> None:
    """By what was selected, as it was said, so that a version can state it."""
    connection.execute("""
        CREATE TABLE selections (
            selection VARCHAR NOT NULL,       -- as in `verdicts`
            rules JSON NOT NULL,              -- name -> condition, in their order; the command line's own is `--where`
            scores JSON NOT NULL,             -- the recipe's parameters of scorers
            selected_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
    """)


def reviews_by_time(connection: DuckDBPyConnection) -> None:
    """Of a person's answers in a set the latest given counts, however late an older one is read again."""
    connection.execute("""
        CREATE OR REPLACE VIEW latest_reviews AS
            SELECT * FROM reviews
            QUALIFY row_number() OVER (
                PARTITION BY dataset, conversation, reviewer ORDER BY answered_at DESC, rowid DESC) = 1;
    """)


def undecided_verdicts(connection: DuckDBPyConnection) -> None:
    """Where every conversation stands, as in `standing_view`; a person's latest word `undecided` is none."""
    connection.execute("""
        CREATE OR REPLACE VIEW standing AS
        WITH own AS (
            SELECT conversation, verdict, edited_to, reason, by_whom, selection, decided_at, rowid AS number
            FROM verdicts
            QUALIFY row_number() OVER (
                PARTITION BY conversation, by_whom = 'rule' ORDER BY decided_at DESC, rowid DESC) = 1
        ), words AS (
            SELECT conversation, verdict = 'keep' AS kept, reason, by_whom, decided_at, number
            FROM own WHERE by_whom <> 'rule' AND verdict <> 'undecided'
            UNION ALL
            SELECT edited_to, true, reason, by_whom, decided_at, number
            FROM own WHERE by_whom <> 'rule' AND verdict = 'edit'
        ), said AS (
            SELECT * FROM words
            QUALIFY row_number() OVER (
                PARTITION BY conversation ORDER BY decided_at DESC, number DESC, kept DESC) = 1
        ), ruled AS (SELECT * FROM own WHERE by_whom = 'rule')
        SELECT
            c.id AS conversation,
            CASE
                WHEN said.kept IS NOT NULL THEN said.kept
                WHEN c.parent IS NOT NULL AND c.id NOT IN (SELECT conversation FROM origins) THEN false
                WHEN EXISTS (FROM ruled) THEN coalesce(ruled.verdict = 'keep', false)
                ELSE true
            END AS kept,
            coalesce(said.by_whom, ruled.by_whom) AS by_whom,   -- null: nobody has judged it
            coalesce(said.reason, ruled.reason) AS reason
        FROM conversations c
        LEFT JOIN said ON said.conversation = c.id
        LEFT JOIN ruled ON ruled.conversation = c.id
    """)


def shown_suggestions(connection: DuckDBPyConnection) -> None:
    """What was suggested with each answer: a later push may suggest something else, and nobody answered to that."""
    connection.execute("""
        CREATE TABLE review_shown (
            review_set VARCHAR NOT NULL,
            conversation VARCHAR NOT NULL,
            suggestions JSON NOT NULL,        -- as in `review_records`, which holds the newest alone
            shown_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        INSERT INTO review_shown SELECT review_set, conversation, suggestions, pushed_at FROM review_records;
        ALTER TABLE reviews ADD COLUMN suggestions JSON;    -- what was suggested when the person answered
        UPDATE reviews SET suggestions = (
            SELECT any_value(r.suggestions) FROM review_records r
            WHERE r.review_set = reviews.dataset AND r.conversation = reviews.conversation);
        CREATE OR REPLACE VIEW latest_reviews AS            -- as before, with the new column
            SELECT * FROM reviews
            QUALIFY row_number() OVER (
                PARTITION BY dataset, conversation, reviewer ORDER BY answered_at DESC, rowid DESC) = 1;
        CREATE OR REPLACE VIEW opinions AS
            SELECT * FROM latest_reviews WHERE status = 'submitted'
            QUALIFY row_number() OVER (
                PARTITION BY conversation, reviewer ORDER BY answered_at DESC, dataset DESC) = 1;
    """)


def near_duplicates(connection: DuckDBPyConnection) -> None:
    """By what near-duplicates were found, and who of them goes for whom."""
    connection.execute("""
        CREATE TABLE clusterings (
            method VARCHAR PRIMARY KEY,       -- as in `clusters`
            parameters JSON NOT NULL,
            conversations BIGINT NOT NULL,    -- how many were compared; whoever came in later was not
            clustered_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        ALTER TABLE clusters ADD COLUMN nearest VARCHAR;    -- who stays and is most like it; null for who stays
        ALTER TABLE clusters ADD COLUMN similarity DOUBLE;  -- to `nearest`, from 0 to 1
    """)


MIGRATIONS: list[Callable[[DuckDBPyConnection], None]] = [
    import_tables,
    curation_tables,
    version_tables,
    standing_view,
    review_tables,
    selection_table,
    reviews_by_time,
    undecided_verdicts,
    shown_suggestions,
    near_duplicates,
]
