"""OpenAI messages, a list with `role` and `content` per row → turns.

An assistant message with content and tool calls becomes a `gpt` turn followed by a `function_call` turn; a tool
message becomes an `observation` turn with the id of its call.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable
from curate.ingest.shapes.system_prompt import SYSTEM
from curate.ingest.shapes.tools import TOOLS_FIELD

NAMES = ("messages", "conversation", "conversations", "chat", "dialog", "dialogue", "turns", "prompt", "contents")


def fits(cells: pl.Series) -> pl.Series:
    """Whether each cell contains a list of messages."""
    return turn_lists.is_family(cells, turn_lists.MESSAGES)


FIELDS = {
    "messages": Field(NAMES, required=True, fits=fits, any_name=True),
    "completion": Field(("completion", "output"), fits=fits),
    "system": SYSTEM,
    "tools": TOOLS_FIELD,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a column of message lists, or of a column of prompts and one of completions."""
    return turn_lists.parse(table, mapping, "messages")
