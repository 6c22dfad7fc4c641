"""The options that say how a source is divided into rows and cells, as far as they are not detected."""

from __future__ import annotations

from dataclasses import dataclass, fields

from schemas.text import shell_quote


@dataclass(frozen=True, slots=True)
class TableOptions:
    """The dialect of delimited text, where its header is, and the sheet of a workbook; None is detected."""

    delimiter: str | None = None
    quote: str | None = None
    """the character around cells with delimiters; empty if no character has this meaning, `"` by default"""
    escape: str | None = None
    """the character before a quote, a delimiter, a line end or itself that takes away its meaning; none by default"""
    skip_lines: int = 0
    """lines before the header"""
    header: bool | None = None
    """whether the first row has the column names; by default it has, and must not look like data"""
    sheet: str | None = None
    """the sheet of a workbook, or the table of a database"""
    named: tuple[str, ...] = ()
    """columns that other options name: a first row with one of them is a header"""

    def given(self) -> list[str]:
        """The names of the options that are not at their default."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return [name for name in given if name != "named"]


DETECTED = TableOptions()


def import_line(path: str, options: str) -> str:
    r"""The line of a hint with the command that imports a file with `options`; `curate import` adds those given to it.

    >>> import_line("my chats.csv", "--no-header")
    "\n    curate import 'my chats.csv' --no-header"
    """
    return f"\n    curate import {shell_quote(path)} {options}"
