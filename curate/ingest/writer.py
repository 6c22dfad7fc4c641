"""Landing: what became of some rows of a source goes into the store's tables, and the sums are proved there.

A *parcel* holds every row of its part of the source exactly once: as an origin of a conversation, or as a reject.
Which origins are duplicates is decided here, where all earlier conversations are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
from duckdb import DuckDBPyConnection

BATCH_ROWS = 100_000
"""Rows that land together. Every landing looks for known ids among all conversations, so ten of them for a million
rows cost 0.3 s and forty 0.8 s; more rows at once only cost memory."""

BATCH_BYTES = 64 << 20
"""Text that lands together, where rows are long: a hundred thousand long chats would be gigabytes."""

ORIGINS = {
    "row": pl.Int64,
    "line": pl.Int64,
    "key": pl.Int64,
    "metadata": pl.String,
    "repairs": pl.List(pl.String),
    "raw": pl.String,
}
CORRECTIONS = {"source": pl.String, "row": pl.Int64, "by": pl.Int64}


@dataclass(frozen=True, slots=True)
class ImportBatch:
    """What became of some consecutive rows of a source."""

    conversations: pl.DataFrame
    """`key` (number of its first row), `id`, `conversations`, `tools`; in the order of the rows, copies included."""
    origins: pl.DataFrame
    """`ORIGINS`: one line per row that is part of a conversation, `key` says of which."""
    rejects: pl.DataFrame
    """`REJECTS` of curate/ingest/readers/batch.py: one line per row that is not."""
    corrections: pl.DataFrame
    """`CORRECTIONS`: the rejects of an earlier import that these rows, by their numbers, bring back."""

    @property
    def rows(self) -> int:
        """How many rows of the source it speaks for."""
        return self.origins.height + self.rejects.height

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return int(sum(part.estimated_size() for part in (self.conversations, self.origins, self.rejects)))


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """How many rows of a source went where, and how many new conversations they made."""

    rows_kept: int
    rows_duplicate: int
    rows_rejected: int
    conversations: int


def configure_bulk_load(connection: DuckDBPyConnection) -> None:
    """Set a connection up for taking in many rows.

    Text is stored as it is: DuckDB's choice of compression for it took three quarters of the insert's time (128 MB:
    1.5 s against 0.3 s) to halve the file. One thread inserts, while others read and convert: with two, the row
    groups of a million rows were written twice, and the file was twice as large. The limit and the buffer keep what
    is not yet committed on disk instead of in memory, and leave the commit 45 MB to write instead of 184.
    """
    connection.execute("SET disabled_compression_methods = 'dict_fsst,fsst,dictionary'")
    connection.execute("SET threads = 1")
    connection.execute("SET memory_limit = '512MB'")
    connection.execute("SET write_buffer_row_group_count = 1")


def rebatch(parcels: Iterable[ImportBatch]) -> Iterator[ImportBatch]:
    """The same rows in fewer parcels, of about `BATCH_ROWS` rows or `BATCH_BYTES` each; the first goes on at once."""
    parcels = iter(parcels)
    yield from itertools.islice(parcels, 1)
    waiting: list[ImportBatch] = []
    for parcel in parcels:
        waiting.append(parcel)
        if sum(each.rows for each in waiting) >= BATCH_ROWS or sum(each.bytes for each in waiting) >= BATCH_BYTES:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def write_batch(connection: DuckDBPyConnection, source: str, parcel: ImportBatch) -> None:
    """Insert a parcel: its new conversations, the origin of every row, the rejects, and what they close."""
    fresh = _fresh(connection, parcel.conversations)
    new = _as_views(parcel.conversations.filter(fresh))  # noqa: F841  DuckDB reads tables by their names here
    if fresh.any():
        connection.execute("INSERT INTO conversations SELECT id, conversations, tools, NULL FROM new")
    if parcel.origins.height:
        placed = _as_views(_origins(parcel, fresh))  # noqa: F841
        connection.execute(
            """INSERT INTO origins SELECT ?, "row", line, id, duplicate, metadata, repairs, raw FROM placed""", [source]
        )
    if parcel.rejects.height:
        refused = _as_views(parcel.rejects)  # noqa: F841
        connection.execute(
            """INSERT INTO rejects SELECT ?, "row", line, code, reason, raw, NULL FROM refused""", [source]
        )
    if parcel.corrections.height:
        _close(connection, source, parcel)


def count_source(connection: DuckDBPyConnection, source: str, conversations_before: int) -> SourceCounts:
    """The sums of a source, counted in the tables themselves."""
    ((kept, duplicate, rejected),) = connection.execute(
        """SELECT count(*) FILTER (NOT duplicate), count(*) FILTER (duplicate),
                  (SELECT count(*) FROM rejects WHERE source = $source)
           FROM origins WHERE source = $source""",
        {"source": source},
    ).fetchall()
    return SourceCounts(kept, duplicate, rejected, count_conversations(connection) - conversations_before)


def count_conversations(connection: DuckDBPyConnection) -> int:
    """How many conversations the store has."""
    ((number,),) = connection.execute("SELECT count(*) FROM conversations").fetchall()
    return int(number)


def supersede_rejects(connection: DuckDBPyConnection, source: str, sha256: str) -> None:
    """Close the open rejects of earlier readings of the same bytes: all of their rows are in this one again."""
    connection.execute(
        """UPDATE rejects SET closed_by = ? WHERE closed_by IS NULL
           AND source IN (SELECT source FROM sources WHERE sha256 = ?)""",
        [source, sha256],
    )


def rename_source(connection: DuckDBPyConnection, source: str, to: str) -> None:
    """Give what has landed under the id `source` the id `to`."""
    connection.execute("UPDATE origins SET source = ? WHERE source = ?", [to, source])
    connection.execute("UPDATE rejects SET source = ? WHERE source = ?", [to, source])
    connection.execute("UPDATE rejects SET closed_by = ? WHERE closed_by = ?", [to, source])


def delete_source(connection: DuckDBPyConnection, source: str) -> None:
    """Take out again what has landed under the id `source` and brought no conversation that was not there."""
    connection.execute("DELETE FROM origins WHERE source = ?", [source])
    connection.execute("DELETE FROM rejects WHERE source = ?", [source])


def _fresh(connection: DuckDBPyConnection, conversations: pl.DataFrame) -> pl.Series:
    """Which of them the store does not have, each only where it comes first."""
    if conversations.is_empty():
        return pl.Series("fresh", [], pl.Boolean)
    ids = conversations.select("id")
    known = connection.sql("SELECT id FROM ids SEMI JOIN conversations USING (id)").pl()["id"]
    fresh = ids["id"].is_first_distinct()
    return fresh & ~ids["id"].is_in(known.implode()) if known.len() else fresh


def _as_views(frame: pl.DataFrame) -> pa.Table:
    """The frame as DuckDB can read it where it lies; asked for a frame, it has Polars copy every text first."""
    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def _origins(parcel: ImportBatch, fresh: pl.Series) -> pl.DataFrame:
    """The origins with the id of their conversation, and whether it was there before."""
    named = parcel.conversations.select("key", "id", duplicate=~fresh)
    if parcel.origins["key"].equals(named["key"]):  # one row, one conversation: nothing to look up
        return pl.concat([parcel.origins, named.drop("key")], how="horizontal")
    return parcel.origins.join(named, on="key", how="left", maintain_order="left")


def _close(connection: DuckDBPyConnection, source: str, parcel: ImportBatch) -> None:
    """Close the rejects whose rows were taken now; of a row that was refused again, the first reject stays open."""
    taken = parcel.corrections.join(parcel.origins, left_on="by", right_on="row", how="semi")  # noqa: F841
    connection.execute(
        """UPDATE rejects SET closed_by = ? FROM taken
           WHERE rejects.source = taken.source AND rejects."row" = taken."row" AND closed_by IS NULL""",
        [source],
    )
    again = parcel.corrections.join(parcel.rejects, left_on="by", right_on="row", how="semi")  # noqa: F841
    connection.execute(
        """UPDATE rejects SET closed_by = first.source
           FROM (SELECT r.source, again."by" FROM again JOIN rejects r USING (source, "row")
                 WHERE r.closed_by IS NULL) AS first
           WHERE rejects.source = ? AND rejects."row" = first."by" """,
        [source],
    )


def _joined(parcels: list[ImportBatch]) -> ImportBatch:
    if len(parcels) == 1:
        return parcels[0]
    return ImportBatch(
        pl.concat([parcel.conversations for parcel in parcels]),
        pl.concat([parcel.origins for parcel in parcels]),
        pl.concat([parcel.rejects for parcel in parcels]),
        pl.concat([parcel.corrections for parcel in parcels]),
    )
