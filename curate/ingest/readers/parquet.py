"""A Parquet file → batches of at most `ROWS` rows, every value as text. Rows have no line numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from curate.ingest.readers.arrow import ROWS, read_rows
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.limits import check_expansion
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError

FEW_BYTES = 16
"""Bytes per value of a column with many repetitions."""


def read_parquet(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The rows of a Parquet file, in order. Raises `SourceError` if the file is damaged.

    The metadata is at the end of the file, so a file is hashed first and then read by its path; standard input and
    compressed files are held in memory.
    """
    try:
        content = stream.seekable()
        metadata = pq.read_metadata(content)
        expanded = sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))
        check_expansion(stream.path, stream.size, expanded, stream.limits)
        file = pq.ParquetFile(content, read_dictionary=_repeated_columns(metadata))
        yield from read_rows(file.iter_batches(ROWS), stream.path, stream.limits, stream.size)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{stream.path} is not a complete Parquet file: {error}.", "Write it again.") from error


def _repeated_columns(metadata: pq.FileMetaData) -> list[str]:
    """The columns of text that are stored with few bytes per row: a long value may be repeated millions of times."""
    found: dict[str, None] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            is_text = column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page
            if is_text and column.total_compressed_size < FEW_BYTES * max(column.num_values, 1):
                found[column.path_in_schema] = None
    return list(found)
