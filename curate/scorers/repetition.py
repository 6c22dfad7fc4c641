"""What is said again: inside the answer, line by line, and out of the prompt.

The measures are Gopher's (Rae et al. 2021, arXiv 2112.11446, section A.1.1 "repetition removal") with two
changes that short answers need. An n-gram that occurs once is no repetition: without that, every answer of n
words would score 1. And a repeat is what comes after the first occurrence, so a value is the share that could
be left out. Gopher's limits (0.2 for the top 2-gram, 0.15 for duplicate 5-grams, 0.2 for duplicate lines) are
made for web pages of 50 words and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Length = Annotated[int, Field(ge=1, le=1000)]
"""Words in an n-gram: each costs a walk over all of them, and few answers have a thousand."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, odd: multiplying by it spreads hashes (Knuth, TAOCP 3, section 6.4)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The words of a list column in one long run: their row, hash and length in characters."""

    row: npt.NDArray[np.int64]
    hash: Hashes
    size: npt.NDArray[np.int64]

    @classmethod
    def of(cls, frame: pl.DataFrame, column: str) -> Terms:
        """The words of `column`, rows one after the other."""
        words = (
            frame.select(pl.col(column).alias("word"), pl.int_range(pl.len()).alias("row")).explode("word").drop_nulls()
        )
        size = words["word"].str.len_chars().cast(pl.Int64)
        return cls(words["row"].to_numpy(), words["word"].hash().to_numpy(), size.to_numpy())

    def ngrams(self, n: int) -> tuple[Hashes, Flags]:
        """For every word the hash of its row and the n words from it on, and whether there are n in its row."""
        hashes = (self.hash + self.row.astype(np.uint64)) * _MIX
        whole = np.zeros(len(self.row), dtype=np.bool_)
        last = max(len(self.row) - n + 1, 0)
        whole[:last] = self.row[len(self.row) - last :] == self.row[:last]
        for step in range(1, n):
            hashes[:-step] = (hashes[:-step] ^ (hashes[:-step] >> np.uint64(29))) * _MIX + self.hash[step:]
        return hashes, whole


def word_repetition(frame: pl.DataFrame, *, n: Length = 2) -> pl.Series:
    """Share of the answer's characters that its most frequent n-gram takes: Gopher's top n-gram.

    White space is not counted, and overlapping occurrences are counted each, so the share is cut off at 1.

    >>> from curate.scorers.features import scored
    >>> scored(word_repetition, ("Sing", "la la la la"), ("Sing", "no words come twice"))
    [1.0, 0.0]
    >>> scored(word_repetition, ("Sing", "oh yes oh no"), n=1)
    [0.444]
    """
    terms = Terms.of(frame, "answer_terms")
    hashes, whole = terms.ngrams(n)
    starts = np.flatnonzero(whole)
    starts = starts[pl.Series(hashes[starts]).is_duplicated().to_numpy()]
    repeated = pl.DataFrame(
        {"row": terms.row[starts], "gram": hashes[starts], "size": _window_sum(terms.size, n)[starts]}
    )
    top = repeated.group_by("gram").agg(pl.first("row"), pl.sum("size")).group_by("row").agg(pl.col("size").max())
    return _share(frame, terms, top["row"].to_numpy(), top["size"].to_numpy())


def ngram_repetition(frame: pl.DataFrame, *, n: Length = 5) -> pl.Series:
    """Share of the answer's characters inside an n-gram that stood there before: Gopher's duplicate n-grams.

    Characters in overlapping n-grams count once, white space does not count.

    >>> from curate.scorers.features import scored
    >>> scored(ngram_repetition, ("Go", "one two three one two three"), ("Go", "one two three"), n=3)
    [0.5, 0.0]
    """
    terms = Terms.of(frame, "answer_terms")
    hashes, whole = terms.ngrams(n)
    again = whole.copy()
    again[whole] = ~pl.Series(hashes[whole]).is_first_distinct().to_numpy()
    return _covered_share(frame, terms, again, n)


def line_repetition(frame: pl.DataFrame) -> pl.Series:
    r"""Share of the answer's characters in lines that stood there before: Gopher's duplicate lines.

    Space around a line and empty lines do not count.

    >>> from curate.scorers.features import scored
    >>> scored(line_repetition, ("Go", "ab\ncd\n  ab"), ("Go", "ab\ncd"))
    [0.333, 0.0]
    """
    lines = (
        frame.select(pl.int_range(pl.len()).alias("row"), pl.col("answer").str.split("\n").alias("line"))
        .filter(pl.col("line").list.len() > 1)
        .explode("line")
        .with_columns(pl.col("line").str.strip_chars())
        .with_columns(pl.col("line").str.len_chars().alias("size"), pl.struct("row", "line").hash().alias("hash"))
        .group_by("row")
        .agg((pl.col("size") * ~pl.col("hash").is_first_distinct()).sum().alias("again"), pl.col("size").sum())
    )
    shares = (lines["again"] / lines["size"]).fill_nan(0.0)
    return _scatter(frame, lines["row"].to_numpy(), shares.to_numpy())


def echo(frame: pl.DataFrame, *, n: Length = 5) -> pl.Series:
    """How much the answer is the prompt again: 1 where both are the same, 0 where they share no n-gram.

    Own measure: the share of the answer's characters inside an n-gram of the prompt, and the share of the
    prompt's inside an n-gram of the answer; the smaller of both. So an extract of a long prompt is no echo, and
    neither is an answer that restates the question before it goes on.

    >>> from curate.scorers.features import scored
    >>> scored(echo, ("Is the sky blue today?", "Is the sky blue today? Yes."), ("A b?", "a B?"))
    [0.818, 1.0]
    """
    answer, prompt = Terms.of(frame, "answer_terms"), Terms.of(frame, "prompt_terms")
    (told, told_whole), (asked, asked_whole) = answer.ngrams(n), prompt.ngrams(n)
    from_prompt = told_whole & _found(told, asked[asked_whole])
    in_answer = asked_whole & _found(asked, told[told_whole])
    shares = [_covered_share(frame, answer, from_prompt, n), _covered_share(frame, prompt, in_answer, n)]
    same = (pl.col("answer_lower") == pl.col("prompt_lower")) & (pl.col("answer_lower") != "")
    return frame.select(pl.when(same).then(1.0).otherwise(pl.min_horizontal(*shares))).to_series()


def _found(hashes: Hashes, among: Hashes) -> Flags:
    flags: Flags = pl.Series(hashes).is_in(pl.Series(among).implode()).to_numpy()
    return flags


def _covered_share(frame: pl.DataFrame, terms: Terms, starts: Flags, n: int) -> pl.Series:
    """Per row the share of characters that lie in a run of n words from one of `starts` on."""
    covered = _window_sum(starts[::-1].astype(np.int64), n)[::-1] > 0
    return _share(frame, terms, terms.row[covered], terms.size[covered])


def _window_sum(values: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """For every place the sum of the n values from it on."""
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values), np.zeros(n, np.int64)])
    sums[len(values) + 1 :] = sums[len(values)]
    return np.asarray(sums[n : n + len(values)] - sums[: len(values)])


def _share(frame: pl.DataFrame, terms: Terms, rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> pl.Series:
    part = np.bincount(rows, weights=sizes, minlength=frame.height)
    whole = np.bincount(terms.row, weights=terms.size, minlength=frame.height)
    return pl.Series(np.minimum(part / np.maximum(whole, 1), 1.0))


def _scatter(frame: pl.DataFrame, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> pl.Series:
    spread = np.zeros(frame.height)
    spread[rows] = values
    return pl.Series(spread)
