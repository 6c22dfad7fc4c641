"""Answers → share of letters and share of symbols among their characters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

LETTER = r"[\p{L}\p{M}]"
SYMBOL = r"[\p{S}\p{C}#%&*/@\\_\[\]{}--\s]"
"""Markup, code, emoji, control characters: neither letters, digits, white space nor punctuation of prose."""


def letter_ratio(frame: pl.DataFrame) -> pl.Series:
    """Share of letters among the answer's characters, without white space; 1 if the answer is empty.

    Based on Gopher's share of words with a letter (arXiv 2112.11446, A1.1: at least 0.8), but counts characters.
    Calculations, tables and code have low values.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(letter_ratio, ("2 + 2?", "a = 4!"), ("Say", "Grüße"))
    [0.25, 1.0]
    """
    return _ratio(frame, LETTER, empty=1.0)


def symbol_ratio(frame: pl.DataFrame) -> pl.Series:
    """Share of symbols (markup, code, emoji) among the answer's characters, without white space; 0 if it is empty.

    Based on Gopher's symbol-to-word ratio (arXiv 2112.11446, A1.1: at most 0.1), but counts all symbols and characters.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(symbol_ratio, ("Code?", "a*b ="), ("Say", "Yes, sir."), ("Say", "né 🎉🎉"))
    [0.5, 0.0, 0.5]
    """
    return _ratio(frame, SYMBOL, empty=0.0)


def _ratio(frame: pl.DataFrame, pattern: str, *, empty: float) -> pl.Series:
    """The share of each answer's characters that match `pattern`, of all that are part of a word."""
    matches = _count(frame["answer"], pattern)
    word_lengths = pl.col("answer_terms").list.eval(pl.element().str.len_chars())
    total = frame.select(word_lengths.list.sum()).to_series().to_numpy()
    return pl.Series(np.where(total > 0, np.minimum(matches / np.maximum(total, 1), 1.0), empty))


def _count(texts: pl.Series, pattern: str) -> npt.NDArray[np.int64]:
    """The number of characters in each text that match `pattern`.

    ASCII texts are counted with a lookup table over their bytes, which is ten times as fast as the regular expression
    that it is made from.
    """
    counts = _count_ascii(texts, pattern)
    not_ascii = (texts.str.len_bytes() != texts.str.len_chars()).to_numpy()
    counts[not_ascii] = texts.filter(pl.Series(not_ascii)).str.count_matches(pattern).to_numpy()
    return counts


def _count_ascii(texts: pl.Series, pattern: str) -> npt.NDArray[np.int64]:
    arrow = texts.to_arrow().cast(pa.large_string())
    _, offsets, data = arrow.buffers()
    starts = np.frombuffer(offsets, dtype=np.int64, count=len(texts) + 1, offset=8 * arrow.offset)
    nonempty = np.flatnonzero(starts[1:] > starts[:-1])  # reduceat does not accept empty ranges
    counts = np.zeros(len(texts), dtype=np.int64)
    if len(nonempty):
        matches = _ascii_table(pattern)[np.frombuffer(data, dtype=np.uint8)[: starts[-1]]]
        counts[nonempty] = np.add.reduceat(matches, starts[nonempty], dtype=np.int64)
    return counts


def _ascii_table(pattern: str) -> npt.NDArray[np.uint8]:
    """256 flags, one per byte value: whether it is an ASCII character that matches."""
    matching = pl.Series([chr(code) for code in range(128)]).str.contains(pattern).to_numpy()
    return np.concatenate([matching, np.zeros(128, dtype=np.bool_)]).astype(np.uint8)
