"""Conversations → counts of characters, words and turns, and the share of the assistant."""

from __future__ import annotations

import polars as pl

from schemas.conversation import ASSISTANT_ROLES


def characters() -> pl.Expr:
    """Number of characters of all turns, including system prompt and tool results.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(characters, ("Grüße", "Hi!"))
    [8]
    """
    return _characters_of(pl.col("conversations"))


def words() -> pl.Expr:
    """Number of words of user and assistant, split at white space; a Chinese or Japanese character is a word.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(words, ("What is it?", "A good one."))
    [6]
    """
    return pl.col("prompt_terms").list.len() + pl.col("answer_terms").list.len()


def answer_words() -> pl.Expr:
    """Number of words of the assistant, split at white space, without tool calls.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(answer_words, ("What is it?", "A good one."))
    [3]
    """
    return pl.col("answer_terms").list.len()


def turns() -> pl.Expr:
    """Number of turns of all roles.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(turns, ("Hi", "Hello"))
    [2]
    """
    return pl.col("conversations").list.len()


def assistant_share() -> pl.Expr:
    """Share of the characters that the assistant wrote, including tool calls: about the share of loss tokens.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(assistant_share, ("123456", "12"))
    [0.25]
    """
    by_assistant = pl.element().struct.field("from").is_in(ASSISTANT_ROLES)
    assistant = _characters_of(pl.col("conversations").list.filter(by_assistant))
    return (assistant / _characters_of(pl.col("conversations"))).fill_nan(0.0)


def _characters_of(turns: pl.Expr) -> pl.Expr:
    return turns.list.eval(pl.element().struct.field("value").str.len_chars()).list.sum()
