"""How much there is: counts of characters, words and turns, and whose they are."""

from __future__ import annotations

import polars as pl

from schemas.conversation import ASSISTANT_ROLES


def characters() -> pl.Expr:
    """Characters of all turns, system prompt and tools' answers too: a plain count, as all scores of size are.

    >>> from curate.scorers.features import scored
    >>> scored(characters, ("Grüße", "Hi!"))
    [8]
    """
    return _characters_of(pl.col("conversations"))


def words() -> pl.Expr:
    """Words of the user and the assistant, split at white space; a Chinese or Japanese character is a word.

    >>> from curate.scorers.features import scored
    >>> scored(words, ("What is it?", "A good one."))
    [6]
    """
    return pl.col("prompt_terms").list.len() + pl.col("answer_terms").list.len()


def answer_words() -> pl.Expr:
    """Words of the assistant's texts, split at white space; tool calls are not counted.

    >>> from curate.scorers.features import scored
    >>> scored(answer_words, ("What is it?", "A good one."))
    [3]
    """
    return pl.col("answer_terms").list.len()


def turns() -> pl.Expr:
    """Turns of any role.

    >>> from curate.scorers.features import scored
    >>> scored(turns, ("Hi", "Hello"))
    [2]
    """
    return pl.col("conversations").list.len()


def assistant_share() -> pl.Expr:
    """Share of the characters that the assistant wrote, tool calls too: about what a model would learn of it.

    >>> from curate.scorers.features import scored
    >>> scored(assistant_share, ("123456", "12"))
    [0.25]
    """
    by_assistant = pl.element().struct.field("from").is_in(ASSISTANT_ROLES)
    learned = _characters_of(pl.col("conversations").list.filter(by_assistant))
    return (learned / _characters_of(pl.col("conversations"))).fill_nan(0.0)


def _characters_of(turns: pl.Expr) -> pl.Expr:
    return turns.list.eval(pl.element().struct.field("value").str.len_chars()).list.sum()
