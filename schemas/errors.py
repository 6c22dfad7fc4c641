"""The error hierarchy: every failure with an explanation for the user.

    CurateError
    ├── RecipeError      the recipe is invalid
    ├── SourceError      an input file cannot be read or is ambiguous
    ├── StoreError       the store is locked, newer than this release, damaged or not a store
    ├── VersionError     a version, conversation or run is missing or does not match its digest
    ├── ReviewError      the labelling server or its answers
    ├── TrainError       rendering, planning, training, verifying
    └── ExportError      an output file cannot be written

An error has two parts: `what` is wrong, with location and value found; `hint`, what to do next. The command line prints
them on two lines and exits with 1. Invalid rows are data, not errors: they are recorded as rejects.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CurateError(Exception):
    """A failure with an explanation: what is wrong, and what to do next."""

    code = "failed"
    """The kind of failure for programs: `error.code` in the output of --json"""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class RecipeError(CurateError):
    """The recipe is invalid."""

    code = "recipe"


class SourceError(CurateError):
    """An input file cannot be read, or is ambiguous."""

    code = "source"


class StoreError(CurateError):
    """The store is locked, newer than this release, damaged, or not a store."""

    code = "store"


class VersionError(CurateError):
    """A version, conversation or run is missing, or does not match its digest."""

    code = "version"


class ReviewError(CurateError):
    """A failure of the labelling server, or an unusable answer."""

    code = "review"


class TrainError(CurateError):
    """Rendering, planning, training or verifying failed."""

    code = "train"


class ExportError(CurateError):
    """An output file cannot be written, or the data does not fit its format."""

    code = "export"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a message about an unknown name: a suggestion of the nearest known one, or a full stop.

    >>> nearest("qualty", ["words", "quality"]), nearest("x", ["words"])
    (', did you mean quality?', '.')
    """
    near = nearest_name(name, known, cutoff)
    return "." if near is None else f", did you mean {near}?"


def nearest_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most similar to `name`, if its similarity (difflib ratio) is at least `cutoff`."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)
