"""A text or Markdown file → one row with all of its text in the column `text`."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from curate.ingest.readers.batch import REJECTS, Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.limits import EXCERPT, TOO_LARGE
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError


def read_text(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """One row, which starts on line 1; a reject if it is above the limit of a record.

    Raises `SourceError` if the file is empty or not UTF-8.
    """
    text = stream.text(stream.limits.record)
    if text is None:
        yield _too_large(stream)
        return
    if not text.strip():
        raise SourceError(f"{stream.path} is empty.", "Omit it, or export it again.")
    one = pl.Series([1], dtype=pl.Int64)
    table = pl.DataFrame({"text": [text]})
    yield Batch(table, one.alias("row"), one.alias("line"), pl.DataFrame(schema=REJECTS), table["text"].gather)


def _too_large(stream: ByteStream) -> Batch:
    reject = (1, 1, TOO_LARGE, stream.limits.reason, stream.head()[:EXCERPT].decode(errors="ignore"))
    none = pl.Series([], dtype=pl.Int64)
    rejects = pl.DataFrame([reject], schema=REJECTS, orient="row")
    table = pl.DataFrame(schema={"text": pl.String})
    return Batch(table, none.alias("row"), none.alias("line"), rejects, table["text"].gather)
