"""A byte stream → the name of its format, from the path, the first bytes and the suffix."""

from __future__ import annotations

import json
import re
from typing import Any

from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.compression import data_suffix
from curate.ingest.readers.formats import FORMATS, SUFFIXES, match_path
from curate.ingest.readers.json_array import is_wrapper
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError


def detect_format(stream: ByteStream, options: TableOptions) -> str:
    """The format of `stream`, a key of `FORMATS`. Raises `SourceError` if the stream is empty."""
    if named := match_path(stream.path):
        return named
    start = stream.head()
    for name, format in FORMATS.items():
        if format.magic and start.startswith(format.magic):
            return name
    by_suffix = SUFFIXES.get(data_suffix(stream.path))
    if options.delimiter is not None and by_suffix is None:
        return "csv"
    if by_suffix and FORMATS[by_suffix].suffix_decides:
        return by_suffix
    return _detect_text_format(stream.path, start, by_suffix)


def _detect_text_format(path: str, start: bytes, by_suffix: str | None) -> str:
    """JSON list, JSON lines or CSV. The suffix `.json` is used for lists and for lines."""
    text = start.lstrip()
    if not text:
        raise SourceError(f"{path} is empty.", "Omit it, or export it again.")
    if re.match(rb"\[\s*[\[{\]]", text) or (by_suffix == "json" and text.startswith(b"[")):
        return "json"
    if not text.startswith(b"{"):
        return by_suffix or "csv"
    if by_suffix == "jsonl":
        return "json" if text.split(b"\n", 1)[0].strip() == b"{" else "jsonl"
    objects = [value for line in text.split(b"\n", 5)[:5] if (value := _parse_object(line)) is not None]
    return "jsonl" if len(objects) > 1 or any(not is_wrapper(value) for value in objects) else "json"


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
