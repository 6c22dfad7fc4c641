"""In: the text of a chat template, a day. Out: the same text with this day in it, wherever it asks for today's.

Llama 3.1 and gpt-oss tell their model which day it is. Trained on one day and served on another, every answer would
begin behind a prompt that was never seen; so the day stands in the text that is trained, digested and handed over.
Templates ask in two ways: by `strftime_now`, a function of transformers and llama.cpp, and by variables that llama.cpp
sets for every template. Those get another name, which nobody sets: the template then says what it says without them.
"""

from __future__ import annotations

import json
import re
from datetime import datetime

ACTION = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
"""What Jinja reads, between the words that it writes as they stand."""

SET_BY_ENGINES = "date_string|datetime"
"""Variables that llama.cpp sets (`common_chat_extra_context` in common/chat.cpp)."""

PARTS = re.compile(
    rf"""strftime_now\(\s*(?P<quote>["'])(?P<form>[^"'\\]*)(?P=quote)\s*\)"""
    rf"""|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
    rf"""|(?<![.\w])(?P<variable>{SET_BY_ENGINES})\b""",
    re.DOTALL,
)
"""A question for the day in a form that stands there, a text, or one of the variables: in this order."""

ASKS = re.compile(r"strftime_now\s*\(")


def dated(text: str, day: datetime) -> str:
    """The template with the day in it.

    >>> dated('{{ "Today: " + strftime_now("%d %b %Y") }}', datetime(2026, 1, 1))
    '{{ "Today: " + "01 Jan 2026" }}'
    >>> dated("a datetime {% if not date_string is defined %}…{% endif %}", datetime(2026, 1, 1))
    'a datetime {% if not pinned_date_string is defined %}…{% endif %}'
    """

    def written(part: re.Match[str]) -> str:
        if part["form"] is not None:
            return json.dumps(day.strftime(part["form"]), ensure_ascii=False)
        return f"pinned_{part['variable']}" if part["variable"] else part[0]

    return ACTION.sub(lambda action: PARTS.sub(written, action[0]), text)


def asks_for_today(text: str) -> bool:
    """Whether the template asks for the day in a form that it makes up itself, which cannot be written into it."""
    return any(ASKS.search(action[0]) for action in ACTION.finditer(text))
