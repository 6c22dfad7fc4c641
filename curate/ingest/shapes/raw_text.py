"""Texts: raw text, one a row, to go on pretraining with: nobody asks, and all of it is learned.

In: one column of texts. Out: for each a single turn, the assistant's, with its white space as it stands.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import interleave
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain

FIELDS = {"text": Field(("text",), required=True, fits=is_plain)}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The texts of a column. An absent cell is an empty turn, for the rules to judge."""
    return ParsedTable(interleave({"gpt": mapping.column(table, "text").fill_null("")}))
