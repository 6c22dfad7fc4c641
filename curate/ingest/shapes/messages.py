"""OpenAI messages: a list with `role` and `content`, tool calls inside the assistant's messages.

In: one row per conversation. Out: its turns. An assistant message with words and tool calls becomes a `gpt` turn
directly followed by a `function_call` turn; a tool's message becomes an `observation` that keeps its call's id.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.pairs import SYSTEM
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable

NAMES = ("messages", "conversation", "conversations", "chat", "dialog", "dialogue", "turns", "prompt")


def fits(cells: pl.Series) -> pl.Series:
    """Which cells hold a list of messages."""
    return turn_lists.is_family(cells, turn_lists.MESSAGES)


FIELDS = {
    "messages": Field(NAMES, required=True, fits=fits, anywhere=True),
    "completion": Field(("completion",), fits=fits),
    "system": SYSTEM,
    "tools": turn_lists.TOOLS_FIELD,
}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with a column of message lists, or with a list of prompts and one of completions."""
    return turn_lists.read(table, mapping, "messages")
