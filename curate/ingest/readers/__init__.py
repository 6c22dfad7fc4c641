"""What records are read from: a file in one of several formats, standard input, or a Hugging Face dataset.

`expand` turns what a person typed into single sources, `open_source` opens one, and its `batches` give tables of
text with the number and the line of every record. A format is one function and one line in `FORMATS`.
"""

from __future__ import annotations

from pathlib import Path

from curate.ingest.readers.batch import REJECTS, Batch, Reject
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.csv import read_csv, read_tsv
from curate.ingest.readers.encoding import check_encoding
from curate.ingest.readers.hf_datasets import read_dataset
from curate.ingest.readers.json_array import read_json
from curate.ingest.readers.jsonl import read_jsonl
from curate.ingest.readers.parquet import read_parquet
from curate.ingest.readers.paths import expand
from curate.ingest.readers.source import Reader, Source
from schemas.errors import SourceError, nearest_name

__all__ = ["FORMATS", "REJECTS", "Batch", "Reader", "Reject", "Source", "expand", "open_source"]

FORMATS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "hub": read_dataset,
}
"""Format name to the function that reads it."""


def open_source(
    path: str | Path, *, encoding: str | None = None, format: str | None = None, hashed: bool = True
) -> Source:
    """The source at `path`: a file, a dataset's folder or name, or standard input as `-`.

    `encoding` is a name that Python knows, and then the bytes are decoded strictly; without it they have to be
    UTF-8. `format` is a key of `FORMATS`; without it, the name and the first bytes tell. With `hashed=False`
    a file's digest is left to the caller. Raises `SourceError`.
    """
    if encoding is not None:
        check_encoding(encoding)
    if format is not None and format not in FORMATS:
        near = nearest_name(format, FORMATS)
        hint = f"Did you mean {near}?" if near else f"Known formats: {', '.join(FORMATS)}."
        raise SourceError(f"There is no format {format!r}.", hint)
    return Source(ByteStream(str(path), encoding, hashed=hashed), FORMATS, format)
