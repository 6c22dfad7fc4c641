"""JSON lines → batches: one object per line. Blank lines are skipped, but count as lines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Chunk, Positions, split_lines
from curate.ingest.readers.json_objects import ObjectReader
from curate.ingest.readers.table_options import TableOptions
from curate.ingest.readers.text_arrays import decode_texts, slice_texts, to_arrow


def read_jsonl(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The records of a JSON lines file in order, one batch per chunk. Raises `SourceError` if it is not UTF-8."""
    objects = ObjectReader(stream)
    for chunk in stream.chunks(split_lines):
        texts, line = _split_records(chunk)
        if len(texts):
            yield objects.batch(texts, line)


def _split_records(chunk: Chunk[None]) -> tuple[pa.LargeStringArray, Positions]:
    """The lines of a chunk that are not blank, each with its newline, and their line numbers."""
    starts = np.concatenate([[0], chunk.newlines + 1])
    starts = starts[starts < len(chunk.data)]
    texts = slice_texts(chunk.data, starts)
    line = chunk.first_line + np.arange(len(starts))
    blank = _is_blank(texts, chunk.data[starts])
    return (texts.filter(to_arrow(~blank)), line[~blank]) if blank.any() else (texts, line)


def _is_blank(texts: pa.LargeStringArray, first: Bytes) -> npt.NDArray[np.bool_]:
    """Which texts are white space. Only the few that start with white space (`first` byte) are decoded."""
    blank = np.isin(first, np.frombuffer(b" \t\r\n", np.uint8))
    if blank.any():
        blank[blank] = decode_texts(texts.filter(to_arrow(blank))).str.contains(r"^[ \t\r\n]*$").fill_null(False)
    return blank
