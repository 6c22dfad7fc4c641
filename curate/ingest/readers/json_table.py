"""A JSON object that is a whole table → the text of each row: columns of values, or rows under names.

pandas writes columns by default (`to_json`), `orient="split"` and `orient="index"`; `datasets` writes lists
(`to_dict`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from curate.ingest.readers.first_rows import is_header
from curate.ingest.shapes.json_cells import join_object, split_list, split_object


def is_table(value: object) -> bool:
    """Whether an object is a table rather than a row.

    >>> is_table({"question": {"0": "One?"}, "answer": {"0": "Yes."}}), is_table({"question": {"text": "One?"}})
    (True, False)
    >>> is_table({"columns": ["question"], "data": [["One?"]]}), is_table({"question": ["One?"], "answer": ["Yes."]})
    (True, False)
    >>> is_table({"id1": {"question": "One?", "answer": "Yes."}, "id2": {"question": "Two?", "answer": "No."}})
    True
    """
    return isinstance(value, dict) and any(kind(value) for kind in (_is_split, _has_columns, _has_lists, _has_records))


def split_table(text: str) -> list[tuple[str, int]] | None:
    """The rows of a table as JSON objects, each with the number of lines above it; None if the text is not a table.

    A row of columns is in no line, so it counts as in the first.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if _is_split(value):
        names = value["columns"]
        rows = [list(split_list(row)) for row in split_list(split_object(text)["data"])]
        return [(join_object(zip(names, row, strict=True)), 0) for row in rows]
    if _has_columns(value) or _has_lists(value):
        lists = _has_lists(value)
        columns = {
            name: list(split_list(cells)) if lists else list(split_object(cells).values())
            for name, cells in split_object(text).items()
        }
        return [(join_object(zip(columns, row, strict=True)), 0) for row in zip(*columns.values(), strict=True)]
    return list(_records(text)) if _has_records(value) else None


def _is_split(value: Mapping[str, Any]) -> bool:
    """`{"columns": […], "index": […], "data": [[…], …]}`, in which all rows have a cell per column."""
    if not {"columns", "data"} <= set(value) <= {"columns", "index", "data"}:
        return False
    names, rows = value["columns"], value["data"]
    is_list = isinstance(names, list) and isinstance(rows, list) and all(isinstance(name, str) for name in names)
    return is_list and bool(rows) and all(isinstance(row, list) and len(row) == len(names) for row in rows)


def _has_columns(value: Mapping[str, Any]) -> bool:
    """Objects with the same whole numbers as keys."""
    columns = list(value.values())
    if not columns or not all(isinstance(column, dict) and column for column in columns):
        return False
    return all(list(column) == list(columns[0]) for column in columns) and all(key.isdecimal() for key in columns[0])


def _has_lists(value: Mapping[str, Any]) -> bool:
    """Lists of the same length under names, at least two of which shapes look for."""
    columns = list(value.values())
    if len(columns) < 2 or not all(isinstance(column, list) and len(column) > 1 for column in columns):
        return False
    of_objects = [isinstance(column[0], dict) for column in columns]
    return len({len(column) for column in columns}) == 1 and not any(of_objects) and _count_known(value) > 1


def _has_records(value: Mapping[str, Any]) -> bool:
    """At least two objects with the same first key, one of whose keys shapes look for, under names that they do not."""
    records = list(value.values())
    if len(records) < 2 or not all(isinstance(record, dict) and record for record in records):
        return False
    same = all(next(iter(record)) == next(iter(records[0])) for record in records)
    return same and is_header(list(records[0])) and not _count_known(value)


def _count_known(value: Mapping[str, Any]) -> int:
    return sum(is_header([name]) for name in value)


def _records(text: str) -> Iterator[tuple[str, int]]:
    """The objects, each with its name as the first key, `key`, unless it has that key; and the lines above them."""
    line = at = 0
    for name, record in split_object(text).items():
        start = text.index(record, at)
        line, at = line + text.count("\n", at, start), start
        has_key = "key" in json.loads(record)
        named = f'{{"key": {json.dumps(name, ensure_ascii=False)}, {record.lstrip()[1:]}'
        yield (record if has_key else named), line
