"""Alpaca: an instruction, an optional input to it, and the output that is wanted.

In: one row per instruction. Out: the turns (system,) (history,) human, gpt, where the human says the
instruction, a blank line and the input.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import ANSWER_NAMES, HISTORY, SYSTEM, WEAK_ANSWER_NAMES, dialogue, joined
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain

FIELDS = {
    "instruction": Field(("instruction",), required=True, fits=is_plain),
    "input": Field(("input", "context")),
    "output": Field(ANSWER_NAMES, required=True, weak=WEAK_ANSWER_NAMES, fits=is_plain),
    "system": SYSTEM,
    "history": HISTORY,
}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of an Alpaca table. An absent cell is an empty turn, for the rules to judge."""
    column = mapping.column
    return dialogue(
        question=joined(column(table, "instruction"), column(table, "input")),
        answer=column(table, "output").fill_null(""),
        system=column(table, "system") if "system" in mapping.fields else None,
        history=column(table, "history") if "history" in mapping.fields else None,
    )
