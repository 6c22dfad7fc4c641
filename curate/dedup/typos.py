"""Distinct strings → those that differ by one typo, exactly.

Two strings differ by a typo if they are equal after at most one character is deleted from each: a missing, additional,
different or moved character. They are found by hashes of all their deletions (the deletion neighbourhood of Mor and
Fraenkel 1982), in a time linear in the number of characters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.uint32]

BASE = np.uint64(0x9E3779B97F4A7C15)
MIXER = np.uint64(0xD6E8FEB86659FD93)
"""Odd numbers, so that multiplication modulo 2^64 is 1:1."""

PART_DELETIONS = 32 << 20
"""Deletions that are compared at a time."""


def find_typos(texts: pl.DataFrame) -> pl.DataFrame:
    """The `texts` (`number`, `text`) that differ by one typo: columns `number`, `link`; equal links belong together.

    The texts are distinct. A digit is never a typo, because another number makes another question.
    """
    lengths = texts.with_columns(length=pl.col("text").str.len_chars()).filter(pl.col("length") > 1)
    by_length = {length: part for (length,), part in lengths.partition_by("length", as_dict=True).items()}
    empty = texts.clear().select(number=pl.col("number").cast(pl.UInt32), link=pl.lit("", pl.String))
    links = [
        found
        for length, part in sorted(by_length.items())
        for found in _links(length, part, by_length.get(length - 1, part.clear()))
    ]
    return pl.concat([empty, *links])


def _links(length: int, texts: pl.DataFrame, shorter: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The links among texts of a length, and between them and those that are one character shorter.

    Deletions are compared in parts by their hash, so that memory does not depend on the number of texts.
    """
    parts = 1 + texts.height * length // PART_DELETIONS
    for part in range(parts):
        frames = [*_deletions(texts, length, part, parts), *_whole(shorter, length - 1, part, parts)]
        links = pl.concat(frames).unique()
        links = links.filter(pl.col("hash").is_duplicated())
        yield links.select("number", link=pl.format("{} {}", pl.lit(length), "hash"))


def _deletions(texts: pl.DataFrame, length: int, part: int, parts: int) -> Iterator[pl.DataFrame]:
    """The hashes of the texts without one character."""
    for rows in texts.iter_slices(max(1, PART_DELETIONS // (8 * length))):
        codes, is_digit = _codes(rows["text"], length)
        terms = _mix(codes)
        before = terms * _powers(length)
        after = terms[:, 1:] * _powers(length)[:-1]
        hashes = np.cumsum(before, axis=1, dtype=np.uint64) - before
        hashes[:, :-1] += np.cumsum(after[:, ::-1], axis=1, dtype=np.uint64)[:, ::-1]
        chosen = ~is_digit & (hashes % np.uint64(parts) == part)
        number = np.repeat(rows["number"].to_numpy(), chosen.sum(axis=1))
        yield pl.DataFrame({"number": number, "hash": hashes[chosen]}, schema={"number": pl.UInt32, "hash": pl.UInt64})


def _whole(texts: pl.DataFrame, length: int, part: int, parts: int) -> Iterator[pl.DataFrame]:
    """The hashes of the complete texts."""
    for rows in texts.iter_slices(max(1, PART_DELETIONS // (8 * length))):
        hashes = (_mix(_codes(rows["text"], length)[0]) * _powers(length)).sum(axis=1, dtype=np.uint64)
        hashed = rows.select(pl.col("number").cast(pl.UInt32), hash=pl.Series(hashes))
        yield hashed.filter(pl.col("hash") % parts == part)


def _codes(texts: pl.Series, length: int) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """The characters of texts of equal length as a matrix, and which of them are digits."""
    joined = "".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).reshape(-1, length)
    return codes, np.isin(codes, [ord(character) for character in set(joined) if character.isdecimal()])


def _mix(codes: Codes) -> Hashes:
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * MIXER
    return mixed ^ (mixed >> np.uint64(32))


def _powers(length: int) -> Hashes:
    return np.cumprod(np.full(length, BASE), dtype=np.uint64)
