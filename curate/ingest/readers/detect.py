"""The format of a source: by its name where that is enough, by its first bytes otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from curate.ingest.readers.byte_stream import PARQUET, ByteStream
from schemas.errors import SourceError

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""File name's ending, without that of a compression, to format."""

COMPRESSED = (".gz", ".zst")

DATASET_NAME = re.compile(r"(hf:)?[\w.-]+/[\w.-]+(#[\w.-]+)?|hf:[\w.-]+(#[\w.-]+)?")
"""A name on the Hugging Face hub, with a split behind `#`; one without an owner needs `hf:` before it."""


def format_of(stream: ByteStream) -> str:
    """Name of the format of `stream`. A name that ends in `.json` is no answer: both kinds of JSON are called so."""
    if is_dataset(stream.path):
        return "hub"
    named = SUFFIXES.get(data_suffix(stream.path), "")
    start = stream.head()
    if start.startswith(PARQUET):
        return "parquet"
    if named in ("csv", "tsv", "parquet"):
        return named
    return _by_content(stream.path, start, named)


def data_suffix(path: str) -> str:
    """The ending of a file's name that tells its format, without that of a compression.

    >>> data_suffix("tickets.CSV.gz")
    '.csv'
    """
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def is_dataset(path: str) -> bool:
    """Whether `path` is a folder that `datasets` saved, or a name on the hub."""
    folder = Path(path.partition("#")[0])
    if folder.is_dir():
        return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    named = DATASET_NAME.fullmatch(path) is not None and not folder.exists() and not data_suffix(path)
    return named and (path.startswith("hf:") or not folder.parent.exists())


def _by_content(path: str, start: bytes, named: str) -> str:
    text = start.lstrip()
    if not text:
        raise SourceError(f"{path} is empty.", "Leave it out, or export it again.")
    if re.match(rb"\[\s*[\[{\]]", text) or (named == "json" and text.startswith(b"[")):
        return "json"
    if not text.startswith(b"{"):
        return named or "csv"
    if named == "jsonl":
        return "json" if text.split(b"\n", 1)[0].strip() == b"{" else "jsonl"
    objects = [value for line in text.split(b"\n", 5)[:5] if (value := _object(line)) is not None]
    return "jsonl" if len(objects) > 1 or any(not wraps_rows(value) for value in objects) else "json"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def wraps_rows(value: dict[str, Any]) -> bool:
    """Whether an object is no row itself, but stands around a list of rows.

    >>> wraps_rows({"count": 1, "data": [{"question": "Why?"}]})
    True
    >>> wraps_rows({"messages": [{"role": "user", "content": "Why?"}]})
    False
    """
    lists = [one for one in value.values() if holds_objects(one)]
    return bool(lists) and not any(map(holds_turns, lists))


def holds_objects(value: object) -> bool:
    """Whether a value is a list of objects, by its first element."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def holds_turns(objects: list[dict[str, Any]]) -> bool:
    """Whether the objects of a list are turns of a conversation and no rows, by the first."""
    return "role" in objects[0] or "from" in objects[0]
