"""ShareGPT, a list of turns with `from` and `value` per row, with tools and a system prompt in other columns → turns.

A tool call is a `function_call` turn, its result an `observation` turn.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable
from curate.ingest.shapes.system_prompt import SYSTEM
from curate.ingest.shapes.tools import TOOLS_FIELD

NAMES = ("conversations", "conversation", "turns", "dialog", "dialogue", "dialogs", "chat", "items", "messages")


def fits(cells: pl.Series) -> pl.Series:
    """Whether each cell contains a list of ShareGPT turns."""
    return turn_lists.is_family(cells, turn_lists.SHAREGPT)


FIELDS = {
    "conversations": Field(NAMES, required=True, fits=fits, any_name=True),
    "completion": Field(("completion",), fits=fits),
    "system": SYSTEM,
    "tools": TOOLS_FIELD,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a column of ShareGPT lists."""
    return turn_lists.parse(table, mapping, "conversations")
