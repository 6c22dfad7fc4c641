"""Chats that WhatsApp exports as text, one per cell → the messages of people, without notices and omitted media.

A message starts on a line with its date and time, `[31.12.25, 10:15:01] Name: text` or `12/31/25, 10:15 AM - Name:
text`, and may have further lines. The names are people: `--role NAME=human` and `--role NAME=gpt` assign them.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.chat_export import parse_people
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, number_cells

_DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_TIME = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[ \x{202f}\x{a0}]?[AaPp]\.?[ \x{a0}]?[Mm]\.?)?"
_MARKS = r"[\x{200e}\x{200f}\x{202a}-\x{202e}]*"
"""Marks of text direction, which WhatsApp writes before notices and omitted media."""

_STAMP = rf"{_MARKS}(?:\[{_DATE},? {_TIME}\] |{_DATE},? {_TIME} - )"
_FIRST = rf"^\x{{feff}}?{_STAMP}"
_NAMED = r"(?s)^([^:\n]{1,80}): ?(.*)$"
_NO_TEXT = r"^\s*(?:[\x{200e}\x{200f}].*|<[^<>\n]+>)?\s*$"
"""Notices with the name of the group, omitted media (`<Media omitted>` in the language of the telephone), no text."""

_EDITED = r"\s*\x{200e}?<[^<>\n]+>\s*$"
_START = "\ufdd0"


def _are_chats(cells: pl.Series) -> pl.Series:
    """Whether each cell starts with a message or notice, and a message follows."""
    return cells.str.contains(_FIRST) & cells.str.contains(rf"\n{_STAMP}[^:\n]{{1,80}}: ")


FIELDS = {"text": Field(("text", "chat", "transcript", "conversation"), required=True, fits=_are_chats)}

_LISTS = """
    SELECT row, to_json([json_object('from', m.name, 'value', m.text) FOR m IN messages])::VARCHAR AS cell
    FROM (SELECT row, list({'name': name, 'text': text} ORDER BY n) AS messages FROM said GROUP BY row)
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The messages of a column of chats."""
    cells = mapping.column(table, "text").fill_null("")
    pieces = number_cells(cells).select(
        "row", pl.col("cell").str.replace_all(rf"(?m){_FIRST}", _START).str.split(_START)
    )
    messages = pieces.with_columns(pl.col("cell").list.slice(1)).explode("cell", empty_as_null=False)
    name, text = (pl.col("cell").str.extract(_NAMED, group) for group in (1, 2))
    said = messages.select("row", name.str.strip_chars().alias("name"), text.str.strip_chars().alias("text"))
    said = said.filter(pl.col("name").is_not_null() & ~pl.col("text").str.contains(_NO_TEXT))
    said = said.with_columns(pl.col("text").str.replace(_EDITED, "")).with_row_index("n")
    return parse_people(cells, query_frames(_LISTS, said=said), mapping)
