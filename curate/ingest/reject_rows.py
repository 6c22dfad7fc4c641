"""A reject as stored → its cells by column, and an excerpt with the error."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from curate.ingest.column_mapping import parse_table
from curate.ingest.convert import EXPORT_COLUMNS
from curate.ingest.named_split import COLUMN
from curate.ingest.repairs import STORED_REPAIRS, repair
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.json_cells import split_object
from curate.ingest.shapes.shape import ColumnMapping
from schemas.text import shorten

EXCERPT = 80
"""Characters of an excerpt, or of each of its turns."""

TURN, CHARACTER = r"^Turn (\d+)\b", r"\bcharacter (\d+)\b"
"""Positions in the reason of a reject."""

BROKEN_JSON = "broken-json"

AT_END = ("ragged-row", BROKEN_JSON, "not-closed")
"""Codes of errors at the end of the text, unless the reason contains a position."""


@dataclass(frozen=True, slots=True)
class RejectRow:
    """A reject for an export; `cells` is None if the raw text cannot be split into columns."""

    raw: str
    cells: dict[str, str | None] | None
    is_json: bool
    export_columns: dict[str, str]


def parse_reject(reject: Mapping[str, Any]) -> RejectRow:
    """A reject in the columns of its source, and with the split that its file is named after."""
    mapping = json.loads(reject["mapping"])
    delimiter = mapping.get("delimiter")
    cells = _csv_cells(reject["raw"], reject["columns"], delimiter) if delimiter else _json_cells(reject["raw"])
    if cells is not None:
        cells = {column: cell for column, cell in cells.items() if column not in EXPORT_COLUMNS}
    values = (f"{reject['source']}:{reject['row']}", reject["reason"])
    added = dict(zip(EXPORT_COLUMNS, values, strict=False))
    split = {COLUMN: mapping[COLUMN]} if COLUMN in mapping else {}
    return RejectRow(reject["raw"], cells, not delimiter, added | split)


def _json_cells(raw: str) -> dict[str, str | None] | None:
    """The values of a JSON object as text, nested ones unchanged.

    None if the text is not an object or the cells would lose information: a duplicate key, half of a surrogate pair, a
    number or nesting that Python cannot parse.
    """
    try:
        value = json.loads(raw)
        if not isinstance(value, dict) or len(json.loads(raw, object_pairs_hook=list)) > len(value):
            return None
        texts = split_object(raw)
        cells = {key: value[key] if isinstance(value[key], str | None) else text for key, text in texts.items()}
        "".join([*cells, *filter(None, cells.values())]).encode()
    except (ValueError, RecursionError):
        return None
    return cells


def _csv_cells(raw: str, columns: list[str], delimiter: str) -> dict[str, str | None] | None:
    """The cells of a CSV record; None if it does not have one per column."""
    csv.field_size_limit(sys.maxsize)
    try:
        records = list(csv.reader(io.StringIO(raw, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    if len(records) != 1 or len(records[0]) != len(columns):
        return None
    return {column: cell or None for column, cell in zip(columns, records[0], strict=True)}


def build_excerpts(rejects: pl.DataFrame) -> list[str]:
    """For each reject (`source`, `code`, `reason`, `raw`, `mapping`, `columns`), one line with the place of the error.

    It is the turn named by the reason, after the previous turn; or the text around a character, or at one end of the
    row. For a row that is a single turn (long format), it is the row.
    """
    numbered = rejects.with_row_index("at").with_columns(
        _extract_number(TURN).alias("turn"),
        pl.when(pl.col("code") == BROKEN_JSON).then(_extract_number(CHARACTER)).alias("character"),
    )
    turns: dict[int, str] = {}
    for (stored,), group in numbered.filter(pl.col("turn").is_not_null()).group_by("mapping"):  # one per source
        mapping = json.loads(str(stored))
        if not SHAPES[mapping["shape"]].spans_rows:  # there, the previous turns are other rows
            turns |= _turn_excerpts(mapping, group)
    return [turns.get(reject["at"]) or _text_excerpt(reject) for reject in numbered.iter_rows(named=True)]


def _extract_number(pattern: str) -> pl.Expr:
    """The number in a reason; null if it is too large, because a reason may quote text of the source."""
    return pl.col("reason").str.extract(pattern).cast(pl.Int64, strict=False)


def _turn_excerpts(mapping: Mapping[str, Any], rejects: pl.DataFrame) -> dict[int, str]:
    """`at` → excerpt, for rejects with the same mapping; without those whose text does not contain the turn."""
    rows = [
        (reject["at"], reject["turn"], parse_reject(reject).cells or {}) for reject in rejects.iter_rows(named=True)
    ]
    columns = dict.fromkeys((column for _, _, cells in rows for column in cells), pl.String)
    table = pl.DataFrame([cells for _, _, cells in rows], schema=columns)
    parsed = parse_table(table, ColumnMapping.from_stored(mapping)) if columns else None
    by_row = repair(parsed.turns, mapping[STORED_REPAIRS])[0].partition_by("row", as_dict=True) if parsed else {}
    numbers = dict(parsed.members.select("position", "row").iter_rows()) if parsed else {}
    excerpts = {}
    for row, (at, turn, cells) in enumerate(rows):
        frame = by_row.get((numbers.get(row, row),))
        turns = _elements(cells, mapping["fields"]) if frame is None else frame.select("from", "value").rows()
        if turn <= len(turns):
            shown = turns[max(turn - 2, 0) : turn]
            excerpts[at] = " · ".join(f"{name}: {_one_line(text) or '(empty)'}" for name, text in shown)
    return excerpts


def _elements(cells: Mapping[str, str | None], fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """The elements of a list that could not be parsed as turns: number and text."""
    for column in fields.values():
        try:
            value = json.loads(cells.get(column) or "")
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list):
            return [(f"turn {n}", json.dumps(element, ensure_ascii=False)) for n, element in enumerate(value, 1)]
    return []


def _text_excerpt(reject: Mapping[str, Any]) -> str:
    """The text around the character named by the reason, or at the end or start of the row."""
    raw, character = reject["raw"], reject["character"]
    end = max(len(raw) - EXCERPT, 0) if reject["code"] in AT_END else 0
    start = end if character is None else max(character - EXCERPT // 2, 0)
    return f"{'…' if start else ''}{_one_line(raw[start:])}"


def _one_line(text: str) -> str:
    return shorten(" ".join(text[: 4 * EXCERPT].split()), EXCERPT)
