"""Parquet to batches: some ten thousand rows at a time, every value as text. There are no lines."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from curate.ingest.readers.arrow import read_rows
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from schemas.errors import SourceError

ROWS = 50_000
"""Most rows of a batch: one row group may hold a whole file."""


def read_parquet(stream: ByteStream) -> Iterator[Batch]:
    """The rows of a Parquet file, in order. Raises `SourceError` where it is damaged.

    Its table of contents comes last, so a file is hashed first and then read by its path; standard input and
    packed files are held in memory.
    """
    try:
        yield from read_rows(pq.ParquetFile(stream.seekable()).iter_batches(ROWS), stream.path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{stream.path} is no whole Parquet file: {error}.", "Write it again.") from error
