"""Import batches are written to the tables of a store."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from curate.ingest.readers.batch import REJECTS
from curate.ingest.writer import CORRECTIONS, ORIGINS, ImportBatch, configure_bulk_load, write_batch
from schemas.conversation import CONVERSATIONS
from schemas.store import reading, writing


def batch_of_rejects(raw: pl.Series) -> ImportBatch:
    """A batch in which every row is rejected; `raw` are their texts."""
    rejects = pl.DataFrame({"raw": raw}).with_row_index("row").with_columns(line="row", code=pl.lit("too-long"))
    return ImportBatch(
        pl.DataFrame(schema={"key": pl.Int64, **CONVERSATIONS}),
        pl.DataFrame(schema=ORIGINS),
        rejects.with_columns(reason=pl.lit("It is long.")).select(*REJECTS).cast(REJECTS),
        pl.DataFrame(schema=CORRECTIONS),
    )


def test_rejects_with_more_text_than_the_memory_limit_are_written_and_committed(tmp_path: Path) -> None:
    text = "a word and another " * 1_500_000
    batch = batch_of_rejects(pl.Series([text] * 12))
    store = tmp_path / "store.duckdb"
    with writing(store) as connection:
        configure_bulk_load(connection)
        write_batch(connection, ["source"], batch)
    with reading(store) as connection:
        ((count, length),) = connection.execute("SELECT count(*), sum(length(raw)) FROM rejects").fetchall()
    assert (count, length) == (12, 12 * len(text))


def test_the_memory_of_a_batch_is_free_before_the_transaction_ends(tmp_path: Path) -> None:
    memory = np.frombuffer(bytearray(b"a" * 4_000), np.uint8)
    texts = pa.LargeStringArray.from_buffers(2, pa.py_buffer(np.array([0, 2_000, 4_000])), pa.py_buffer(memory))
    raw = pl.from_arrow(texts)
    assert isinstance(raw, pl.Series)
    alive = weakref.ref(memory)
    with writing(tmp_path / "store.duckdb") as connection:
        write_batch(connection, ["source"], batch_of_rejects(raw))
        del memory, texts, raw
        assert alive() is None
