"""Answers → share of repeated words, n-grams and lines, and of text copied from the prompt.

The measures are Gopher's (Rae et al. 2021, arXiv 2112.11446, section A.1.1 "repetition removal") with two changes for
short answers. An n-gram that occurs once is not a repetition; otherwise every answer of n words would score 1. Only the
occurrences after the first count, so a value is the share that could be removed. Gopher's limits (0.2 for the top
2-gram, 0.15 for duplicate 5-grams, 0.2 for duplicate lines) are meant for web pages of at least 50 words.
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
"""Words in an n-gram. Each adds a pass over all words, and few answers have a thousand words."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, odd: multiplication by it mixes hashes (Knuth, TAOCP 3, section 6.4)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The words of a list column as flat arrays: row, hash and length in characters of each word."""

    row: npt.NDArray[np.int64]
    hash: Hashes
    size: npt.NDArray[np.int64]

    @classmethod
    def of(cls, frame: pl.DataFrame, column: str) -> Terms:
        """The words of `column`, in the order of the rows."""
        words = (
            frame.select(pl.col(column).alias("word"), pl.int_range(pl.len()).alias("row")).explode("word").drop_nulls()
        )
        size = words["word"].str.len_chars().cast(pl.Int64)
        return cls(words["row"].to_numpy(), words["word"].hash().to_numpy(), size.to_numpy())

    def ngrams(self, n: int) -> tuple[Hashes, Flags]:
        """For each word the hash of the n-gram that begins there (and of its row), and whether its row has n words."""
        hashes = (self.hash + self.row.astype(np.uint64)) * _MIX
        is_complete = np.zeros(len(self.row), dtype=np.bool_)
        last = max(len(self.row) - n + 1, 0)
        is_complete[:last] = self.row[len(self.row) - last :] == self.row[:last]
        for step in range(1, n):
            hashes[:-step] = (hashes[:-step] ^ (hashes[:-step] >> np.uint64(29))) * _MIX + self.hash[step:]
        return hashes, is_complete


def word_repetition(frame: pl.DataFrame, *, n: Length = 2) -> pl.Series:
    """Share of the answer's characters in its most frequent n-gram: Gopher's top n-gram.

    White space is not counted. Overlapping occurrences are all counted, so the share is clipped to 1.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(word_repetition, ("Sing", "la la la la"), ("Sing", "no words come twice"))
    [1.0, 0.0]
    >>> example_scores(word_repetition, ("Sing", "oh yes oh no"), n=1)
    [0.444]
    """
    terms = Terms.of(frame, "answer_terms")
    hashes, is_complete = terms.ngrams(n)
    starts = np.flatnonzero(is_complete)
    starts = starts[pl.Series(hashes[starts]).is_duplicated().to_numpy()]
    repeated = pl.DataFrame(
        {"row": terms.row[starts], "gram": hashes[starts], "size": _window_sum(terms.size, n)[starts]}
    )
    top = repeated.group_by("gram").agg(pl.first("row"), pl.sum("size")).group_by("row").agg(pl.col("size").max())
    return _share(frame, terms, top["row"].to_numpy(), top["size"].to_numpy())


def ngram_repetition(frame: pl.DataFrame, *, n: Length = 5) -> pl.Series:
    """Share of the answer's characters in n-grams that occurred before: Gopher's duplicate n-grams.

    Characters in overlapping n-grams count once. White space is not counted.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(ngram_repetition, ("Go", "one two three one two three"), ("Go", "one two three"), n=3)
    [0.5, 0.0]
    """
    terms = Terms.of(frame, "answer_terms")
    hashes, is_complete = terms.ngrams(n)
    is_repeat = is_complete.copy()
    is_repeat[is_complete] = ~pl.Series(hashes[is_complete]).is_first_distinct().to_numpy()
    return _covered_share(frame, terms, is_repeat, n)


def line_repetition(frame: pl.DataFrame) -> pl.Series:
    r"""Share of the answer's characters in lines that occurred before: Gopher's duplicate lines.

    Space around lines and empty lines are not counted.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(line_repetition, ("Go", "ab\ncd\n  ab"), ("Go", "ab\ncd"))
    [0.333, 0.0]
    """
    lines = (
        frame.select(pl.int_range(pl.len()).alias("row"), pl.col("answer").str.split("\n").alias("line"))
        .filter(pl.col("line").list.len() > 1)
        .explode("line")
        .with_columns(pl.col("line").str.strip_chars())
        .with_columns(pl.col("line").str.len_chars().alias("size"), pl.struct("row", "line").hash().alias("hash"))
        .group_by("row")
        .agg((pl.col("size") * ~pl.col("hash").is_first_distinct()).sum().alias("repeated"), pl.col("size").sum())
    )
    shares = np.zeros(frame.height)
    shares[lines["row"].to_numpy()] = (lines["repeated"] / lines["size"]).fill_nan(0.0).to_numpy()
    return pl.Series(shares)


def echo(frame: pl.DataFrame, *, n: Length = 5) -> pl.Series:
    """How far the answer repeats the prompt: 1 if both are equal, 0 if they share no n-gram.

    A measure of this project: the share of the answer's characters in n-grams of the prompt, or the share of the
    prompt's characters in n-grams of the answer, whichever is smaller. It is low for an extract of a long prompt, and
    for an answer that begins by restating the question.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(echo, ("Is the sky blue today?", "Is the sky blue today? Yes."), ("A b?", "a B?"))
    [0.818, 1.0]
    """
    answer, prompt = Terms.of(frame, "answer_terms"), Terms.of(frame, "prompt_terms")
    (answer_hashes, answer_complete), (prompt_hashes, prompt_complete) = answer.ngrams(n), prompt.ngrams(n)
    from_prompt = answer_complete & _is_in(answer_hashes, prompt_hashes[prompt_complete])
    in_answer = prompt_complete & _is_in(prompt_hashes, answer_hashes[answer_complete])
    shares = [_covered_share(frame, answer, from_prompt, n), _covered_share(frame, prompt, in_answer, n)]
    same = (pl.col("answer_lower") == pl.col("prompt_lower")) & (pl.col("answer_lower") != "")
    return frame.select(pl.when(same).then(1.0).otherwise(pl.min_horizontal(*shares))).to_series()


def _is_in(hashes: Hashes, among: Hashes) -> Flags:
    flags: Flags = pl.Series(hashes).is_in(pl.Series(among).implode()).to_numpy()
    return flags


def _covered_share(frame: pl.DataFrame, terms: Terms, starts: Flags, n: int) -> pl.Series:
    """The share of each row's characters in n-grams that begin at `starts`."""
    covered = _window_sum(starts[::-1].astype(np.int64), n)[::-1] > 0
    return _share(frame, terms, terms.row[covered], terms.size[covered])


def _window_sum(values: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """For each position, the sum of the n values that begin there."""
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values), np.zeros(n, np.int64)])
    sums[len(values) + 1 :] = sums[len(values)]
    return np.asarray(sums[n : n + len(values)] - sums[: len(values)])


def _share(frame: pl.DataFrame, terms: Terms, rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> pl.Series:
    counted = np.bincount(rows, weights=sizes, minlength=frame.height)
    total = np.bincount(terms.row, weights=terms.size, minlength=frame.height)
    return pl.Series(np.minimum(counted / np.maximum(total, 1), 1.0))
