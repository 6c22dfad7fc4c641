"""A file of corrected rejects → the mapping with which its source was imported."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.ingest.import_options import apply_options
from curate.ingest.readers import open_source
from curate.ingest.readers.batch import REJECT_COLUMN
from curate.ingest.rejects import import_options
from schemas.import_recipe import ImportSection
from schemas.store import reading

MAPPING_KEYS = {
    *("shape", "map", "group_by", "order_by", "role", "roles", "text"),
    *("turns_key", "role_key", "text_key", "sql", "repair", "system"),
}
"""Keys that decide how a row becomes a conversation; if one is given, the mapping is that of the user."""

HEAD = 1 << 16


def mapping_of_rejects(store: Path, files: Sequence[str], section: ImportSection) -> ImportSection:
    """The section with the mapping of the source whose exported rejects the only file has; otherwise unchanged."""
    given = section.model_dump(include=MAPPING_KEYS) != ImportSection().model_dump(include=MAPPING_KEYS)
    if given or len(files) != 1 or not store.exists() or not _is_export(files[0]):
        return section
    first = next((batch.table for batch in open_source(files[0]).batches() if batch.table.height), None)
    if first is None or REJECT_COLUMN not in first.columns:
        return section
    source = str(first[REJECT_COLUMN].drop_nulls().first()).partition(":")[0]
    with reading(store) as connection:
        stored = connection.execute("SELECT mapping FROM sources WHERE source = ?", [source]).fetchone()
    return (
        section
        if stored is None
        else apply_options(section, _parse(import_options(first.columns, stored[0], with_where=False)))
    )


def _is_export(path: str) -> bool:
    """Whether a file seems to be an export of rejects: the name of its column is in the first bytes."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return REJECT_COLUMN.encode() in file.read(HEAD)


def _parse(options: str) -> dict[str, Any]:
    """Options of a command line, each with a value, as `apply_options` takes them.

    >>> _parse("--shape pairs --map question=title --repair strip")
    {'map': ['question=title'], 'role': [], 'repair': ['strip'], 'shape': 'pairs'}
    """
    words = shlex.split(options)
    parsed: dict[str, Any] = {"map": [], "role": [], "repair": []}
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = option.removeprefix("--").replace("-", "_")
        if isinstance(parsed.get(name), list):
            parsed[name].append(value)
        else:
            parsed[name] = value
    return parsed
