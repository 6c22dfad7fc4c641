"""Import batches → rows in the tables `conversations`, `origins` and `rejects`, and the counts of a source.

An import batch contains every row of a part of the source: as an origin of its conversations, as a reject, or, if only
some of its conversations are accepted, as both. Duplicates are determined here, where all earlier conversations are
known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import polars as pl
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from curate.ingest.readers.batch import EXCLUDED_ROWS

BATCH_ROWS = 100_000
"""Rows written together. Every write searches all conversations for known ids: ten writes for a million rows took
0.3 s, forty took 0.8 s; more rows at once need more memory."""

BATCH_BYTES = 64 << 20
"""Bytes written together if rows are long: a hundred thousand long conversations would be gigabytes."""

LONG_ROW = 64 << 10
"""Mean bytes per row from which writing may use all memory: DuckDB compresses 2,048 long texts at once."""

ORIGINS = {
    "row": pl.Int64,
    "line": pl.Int64,
    "key": pl.Int64,
    "metadata": pl.String,
    "repairs": pl.List(pl.String),
    "raw": pl.String,
}
FILE_ROWS = 1 << 40
"""In a batch of several files, the row numbers of a file are its number times this, plus those in the file."""

CORRECTIONS = {"source": pl.String, "row": pl.Int64, "by": pl.Int64}


@dataclass(frozen=True, slots=True)
class ImportBatch:
    """Consecutive rows of a source as conversations and rejects.

    A row with several conversations, of which some are rejected, has origins and a reject.
    """

    conversations: pl.DataFrame
    """`key` (which conversation of the source), `id`, `conversations`, `tools`; in row order, with duplicates."""
    origins: pl.DataFrame
    """`ORIGINS`: one per conversation, which `key` identifies, and row that it uses."""
    rejects: pl.DataFrame
    """`REJECTS` of curate/ingest/readers/batch.py: one per rejected row."""
    corrections: pl.DataFrame
    """`CORRECTIONS`: the reject of an earlier import (`source`, `row`) that the row number `by` corrects."""

    excluded: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EXCLUDED_ROWS))
    """`EXCLUDED_ROWS` of curate/ingest/readers/batch.py."""

    @property
    def rows(self) -> int:
        """Number of rows to write."""
        return self.origins.height + self.rejects.height

    @property
    def bytes(self) -> int:
        """Approximate size in memory."""
        return int(sum(part.estimated_size() for part in (self.conversations, self.origins, self.rejects)))


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Numbers of rows of a source by outcome, and of the conversations that the source added."""

    rows_kept: int
    rows_duplicate: int
    rows_rejected: int
    conversations: int
    rows_excluded: int


def configure_bulk_load(connection: DuckDBPyConnection) -> None:
    """Configure a connection for writing many rows.

    Text is stored uncompressed: DuckDB's default compression took three quarters of the insert time (128 MB: 1.5 s
    instead of 0.3 s) and halved the file size. One thread inserts while others read and convert: with two, the row
    groups of a million rows were written twice, and the file was twice as large. The memory limit and the buffer keep
    uncommitted data on disk, and leave 45 MB instead of 184 MB to write at the commit. Memory that the allocator keeps
    is not requested from the system again: writing a million rows took 1.4 s of CPU instead of 1.7 with 512 MB that are
    returned.
    """
    connection.execute("SET disabled_compression_methods = 'dict_fsst,fsst,dictionary'")
    connection.execute("SET threads = 1")
    connection.execute("SET memory_limit = '256MB'")
    connection.execute("SET block_allocator_memory = '256MB'")
    connection.execute("SET write_buffer_row_group_count = 1")


def rebatch(batches: Iterable[ImportBatch]) -> Iterator[ImportBatch]:
    """The same rows in fewer batches of about `BATCH_ROWS` rows or `BATCH_BYTES`; the first batch is not delayed."""
    batches = iter(batches)
    yield from itertools.islice(batches, 1)
    waiting: list[ImportBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.rows for part in waiting) >= BATCH_ROWS or sum(part.bytes for part in waiting) >= BATCH_BYTES:
            yield concat_batches(waiting)
            waiting = []
    if waiting:
        yield concat_batches(waiting)


