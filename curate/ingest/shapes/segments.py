"""Axolotl's segments, pieces of one text with a loss flag each → an error that names the layout.

A conversation has a flag per turn, and chat templates write control tokens: the pieces cannot become turns.
"""

from __future__ import annotations

from typing import NoReturn

import polars as pl

from curate.ingest.shapes.shape import ColumnMapping, Field
from schemas.errors import SourceError


def _are_segments(cells: pl.Series) -> pl.Series:
    """Whether each cell is a list of objects with `label` (true or false) and `text`."""
    has_label = cells.str.contains(r'[{,]\s*"label"\s*:\s*(?:true|false)')
    return cells.str.contains(r"^\s*\[\s*\{") & has_label & cells.str.contains(r'[{,]\s*"text"\s*:\s*"')


FIELDS = {"segments": Field(("segments",), required=True, fits=_are_segments)}


def parse(_table: pl.DataFrame, mapping: ColumnMapping) -> NoReturn:
    """Raise `SourceError`: no conversation can contain segments."""
    raise SourceError(
        f"The column {mapping.fields['segments']} has segments as in Axolotl, parts of one text with a label for the "
        "loss; a conversation has turns, and its control tokens come from the chat template.",
        "Write a question per segment with the label false and an answer per segment with true, without control "
        "tokens, as a list of texts in a column named turns.",
    )
