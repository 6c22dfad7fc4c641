"""A Parquet file → batches of at most `ROWS` rows, every value as text. Rows have no line numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from curate.ingest.readers.arrow import ROWS, read_rows
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError


def read_parquet(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The rows of a Parquet file, in order. Raises `SourceError` if the file is damaged.

    The metadata is at the end of the file, so a file is hashed first and then read by its path; standard input and
    compressed files are held in memory.
    """
    try:
        yield from read_rows(pq.ParquetFile(stream.seekable()).iter_batches(ROWS), stream.path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{stream.path} is not a complete Parquet file: {error}.", "Write it again.") from error
