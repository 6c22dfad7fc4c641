"""The text of a chat template and a date → the same text with this date wherever it uses today's.

Llama 3.1 and gpt-oss print the date. A model trained on one day and served on another would then receive prompts that
differ from its training, so the date is written into the template that is trained, digested and exported. Templates
get the date from `strftime_now`, a function of transformers and llama.cpp, or from variables that llama.cpp sets for
every template. These variables are renamed to names that are never set, so the template renders its default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

from jinja2 import Environment

LITERAL_TOKENS = ("data", "raw_begin", "raw_end", "comment_begin", "comment", "comment_end")
"""Jinja tokens that are rendered unchanged or omitted; all others are evaluated."""

ENGINE_VARIABLES = "date_string|datetime"
"""Variables that llama.cpp sets (`common_chat_extra_context` in common/chat.cpp)."""

STRING = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""

REPLACEABLE = re.compile(
    rf"""\bstrftime_now\s*\(\s*(?P<quote>["'])(?P<format>[^"'\\]*)(?P=quote)\s*\)|{STRING}"""
    rf"""|(?<![.\w])(?P<variable>{ENGINE_VARIABLES})\b""",
    re.DOTALL,
)
"""A call with a literal format, a string, or one of the variables; the string must come before the variables."""

DYNAMIC = re.compile(rf"(?P<name>\bstrftime_now\b)(?!\s+is\s+(?:not\s+)?defined)|{STRING}", re.DOTALL)
"""The function, except in a test for its existence; or a string."""


def pin_date(text: str, day: datetime) -> str:
    """The template with the date written into it.

    >>> pin_date('{{ "Today: " + strftime_now("%d %b %Y") }}', datetime(2026, 1, 1))
    '{{ "Today: " + "01 Jan 2026" }}'
    >>> pin_date("a datetime {% if not date_string is defined %}…{% endif %}", datetime(2026, 1, 1))
    'a datetime {% if not pinned_date_string is defined %}…{% endif %}'

    Raises jinja2's `TemplateSyntaxError` for text that is not valid Jinja.
    """

    def replacement(match: re.Match[str]) -> str:
        if match["format"] is not None:
            return json.dumps(day.strftime(match["format"]), ensure_ascii=False)
        return f"pinned_{match['variable']}" if match["variable"] else match[0]

    parts = (REPLACEABLE.sub(replacement, part) if evaluated else part for evaluated, part in _parts(text))
    pinned = "".join(parts)
    return pinned if pinned != _unify_newlines(text) else text


def uses_dynamic_date(text: str) -> bool:
    """Whether the template gets the date in a format that it computes, so that no date can be written into it.

    >>> uses_dynamic_date('{% set now = strftime_now %}{{ now("%Y") }}')
    True
    >>> uses_dynamic_date("{% raw %}{{ strftime_now }}{% endraw %}{{ 'strftime_now' if strftime_now is defined }}")
    False
    """
    return any(match["name"] for evaluated, part in _parts(text) if evaluated for match in DYNAMIC.finditer(part))


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """The text in parts, each with whether Jinja evaluates it."""
    for evaluated, tokens in groupby(_tokens(_unify_newlines(text)), lambda token: token[0] not in LITERAL_TOKENS):
        yield evaluated, "".join(part for _, part in tokens)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """The kind and text of each token, including white space before it that a `-` removes."""
    place = 0
    for _, kind, value in Environment(keep_trailing_newline=True).lex(text):
        end = text.index(value, place) + len(value)
        yield kind, text[place:end]
        place = end
    yield LITERAL_TOKENS[0], text[place:]


def _unify_newlines(text: str) -> str:
    """The text as Jinja reads it: every line ends with a newline only."""
    return re.sub(r"\r\n?", "\n", text)
