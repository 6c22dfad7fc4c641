"""Imports and their removal → text for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from curate.cli.console import file_names, note, print_line, print_table
from curate.cli.views.store import note_earlier
from curate.ingest.removal import RemovalReport
from schemas.text import join_names, local_minute, plural

ID_DIGITS = 12
MAX_VERSIONS, MAX_IDS = 5, 3


def show_sources(sources: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Print a row per import, of the last `limit`, then their mappings, each once."""
    if not sources:
        return note("Nothing was imported yet. Next: curate import FILE")
    earlier, sources = len(sources[:-limit]), sources[-limit:]
    names = file_names(source["path"] for source in sources)
    rows = [
        {
            "id": source["source"][:ID_DIGITS],
            "file": names[source["path"]],
            "rows": source["rows_read"],
            "kept": source["rows_kept"],
            "duplicates": source["rows_duplicate"],
            "rejected": source["rows_rejected"],
            "excluded": source["rows_excluded"],
            "only here": source["only_here"],
            "imported at": local_minute(source["imported_at"]),
            "removed at": local_minute(source["removed_at"]) if source["removed_at"] else "",
        }
        for source in sources
    ]
    optional = ("excluded", "removed at")
    columns = [name for name in rows[0] if name not in optional or any(row[name] for row in rows)]
    print_table([{name: row[name] for name in columns} for row in rows], columns)
    note_earlier(earlier)
    mappings: dict[str, list[str]] = {}
    for source in sources:
        reason = f"; {source['reason']}" if source["reason"] else ""
        mappings.setdefault(f"{_mapping(source)}{reason}", []).append(source["source"][:ID_DIGITS])
    for mapping, ids in mappings.items():
        print_line(f"{join_names(ids, MAX_IDS)}: {mapping}")
    return note("Next: curate sources remove ID --dry-run shows what a removal would change.")


def _mapping(source: Mapping[str, Any]) -> str:
    """The shape, its columns, and the options of an import that differ from the defaults."""
    mapping = source["mapping"]
    fields = ", ".join(f"{name} = {column}" for name, column in mapping.get("fields", {}).items())
    ignored = ("shape", "fields", "format", "delimiter")
    options = {name: value for name, value in mapping.items() if name not in ignored and value not in (None, [], "")}
    more = f"; {json.dumps(options, ensure_ascii=False)}" if options else ""
    return f"{source['shape']} ({fields}){more}"


def show_removal(report: RemovalReport) -> None:
    """Print what the removal of an import removes, and what stays."""
    verb = "Removed" if report.written else "Would remove"
    print_line(
        f"{verb} the import {report.source[:ID_DIGITS]} of {report.path}: {plural(report.rows, 'row')}, "
        f"{plural(report.conversations, 'conversation')} that only it contributed."
    )
    if report.retained:
        print_line(
            f"The text of {plural(report.retained, 'conversation')} stays for versions, reviews or edits; "
            "later commands ignore it."
        )
    if report.versions:
        print_line(f"Unchanged versions with removed conversations: {join_names(report.versions, MAX_VERSIONS)}.")
    if report.duplicates_kept:
        print_line(f"{plural(report.duplicates_kept, 'duplicate')} of other imports become kept rows.")
    if report.reopened:
        print_line(f"{plural(report.reopened, 'reject')} of other imports open again.")
    if not report.written:
        print_line("Nothing was written.")
