"""Values, texts and files → SHA-256 digests, 64 hex digits each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def canonical_json(value: object) -> str:
    """One text for one value: keys sorted, no white space, characters as they are.

    >>> canonical_json({"b": 1, "a": "é"})
    '{"a":"é","b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_digest(text: str) -> str:
    """SHA-256 of `text` as UTF-8, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    return text_digest(canonical_json(value))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten_keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their keys joined by dots.

    >>> dict(flatten_keys({"train": {"steps": 20, "extra": {}}}))
    {'train.steps': 20, 'train.extra': {}}
    """
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
