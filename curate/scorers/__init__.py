"""The scorers by name. A new one is a function and a line here; another package adds its own by an entry point.

A scorer returns a Polars expression over the columns of `curate.scorers.features`, or over other scores; or it
takes that frame and returns a series as long. Its keyword parameters are what a recipe can set, its docstring
is its help, its doctest its first test. Values are numbers, truths or short texts, and null only where there
is nothing to say: what is null is computed again the next time.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from curate.scorers.character_ratios import letter_ratio, symbol_ratio
from curate.scorers.formatting import control_tokens, unbalanced_fences, unfinished
from curate.scorers.language import language, prompt_language
from curate.scorers.length import answer_words, assistant_share, characters, turns, words
from curate.scorers.quality import quality
from curate.scorers.refusals import boilerplate, refusal
from curate.scorers.repetition import echo, line_repetition, ngram_repetition, word_repetition

Scorer = Callable[..., pl.Expr] | Callable[..., pl.Series]

SCORERS: dict[str, Scorer] = {
    "characters": characters,
    "words": words,
    "answer_words": answer_words,
    "turns": turns,
    "assistant_share": assistant_share,
    "word_repetition": word_repetition,
    "ngram_repetition": ngram_repetition,
    "line_repetition": line_repetition,
    "echo": echo,
    "letter_ratio": letter_ratio,
    "symbol_ratio": symbol_ratio,
    "unfinished": unfinished,
    "refusal": refusal,
    "boilerplate": boilerplate,
    "unbalanced_fences": unbalanced_fences,
    "control_tokens": control_tokens,
    "language": language,
    "prompt_language": prompt_language,
    "quality": quality,
}

REVISIONS: dict[str, int] = {}
"""Scorers whose formula changed since their first release: their old values are computed again. 1 if left out."""

ENTRY_POINTS = "curate.scorers"
"""The entry-point group with which another package adds scorers; they run where a recipe or --only names them."""
