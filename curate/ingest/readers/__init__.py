"""Source → batches of records as text, with the row number and line of every record.

`expand` resolves command-line paths to single sources, and `open_source` opens one.
"""

from __future__ import annotations

from pathlib import Path

from curate.ingest.readers.batch import REJECTS, Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.encoding import check_encoding
from curate.ingest.readers.formats import FORMATS
from curate.ingest.readers.limits import DEFAULT, Limits
from curate.ingest.readers.paths import expand
from curate.ingest.readers.source import Source, read_small
from curate.ingest.readers.table_options import DETECTED, TableOptions
from schemas.errors import SourceError, nearest_name

__all__ = ["FORMATS", "REJECTS", "Batch", "Source", "TableOptions", "expand", "open_source", "read_small"]


def open_source(
    path: str | Path,
    *,
    encoding: str | None = None,
    format: str | None = None,
    options: TableOptions = DETECTED,
    hashed: bool = True,
    limits: Limits = DEFAULT,
) -> Source:
    """Open a file, the folder or name of a dataset, or standard input (`-`).

    `encoding` is a Python codec name; the text must be valid in it. The default is UTF-8. `format` is a key of
    `FORMATS`; the default is to detect it from the name and the first bytes. `options` must apply to the format.
    `hashed=False` leaves the digest of a file to the caller. `limits` are those of records and compressed files.
    Raises `SourceError`.
    """
    if encoding is not None:
        check_encoding(encoding)
    if format is not None and format not in FORMATS:
        near = nearest_name(format, FORMATS)
        hint = f"Did you mean {near}?" if near else f"Known formats: {', '.join(FORMATS)}."
        raise SourceError(f"Unknown format {format!r}.", hint)
    binary = tuple(magic for known in FORMATS.values() for magic in known.magic)
    return Source(ByteStream(str(path), encoding, hashed=hashed, binary=binary, limits=limits), format, options)
