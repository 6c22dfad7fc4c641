"""The cells of a column → their kind (sentences, numbers, ids, lists …), length, and how often they are questions."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from schemas.text import shorten

_SAMPLE = 200
"""Filled cells that are inspected per column."""

_MOST = 0.8
"""Share of the cells that must have a kind for the column to have it."""

_MIN_WORDS = 3
"""Words of a sentence without punctuation at its end. A Chinese, Japanese or Thai character counts as half a word."""

_END = r"""[.!?。！？؟]["'”’»)\s]*$"""
"""Punctuation at the end of a sentence, which may be of one or two words."""

_MIN_INDEX = 5
"""Consecutive numbers that count as an index."""

_KINDS = {
    "flags": r"(?i)^(?:true|false|yes|no|t|f)$",
    "choice letters": r"^\(?[A-Ea-e]\)?[.)]?$",
    "dates": r"^(?:\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{4}|\d{4}/\d\d?/\d\d?)(?:[T ,]\s*\d\d?:\d\d.*)?$",
    "numbers": r"^[-+]?[$€£¥]?\s?(?:\d[\d.,]*|\.\d+)(?:[eE][-+]?\d+)?\s?[%€]?$",
    "objects": r"""(?s)^\{\s*(?:["'].*)?\}$""",
    "lists": r"""(?s)^\[\s*(?:["'{\[\d-].*|(?:null|None|true|false|True|False)\b.*)?\]$""",
    "links": r"^(?:(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.-]+)$",
    "ids": r"^[A-Za-z0-9_#:./@+-]*[0-9_][A-Za-z0-9_#:./@+-]*$",
}
"""Kind → pattern, in the order in which they are tried."""

_HALF_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}]"
_QUESTION = r"""[?？؟]["'”’»)\s]*$"""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a column. `kind` is `text` (sentences), `words`, `empty`, `index` or a key of `_KINDS`."""

    column: str
    kind: str
    words: float = 0.0
    """mean per filled cell"""
    asks: float = 0.0
    """share of the cells that end with a question mark"""
    distinct: float = 0.0
    """share of the cells that differ"""
    example: str = ""

    @property
    def is_repeated(self) -> bool:
        """Whether most cells repeat others, as in a category, or a prompt that is the same in every row."""
        return self.distinct <= 0.5


def describe_column(cells: pl.Series, column: str) -> Content:
    """The content of a column, from its first filled cells.

    >>> describe_column(pl.Series(["How far is it?", "Why?"]), "q").kind, describe_column(pl.Series(["7"]), "n").kind
    ('text', 'numbers')
    """
    filled = cells.rename("cell").drop_nulls().head(5 * _SAMPLE).str.strip_chars()
    filled = filled.filter(filled != "").head(_SAMPLE)
    if filled.is_empty():
        return Content(column, "empty")
    count = filled.len()
    words = filled.str.count_matches(r"\S+") + filled.str.count_matches(_HALF_WORD) / 2
    return Content(
        column,
        _kind(filled, (words >= _MIN_WORDS) | (filled.str.contains(_END) & (words >= 1))),
        words=float(words.sum()) / count,
        asks=int(filled.str.contains(_QUESTION).sum()) / count,
        distinct=filled.n_unique() / count if count > 1 else 1.0,
        example=shorten(" ".join(filled[0].split()), 40),
    )


def _kind(filled: pl.Series, is_sentence: pl.Series) -> str:
    enough = _MOST * filled.len()
    kind = next((kind for kind, pattern in _KINDS.items() if filled.str.contains(pattern).sum() >= enough), None)
    if kind == "numbers" and _is_index(filled):
        return "index"
    if kind is not None:
        return kind
    return "text" if is_sentence.sum() * 2 >= filled.len() else "words"


def _is_index(filled: pl.Series) -> bool:
    numbers = filled.cast(pl.Int64, strict=False)
    return filled.len() >= _MIN_INDEX and numbers.null_count() == 0 and bool((numbers.diff().drop_nulls() == 1).all())
