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

_CELL = pl.col("cell").str
_WORDS = _CELL.count_matches(r"\S+") + _CELL.count_matches(_HALF_WORD) / 2
_SUMS = (
    _WORDS.sum().alias("words"),
    ((_WORDS >= _MIN_WORDS) | (_CELL.contains(_END) & (_WORDS >= 1))).sum().alias("sentences"),
    _CELL.contains(_QUESTION).sum().alias("questions"),
    pl.col("cell").n_unique().alias("distinct"),
    *(_CELL.contains(pattern).sum().alias(kind) for kind, pattern in _KINDS.items()),
)
"""Sums over the cells, in one query: each query takes 0.2 ms for any number of cells."""


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
    sums = filled.to_frame().select(*_SUMS).row(0, named=True)
    return Content(
        column,
        _kind(filled, sums),
        words=float(sums["words"]) / count,
        asks=sums["questions"] / count,
        distinct=sums["distinct"] / count if count > 1 else 1.0,
        example=shorten(" ".join(filled[0].split()), 40),
    )


def _kind(filled: pl.Series, sums: dict[str, float]) -> str:
    kind = next((kind for kind in _KINDS if sums[kind] >= _MOST * filled.len()), None)
    if kind == "numbers" and _is_index(filled):
        return "index"
    if kind is not None:
        return kind
    return "text" if sums["sentences"] * 2 >= filled.len() else "words"


def _is_index(filled: pl.Series) -> bool:
    numbers = filled.cast(pl.Int64, strict=False)
    return filled.len() >= _MIN_INDEX and numbers.null_count() == 0 and bool((numbers.diff().drop_nulls() == 1).all())