def write_batch(connection: DuckDBPyConnection, sources: Sequence[str], batch: ImportBatch) -> None:
    """Insert the new conversations, origins and rejects of a batch, and close the rejects that it corrects.

    `sources` is the id of the import; of several files, the ids by the number in the rows (`FILE_ROWS`). Only a batch
    of one file may have corrections. Long rows lift the memory limit of `configure_bulk_load` until the connection is
    closed: the commit compresses them, and would fail if the limit were set again for a later batch.
    """
    if batch.bytes > LONG_ROW * batch.rows:
        connection.execute("RESET memory_limit")
    is_new, is_stored = _find_new(connection, batch.conversations)
    if (is_added := is_new & ~is_stored).any():
        new = _relation(connection, batch.conversations.filter(is_added))
        new.project("id, conversations, tools, NULL").insert_into("conversations")
    ids = ", ".join(f"'{source}'" for source in sources)  # hex digits
    several = len(sources) > 1
    source, row = (f'[{ids}][1 + "row" // {FILE_ROWS}]', f'"row" % {FILE_ROWS}') if several else (ids, '"row"')
    if batch.origins.height:
        origins = _relation(connection, _identify(batch, is_new))
        origins.project(f"{source}, {row}, line, id, duplicate, metadata, repairs, raw").insert_into("origins")
    if batch.rejects.height:
        rejects = _relation(connection, batch.rejects)
        rejects.project(f"{source}, {row}, line, code, reason, raw, NULL").insert_into("rejects")
    if batch.excluded.height:
        _relation(connection, batch.excluded).project(f"{source}, {row}, line").insert_into("excluded_rows")
    if batch.corrections.height:
        _close_rejects(connection, sources[0], batch)


def count_source(
    connection: DuckDBPyConnection, source: str, conversations_before: int, *, several: bool = False
) -> SourceCounts:
    """The counts of a source, from the tables.

    With `several`, some rows have several conversations: each counts once, as kept if it has a new conversation.
    Grouping a million rows takes 0.07 s.
    """
    one_each = """
        SELECT count(*) FILTER (NOT duplicate), count(*) FILTER (duplicate),
               (SELECT count(*) FROM rejects WHERE source = $source)
        FROM origins WHERE source = $source"""
    grouped = """
        WITH accepted AS (
            SELECT "row", bool_or(NOT duplicate) AS new FROM origins WHERE source = $source GROUP BY "row")
        SELECT count(*) FILTER (new), count(*) FILTER (NOT new), (
            SELECT count(*) FROM rejects WHERE source = $source AND "row" NOT IN (SELECT "row" FROM accepted))
        FROM accepted"""
    ((kept, duplicate, rejected),) = connection.execute(grouped if several else one_each, {"source": source}).fetchall()
    ((excluded,),) = connection.execute("SELECT count(*) FROM excluded_rows WHERE source = ?", [source]).fetchall()
    added = count_conversations(connection) - conversations_before
    return SourceCounts(kept, duplicate, rejected, added, excluded)


def count_conversations(connection: DuckDBPyConnection) -> int:
    """Number of conversations in the store, without those whose imports were removed."""
    ((number, retained),) = connection.execute(
        "SELECT (SELECT count(*) FROM conversations), (SELECT count(*) FROM retained)"
    ).fetchall()
    if retained:
        ((removed,),) = connection.execute("SELECT count(*) FROM removed_conversations").fetchall()
        return int(number - removed)
    return int(number)


def rename_source(connection: DuckDBPyConnection, source: str, to: str) -> None:
    """Replace the source id of written rows."""
    connection.execute("UPDATE origins SET source = ? WHERE source = ?", [to, source])
    connection.execute("UPDATE rejects SET source = ? WHERE source = ?", [to, source])
    connection.execute("UPDATE excluded_rows SET source = ? WHERE source = ?", [to, source])
    connection.execute("UPDATE rejects SET closed_by = ? WHERE closed_by = ?", [to, source])


