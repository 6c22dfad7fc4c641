"""Import batches are written to the tables of a store."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curate.ingest.readers.batch import REJECTS
from curate.ingest.writer import CORRECTIONS, ORIGINS, ImportBatch, configure_bulk_load, write_batch
from schemas.conversation import CONVERSATIONS
from schemas.store import reading, writing


def test_rejects_with_more_text_than_the_memory_limit_are_written_and_committed(tmp_path: Path) -> None:
    text = "a word and another " * 1_500_000
    rows = [{"row": row, "line": row, "code": "too-long", "reason": f"Row {row}.", "raw": text} for row in range(1, 13)]
    batch = ImportBatch(
        pl.DataFrame(schema={"key": pl.Int64, **CONVERSATIONS}),
        pl.DataFrame(schema=ORIGINS),
        pl.DataFrame(rows, schema=REJECTS),
        pl.DataFrame(schema=CORRECTIONS),
    )
    store = tmp_path / "store.duckdb"
    with writing(store) as connection:
        configure_bulk_load(connection)
        write_batch(connection, ["source"], batch)
    with reading(store) as connection:
        ((count, length),) = connection.execute("SELECT count(*), sum(length(raw)) FROM rejects").fetchall()
    assert (count, length) == (12, 12 * len(text))
