r"""The text in the search box → a tree of words; a text → the words by which it is indexed and searched.

The syntax is that of Elasticsearch's simple query string, which Argilla documents: words are joined by AND, `|` is
OR, `-word` is NOT, `"a phrase"`, `prefix*`, `word~1` permits one typo, `"a b"~3` finds words near each other,
parentheses, and `\\` escapes a character. As there, AND and OR have the same precedence, from left to right.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

# Scripts without spaces, in which each character is a word: Thai, Lao, Myanmar, Khmer, kana, ideographs.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_TILDE = re.compile(r"~([^\s\"|+()]*)")
_WORD_END = frozenset(' \t\r\n"|+()')
_MAX_TYPOS = 2

Operator = Literal["AND", "OR"]


@dataclass(frozen=True)
class Words:
    """Consecutive words. The last can be a prefix, a single one can have typos, several can be merely near."""

    words: tuple[str, ...]
    prefix: bool = False
    typos: int = 0
    near: int = 0


@dataclass(frozen=True)
class Not:
    """A negated tree."""

    operand: Tree


@dataclass(frozen=True)
class Binary:
    """Two trees joined by AND or OR."""

    operator: Operator
    left: Tree
    right: Tree


Tree = Words | Not | Binary


def words_of(text: str) -> list[str]:
    """The words of a text, case-folded.

    >>> words_of("Don't PANIC: see www.example.com, 東京!")
    ['don', 't', 'panic', 'see', 'www', 'example', 'com', '東', '京']
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def parse(query: str) -> Tree | None:
    """The tree of a query; None if it has no words.

    >>> parse('refund -late')
    Binary(operator='AND', left=Words(words=('refund',), prefix=False, typos=0, near=0), \
right=Not(operand=Words(words=('late',), prefix=False, typos=0, near=0)))
    >>> parse('(') is None
    True
    """
    return _Parser(query).parse_until(len(query))


class _Parser:
    """Reads a query once, from left to right. An unclosed bracket or quote is ignored."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse_until(self, end: int) -> Tree | None:
        """The tree of the text up to `end`."""
        tree: Tree | None = None
        operator: Operator = "AND"
        negated = False
        while self._at < end:
            character = self._text[self._at]
            if character.isspace() or character in "+|)":
                operator = "OR" if character == "|" else operator
                self._at += 1
                continue
            if character == "-":
                negated = not negated
                self._at += 1
                continue
            part = self._parse_part(character, end)
            if part is not None:
                part = Not(part) if negated else part
                tree = part if tree is None else Binary(operator, tree, part)
            operator, negated = "AND", False
        return tree

    def _parse_part(self, character: str, end: int) -> Tree | None:
        if character == "(":
            return self._parse_brackets(end)
        if character == '"':
            return self._parse_phrase(end)
        return self._parse_word(end)

    def _parse_brackets(self, end: int) -> Tree | None:
        close = self._find_closing_bracket(end)
        self._at += 1
        if close is None:
            return None
        tree = self.parse_until(close)
        self._at = close + 1
        return tree

    def _find_closing_bracket(self, end: int) -> int | None:
        depth = 0
        for place in range(self._at, end):
            if self._is_escaped(place):
                continue
            depth += {"(": 1, ")": -1}.get(self._text[place], 0)
            if depth == 0:
                return place
        return None

    def _is_escaped(self, place: int) -> bool:
        before = self._text[:place]
        return (len(before) - len(before.rstrip("\\"))) % 2 == 1

    def _parse_phrase(self, end: int) -> Tree | None:
        start = self._at + 1
        close = next((p for p in range(start, end) if self._text[p] == '"' and not self._is_escaped(p)), None)
        self._at = start
        if close is None:
            return None
        words = tuple(words_of(self._text[start:close].replace("\\", "")))
        self._at = close + 1
        near = self._parse_tilde(end)
        return Words(words, near=near) if words else None

    def _parse_word(self, end: int) -> Tree | None:
        characters, escaped = [], False
        while self._at < end:
            character = self._text[self._at]
            if not escaped and (character in _WORD_END or character == "~"):
                break
            escaped = character == "\\" and not escaped
            if not escaped:
                characters.append(character)
            self._at += 1
        typos = min(self._parse_tilde(end), _MAX_TYPOS)
        text = "".join(characters)
        words = tuple(words_of(text))
        return Words(words, prefix=text.endswith("*"), typos=typos) if words else None

    def _parse_tilde(self, end: int) -> int:
        """The number after `~`, 2 for a bare `~`, 0 without one."""
        match = _TILDE.match(self._text, self._at, end)
        if match is None:
            return 0
        self._at = match.end()
        number = match.group(1)
        return _MAX_TYPOS if not number else int(number) if number.isdecimal() else 0
