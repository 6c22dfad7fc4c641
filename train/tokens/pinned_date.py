"""In: the text of a chat template, a day. Out: the same text with this day in it, wherever it asks for today's.

Llama 3.1 and gpt-oss tell their model which day it is. Trained on one day and served on another, every answer would
begin behind a prompt that was never seen; so the day stands in the text that is trained, digested and handed over.
Templates ask in two ways: by `strftime_now`, a function of transformers and llama.cpp, and by variables that llama.cpp
sets for every template. Those get another name, which nobody sets: the template then says what it says without them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

from jinja2 import Environment

WORDS = ("data", "raw_begin", "raw_end", "comment_begin", "comment", "comment_end")
"""Tokens of Jinja's that it writes as they stand, or leaves out; it computes all others."""

SET_BY_ENGINES = "date_string|datetime"
"""Variables that llama.cpp sets (`common_chat_extra_context` in common/chat.cpp)."""

PARTS = re.compile(
    rf"""\bstrftime_now\s*\(\s*(?P<quote>["'])(?P<form>[^"'\\]*)(?P=quote)\s*\)"""
    rf"""|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
    rf"""|(?<![.\w])(?P<variable>{SET_BY_ENGINES})\b""",
    re.DOTALL,
)
"""A question for the day in a form that stands there, a text, or one of the variables: in this order."""

ASKS = re.compile(
    r"""(?P<name>\bstrftime_now\b)(?!\s+is\s+(?:not\s+)?defined)|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL
)
"""The function, but for the question whether there is one; or a text, in which nothing is asked."""


def pin_date(text: str, day: datetime) -> str:
    """The template with the day in it.

    >>> pin_date('{{ "Today: " + strftime_now("%d %b %Y") }}', datetime(2026, 1, 1))
    '{{ "Today: " + "01 Jan 2026" }}'
    >>> pin_date("a datetime {% if not date_string is defined %}…{% endif %}", datetime(2026, 1, 1))
    'a datetime {% if not pinned_date_string is defined %}…{% endif %}'

    Raises jinja2's `TemplateSyntaxError` for a text that is no Jinja.
    """

    def written(part: re.Match[str]) -> str:
        if part["form"] is not None:
            return json.dumps(day.strftime(part["form"]), ensure_ascii=False)
        return f"pinned_{part['variable']}" if part["variable"] else part[0]

    made = "".join(PARTS.sub(written, piece) if computed else piece for computed, piece in _pieces(text))
    return made if made != _with_newlines(text) else text


def uses_dynamic_date(text: str) -> bool:
    """Whether the template asks for the day in a form that it makes up itself, which cannot be written into it.

    >>> uses_dynamic_date('{% set now = strftime_now %}{{ now("%Y") }}')
    True
    >>> uses_dynamic_date("{% raw %}{{ strftime_now }}{% endraw %}{{ 'strftime_now' if strftime_now is defined }}")
    False
    """
    return any(found["name"] for computed, piece in _pieces(text) if computed for found in ASKS.finditer(piece))


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces, each with whether Jinja computes it."""
    for computed, tokens in groupby(_tokens(_with_newlines(text)), lambda token: token[0] not in WORDS):
        yield computed, "".join(piece for _, piece in tokens)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """The kind of each token and its text, with white space before it that a `-` takes away, which is no token."""
    place = 0
    for _, kind, value in Environment(keep_trailing_newline=True).lex(text):
        end = text.index(value, place) + len(value)
        yield kind, text[place:end]
        place = end
    yield WORDS[0], text[place:]


def _with_newlines(text: str) -> str:
    """As Jinja reads a text: every line ends in a newline alone."""
    return re.sub(r"\r\n?", "\n", text)
