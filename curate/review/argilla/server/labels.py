"""Argilla's check of a changed question → one that lets options be added and removed after publication.

Argilla only lets their texts change. Answers are stored as values and checked when they are given, so options can be
added, and an option that is not offered any more stays in the answers that have it.
"""

from __future__ import annotations

from typing import Any

from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.validators.questions import QuestionUpdateValidator


def permit_label_changes() -> None:
    """Apply to all questions."""
    QuestionUpdateValidator._validate_question_settings_label_options = staticmethod(_check_options)
    QuestionUpdateValidator._validate_question_settings_visible_options = staticmethod(_check_visible_options)


def _check_options(settings: Any, update: Any) -> None:
    if settings.type not in QuestionUpdateValidator.QUESTION_TYPES_WITH_LABEL_OPTIONS:
        return
    values = [option.value for option in update.options or []]
    if len(values) != len(set(values)):
        raise UnprocessableEntityError("the values of options must be unique")


def _check_visible_options(settings: Any, update: Any) -> None:
    if settings.type not in QuestionUpdateValidator.QUESTION_TYPES_WITH_VISIBLE_OPTIONS:
        return
    if (update.visible_options or 0) > len(update.options or settings.options):
        raise UnprocessableEntityError("'visible_options' must not exceed the number of options")
