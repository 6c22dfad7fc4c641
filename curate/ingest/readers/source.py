"""A byte stream and its format → batches of records, and the digest, size and columns of the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from curate.ingest.readers.batch import UNUSABLE, Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.detect import detect_format
from curate.ingest.readers.formats import FORMATS
from curate.ingest.readers.jsonl import read_small as read_small_jsonl
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError


class Source:
    """A file, standard input or a dataset. It is opened at the first access to its content.

    Digest, size and columns are final after the last batch.
    """

    def __init__(self, stream: ByteStream, format: str | None, options: TableOptions) -> None:
        self.path = stream.path
        self.columns: tuple[str, ...] = ()
        """The columns of the batches read so far, in the order of the source."""
        self._stream = stream
        self._format = format
        self._options = options
        self._whole: Batch | None = None

    @cached_property
    def format(self) -> str:
        """The given or detected format, a key of `FORMATS`."""
        return self._format or detect_format(self._stream, self._options)

    @property
    def delimiter(self) -> str | None:
        """The delimiter of a CSV or TSV file; None for other formats."""
        find_delimiter = FORMATS[self.format].find_delimiter
        return find_delimiter(self._stream, self._options) if find_delimiter else None

    def batches(self) -> Iterator[Batch]:
        """The records in order; can be iterated once.

        Raises `SourceError` if the source cannot be read, or an option does not apply to its format.
        """
        self._check_options()
        read = FORMATS[self.format].read
        for batch in [self._whole] if self._whole else read(self._stream, self._options):
            self.columns = tuple(name for name in batch.table.columns if name != UNUSABLE)
            yield batch

    def _check_options(self) -> None:
        unused = [name for name in self._options.given() if name not in FORMATS[self.format].options]
        if unused:
            raise SourceError(
                f"{self.path} is read as {self.format}, for which {_option(unused[0])} has no meaning.",
                f"Omit it, or add --format NAME with one of: {', '.join(_formats_with(unused[0]))}.",
            )

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes on disk."""
        return self._stream.sha256

    @property
    def is_short(self) -> bool:
        """Whether the first megabyte is the whole file, after decompression."""
        return self._stream.is_short

    @property
    def bytes(self) -> int:
        """Size on disk; before the last batch, the number of bytes read so far."""
        return self._stream.size


def read_small(sources: Sequence[Source]) -> list[Source]:
    """Read small files of JSON lines together; those of which every record is as plain as that requires.

    The others cannot be used any more, and have to be opened again.
    """
    batches = read_small_jsonl([source._stream for source in sources])
    for number, batch in batches.items():
        sources[number]._whole = batch
    return [sources[number] for number in batches]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _formats_with(option: str) -> list[str]:
    return [name for name, format in FORMATS.items() if option in format.options]
