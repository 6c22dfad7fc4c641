"""Whether an answer is well formed: finished, its code fences closed, free of a template's control tokens."""

from __future__ import annotations

import polars as pl

from schemas.control_tokens import CONTROL_TOKENS

_WORD = r"[\p{L}\p{N}'’-]+"
_ASKS_FOR_MORE = (
    rf"(?:{_WORD}[,;:]? +){{4,}}(?:{_WORD},|(?:a|an|the|and|or|but|nor|of|than|their|its|my|your|our|into|because"
    r"|der|die|das|ein|eine|einer|und|oder|et|ou|les|des|un|une|el|los|las|del))$|[(\[{–—]$"
)
"""A last line that asks for more: it ends in a comma after five words (fewer are a greeting), in a word that no
sentence ends with, an open bracket or a dash."""

_BROKEN_OFF = (
    r"^[^\d\s\-*•#>|<`].*\p{Ll}{3}[.!?…]['\"”’)\]]* +\p{Lu}[\p{Ll}'’]* [^.!?…:;`|=<>{}()_\\/#@\n]{55,}\p{Ll}{2}$"
)
"""A last line of prose where another sentence follows a full one and has 60 characters and more, but no full stop
(in chats, shorter ones often go without). Headings, list items, code and a tweet's hashtags are none."""


def unfinished() -> pl.Expr:
    r"""Whether the last answer stops in the middle of a sentence.

    C4 (Raffel et al. 2020, arXiv 1910.10683) drops every line without end punctuation, but answers are often a
    word, a list, code or a title: here the last line must end in a comma, a dash, an open bracket or a word that
    no sentence ends with, or break off in a second sentence.

    >>> from curate.scorers.features import scored
    >>> scored(unfinished, ("Why?", "It rains because of the"), ("Who?", "Marie Curie"), ("List", "1. Tea\n2. Milk"))
    [True, False, False]
    >>> scored(unfinished, ("Why?", "It rains. In the north of the country it will keep on raining until the end"))
    [True]
    """
    ending = pl.col("answers").list.last().str.strip_chars_end().str.tail(600)
    doubtful = pl.when(~ending.str.contains(r"[.!?。！？]$")).then(ending)  # two in three need no closer look
    last_line = doubtful.str.extract(r"([^\n]*)$")
    return (last_line.str.contains(_ASKS_FOR_MORE) | last_line.str.contains(_BROKEN_OFF)).fill_null(False)


def unbalanced_fences() -> pl.Expr:
    r"""Whether an answer opens a ``` code fence that it does not close, or the other way round.

    Fences as CommonMark has them (0.31, section 4.5).

    >>> from curate.scorers.features import scored
    >>> scored(unbalanced_fences, ("Code", "```python\nprint(1)\n```"), ("Code", "```python\nprint(1)"))
    [False, True]
    """
    fences = pl.element().str.count_matches("```", literal=True)
    return pl.col("answers").list.eval(fences % 2 == 1).list.any()


def control_tokens() -> pl.Expr:
    """Whether any turn has the text of a chat template's control token: a tokenizer would take it for a real one.

    The texts are those of the chat templates that train/templates/TEMPLATES.md lists (schemas/control_tokens.py).

    >>> from curate.scorers.features import scored
    >>> scored(control_tokens, ("Hi", "Hello<|im_end|>"), ("Hi", "Hello"))
    [True, False]
    """
    value = pl.element().struct.field("value")
    return pl.col("conversations").list.eval(value.str.contains_any(list(CONTROL_TOKENS))).list.any()
