"""Errors of several files of one import → one error, with the commands for the files that it names."""

from __future__ import annotations

from collections.abc import Mapping

from curate.ingest.shapes.shape import IMPORT_COMMAND
from schemas.errors import SourceError
from schemas.text import shell_quote

MAX_ERRORS = 10
"""Files that an error names; the others are not opened."""


def join_errors(errors: Mapping[str, SourceError]) -> SourceError:
    """One error for the errors by path. Advice that several files share names all of them."""
    if len(errors) == 1:
        return next(iter(errors.values()))
    paths_by_hint: dict[str, list[str]] = {}
    for path, error in errors.items():
        paths_by_hint.setdefault(error.hint.replace(_command(path), IMPORT_COMMAND), []).append(path)
    count = f"At least {MAX_ERRORS}" if len(errors) == MAX_ERRORS else f"{len(errors)}"
    return SourceError(
        f"{count} files cannot be imported:" + "".join(f"\n    {error.what}" for error in errors.values()),
        "\n    ".join(hint.replace(IMPORT_COMMAND, _command(*paths)) for hint, paths in paths_by_hint.items()),
    )


def _command(*paths: str) -> str:
    return f"{IMPORT_COMMAND.removesuffix('FILE')}{' '.join(map(shell_quote, paths))}"
