"""The store's tables, as a list of migrations: each function is applied once to every store, in order.

A released migration is never edited; a change is a new function at the end of `MIGRATIONS`. `schemas.views` defines the
views, which are created again after the last migration.
"""

from __future__ import annotations

from collections.abc import Callable

from duckdb import DuckDBPyConnection

TURNS_SQL = 'STRUCT("from" VARCHAR, "value" VARCHAR, train BOOLEAN, tool_call_id VARCHAR)[]'


def import_tables(connection: DuckDBPyConnection) -> None:
    """Imports: source files, conversations, their origins, and the rejected rows."""
    connection.execute(f"""
        CREATE TABLE sources (
            source VARCHAR NOT NULL,          -- content id of file, shape and mapping: the same import has the same id
            path VARCHAR NOT NULL,            -- as given on the command line
            sha256 VARCHAR NOT NULL,          -- of the file's bytes
            bytes BIGINT NOT NULL,
            shape VARCHAR NOT NULL,           -- alpaca, pairs, sharegpt, messages, transcript, long
            mapping JSON NOT NULL,            -- role of each column, encoding, repairs
            columns VARCHAR[] NOT NULL,       -- columns of the file, in its order
            rows_read BIGINT NOT NULL,        -- = rows_kept + rows_duplicate + rows_rejected + rows_excluded
            rows_kept BIGINT NOT NULL,
            rows_duplicate BIGINT NOT NULL,
            rows_rejected BIGINT NOT NULL,
            conversations BIGINT NOT NULL,    -- new ones; fewer than rows_kept if several rows make one conversation
            warnings JSON NOT NULL,           -- code -> count
            imported_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE conversations (
            id VARCHAR NOT NULL,              -- 32 hex digits of the content's SHA-256
            conversations {TURNS_SQL} NOT NULL,
            tools VARCHAR,                    -- JSON text
            parent VARCHAR                    -- the conversation of which this one is an edit
        );
        CREATE TABLE origins (
            source VARCHAR NOT NULL,
            row BIGINT NOT NULL,              -- record number in the source, from 1
            line BIGINT,                      -- physical line where the record starts, from 1; null without lines
            conversation VARCHAR NOT NULL,
            duplicate BOOLEAN NOT NULL,       -- an earlier row has the same conversation
            metadata JSON,                    -- columns that are not part of the conversation
            mends VARCHAR[],                  -- names of the applied repairs; later renamed to `repairs`
            raw VARCHAR                       -- the original record, kept if it was repaired
        );
        CREATE TABLE rejects (
            source VARCHAR NOT NULL,
            row BIGINT NOT NULL,
            line BIGINT,
            code VARCHAR NOT NULL,            -- the rule, such as empty-answer
            reason VARCHAR NOT NULL,          -- a sentence
            raw VARCHAR NOT NULL,             -- the record as it was read
            closed_by VARCHAR                 -- the source that imported the corrected row
        );
    """)


