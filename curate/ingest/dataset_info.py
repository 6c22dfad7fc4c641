"""LlamaFactory's `dataset_info.json` next to a file → the import options that it describes.

An entry names a file, its `formatting`, `columns` and `tags`. It is used if the user gives no mapping.
https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from curate.ingest.column_names import MAX_LISTED
from curate.ingest.shapes.roles import ROLE_NAMES, plain_name
from curate.ingest.shapes.shape import ColumnMapping
from curate.ingest.shapes.turn_elements import ROLE_KEYS, TEXT_KEYS
from curate.ingest.shapes.turn_lists import MESSAGES, SHAREGPT
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.text import join_names, shell_quote

FILE_NAME = "dataset_info.json"
DESCRIBED_BY = "described_by"
"""Key of the entry in `sources.mapping`."""

_ALPACA = {"instruction": "prompt", "input": "query", "output": "response", "system": "system", "history": "history"}
_DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_TAGS = {
    "user_tag": ("human", "human"),
    "assistant_tag": ("gpt", "gpt"),
    "observation_tag": ("observation", "observation"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}
"""Tag → its default, and the role that it names."""

_OPTIONS = ("shape", "map", "group_by", "role", "roles", "text", "turns_key", "role_key", "text_key", "sql")


class Description(NamedTuple):
    """An entry that describes a file."""

    name: str
    entry: dict[str, Any]

    def column(self, key: str) -> str | None:
        """The column of a key, by default that of LlamaFactory."""
        columns = self.entry.get("columns") or {}
        return columns.get(key, _DEFAULTS.get(key))


def describe(path: str, columns: Sequence[str], section: ImportSection) -> tuple[ImportSection, str | None]:
    """The section with the options of the entry for a file, and the name of the entry; unchanged without an entry.

    Raises `SourceError` for preference data, a column that does not exist, and entries that contradict each other.
    """
    if any(getattr(section, name) for name in _OPTIONS):
        return section, None
    found = find_descriptions(Path(path))
    sections = {_apply(description, columns, section).model_dump_json(): description for description in found}
    if len(sections) > 1:
        names = " and ".join(description.name for description in found)
        raise SourceError(
            f"{FILE_NAME} has several entries with different columns for this file: {names}.",
            "Select one with --shape and --map.",
        )
    described = _apply(found[0], columns, section) if found else section
    return described, f"{FILE_NAME}, {found[0].name}" if described != section else None


def find_descriptions(path: Path) -> list[Description]:
    """The entries for a file with columns or tags, in its folder or the one above."""
    for folder in path.absolute().parents[:2]:
        entries = _read(folder / FILE_NAME)
        found = [
            Description(name, entry)
            for name, entry in entries.items()
            if isinstance(entry, dict)
            and isinstance(name_of_file := entry.get("file_name"), str)
            and name_of_file
            and folder / name_of_file in (path.absolute(), *path.absolute().parents)
            and (entry.get("columns") or entry.get("tags") or entry.get("ranking"))
        ]
        if found:
            return found
    return []


def _read(path: Path) -> dict[str, Any]:
    """The content of the file; empty if there is none, or if it is another file of this name."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _apply(described: Description, columns: Sequence[str], section: ImportSection) -> ImportSection:
    _check_columns(described, columns)
    if described.entry.get("ranking"):
        raise _preference_error(described)
    mapping = _mapping(described, columns)
    tag = described.column("kto_tag")
    is_good = f"\"{tag}\" IN ('true', 'True', '1')"
    if tag in columns and section.where is None:
        raise SourceError(
            f"{FILE_NAME}, {described.name}: the column {tag} marks answers as good or bad.",
            f"Import the good answers:{mapping.as_command(f'--where {shell_quote(is_good)}')}",
        )
    keys = {f"{name}_key": key for name, key in mapping.keys.items()}
    return section.model_copy(
        update={"shape": mapping.shape, "map": dict(mapping.fields), "roles": dict(mapping.roles), **keys}
    )


def _check_columns(described: Description, columns: Sequence[str]) -> None:
    """Raise `SourceError` if a named column does not exist; media columns are checked by their cells."""
    named = (described.entry.get("columns") or {}).values()
    missing = [name for name in named if isinstance(name, str) and name not in columns]
    if missing:
        raise SourceError(
            f"{FILE_NAME}, {described.name}: the file has no column {', '.join(missing)}; its columns are "
            f"{join_names(columns, MAX_LISTED)}.",
            f"Correct {FILE_NAME}, or map the columns with --shape and --map.",
        )


def _mapping(described: Description, columns: Sequence[str]) -> ColumnMapping:
    """The mapping that an entry describes."""
    if described.entry.get("formatting", "alpaca") == "alpaca":
        known = {
            field: column for field, key in _ALPACA.items() if (column := described.column(key)) in columns and column
        }
        if "instruction" in known and "output" not in known:
            return ColumnMapping("text", {"text": known["instruction"]})
        return ColumnMapping("alpaca", known)
    tags = described.entry.get("tags") or {}
    role_tag, content_tag = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    field = "conversations" if role_tag == "from" else "messages"
    optional = {name: described.column(name) for name in ("system", "tools")}
    fields = {
        field: described.column("messages") or "",
        **{name: column for name, column in optional.items() if column},
    }
    roles = {
        tags.get(tag, default): role
        for tag, (default, role) in _TAGS.items()
        if ROLE_NAMES.get(plain_name(tags.get(tag, default))) != role
    }
    own = (("role", role_tag, ROLE_KEYS), ("text", content_tag, TEXT_KEYS))
    keys = {name: key for name, key, known_keys in own if key not in known_keys}
    return ColumnMapping(SHAREGPT if role_tag == "from" else MESSAGES, fields, roles, keys)


def _preference_error(described: Description) -> SourceError:
    """The error for preference data, with the options that import the better answers."""
    chosen = described.column("chosen") or "chosen"
    if described.entry.get("formatting", "alpaca") == "alpaca":
        mapping = ColumnMapping("alpaca", {"instruction": described.column("prompt") or "", "output": chosen})
    else:
        field = "messages" if (described.entry.get("tags") or {}).get("role_tag", "from") != "from" else "conversations"
        fields = {field: described.column("messages") or "", "completion": chosen}
        mapping = ColumnMapping(SHAREGPT if field == "conversations" else MESSAGES, fields)
    return SourceError(
        f"{FILE_NAME}, {described.name}: this is preference data, a better and a worse answer to each question.",
        f"Import the better answers:{mapping.as_command()}",
    )
