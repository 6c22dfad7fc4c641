"""Values → plain text for messages, cells and commands: counts, names, beginnings, quotes, no formulas."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime


def plural(number: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "row"), plural(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def join_names(names: Iterable[str], most: int) -> str:
    """The first `most` names and the number of the others; a single remaining name is printed instead of counted.

    >>> join_names("abc", 2), join_names("abcd", 2)
    ('a, b, c', 'a, b and 2 more')
    """
    shown = list(names)
    more = len(shown) - most
    return ", ".join(shown) if more <= 1 else f"{', '.join(shown[:most])} and {more:,} more"


def shorten(text: str, most: int = 300) -> str:
    """The first `most` characters of `text`, followed by an ellipsis if it is longer.

    >>> shorten("kettle", 10), shorten("kettle", 3)
    ('kettle', 'ket…')
    """
    return text if len(text) <= most else f"{text[:most]}…"


def printable(value: object) -> str:
    r"""`value` as text that a terminal displays and does not interpret: grouped numbers, visible control characters.

    >>> printable(31034), printable(0.5), printable(None), printable("a\x1b[31m")
    ('31,034', '0.5', '', 'a␛[31m')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).translate(_VISIBLE)


def local_minute(at: datetime) -> str:
    """A moment to the minute for people: the time of this machine's zone, with its offset from UTC; Z is UTC itself.

    >>> datetime.fromisoformat(local_minute(datetime(2026, 11, 21, 12, 25, 59, tzinfo=UTC))).astimezone(UTC)
    datetime.datetime(2026, 11, 21, 12, 25, tzinfo=datetime.timezone.utc)
    """
    with suppress(OverflowError):  # a bundle may state the first or last year that Python knows
        at = at.astimezone()
    return at.isoformat(sep=" ", timespec="minutes").replace("+00:00", "Z")


def utc_timestamp(at: datetime) -> str:
    """A moment for programs: ISO 8601 in UTC; without a zone, of which nothing is known, the local time as it is.

    >>> utc_timestamp(datetime.fromisoformat("2026-11-21T13:25:00+01:00")), utc_timestamp(datetime(2026, 11, 21))
    ('2026-11-21T12:25:00Z', '2026-11-21T00:00:00')
    """
    return at.isoformat() if at.tzinfo is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def indent_json(text: str) -> str:
    r"""JSON over several lines; other text unchanged.

    >>> indent_json('{"a": 1}'), indent_json("a: 1")
    ('{\n  "a": 1\n}', 'a: 1')
    """
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return text


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would run the text of a CSV cell as a formula.

    >>> is_formula("=1+1"), is_formula("'=1+1"), is_formula("1+1")
    (True, False, False)
    """
    return cell.startswith(_FORMULA_STARTS)


def escape_formula(cell: str) -> str:
    """The text with an apostrophe before it if a spreadsheet would run it as a formula.

    >>> [escape_formula(cell) for cell in ("=1+1", "'=1", "-5", "'tis")]
    ["'=1+1", "''=1", "'-5", "'tis"]
    """
    return f"'{cell}" if is_formula(cell.lstrip("'")) else cell


def unescape_formula(cell: str) -> str:
    """The text before `escape_formula`.

    >>> [unescape_formula(cell) for cell in ("'=1+1", "''=1", "-5", "'tis")]
    ['=1+1', "'=1", '-5', "'tis"]
    """
    return cell[1:] if cell.startswith("'") and is_formula(cell.lstrip("'")) else cell


BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that reverse the direction of the text after them."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""As listed by OWASP, CSV injection: https://owasp.org/www-community/attacks/CSV_Injection"""

_VISIBLE = {
    **dict.fromkeys(BIDI, 0xFFFD),
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),  # C1: some terminals obey these too
}


def shell_quote(text: str) -> str:
    r"""The text as one word of bash or zsh, on one line.

    >>> print(shell_quote("a b"), shell_quote("a\nb"))
    'a b' $'a\U0000000ab'
    """
    if text.isprintable():
        return shlex.quote(text)
    escaped = (c if c.isprintable() and c not in "\\'" else f"\\U{ord(c):08x}" for c in text)
    return f"$'{''.join(escaped)}'"


def quote_name(name: str) -> str:
    """A name of a table or column in SQL.

    >>> quote_name('my "best" column')
    '"my ""best"" column"'
    """
    return '"' + name.replace('"', '""') + '"'
