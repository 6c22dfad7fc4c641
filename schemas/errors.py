"""Everything that can go wrong and be explained to a person.

    CurateError
    ├── RecipeError      the recipe says something that cannot be done
    ├── SourceError      a file that is read cannot be read, or means two things
    ├── StoreError       the store is locked, newer, damaged or no store
    ├── VersionError     a version, conversation or run that is not there, or is not what it says
    ├── ReviewError      a labelling server or its answers
    ├── TrainError       rendering, planning, fitting, verifying
    └── ExportError      a file that is written cannot be written

A message has two parts: `what` is wrong, where and what was found; `hint` is what to do next. The command
line prints them on two lines and exits with 1. A bad row is no error: it is data, and goes to the rejects.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CurateError(Exception):
    """A failure that is explained: what is wrong, and what to do next."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class RecipeError(CurateError):
    """The recipe says something that cannot be done."""


class SourceError(CurateError):
    """A file that is read cannot be read, or can be read in two ways."""


class StoreError(CurateError):
    """The store is locked, from a newer release, damaged, or no store."""


class VersionError(CurateError):
    """A version, conversation or run is not there, or is not what it says."""


class ReviewError(CurateError):
    """The labelling server, or what it answered."""


class TrainError(CurateError):
    """Rendering, planning, fitting or verifying cannot go on."""


class ExportError(CurateError):
    """A file cannot be written, or the data does not fit its format."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing.

    >>> nearest("qualty", ["words", "quality"]), nearest("x", ["words"])
    (', did you mean quality?', '.')
    """
    near = nearest_name(name, known, cutoff)
    return "." if near is None else f", did you mean {near}?"


def nearest_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like `name`, if any is as much like it as `cutoff`."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)
