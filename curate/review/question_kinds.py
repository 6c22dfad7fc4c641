"""The kind of a question → its type in Argilla, the value of a spreadsheet cell, its level of measurement.

To add a kind, add an entry to `KINDS` and its name to `schemas.review.KindName`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from curate.review.questions import uses_turn_numbers
from schemas.review import KindName, Question

Level = Literal["ordinal", "nominal"]

VISIBLE_OPTIONS = 20
"""Options that Argilla's page shows before "more"."""


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """How a kind of question is asked, read and measured.

    `argilla_settings` gives the settings of a question apart from its type. `parse_cell` gives the value of a filled
    cell and raises `ValueError`. `level` is the level of measurement for Krippendorff's alpha; None: not measured.
    """

    argilla_type: str
    argilla_settings: Callable[[Question], dict[str, Any]]
    parse_cell: Callable[[str, Question], Any]
    level: Level | None = None


def _rating_settings(question: Question) -> dict[str, Any]:
    return {"options": [{"value": option} for option in question.options]}


def _label_settings(question: Question) -> dict[str, Any]:
    # Sets of earlier releases offer bare numbers, which look like the page's own keyboard shortcuts.
    prefix = "turn " if uses_turn_numbers([question]) else ""
    options = [{"value": str(option), "text": f"{prefix}{option}"} for option in question.options]
    visible = {"visible_options": VISIBLE_OPTIONS} if len(options) > VISIBLE_OPTIONS else {}
    return {"options": options} | visible


def _text_settings(_: Question) -> dict[str, Any]:
    return {"use_markdown": False}


def _parse_rating(cell: str, question: Question) -> int:
    number = cell.strip().removesuffix(".0")  # some spreadsheets write integers this way
    if number not in map(str, question.options):
        raise _invalid_option(cell, question)
    return int(number)


def _parse_choice(cell: str, question: Question) -> str:
    options = {str(option).lower(): str(option) for option in question.options}
    if cell.strip().lower() not in options:
        raise _invalid_option(cell, question)
    return options[cell.strip().lower()]


def _parse_labels(cell: str, question: Question) -> list[str]:
    return [_parse_choice(label, question) for label in split_labels(cell)]


def _parse_text(cell: str, _: Question) -> str:
    return cell


def split_labels(cell: str) -> list[str]:
    """The labels in a cell, separated by commas or semicolons."""
    return [part.strip() for part in cell.replace(";", ",").split(",") if part.strip()]


def _invalid_option(cell: str, question: Question) -> ValueError:
    return ValueError(f"{question.name} is {cell.strip()!r}, not one of {', '.join(map(str, question.options))}")


KINDS: dict[KindName, QuestionKind] = {
    "rating": QuestionKind("rating", _rating_settings, _parse_rating, "ordinal"),
    "choice": QuestionKind("label_selection", _label_settings, _parse_choice, "nominal"),
    "labels": QuestionKind("multi_label_selection", _label_settings, _parse_labels),
    "text": QuestionKind("text", _text_settings, _parse_text),
}
