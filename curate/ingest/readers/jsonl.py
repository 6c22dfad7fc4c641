"""JSON lines → batches: one object per line. Blank lines are skipped, but count as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Chunk, Positions, split_lines
from curate.ingest.readers.json_objects import MOST_COLUMNS, ObjectReader, load_first
from curate.ingest.readers.table_options import TableOptions
from curate.ingest.readers.text_arrays import (
    RecordNumbers,
    build_batch,
    decode_texts,
    find_large,
    slice_texts,
    to_arrow,
)
from schemas.errors import SourceError


def read_jsonl(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The records of a JSON lines file in order, one batch per chunk. Raises `SourceError` if it is not UTF-8."""
    objects = ObjectReader(stream)
    for chunk in stream.chunks(split_lines, lines=True):
        texts, line = _split_records(chunk)
        if len(texts):
            yield objects.batch(texts, line)


def read_small(streams: Sequence[ByteStream]) -> dict[int, Batch]:
    """By position, the only batch of those files in which all records are valid and have the keys of the first one.

    They are parsed together: a query of DuckDB takes longer to start than to parse a few lines.
    """
    lines: dict[tuple[str, ...], dict[int, tuple[pa.LargeStringArray, Positions]]] = {}
    for number, stream in enumerate(streams):
        chunks = _read_chunks(stream)
        if len(chunks) == 1:
            texts, line = _split_records(chunks[0])
            first = load_first(texts)
            if find_large(texts, stream.limits):
                continue
            if isinstance(first, dict) and 0 < len(first) <= MOST_COLUMNS:
                lines.setdefault(tuple(first), {})[number] = texts, line
    batches = (_read_plain(streams, keys, files) for keys, files in lines.items())
    return {number: batch for some in batches for number, batch in some.items()}


def _read_chunks(stream: ByteStream) -> list[Chunk[None]]:
    """The chunks of a file; none if it cannot be read, for which `read_jsonl` gives the reason, or is large."""
    try:
        return list(stream.chunks(split_lines)) if stream.is_short else []
    except SourceError:
        return []


def _read_plain(
    streams: Sequence[ByteStream], keys: Sequence[str], files: Mapping[int, tuple[pa.LargeStringArray, Positions]]
) -> dict[int, Batch]:
    """The batches of those files in which all records have these keys."""
    objects = ObjectReader(streams[next(iter(files))])
    table, others = objects.parse_plain(pa.concat_arrays([texts for texts, _ in files.values()]), keys)
    batches, start = {}, 0
    for number, (texts, line) in files.items():
        if not ((others >= start) & (others < start + len(texts))).any():
            row = np.arange(len(texts))
            part = table.slice(start, len(texts))
            batches[number] = build_batch(part, texts, row, [], RecordNumbers(row + 1, line))
        start += len(texts)
    return batches


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