def delete_source(connection: DuckDBPyConnection, source: str) -> None:
    """Delete the origins and rejects of a source that added no conversations."""
    connection.execute("DELETE FROM origins WHERE source = ?", [source])
    connection.execute("DELETE FROM rejects WHERE source = ?", [source])
    connection.execute("DELETE FROM excluded_rows WHERE source = ?", [source])


def _find_new(connection: DuckDBPyConnection, conversations: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Whether each conversation is new, of equal ones only the first; and whether its text is in the store.

    The text of a new one is in the store if its imports were removed and a version, review or edit needs it.
    """
    ids = conversations.select("id")
    is_first = ids["id"].is_first_distinct()
    stored = connection.table("conversations").project("id")
    known = _relation(connection, ids).join(stored, "id", how="semi").pl()["id"]
    if known.is_empty():
        return is_first, pl.repeat(False, ids.height, eager=True)
    removed = connection.sql("SELECT conversation FROM removed_conversations").pl()["conversation"]
    is_stored = ids["id"].is_in(known.implode())
    return is_first & (~is_stored | ids["id"].is_in(removed.implode())), is_stored


def _relation(connection: DuckDBPyConnection, frame: pl.DataFrame) -> DuckDBPyRelation:
    """The frame for a query, as Arrow string views, which DuckDB reads in place; Polars would copy every text."""
    return connection.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.newest()))


@contextmanager
def registered(connection: DuckDBPyConnection, **frames: pl.DataFrame) -> Iterator[None]:
    """Let queries name small frames; the connection itself finds no variables, because it reads its store alone.

    Their names are views of the transaction, so that DuckDB keeps their memory until it ends.
    """
    for name, frame in frames.items():
        connection.register(name, frame.to_arrow(compat_level=pl.CompatLevel.newest()))
    yield
    for name in frames:
        connection.unregister(name)


def _identify(batch: ImportBatch, is_new: pl.Series) -> pl.DataFrame:
    """The origins with the id of their conversation, and whether it is a duplicate."""
    ids = batch.conversations.select("key", "id", duplicate=~is_new)
    if batch.origins["key"].equals(ids["key"]):  # one conversation per row: no join needed
        return pl.concat([batch.origins, ids.drop("key")], how="horizontal")
    return batch.origins.join(ids, on="key", how="left", maintain_order="left")


def _close_rejects(connection: DuckDBPyConnection, source: str, batch: ImportBatch) -> None:
    """Close the rejects whose corrected rows were accepted; of a row rejected again, the first reject stays open."""
    accepted = batch.corrections.join(batch.origins, left_on="by", right_on="row", how="semi")
    with registered(connection, accepted=accepted):
        connection.execute(
            """UPDATE rejects SET closed_by = ? FROM accepted
               WHERE rejects.source = accepted.source AND rejects."row" = accepted."row" AND closed_by IS NULL""",
            [source],
        )
    again = batch.corrections.join(batch.rejects, left_on="by", right_on="row", how="semi")
    with registered(connection, again=again):
        connection.execute(
            """UPDATE rejects SET closed_by = first.source
               FROM (SELECT r.source, again."by" FROM again JOIN rejects r USING (source, "row")
                     WHERE r.closed_by IS NULL) AS first
               WHERE rejects.source = ? AND rejects."row" = first."by" """,
            [source],
        )


def concat_batches(batches: Sequence[ImportBatch]) -> ImportBatch:
    """The rows of all batches in one."""
    if len(batches) == 1:
        return batches[0]
    return ImportBatch(
        pl.concat([batch.conversations for batch in batches]),
        pl.concat([batch.origins for batch in batches]),
        pl.concat([batch.rejects for batch in batches]),
        pl.concat([batch.corrections for batch in batches]),
        pl.concat([batch.excluded for batch in batches]),
    )
