"""Recovering: a refused row comes in as the store keeps it; its cells, and the place of its fault, go out."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from curate.ingest.column_mapping import ColumnMapping, parse_table
from curate.ingest.convert import EXPORT_COLUMNS
from curate.ingest.repairs import STORED_REPAIRS, repair
from curate.ingest.shapes.json_cells import split_object

EXCERPT = 80
"""Characters of an excerpt, and of each of its turns."""

NOTHING = "(nothing)"

TURN, CHARACTER = r"^Turn (\d+)\b", r"\bcharacter (\d+)\b"
"""How a reason names its place."""

LONG = "long"
BROKEN_JSON = "broken-json"

AT_THE_END = ("ragged-row", BROKEN_JSON, "not-closed")
"""Codes whose fault shows at the end of the text, where the reason names no other place."""


@dataclass(frozen=True, slots=True)
class Row:
    """A reject on its way back into a file; `cells` is missing where the raw text has no columns."""

    raw: str
    cells: dict[str, str | None] | None
    is_json: bool
    own: dict[str, str]


def split(reject: Mapping[str, Any]) -> Row:
    """A reject in the columns of its source."""
    mapping = json.loads(reject["mapping"])
    is_json = mapping["format"] not in {"csv", "tsv"}
    cells = _json_cells(reject["raw"]) if is_json else _csv_cells(reject["raw"], reject["columns"], mapping)
    own = {EXPORT_COLUMNS[0]: f"{reject['source']}:{reject['row']}", EXPORT_COLUMNS[1]: reject["reason"]}
    if cells is not None:
        cells = {column: cell for column, cell in cells.items() if column not in EXPORT_COLUMNS}
    return Row(reject["raw"], cells, is_json, own)


def _json_cells(raw: str) -> dict[str, str | None] | None:
    """The values of a JSON object as texts, nested ones as they stand.

    None where the text is no object, or where its cells would not say all of it: a key stands in it twice, half of a
    surrogate pair, a number or a depth that Python does not read.
    """
    try:
        value = json.loads(raw)
        if not isinstance(value, dict) or len(json.loads(raw, object_pairs_hook=list)) > len(value):
            return None
        cells = {
            key: value[key] if isinstance(value[key], str | None) else text for key, text in split_object(raw).items()
        }
        "".join([*cells, *filter(None, cells.values())]).encode()
    except (ValueError, RecursionError):
        return None
    return cells


def _csv_cells(raw: str, columns: list[str], mapping: Mapping[str, Any]) -> dict[str, str | None] | None:
    """The cells of a CSV record; None where it has not one for every column."""
    csv.field_size_limit(sys.maxsize)
    try:
        records = list(csv.reader(io.StringIO(raw, newline=""), delimiter=mapping["delimiter"], strict=True))
    except csv.Error:
        return None
    if len(records) != 1 or len(records[0]) != len(columns):
        return None
    return {column: cell or None for column, cell in zip(columns, records[0], strict=True)}


def excerpts(rejects: pl.DataFrame) -> list[str]:
    """For each reject (`source`, `code`, `reason`, `raw`, `mapping`, `columns`) the place that its reason speaks of.

    The turn that it names behind the turn before, or the text around a character, or one end of the text; one line. Of
    a row that is one turn by itself (long format) that row alone.
    """
    numbered = rejects.with_row_index("at").with_columns(
        _number(TURN).alias("turn"),
        pl.when(pl.col("code") == BROKEN_JSON).then(_number(CHARACTER)).alias("character"),
    )
    turns: dict[int, str] = {}
    for (mapping,), group in numbered.filter(pl.col("turn").is_not_null()).group_by("mapping"):  # a few sources
        read_as = json.loads(str(mapping))
        if read_as["shape"] != LONG:  # there the turns before it are other rows, and the row itself is the place
            turns |= _turns(read_as, group)
    return [turns.get(reject["at"]) or _around(reject) for reject in numbered.iter_rows(named=True)]


def _number(pattern: str) -> pl.Expr:
    """The number in a reason, which may quote what is no number of ours; null where it is too long for one."""
    return pl.col("reason").str.extract(pattern).cast(pl.Int64, strict=False)


def _turns(mapping: Mapping[str, Any], rejects: pl.DataFrame) -> dict[int, str]:
    """The named turns of rejects that were read in one way, by `at`; without those whose text has no such turn."""
    cells = {reject["at"]: (split(reject).cells or {}, reject["turn"]) for reject in rejects.iter_rows(named=True)}
    columns = dict.fromkeys((column for row, _ in cells.values() for column in row), pl.String)
    table = pl.DataFrame([row for row, _ in cells.values()], schema=columns)
    read = parse_table(table, ColumnMapping(mapping["shape"], mapping["fields"])) if columns else None
    turns = repair(read.turns, mapping[STORED_REPAIRS])[0].partition_by("row", as_dict=True) if read else {}
    found = {}
    for row, (at, (values, turn)) in enumerate(cells.items()):
        spoken = turns[row,].select("from", "value").rows() if (row,) in turns else _elements(values, mapping["fields"])
        if turn <= len(spoken):
            shown = spoken[max(turn - 2, 0) : turn]
            found[at] = " · ".join(f"{who}: {_shortened(text) or NOTHING}" for who, text in shown)
    return found


def _elements(cells: Mapping[str, str | None], fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """The elements of the list of turns that could not be read as turns: number and text."""
    for column in fields.values():
        try:
            value = json.loads(cells.get(column) or "")
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list):
            return [(f"turn {n}", json.dumps(one, ensure_ascii=False)) for n, one in enumerate(value, 1)]
    return []


def _around(reject: Mapping[str, Any]) -> str:
    """The text around the character that the reason names, or its end or beginning, on one line."""
    raw, character = reject["raw"], reject["character"]
    at_the_end = max(len(raw) - EXCERPT, 0) if reject["code"] in AT_THE_END else 0
    start = at_the_end if character is None else max(character - EXCERPT // 2, 0)
    return f"{'…' if start else ''}{_shortened(raw[start:])}"


def _shortened(text: str) -> str:
    line = " ".join(text[: 4 * EXCERPT].split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT]}…"
