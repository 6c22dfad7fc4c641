"""Whether an answer is well formed: finished, its code fences closed, free of a template's control tokens."""

from __future__ import annotations

import polars as pl

_ENDS_OPEN = (
    r"(?:[,;\-–—(\[{]|\b(?:a|an|the|and|or|but|of|to|in|for|with|by|at|from|that|which|is|are|was|were|as|than|their"
    r"|its|his|her|your|my|our|und|oder|der|die|das|ein|eine|mit|von|et|ou|le|la|les|des|un|une|y|el|los|las))$"
)
"""An ending that asks for more: a comma, an open bracket, a dash, or a word that no sentence ends with."""

_PROSE_END = r"[.!?…。！？؟।]"
_BROKEN_OFF = rf"{_PROSE_END}['\"”’)\]]* +\p{{Lu}}[^.!?…。！？\n`|=<>{{}}]{{30,}}[\p{{Ll}}\d]$"
"""After a full sentence a second one of 30 characters and more on the same line, without its full stop."""

CONTROL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>", "<|user|>", "<|assistant|>",
    "<|system|>", "<|end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
    "</s>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<|channel|>", "<|message|>", "<|return|>",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
)  # fmt: skip


def unfinished() -> pl.Expr:
    """Whether the last answer stops in the middle of a sentence.

    C4 (Raffel et al. 2020, arXiv 1910.10683) drops every line without end punctuation, but answers are often a
    word, a list or a title: here an answer must end in a comma, a dash, an open bracket or a word that no
    sentence ends with, or break off in a second sentence on the same line.

    >>> from curate.scorers.material import scored
    >>> scored(unfinished, ("Why?", "Because it rains and the"), ("Who?", "Marie Curie"))
    [True, False]
    >>> scored(unfinished, ("Why?", "It rains. In the north of the country it will keep on raining until Mon"))
    [True]
    """
    ending = pl.col("answers").list.last().str.strip_chars_end().str.tail(400)
    return (ending.str.contains(_ENDS_OPEN) | ending.str.contains(_BROKEN_OFF)).fill_null(False)


def unbalanced_fences() -> pl.Expr:
    r"""Whether an answer opens a ``` code fence that it does not close, or the other way round.

    >>> from curate.scorers.material import scored
    >>> scored(unbalanced_fences, ("Code", "```python\nprint(1)\n```"), ("Code", "```python\nprint(1)"))
    [False, True]
    """
    fences = pl.element().str.count_matches("```", literal=True)
    return pl.col("answers").list.eval(fences % 2 == 1).list.any()


def control_tokens() -> pl.Expr:
    """Whether any turn has the text of a chat template's control token: a tokenizer would take it for a real one.

    >>> from curate.scorers.material import scored
    >>> scored(control_tokens, ("Hi", "Hello<|im_end|>"), ("Hi", "Hello"))
    [True, False]
    """
    value = pl.element().struct.field("value")
    return pl.col("conversations").list.eval(value.str.contains_any(list(CONTROL_TOKENS))).list.any()
