"""A source: something that records are read from, with its format, and its digest once it has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.csv import delimiter_of
from curate.ingest.readers.detect import format_of

Reader = Callable[[ByteStream], Iterator[Batch]]
"""Takes the bytes of a source and gives its records, in order."""


class Source:
    """A file, standard input or a dataset, opened when it is first looked into.

    What it says of the whole, its digest, size and columns, holds after the last batch.
    """

    def __init__(self, stream: ByteStream, importers: Mapping[str, Reader], format: str | None) -> None:
        self.path = stream.path
        self.columns: tuple[str, ...] = ()
        """The columns seen so far, in the order of the source."""
        self._stream = stream
        self._importers = importers
        self._format = format

    @cached_property
    def format(self) -> str:
        """Name of the format, as it was given or as the name and the first bytes tell."""
        return self._format or format_of(self._stream)

    @property
    def delimiter(self) -> str | None:
        """What separates the cells of a CSV or TSV file; None in other formats."""
        return delimiter_of(self._stream.head(), self.format) if self.format in ("csv", "tsv") else None

    def batches(self) -> Iterator[Batch]:
        """The records, in order; once. Raises `SourceError` where the file cannot be read."""
        for batch in self._importers[self.format](self._stream):
            self.columns = tuple(batch.table.columns)
            yield batch

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes of the file as it stands on disk."""
        return self._stream.sha256

    @property
    def bytes(self) -> int:
        """Size of the file on disk; before the last batch, what has been read of it."""
        return self._stream.size
