"""Which characters the answer is made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

LETTER = r"[\p{L}\p{M}]"
SYMBOL = r"[\p{S}\p{C}#%&*/@\\_\[\]{}--\s]"
"""Neither letter, digit, space nor the punctuation of prose: markup, code, emoji, control characters."""


def letter_ratio(frame: pl.DataFrame) -> pl.Series:
    """Share of letters among the answer's characters that are no white space; 1 where there are none.

    After Gopher's share of words with a letter (arXiv 2112.11446, A1.1: at least 0.8), counted in characters;
    sums, tables and code are low by nature.

    >>> from curate.scorers.features import scored
    >>> scored(letter_ratio, ("2 + 2?", "a = 4!"), ("Say", "Grüße"))
    [0.25, 1.0]
    """
    return _ratio(frame, LETTER, empty=1.0)


def symbol_ratio(frame: pl.DataFrame) -> pl.Series:
    """Share of symbols (markup, code, emoji) among the answer's characters that are no white space.

    After Gopher's symbol-to-word ratio (arXiv 2112.11446, A1.1: at most 0.1), for all symbols, in characters.

    >>> from curate.scorers.features import scored
    >>> scored(symbol_ratio, ("Code?", "a*b ="), ("Say", "Yes, sir."), ("Say", "né 🎉🎉"))
    [0.5, 0.0, 0.5]
    """
    return _ratio(frame, SYMBOL, empty=0.0)


def _ratio(frame: pl.DataFrame, pattern: str, *, empty: float) -> pl.Series:
    """Per answer the share of its characters that match; what is no white space is what stands in its words."""
    part = _count(frame["answer"], pattern)
    whole = (
        frame.select(pl.col("answer_terms").list.eval(pl.element().str.len_chars()).list.sum()).to_series().to_numpy()
    )
    return pl.Series(np.where(whole > 0, np.minimum(part / np.maximum(whole, 1), 1.0), empty))


def _count(texts: pl.Series, pattern: str) -> npt.NDArray[np.int64]:
    """Characters that match `pattern`, per text.

    Plain ASCII texts are counted with a table over their bytes, ten times as fast as the regular expression
    that both follow.
    """
    counts = _count_ascii(texts, pattern)
    other = (texts.str.len_bytes() != texts.str.len_chars()).to_numpy()
    counts[other] = texts.filter(pl.Series(other)).str.count_matches(pattern).to_numpy()
    return counts


def _count_ascii(texts: pl.Series, pattern: str) -> npt.NDArray[np.int64]:
    arrow = texts.to_arrow().cast(pa.large_string())
    _, offsets, data = arrow.buffers()
    starts = np.frombuffer(offsets, dtype=np.int64, count=len(texts) + 1, offset=8 * arrow.offset)
    filled = np.flatnonzero(starts[1:] > starts[:-1])  # reduceat has no empty ranges
    counts = np.zeros(len(texts), dtype=np.int64)
    if len(filled):
        matches = _ascii_table(pattern)[np.frombuffer(data, dtype=np.uint8)[: starts[-1]]]
        counts[filled] = np.add.reduceat(matches, starts[filled], dtype=np.int64)
    return counts


def _ascii_table(pattern: str) -> npt.NDArray[np.uint8]:
    """256 flags: which bytes are an ASCII character that matches."""
    matching = pl.Series([chr(code) for code in range(128)]).str.contains(pattern).to_numpy()
    return np.concatenate([matching, np.zeros(128, dtype=np.bool_)]).astype(np.uint8)
