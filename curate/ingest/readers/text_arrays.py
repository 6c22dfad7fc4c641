"""Texts laid over a chunk's bytes: the records as they stood in the file, without a copy of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from curate.ingest.readers.batch import Batch, Reject, rejects_frame
from curate.ingest.readers.byte_stream import Bytes, Positions
from curate.ingest.readers.encoding import foreign_encoding

SAMPLE = 200
"""As many texts are looked at to name the encoding of a file."""


class Problem(NamedTuple):
    """Why the text at `position` was refused: the rule's name and a sentence."""

    position: int
    code: str
    reason: str


class Numbers(NamedTuple):
    """Where each of some texts stands in its source."""

    row: Positions
    line: Positions


def texts_of(data: Bytes, starts: Positions) -> pa.LargeStringArray:
    """The texts that start at `starts`, each up to the next; they need not be valid UTF-8."""
    offsets = np.append(starts, len(data)).astype(np.int64)
    return pa.LargeStringArray.from_buffers(len(starts), pa.py_buffer(offsets), pa.py_buffer(data))


def as_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers or truth values as Arrow has them; `pyarrow.array` would import pandas first, a quarter of a second."""
    return pl.Series(values).to_arrow()


def as_text(texts: pa.LargeStringArray) -> pl.Series:
    """The texts as a series, null where one is not valid UTF-8."""
    series = pl.from_arrow(texts.cast(pa.large_binary()))
    assert isinstance(series, pl.Series)
    try:
        return series.cast(pl.String)
    except pl.exceptions.ComputeError:  # only then one by one
        return pl.Series([_decoded(text) for text in series], dtype=pl.String)


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def as_bytes(texts: pa.LargeStringArray, position: int) -> bytes:
    """The bytes of one text."""
    return bytes(texts[position].as_buffer())


def not_utf8(position: int, text: bytes) -> Problem:
    """The problem of a text that is not valid UTF-8; raises `ValueError` where it is."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        reason = f"Byte 0x{text[error.start]:02x} at position {error.start + 1} is not UTF-8."
        return Problem(position, "not-utf8", reason)
    raise ValueError(text)


def refuse_foreign(path: str, texts: pa.LargeStringArray, problems: Sequence[Problem], line: Positions) -> None:
    """Raise `SourceError` where most texts with other characters than ASCII are not UTF-8: then the file is not.

    A few such texts among others that are UTF-8 are damaged; they stay rejects.
    """
    foreign = [problem.position for problem in problems if problem.code == "not-utf8"]
    if foreign:
        text = as_text(texts)
        if len(foreign) >= (text.str.len_chars() != text.str.len_bytes()).sum():
            sample = b"".join(as_bytes(texts, position) for position in foreign[:SAMPLE])
            raise foreign_encoding(path, sample, int(line[foreign[0]]))


def batch_of(
    table: pl.DataFrame, texts: pa.LargeStringArray, good: Positions, problems: Sequence[Problem], at: Numbers
) -> Batch:
    """The batch of `texts`: `table` holds those at the positions `good`, `problems` are about others."""
    row, line = at
    rejects = [
        Reject(int(row[position]), int(line[position]), code, reason, _as_it_stood(texts, position))
        for position, code, reason in problems
    ]
    return Batch(
        table,
        pl.Series("row", row[good], pl.Int64),
        pl.Series("line", line[good], pl.Int64),
        rejects_frame(rejects),
        _raw(texts, good),
    )


def _as_it_stood(texts: pa.LargeStringArray, position: int) -> str:
    return as_bytes(texts, position).strip(b"\r\n").decode(errors="backslashreplace")


def _raw(texts: pa.LargeStringArray, good: Positions) -> Callable[[pl.Series], pl.Series]:
    def raw(positions: pl.Series) -> pl.Series:
        return as_text(texts.take(as_arrow(good[positions.to_numpy()]))).str.strip_chars("\r\n").alias("raw")

    return raw
