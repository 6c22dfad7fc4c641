"""A reject as stored → its cells by column, and an excerpt with the error."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from curate.ingest.column_mapping import parse_table
from curate.ingest.named_split import SPLIT_COLUMN
from curate.ingest.readers.batch import EXPORT_COLUMNS, RAW_COLUMN
from curate.ingest.readers.csv_layout import split_record
from curate.ingest.readers.csv_scanner import Signs
from curate.ingest.repairs import STORED_REPAIRS, repair
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.json_cells import split_object
from curate.ingest.shapes.shape import ColumnMapping
from schemas.text import shorten

EXCERPT = 80
"""Characters of an excerpt, or of each of its turns."""

TURN, CHARACTER = r"^Turn (\d+)\b", r"\bcharacter (\d+)\b"
"""Positions in the reason of a reject."""

RAW_ONLY = ("ragged-row", "not-utf8", "footer-row", "repeated-header", "unclosed-quote", "stray-quote")
"""Codes of rows whose cells would be wrong if they were imported again without a correction."""

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
    columns: list[str]
    """of the source"""

    @property
    def values(self) -> dict[str, str | None]:
        """The cells, or empty ones and the raw text."""
        return {**dict.fromkeys(self.columns), RAW_COLUMN: self.raw} if self.cells is None else self.cells


def parse_reject(reject: Mapping[str, Any]) -> RejectRow:
    """A reject in the columns of its source, and with the split that its file is named after."""
    mapping = json.loads(reject["mapping"])
    raw, columns = reject["raw"], [column for column in reject["columns"] if column not in EXPORT_COLUMNS]
    is_json = not mapping.get("delimiter")
    if reject["code"] in RAW_ONLY:
        cells = None
    elif is_json:
        raw = replace_constants(raw)
        cells = _json_cells(raw, columns)
    else:
        cells = _csv_cells(raw, reject["columns"], mapping)
    if cells is not None:
        cells = {column: cell for column, cell in cells.items() if column not in EXPORT_COLUMNS}
    values = (f"{reject['source']}:{reject['row']}", reject["reason"])
    added = dict(zip(EXPORT_COLUMNS, values, strict=False))
    split = {SPLIT_COLUMN: mapping[SPLIT_COLUMN]} if SPLIT_COLUMN in mapping else {}
    return RejectRow(raw if cells is not None else reject["raw"], cells, is_json, added | split, columns)


def replace_constants(raw: str) -> str:
    """The JSON text with `null` in place of NaN and infinities, which JSON does not have.

    >>> replace_constants('{"a": NaN, "b": "NaN", "c": [-Infinity]}')
    '{"a": null, "b": "NaN", "c": [null]}'
    """
    return _CONSTANT.sub(lambda match: match[0] if match[0].startswith('"') else "null", raw)


_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:nan|inf|infinity)\b', re.IGNORECASE | re.DOTALL)


def _json_cells(raw: str, columns: Sequence[str]) -> dict[str, str | None] | None:
    """The values of a JSON object as text, nested ones unchanged; a list is the value of the only column.

    None if the text is not an object or the cells would lose information: a duplicate key, half of a surrogate pair, a
    number or nesting that Python cannot parse.
    """
    try:
        value = json.loads(raw)
        if isinstance(value, list) and len(columns) == 1:
            return {columns[0]: raw}
        if not isinstance(value, dict) or len(json.loads(raw, object_pairs_hook=list)) > len(value):
            return None
        texts = split_object(raw)
        cells = {key: value[key] if isinstance(value[key], str | None) else text for key, text in texts.items()}
        "".join([*cells, *filter(None, cells.values())]).encode()
    except (ValueError, RecursionError):
        return None
    return cells


def _csv_cells(raw: str, columns: Sequence[str], mapping: Mapping[str, Any]) -> dict[str, str | None] | None:
    """The cells of a CSV record; None if it does not have one per column, except a last one that is empty."""
    quote = mapping.get("quote")
    signs = Signs(mapping["delimiter"], '"' if quote is None else quote, mapping.get("escape") or "")
    cells = split_record(raw, signs)
    if cells is not None and len(cells) == len(columns) + 1 and cells[-1] == "":
        cells = cells[:-1]
    if cells is None or len(cells) != len(columns):
        return None
    return {column: cell or None for column, cell in zip(columns, cells, strict=True)}


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
