"""The store → a temporary store in memory, in which `curate import --dry-run` counts without changing anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.reimport import OnChanged
from curate.ingest.writer import ImportBatch
from schemas.migrations import MIGRATIONS
from schemas.store import reading
from schemas.views import create_views

REJECTS_SQL = """
    SELECT * REPLACE (if(row_number() OVER (PARTITION BY source, code ORDER BY "row") = 1, raw, '') AS raw) FROM rejects
"""
"""The rejects that a dry run may close or report, with the text of only the first per code, which is an example."""

REPORTED_ORIGINS_SQL = """
    SELECT source, "row", conversation, duplicate, repairs FROM origins
    WHERE repairs IS NOT NULL OR (source, "row") IN (SELECT (source, "row") FROM rejects)
"""
"""The origins that the result of an import reports: of repaired and of partly rejected rows."""


@contextmanager
def dry_run_store(store: Path, on_changed: OnChanged) -> Iterator[DuckDBPyConnection]:
    """A temporary store in memory with the ids, sources and rejects of the real one, without its texts."""
    with duckdb.connect(":memory:") as connection:
        for step in MIGRATIONS:
            step(connection)
        create_views(connection)
        if store.exists():
            with reading(store) as real:
                known_ids = real.sql("SELECT id FROM conversations").to_arrow_table()  # noqa: F841  found by its name
                known_sources = real.sql("FROM sources").to_arrow_table()  # noqa: F841
                known_rejects = real.sql(REJECTS_SQL).to_arrow_table()  # noqa: F841
                known_origins = real.sql(REPORTED_ORIGINS_SQL).to_arrow_table()  # noqa: F841
                _copy_origins(real, connection, with_origins=on_changed == "replace")
            connection.execute("INSERT INTO conversations SELECT id, [], NULL, NULL FROM known_ids")
            connection.execute(  # before the numbers that this temporary store assigns
                """INSERT INTO sources
                   SELECT * REPLACE (seq - (SELECT max(seq) FROM known_sources) AS seq) FROM known_sources"""
            )
            connection.execute("INSERT INTO rejects FROM known_rejects")
            if on_changed != "replace":  # otherwise all origins were copied
                connection.execute("INSERT INTO origins BY NAME FROM known_origins")
        yield connection


def _copy_origins(store: DuckDBPyConnection, copy: DuckDBPyConnection, *, with_origins: bool) -> None:
    """Copy to the temporary store of a dry run which conversations have no import, and with `with_origins` all origins.

    The texts are not copied. The copy of `conversations` is made by the caller.
    """
    removed = store.sql("SELECT conversation FROM removed_conversations").to_arrow_table()  # noqa: F841  found by name
    copy.execute("INSERT INTO retained FROM removed")
    if with_origins:
        query = 'SELECT source, "row", line, conversation, duplicate, repairs FROM origins ORDER BY rowid'
        known_origins = store.sql(query).to_arrow_table()  # noqa: F841
        copy.execute("INSERT INTO origins BY NAME FROM known_origins")


def drop_texts(batch: ImportBatch) -> ImportBatch:
    """The batch as written by a dry run, without the texts, which would only use memory."""
    no_turns = pl.lit([], batch.conversations.schema["conversations"]).alias("conversations")
    return replace(
        batch,
        conversations=batch.conversations.with_columns(no_turns),
        origins=batch.origins.with_columns(metadata=pl.lit(None, pl.String), raw=pl.lit(None, pl.String)),
    )
