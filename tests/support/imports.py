"""JSON lines imported into a store, and what the store has afterwards: conversations and rejects."""

import json
from pathlib import Path
from typing import Any

from curate.ingest.import_options import apply_options
from curate.ingest.import_result import ImportResult
from curate.ingest.pipeline import import_files
from schemas.import_recipe import ImportSection
from schemas.store import reading


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return path


def import_one(store: Path, path: Path, **options: Any) -> ImportResult:
    (result,) = import_files(store, [str(path)], apply_options(ImportSection(), options))
    return result


def talks(store: Path) -> list[list[tuple[str, str]]]:
    """The conversations in the order of their rows."""
    with reading(store) as connection:
        found = connection.sql("SELECT conversations FROM conversations ORDER BY rowid").pl()["conversations"].to_list()
    return [[(turn["from"], turn["value"]) for turn in turns] for turns in found]


def pairs(store: Path) -> list[tuple[str, ...]]:
    return [tuple(text for _, text in turns) for turns in talks(store)]


def rejects(store: Path) -> list[tuple[int, str, str]]:
    with reading(store) as connection:
        return connection.sql('SELECT "row", code, reason FROM rejects ORDER BY ALL').fetchall()
