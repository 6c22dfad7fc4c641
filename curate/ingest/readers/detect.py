"""A byte stream → the name of its format, from the path, the first bytes and the suffix."""

from __future__ import annotations

import json
import re
from typing import Any

from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.compression import data_suffix
from curate.ingest.readers.csv_head import check_is_text
from curate.ingest.readers.csv_head import is_table as is_table_text
from curate.ingest.readers.file_kind import check_is_table, is_workbook
from curate.ingest.readers.formats import FORMATS, SUFFIXES, match_path
from curate.ingest.readers.json_array import is_wrapper
from curate.ingest.readers.json_table import is_table
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError


def detect_format(stream: ByteStream, options: TableOptions) -> str:
    """The format of `stream`, a key of `FORMATS`.

    Raises `SourceError` if the stream is empty, or a text that is not data, such as an HTML page.
    """
    if named := match_path(stream.path):
        return named
    start = stream.head()
    by_suffix = SUFFIXES.get(data_suffix(stream.name))
    if binary := _detect_binary(start):
        return binary
    if options.delimiter is not None and by_suffix in (None, "text"):
        return "csv"
    if by_suffix == "text" and (_JSON.match(start) or is_table_text(start)):
        by_suffix = None
    if by_suffix == "text":
        check_is_text(stream.path, start)
    else:
        check_is_table(stream.path, start)
    decides = by_suffix is not None and FORMATS[by_suffix].suffix_decides
    return by_suffix if by_suffix and decides else _detect_text_format(stream.path, start, by_suffix)


_JSON = re.compile(rb'\s*(\{\s*["\']|\[\s*[\[{])')


def _detect_binary(start: bytes) -> str | None:
    if is_workbook(start):
        return "xlsx"
    return next((name for name, format in FORMATS.items() if start.startswith(format.magic)), None)


def _detect_text_format(path: str, start: bytes, by_suffix: str | None) -> str:
    """JSON list, JSON lines or CSV. The suffix `.json` is used for lists and for lines."""
    text = start.lstrip()
    if not text:
        raise SourceError(f"{path} is empty.", "Omit it, or export it again.")
    if re.match(rb"\[\s*[\[{\]]", text) or (by_suffix == "json" and text.startswith(b"[")):
        return "jsonl" if by_suffix == "jsonl" and len(_parse_values(text.split(b"\n", 1)[0])) == 1 else "json"
    if not text.startswith(b"{"):
        return by_suffix or "csv"
    lines = text.split(b"\n", 5)[:5]
    values = [value for line in lines for value in _parse_values(line)]
    if len(_parse_values(lines[0])) > 1 or (len(values) == 1 and is_table(values[0])):
        return "json"
    if by_suffix == "jsonl":
        return "json" if lines[0].strip() == b"{" else "jsonl"
    return "jsonl" if len(values) > 1 or any(not is_wrapper(value) for value in values) else "json"


def _parse_values(line: bytes) -> list[Any]:
    """The objects and lists of a line, of which there are at most two; empty if it is not complete JSON."""
    values: list[Any] = []
    text = line.decode(errors="replace").strip()
    try:
        while text and len(values) < 2:
            value, end = json.JSONDecoder().raw_decode(text)
            values.append(value)
            text = text[end:].lstrip(" ,")
    except (ValueError, RecursionError):
        return values if len(values) > 1 else []
    return [value for value in values if isinstance(value, dict | list)]
