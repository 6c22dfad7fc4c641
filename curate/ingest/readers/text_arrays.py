"""Byte positions in a chunk → Arrow texts that share its memory, and batches of them with their rejects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from curate.ingest.readers.batch import REJECTS, Batch
from curate.ingest.readers.byte_stream import Bytes, ByteStream, Positions
from curate.ingest.readers.encoding import SAMPLE, encoding_error, is_utf8
from curate.ingest.readers.limits import EXCERPT, TOO_LARGE, Limits


class Problem(NamedTuple):
    """Why the text at `position` is rejected: the code of the violated rule, and a sentence."""

    position: int
    code: str
    reason: str


class RecordNumbers(NamedTuple):
    """Row number and first line of each text in its source."""

    row: Positions
    line: Positions


def slice_texts(data: Bytes, starts: Positions) -> pa.LargeStringArray:
    """The texts that start at `starts`, each up to the next start. They may contain invalid UTF-8."""
    offsets = np.append(starts, len(data)).astype(np.int64)
    return pa.LargeStringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(data))


def find_large(texts: pa.LargeStringArray, limits: Limits) -> list[int]:
    """Positions of the texts above the limit of a record."""
    _, offsets, _ = texts.buffers()
    if offsets is None or not len(texts):
        return []
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if bounds[-1] - bounds[0] <= limits.record:
        return []
    return np.flatnonzero(np.diff(bounds) > limits.record).tolist()


def to_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers or booleans as an Arrow array; `pyarrow.array` would import pandas, which takes a quarter of a second."""
    return pl.Series(values).to_arrow()


def decode_texts(texts: pa.LargeStringArray) -> pl.Series:
    """The texts as a series, with null for invalid UTF-8."""
    series = pl.from_arrow(texts.cast(pa.large_binary()))
    assert isinstance(series, pl.Series)
    try:
        return series.cast(pl.String)
    except pl.exceptions.ComputeError:  # some text is invalid: decode them one by one
        return pl.Series([_decode(text) for text in series], dtype=pl.String)


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def text_bytes(texts: pa.LargeStringArray, position: int) -> bytes:
    """The bytes of one text."""
    return bytes(texts[position].as_buffer())


def utf8_problem(position: int, text: bytes) -> Problem:
    """The problem of a text that is not valid UTF-8. Raises `ValueError` if it is."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        reason = f"Byte 0x{text[error.start]:02x} at position {error.start + 1} is not UTF-8."
        return Problem(position, "not-utf8", reason)
    raise ValueError(text)


def check_utf8(stream: ByteStream, texts: pa.LargeStringArray, problems: Sequence[Problem], line: Positions) -> None:
    """Raise `SourceError` if most texts with non-ASCII characters are not UTF-8: the file has another encoding.

    If fewer are invalid, or UTF-8 is the given encoding, these texts are damaged and remain rejects.
    """
    if is_utf8(stream.encoding):
        return
    invalid = [problem.position for problem in problems if problem.code == "not-utf8"]
    if invalid:
        text = decode_texts(texts)
        if len(invalid) >= (text.str.len_chars() != text.str.len_bytes()).sum():
            sample = b"".join(text_bytes(texts, position) for position in invalid[:SAMPLE])
            raise encoding_error(stream.path, sample, int(line[invalid[0]]), stream.blocks)


def build_batch(
    table: pl.DataFrame, texts: pa.LargeStringArray, good: Positions, problems: Sequence[Problem], at: RecordNumbers
) -> Batch:
    """The batch of `texts`: `table` contains those at the positions `good`, `problems` the others, by position."""
    row, line = at
    rejects = [
        (int(row[position]), int(line[position]), code, reason, _original_text(texts, position, code))
        for position, code, reason in problems
    ]
    return Batch(
        table,
        pl.Series("row", row[good], pl.Int64),
        pl.Series("line", line[good], pl.Int64),
        pl.DataFrame(rejects, schema=REJECTS, orient="row"),
        _raw(texts, good),
    )


def _original_text(texts: pa.LargeStringArray, position: int, code: str) -> str:
    if code == TOO_LARGE:
        start = bytes(texts[position].as_buffer()[:EXCERPT])
        return start.strip(b"\r\n").decode(errors="ignore")
    return text_bytes(texts, position).strip(b"\r\n").decode(errors="backslashreplace")


def _raw(texts: pa.LargeStringArray, good: Positions) -> Callable[[pl.Series], pl.Series]:
    def raw(positions: pl.Series) -> pl.Series:
        return decode_texts(texts.take(to_arrow(good[positions.to_numpy()]))).str.strip_chars("\r\n").alias("raw")

    return raw
