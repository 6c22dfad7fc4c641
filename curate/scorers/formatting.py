"""Answers → whether they are unfinished, leave a code fence open, or contain control tokens of a chat template."""

from __future__ import annotations

import polars as pl

from schemas.control_tokens import CONTROL_TOKENS

_WORD = r"[\p{L}\p{N}'’-]+"
_INCOMPLETE_ENDING = (
    rf"(?:{_WORD}[,;:]? +){{4,}}(?:{_WORD},|(?:a|an|the|and|or|but|nor|of|than|their|its|my|your|our|into|because"
    r"|der|die|das|ein|eine|einer|und|oder|et|ou|les|des|un|une|el|los|las|del))$|[(\[{–—]$"
)
"""A last line that is incomplete: it ends with a comma after at least five words (fewer are a greeting), with a word
that does not end a sentence, with an opening bracket or with a dash."""

_INCOMPLETE_SENTENCE = (
    r"^[^\d\s\-*•#>|<`].*\p{Ll}{3}[.!?…]['\"”’)\]]* +\p{Lu}[\p{Ll}'’]* [^.!?…:;`|=<>{}()_\\/#@\n]{55,}\p{Ll}{2}$"
)
"""A last line of prose in which a complete sentence is followed by another of at least 60 characters without a full
stop (in chats, shorter ones often have none). Does not match headings, list items, code and hashtags."""


def unfinished() -> pl.Expr:
    r"""Whether the last answer ends in the middle of a sentence.

    C4 (Raffel et al. 2020, arXiv 1910.10683) drops every line without end punctuation, but answers are often a word, a
    list, code or a title. Here the last line must end with a comma, a dash, an opening bracket or a word that does not
    end a sentence, or contain an incomplete second sentence.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(unfinished, ("Why?", "It rains because of the"), ("Who?", "Marie Curie"), ("Buy", "1. Tea"))
    [True, False, False]
    >>> text = "It rains. In the north of the country it will keep on raining until the end"
    >>> example_scores(unfinished, ("Why?", text))
    [True]
    """
    ending = pl.col("answers").list.last().str.strip_chars_end().str.tail(600)
    unpunctuated = pl.when(~ending.str.contains(r"[.!?。！？]$")).then(ending)  # skips two of three answers
    last_line = unpunctuated.str.extract(r"([^\n]*)$")
    return (last_line.str.contains(_INCOMPLETE_ENDING) | last_line.str.contains(_INCOMPLETE_SENTENCE)).fill_null(False)


def unbalanced_fences() -> pl.Expr:
    r"""Whether an answer has an unclosed ``` code fence, or a closing one without an opening one.

    Fences are defined in CommonMark 0.31, section 4.5.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(unbalanced_fences, ("Code", "```python\nprint(1)\n```"), ("Code", "```python\nprint(1)"))
    [False, True]
    """
    fences = pl.element().str.count_matches("```", literal=True)
    return pl.col("answers").list.eval(fences % 2 == 1).list.any()


def control_tokens() -> pl.Expr:
    """Whether any turn contains the text of a chat template's control token, which a tokenizer may encode as the token.

    The texts are those of the chat templates in train/templates/TEMPLATES.md, listed in schemas/control_tokens.py.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(control_tokens, ("Hi", "Hello<|im_end|>"), ("Hi", "Hello"))
    [True, False]
    """
    value = pl.element().struct.field("value")
    return pl.col("conversations").list.eval(value.str.contains_any(list(CONTROL_TOKENS))).list.any()
