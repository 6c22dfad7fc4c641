"""Argilla's records → the tables of the search index: a row per record, its words, its vectors.

Triggers update the rows in the transaction that changes a record, so they are correct after a crash. Words and vectors
are indexed later by `index_pending`, from the rows marked stale.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from .query_parser import words_of

BUSY_SECONDS = 60
"""Time that a statement waits for another writer. A bulk of 500 records takes about two seconds."""

FIELD_BITS = 8
"""The row id of a text is the number of its document, shifted by these bits, plus the position of its field."""

_FIRST, _LAST = f"(?1 << {FIELD_BITS})", f"((?1 << {FIELD_BITS}) + {(1 << FIELD_BITS) - 1})"

_BATCH = 100
"""Documents indexed per transaction. Longer transactions make annotators wait for the lock."""

_TABLES = """
CREATE TABLE IF NOT EXISTS curate_documents (
    doc INTEGER PRIMARY KEY, record CHAR(32) NOT NULL UNIQUE, dataset CHAR(32) NOT NULL, metadata TEXT,
    external_id TEXT, status TEXT NOT NULL, inserted_at TEXT NOT NULL, updated_at TEXT NOT NULL, stale INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS curate_documents_of_dataset ON curate_documents (dataset);
CREATE INDEX IF NOT EXISTS curate_documents_stale ON curate_documents (stale) WHERE stale;
CREATE TABLE IF NOT EXISTS curate_vectors (
    vector CHAR(32) PRIMARY KEY, settings CHAR(32) NOT NULL, record CHAR(32) NOT NULL, value BLOB
);
CREATE INDEX IF NOT EXISTS curate_vectors_of_settings ON curate_vectors (settings);
CREATE INDEX IF NOT EXISTS curate_vectors_stale ON curate_vectors (vector) WHERE value IS NULL;
CREATE VIRTUAL TABLE IF NOT EXISTS curate_words USING fts5(words, tokenize = "ascii tokenchars '_'");
CREATE TABLE IF NOT EXISTS curate_terms (term TEXT PRIMARY KEY) WITHOUT ROWID;
"""

_TRIGGERS = f"""
CREATE TRIGGER IF NOT EXISTS curate_record_added AFTER INSERT ON records BEGIN
    INSERT INTO curate_documents (record, dataset, metadata, external_id, status, inserted_at, updated_at, stale)
    VALUES (new.id, new.dataset_id, new.metadata, new.external_id, new.status, new.inserted_at, new.updated_at, 1);
END;
CREATE TRIGGER IF NOT EXISTS curate_record_changed AFTER UPDATE ON records BEGIN
    UPDATE curate_documents
    SET metadata = new.metadata, external_id = new.external_id, status = new.status, inserted_at = new.inserted_at,
        updated_at = new.updated_at, stale = max(stale, new.fields IS NOT old.fields)
    WHERE record = new.id;
END;
CREATE TRIGGER IF NOT EXISTS curate_record_removed AFTER DELETE ON records BEGIN
    DELETE FROM curate_words WHERE rowid BETWEEN
        (SELECT doc << {FIELD_BITS} FROM curate_documents WHERE record = old.id) AND
        (SELECT (doc << {FIELD_BITS}) + {(1 << FIELD_BITS) - 1} FROM curate_documents WHERE record = old.id);
    DELETE FROM curate_documents WHERE record = old.id;
END;
CREATE TRIGGER IF NOT EXISTS curate_vector_added AFTER INSERT ON vectors BEGIN
    INSERT INTO curate_vectors (vector, settings, record) VALUES (new.id, new.vector_settings_id, new.record_id);
END;
CREATE TRIGGER IF NOT EXISTS curate_vector_changed AFTER UPDATE ON vectors WHEN new.value IS NOT old.value BEGIN
    UPDATE curate_vectors SET value = NULL WHERE vector = new.id;
END;
CREATE TRIGGER IF NOT EXISTS curate_vector_removed AFTER DELETE ON vectors BEGIN
    DELETE FROM curate_vectors WHERE vector = old.id;
END;
"""

_MISSING = """
INSERT INTO curate_documents (record, dataset, metadata, external_id, status, inserted_at, updated_at, stale)
SELECT id, dataset_id, metadata, external_id, status, inserted_at, updated_at, 1 FROM records
WHERE id NOT IN (SELECT record FROM curate_documents) ORDER BY inserted_at, rowid;
DELETE FROM curate_documents WHERE record NOT IN (SELECT id FROM records);
INSERT INTO curate_vectors (vector, settings, record)
SELECT id, vector_settings_id, record_id FROM vectors WHERE id NOT IN (SELECT vector FROM curate_vectors);
DELETE FROM curate_vectors WHERE vector NOT IN (SELECT id FROM vectors);
"""


def connect(database: Path) -> sqlite3.Connection:
    """A connection that waits for other writers; every statement is a transaction, except after BEGIN."""
    return sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def build_index(database: Path) -> int:
    """Create or complete the search index of a database; the number of documents that were indexed."""
    with closing(connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} {_TRIGGERS} {_MISSING} COMMIT;")
        return index_pending(connection)


def index_pending(connection: sqlite3.Connection) -> int:
    """Index all stale documents and vectors, some per transaction; the number of documents."""
    indexed = 0
    while count := _in_transaction(connection, _index_documents):
        indexed += count
    while _in_transaction(connection, _store_vectors):
        pass
    return indexed


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], int]) -> int:
    connection.execute("BEGIN IMMEDIATE")
    try:
        count = work(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return count


def _index_documents(connection: sqlite3.Connection) -> int:
    """Index the words of some stale documents. They are split in Python: FTS5 does not split scripts without spaces."""
    stale = connection.execute(
        """SELECT d.doc, d.dataset, r.fields FROM curate_documents d JOIN records r ON r.id = d.record
           WHERE d.stale ORDER BY d.doc LIMIT ?""",
        [_BATCH],
    ).fetchall()
    positions = {dataset: field_positions(connection, dataset) for dataset in {dataset for _, dataset, _ in stale}}
    texts = [
        ((doc << FIELD_BITS) + positions[dataset][name], words_of("\n".join(_texts(value))))
        for doc, dataset, fields in stale
        for name, value in json.loads(fields).items()
        if name in positions[dataset]
    ]
    docs = [(doc,) for doc, _, _ in stale]
    connection.executemany(f"DELETE FROM curate_words WHERE rowid BETWEEN {_FIRST} AND {_LAST}", docs)
    rows = [(row, " ".join(words)) for row, words in texts]
    connection.executemany("INSERT INTO curate_words (rowid, words) VALUES (?, ?)", rows)
    # A list of words for queries with typos: that of FTS5 takes 0.7 s at 20,000 records, since it counts. Words of
    # removed records stay in it and match nothing.
    terms = [(word,) for word in {word for _, words in texts for word in words}]
    connection.executemany("INSERT OR IGNORE INTO curate_terms VALUES (?)", terms)
    connection.executemany("UPDATE curate_documents SET stale = 0 WHERE doc = ?", docs)
    return len(stale)


def field_positions(connection: sqlite3.Connection, dataset: str) -> dict[str, int]:
    """Name -> position of each searchable field of a dataset. Images cannot be searched."""
    rows = connection.execute(
        "SELECT name, json_extract(settings, '$.type') FROM fields WHERE dataset_id = ? ORDER BY inserted_at, id",
        [dataset],
    ).fetchall()
    return {name: at for at, (name, kind) in enumerate(rows) if kind != "image" and at < 1 << FIELD_BITS}


def _texts(value: Any) -> Iterable[str]:
    """The texts in a field's value: a text, the content of a chat's messages, the leaves of a custom field."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        is_message = value.keys() == {"role", "content"}
        for key, inner in value.items():
            if not (is_message and key == "role"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _store_vectors(connection: sqlite3.Connection) -> int:
    """Store some stale vectors as 32-bit floats, which are read in a fiftieth of the time of their JSON."""
    stale = connection.execute(
        """SELECT c.vector, v.value FROM curate_vectors c JOIN vectors v ON v.id = c.vector
           WHERE c.value IS NULL LIMIT ?""",
        [_BATCH],
    ).fetchall()
    rows = [(array("f", json.loads(value)).tobytes(), vector) for vector, value in stale]
    connection.executemany("UPDATE curate_vectors SET value = ? WHERE vector = ?", rows)
    return len(stale)
