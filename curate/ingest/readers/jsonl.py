"""JSON lines to batches: one object per line. Blank lines are no records, and count as lines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Chunk, Positions, split_lines
from curate.ingest.readers.json_objects import ObjectReader
from curate.ingest.readers.text_arrays import as_arrow, as_text, texts_of


def read_jsonl(stream: ByteStream) -> Iterator[Batch]:
    """The records of a file with one JSON object per line, in order, some ten thousand at a time.

    Raises `SourceError` where the file is in another encoding than UTF-8.
    """
    objects = ObjectReader(stream.path)
    for chunk in stream.chunks(split_lines):
        texts, line = _records(chunk)
        if len(texts):
            yield objects.batch(texts, line)


def _records(chunk: Chunk[None]) -> tuple[pa.LargeStringArray, Positions]:
    """The lines of a chunk that are not blank, each with its newline, and their numbers."""
    starts = np.concatenate([[0], chunk.newlines + 1])
    starts = starts[starts < len(chunk.data)]
    texts = texts_of(chunk.data, starts)
    line = chunk.first_line + np.arange(len(starts))
    blank = _blank(texts, chunk.data[starts])
    return (texts.filter(as_arrow(~blank)), line[~blank]) if blank.any() else (texts, line)


def _blank(texts: pa.LargeStringArray, first: Bytes) -> npt.NDArray[np.bool_]:
    """Which of the texts are white space, given the first byte of each: few start with white space."""
    blank = np.isin(first, np.frombuffer(b" \t\r\n", np.uint8))
    if blank.any():
        blank[blank] = as_text(texts.filter(as_arrow(blank))).str.contains(r"^[ \t\r\n]*$").fill_null(False)
    return blank
