"""Raw text for continued pretraining, one text per row → a single `gpt` turn with all of it, including white space."""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import interleave
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain_text

FIELDS = {"text": Field(("text",), required=True, fits=is_plain_text)}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The texts of a column. A missing cell becomes an empty turn, which validation rejects."""
    return ParsedTable(interleave({"gpt": mapping.column(table, "text").fill_null("")}))
