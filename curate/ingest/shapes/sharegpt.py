"""ShareGPT: a list of turns with `from` and `value`, with tools and a system text beside it.

In: one row per conversation. Out: its turns; a tool call is a turn `function_call`, its result `observation`.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.pairs import SYSTEM
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable

NAMES = ("conversations", "conversation", "turns", "dialog", "dialogue", "dialogs", "chat", "items", "messages")


def fits(cells: pl.Series) -> pl.Series:
    """Which cells hold a list of turns in ShareGPT's keys."""
    return turn_lists.is_family(cells, turn_lists.SHAREGPT)


FIELDS = {
    "conversations": Field(NAMES, required=True, fits=fits, anywhere=True),
    "system": SYSTEM,
    "tools": turn_lists.TOOLS_FIELD,
}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with a column of ShareGPT lists."""
    return turn_lists.read(table, mapping, "conversations")
