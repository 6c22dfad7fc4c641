"""An Arrow file (Feather), or the stream that `datasets` caches → batches of text. Rows have no line numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from curate.ingest.readers.arrow import ROWS, read_rows
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError

FILE, STREAM = b"ARROW1", b"\xff\xff\xff\xff"
"""First bytes of the two forms."""


def read_arrow(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The rows, in order. Raises `SourceError` if the file is damaged."""
    is_file = stream.head().startswith(FILE)
    content = stream.seekable()
    try:
        with pa.OSFile(str(content)) if isinstance(content, Path) else pa.BufferReader(content.getvalue()) as file:
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            tables = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            parts = (rows.slice(at, ROWS) for rows in tables for at in range(0, rows.num_rows, ROWS))
            yield from read_rows(parts, stream.path, stream.limits)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{stream.path} is not a complete Arrow file: {error}.", "Write it again.") from error
