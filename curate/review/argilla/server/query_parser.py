r"""Text to words, and what a person types into the search box to a tree of words.

The syntax is that of Elasticsearch's simple query string, which Argilla documents: words are joined by AND, `|` is
OR, `-word` is NOT, `"a phrase"`, `prefix*`, `word~1` allows a typo, `"a b"~3` words near each other, parentheses,
and `\\` takes the meaning off a sign. As there, AND and OR bind equally, from left to right.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

# Scripts without spaces, where each character is a word: Thai, Lao, Myanmar, Khmer, kana, ideographs.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_ENDS_A_WORD = frozenset(' \t\r\n"|+()')
_MOST_TYPOS = 2


@dataclass(frozen=True)
class Words:
    """Words that stand next to each other; the last may be a prefix, one may have typos, or they are only near."""

    words: tuple[str, ...]
    prefix: bool = False
    typos: int = 0
    near: int = 0


@dataclass(frozen=True)
class Not:
    """What must not be there."""

    what: Tree


@dataclass(frozen=True)
class Both:
    """Two trees joined by AND or OR."""

    how: Literal["AND", "OR"]
    left: Tree
    right: Tree


Tree = Words | Not | Both


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters, as they are indexed and searched.

    >>> words_of("Don't PANIC: see www.example.com, 東京!")
    ['don', 't', 'panic', 'see', 'www', 'example', 'com', '東', '京']
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def parse(query: str) -> Tree | None:
    """The tree of a query; None when it has no word.

    >>> parse('refund -late')
    Both(how='AND', left=Words(words=('refund',), prefix=False, typos=0, near=0), \
right=Not(what=Words(words=('late',), prefix=False, typos=0, near=0)))
    >>> parse('(') is None
    True
    """
    return _Reader(query).tree()


class _Reader:
    """Reads a query once, from left to right. A bracket or quote that is never closed is taken for nothing."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def tree(self, until: int | None = None) -> Tree | None:
        """The tree of the text up to `until`, the place of a closing bracket."""
        end = len(self._text) if until is None else until
        tree: Tree | None = None
        how: Literal["AND", "OR"] = "AND"
        negated = False
        while self._at < end:
            sign = self._text[self._at]
            if sign.isspace() or sign in "+|)":
                how = "OR" if sign == "|" else how
                self._at += 1
                continue
            if sign == "-":
                negated = not negated
                self._at += 1
                continue
            part = self._part(sign, end)
            if part is not None:
                part = Not(part) if negated else part
                tree = part if tree is None else Both(how, tree, part)
            how, negated = "AND", False
        return tree

    def _part(self, sign: str, end: int) -> Tree | None:
        """What stands in brackets or quotes here, or the word that starts here."""
        if sign == "(":
            return self._bracket(end)
        if sign == '"':
            return self._phrase(end)
        return self._word(end)

    def _bracket(self, end: int) -> Tree | None:
        close = self._closing(end)
        self._at += 1
        if close is None:
            return None
        inside = self.tree(close)
        self._at = close + 1
        return inside

    def _closing(self, end: int) -> int | None:
        """Where the bracket that opens here is closed."""
        depth = 0
        for place in range(self._at, end):
            if self._escaped(place):
                continue
            depth += {"(": 1, ")": -1}.get(self._text[place], 0)
            if depth == 0:
                return place
        return None

    def _escaped(self, place: int) -> bool:
        before = self._text[:place]
        return (len(before) - len(before.rstrip("\\"))) % 2 == 1

    def _phrase(self, end: int) -> Tree | None:
        start = self._at + 1
        close = next((p for p in range(start, end) if self._text[p] == '"' and not self._escaped(p)), None)
        self._at = start
        if close is None:
            return None
        words = tuple(words_of(self._text[start:close].replace("\\", "")))
        self._at = close + 1
        near = self._tilde(end)
        return Words(words, near=near) if words else None

    def _word(self, end: int) -> Tree | None:
        letters, escaped = [], False
        while self._at < end:
            letter = self._text[self._at]
            if not escaped and (letter in _ENDS_A_WORD or letter == "~"):
                break
            escaped = letter == "\\" and not escaped
            if not escaped:
                letters.append(letter)
            self._at += 1
        typos = min(self._tilde(end), _MOST_TYPOS)
        text = "".join(letters)
        words = tuple(words_of(text))
        return Words(words, prefix=text.endswith("*"), typos=typos) if words else None

    def _tilde(self, end: int) -> int:
        """The number behind `~`, 2 when none stands there; 0 without `~`."""
        found = re.compile(r"~([^\s\"|+()]*)").match(self._text, self._at, end)
        if found is None:
            return 0
        self._at = found.end()
        number = found.group(1)
        return _MOST_TYPOS if not number else int(number) if number.isdecimal() else 0
