"""Alpaca, an instruction with an optional input and an output per row → the turns (system,) (history,) human, gpt.

The human turn is the instruction, a blank line and the input.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import ANSWER_NAMES, HISTORY, WEAK_ANSWER_NAMES, parse_pairs
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain_text
from curate.ingest.shapes.system_prompt import SYSTEM

FIELDS = {
    "instruction": Field(("instruction",), required=True, fits=is_plain_text),
    "input": Field(("input", "context")),
    "output": Field(ANSWER_NAMES, required=True, weak_names=WEAK_ANSWER_NAMES, fits=is_plain_text),
    "system": SYSTEM,
    "history": HISTORY,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of an Alpaca table. A missing cell becomes an empty turn, which validation rejects."""
    return parse_pairs(table, mapping, question="instruction", context="input", answer="output")
