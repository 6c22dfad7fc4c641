"""A text or Markdown file → one row with all of its text in the column `text`."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from curate.ingest.readers.batch import REJECTS, Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError


def read_text(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """One row, which starts on line 1. Raises `SourceError` if the file is empty or not UTF-8."""
    text = stream.text()
    if not text.strip():
        raise SourceError(f"{stream.path} is empty.", "Omit it, or export it again.")
    one = pl.Series([1], dtype=pl.Int64)
    table = pl.DataFrame({"text": [text]})
    yield Batch(table, one.alias("row"), one.alias("line"), pl.DataFrame(schema=REJECTS), table["text"].gather)