def curation_tables(connection: DuckDBPyConnection) -> None:
    """Curation: scores, near-duplicate clusters, verdicts and reviews."""
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
            reason VARCHAR NOT NULL,          -- text of the rule, or the reason a person gave
            by_whom VARCHAR NOT NULL,         -- "rule" or the name of a person
            edited_to VARCHAR,                -- the conversation that replaces it
            selection VARCHAR,                -- the run of `curate select` that wrote it
            decided_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE reviews (
            conversation VARCHAR NOT NULL,
            dataset VARCHAR NOT NULL,
            reviewer VARCHAR NOT NULL,
            response VARCHAR NOT NULL,        -- id of the answer on the labelling server
            answers JSON NOT NULL,
            status VARCHAR NOT NULL,          -- submitted, discarded or draft
            answered_at TIMESTAMPTZ NOT NULL
        );
    """)


def version_tables(connection: DuckDBPyConnection) -> None:
    """Frozen versions and training runs."""
    connection.execute("""
        CREATE TABLE versions (
            version VARCHAR PRIMARY KEY,      -- name@number
            name VARCHAR NOT NULL,
            number INTEGER NOT NULL,
            digest VARCHAR NOT NULL,          -- SHA-256 over the sorted members, their splits and the recipe
            parent VARCHAR,
            recipe JSON NOT NULL,             -- the part of the recipe that determines the data
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
    """Nothing: made a view, which is now defined in `schemas.views`. Stores record the names of all steps."""


def review_tables(connection: DuckDBPyConnection) -> None:
    """Review sets, their records, and the links between reviews and verdicts."""
    connection.execute("""
        CREATE TABLE review_sets (
            review_set VARCHAR PRIMARY KEY,   -- name of the set, also on the server
            server VARCHAR,                   -- address; null for spreadsheets
            remote VARCHAR,                   -- id of the set on the server
            questions JSON NOT NULL,          -- as asked
            overlap INTEGER NOT NULL,         -- answers wanted per conversation
            activity VARCHAR,                 -- change marker of the server at the latest pull; equal means nothing new
            pulled_at TIMESTAMPTZ,
            made_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        CREATE TABLE review_records (
            review_set VARCHAR NOT NULL,
            conversation VARCHAR NOT NULL,
            record VARCHAR,                   -- id on the server; null for spreadsheets
            queue VARCHAR NOT NULL,           -- the queue that selected it, such as disagreement
            blind BOOLEAN NOT NULL,           -- shown without suggestions
            suggestions JSON NOT NULL,        -- suggested answers and their agents
            digest VARCHAR NOT NULL,          -- of everything shown: unchanged records are not sent again
            gone BOOLEAN NOT NULL DEFAULT false,  -- deleted on the server
            pushed_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        ALTER TABLE reviews ADD COLUMN record VARCHAR;      -- id on the server of the record that was answered
        ALTER TABLE reviews ADD COLUMN blind BOOLEAN;       -- whether the answer was given without suggestions
        ALTER TABLE reviews ADD COLUMN pulled_at TIMESTAMPTZ;
        ALTER TABLE verdicts ADD COLUMN review VARCHAR;     -- the review set whose pull wrote it
    """)


def selection_table(connection: DuckDBPyConnection) -> None:
    """The rules of each selection as written, so that a version can state them."""
    connection.execute("""
        CREATE TABLE selections (
            selection VARCHAR NOT NULL,       -- as in `verdicts`
            rules JSON NOT NULL,              -- name -> condition, in order; `--where` for the command-line option
            scores JSON NOT NULL,             -- scorer parameters of the recipe
            selected_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
    """)


def reviews_by_time(connection: DuckDBPyConnection) -> None:
    """Nothing: changed a view, which is now defined in `schemas.views`."""


def undecided_verdicts(connection: DuckDBPyConnection) -> None:
    """Nothing: changed a view, which is now defined in `schemas.views`."""


def shown_suggestions(connection: DuckDBPyConnection) -> None:
    """The suggestions that each answer was given to: a later push may change the suggestions of a record."""
    connection.execute("""
        CREATE TABLE review_shown (
            review_set VARCHAR NOT NULL,
            conversation VARCHAR NOT NULL,
            suggestions JSON NOT NULL,        -- as in `review_records`, which holds only the latest
            shown_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        INSERT INTO review_shown SELECT review_set, conversation, suggestions, pushed_at FROM review_records;
        ALTER TABLE reviews ADD COLUMN suggestions JSON;    -- suggestions at the time of the answer
        UPDATE reviews SET suggestions = (
            SELECT any_value(r.suggestions) FROM review_records r
            WHERE r.review_set = reviews.dataset AND r.conversation = reviews.conversation);
    """)


def near_duplicates(connection: DuckDBPyConnection) -> None:
    """How near-duplicates were found, and the kept conversation that each one duplicates."""
    connection.execute("""
        CREATE TABLE clusterings (
            method VARCHAR PRIMARY KEY,       -- as in `clusters`
            parameters JSON NOT NULL,
            conversations BIGINT NOT NULL,    -- how many were compared; later imports are not included
            clustered_at TIMESTAMPTZ NOT NULL DEFAULT now()
        );
        ALTER TABLE clusters ADD COLUMN nearest VARCHAR;    -- the most similar kept one; null if kept itself
        ALTER TABLE clusters ADD COLUMN similarity DOUBLE;  -- to `nearest`, from 0 to 1
    """)


def field_terms(connection: DuckDBPyConnection) -> None:
    """Rename what had names of its own: `origins.mends` and the views that `schemas.views` now defines."""
    connection.execute("""
        DROP VIEW IF EXISTS standing;
        DROP VIEW IF EXISTS opinions;
        ALTER TABLE origins RENAME COLUMN mends TO repairs;
    """)


def removed_imports(connection: DuckDBPyConnection) -> None:
    """Removed imports with the places of their rows, and the conversations that are stored without an import."""
    connection.execute("""
        CREATE TABLE removed_sources (
            removal BIGINT NOT NULL,          -- 1, 2, …: an import can be removed, repeated and removed again
            source VARCHAR NOT NULL,          -- as in `sources`
            path VARCHAR NOT NULL,
            sha256 VARCHAR NOT NULL,
            shape VARCHAR NOT NULL,
            mapping JSON NOT NULL,
            rows_read BIGINT NOT NULL,
            rows_kept BIGINT NOT NULL,
            rows_duplicate BIGINT NOT NULL,
            rows_rejected BIGINT NOT NULL,
            conversations BIGINT NOT NULL,    -- conversations that no other import has: removed with the import
            imported_at TIMESTAMPTZ NOT NULL,
            removed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            reason VARCHAR NOT NULL           -- removed by a command, or replaced by another import
        );
        CREATE TABLE removed_rows (
            removal BIGINT NOT NULL,
            "row" BIGINT NOT NULL,
            line BIGINT,
            conversation VARCHAR,             -- null: the row was rejected
            code VARCHAR                      -- of the reject
        );
        CREATE TABLE retained (
            conversation VARCHAR NOT NULL     -- without an import; versions, reviews or edits need its text
        );
    """)


TIMED_TABLES = {
    "removed_sources": "imported_at",
    "sources": "imported_at",
    "clusterings": "clustered_at",
    "selections": "selected_at",
    "reviews": "coalesce(pulled_at, answered_at)",
    "verdicts": "decided_at",
    "versions": "frozen_at",
    "runs": "started_at",
}
"""Tables in which "latest" has a meaning -> the time that ordered their rows before `sequence_numbers`."""


def sequence_numbers(connection: DuckDBPyConnection) -> None:
    """`seq`, assigned by the store, orders the rows of these tables: the clock of a machine can be set back."""
    times = [
        f"SELECT '{table}' AS name, {order} AS place, rowid AS number, {time} AS time FROM {table}"
        for order, (table, time) in enumerate(TIMED_TABLES.items())
    ]
    connection.execute(
        f"""CREATE TEMP TABLE numbered AS
            SELECT name, number, row_number() OVER (ORDER BY time, place, number) AS seq
            FROM ({" UNION ALL ".join(times)})"""
    )
    ((used,),) = connection.sql("SELECT count(*) FROM numbered").fetchall()
    connection.execute(f"CREATE SEQUENCE seq START {used + 1}")
    for table in TIMED_TABLES:
        connection.execute(f"""
            ALTER TABLE {table} ADD COLUMN seq BIGINT;
            UPDATE {table} SET seq = n.seq FROM numbered n WHERE n.name = '{table}' AND n.number = {table}.rowid;
            ALTER TABLE {table} ALTER COLUMN seq SET DEFAULT nextval('seq');
        """)
    connection.execute("DROP TABLE numbered")


def partial_sets(connection: DuckDBPyConnection) -> None:
    """Whether fewer answers than the overlap of a set are enough: a verdict must not depend on how it was pulled."""
    connection.execute("ALTER TABLE review_sets ADD COLUMN partial BOOLEAN DEFAULT false")


def excluded_rows(connection: DuckDBPyConnection) -> None:
    """The rows that the SELECT of an import left out."""
    connection.execute("""
        CREATE TABLE excluded_rows (
            source VARCHAR NOT NULL,
            "row" BIGINT NOT NULL,
            line BIGINT
        );
        ALTER TABLE sources ADD COLUMN rows_excluded BIGINT DEFAULT 0;  -- rows_read = kept + duplicate + rejected + it
        ALTER TABLE removed_sources ADD COLUMN rows_excluded BIGINT DEFAULT 0;
    """)


def epochs_of_members(connection: DuckDBPyConnection) -> None:
    """How often an epoch of training uses each member, as decided by the recipe's `[mix]`."""
    connection.execute("ALTER TABLE members ADD COLUMN per_epoch INTEGER DEFAULT 1")


def near_duplicates_of_selection(connection: DuckDBPyConnection) -> None:
    """The near-duplicates that the latest selection found among the conversations it would keep otherwise."""
    connection.execute("""
        CREATE TABLE near_duplicates (
            conversation VARCHAR PRIMARY KEY,
            nearest VARCHAR NOT NULL,         -- a kept conversation, as in `clusters`
            similarity DOUBLE NOT NULL
        )
    """)


def review_positions(connection: DuckDBPyConnection) -> None:
    """The order in which annotators see the members of a review set; null for members of earlier releases."""
    connection.execute("ALTER TABLE review_records ADD COLUMN position INTEGER")


def review_removals(connection: DuckDBPyConnection) -> None:
    """Annotators whose earlier answers no longer count, and members that left a set or are for some annotators only."""
    connection.execute("""
        CREATE TABLE removed_annotators (
            reviewer VARCHAR NOT NULL,
            removed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
            seq BIGINT NOT NULL DEFAULT nextval('seq')      -- answers with a smaller one do not count
        );
        ALTER TABLE review_records ADD COLUMN removed BOOLEAN DEFAULT false;
        ALTER TABLE review_records ADD COLUMN assigned VARCHAR[];   -- null: offered to all annotators
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
    field_terms,
    removed_imports,
    sequence_numbers,
    partial_sets,
    excluded_rows,
    epochs_of_members,
    near_duplicates_of_selection,
    review_positions,
    review_removals,
]
