"""Scorers by name: a new scorer is a function and a line here; other packages add scorers by an entry point.

A scorer returns a Polars expression over the columns of `curate.scorers.features` or over other scores, or it takes
the features frame and returns a series of the same length. Its keyword parameters are set by the recipe, its docstring
is the help text, its doctest the first test. Values are numbers, booleans or short strings. Null values are computed
again on the next run, so return null only if there is no value.
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
from curate.scorers.repairable import has_html, has_invisible, has_mojibake, has_nan_text, has_signature
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
    "has_html": has_html,
    "has_mojibake": has_mojibake,
    "has_invisible": has_invisible,
    "has_nan_text": has_nan_text,
    "has_signature": has_signature,
    "language": language,
    "prompt_language": prompt_language,
    "quality": quality,
}

REVISIONS: dict[str, int] = {"language": 2, "prompt_language": 2}
"""Revision of each scorer whose formula changed after its release, so that old values are recomputed. Default: 1."""

ENTRY_POINTS = "curate.scorers"
"""The entry-point group for scorers of other packages, which run only if the recipe or --only names them."""
