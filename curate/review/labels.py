"""The recipe's labels and those of a running set → the options that annotators see, without repeated work.

A set keeps the value of an option for ever, since stored answers have it. A renamed option shows another text; a
retired one is not offered any more; a new one is added. `[review] renamed` in the recipe maps former names to current
ones, so answers with a former name count as answers with the current one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from schemas.review import DECISION, TURNS, Question


@dataclass(frozen=True, slots=True)
class OptionChange:
    """How the options of one question change on a server."""

    question: str
    added: list[str]
    renamed: dict[str, str]
    retired: list[str]


def has_labels(question: Question) -> bool:
    """Whether the options of a question can change in a running set."""
    return question.kind in ("choice", "labels") and question.name not in (DECISION, TURNS)


def merge_questions(
    asked: Sequence[Question], existing: Sequence[Question], renamed: Mapping[str, str]
) -> tuple[Question, ...]:
    """The questions of an existing set with the options that the recipe asks for, in the recipe's order.

    >>> old = Question("issues", "labels", "", ("rude", "wrong", "long"))
    >>> new = Question("issues", "labels", "", ("incorrect", "rude", "unsafe"))
    >>> merge_questions([new], [old], {"wrong": "incorrect"})[0].options
    ('wrong', 'rude', 'unsafe')
    """
    options = {question.name: question.options for question in asked}
    return tuple(
        replace(each, options=_merge_options(options[each.name], each.options, renamed))
        if has_labels(each) and each.name in options
        else each
        for each in existing
    )


def _merge_options(
    asked: Sequence[int | str], existing: Sequence[int | str], renamed: Mapping[str, str]
) -> tuple[int | str, ...]:
    values = {renamed.get(str(value), value): value for value in existing}
    return tuple(values.get(name, name) for name in asked)


def option_texts(question: Question, renamed: Mapping[str, str]) -> dict[str, str]:
    """Value -> text of each option."""
    return {str(value): renamed.get(str(value), str(value)) for value in question.options}


def compare_options(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> OptionChange | None:
    """The change from some options to others, value -> text; None if there is none."""
    if before == after:
        return None
    return OptionChange(
        name,
        [text for value, text in after.items() if value not in before],
        {before[value]: text for value, text in after.items() if value in before and before[value] != text},
        [text for value, text in before.items() if value not in after],
    )


def accepted_names(question: Question, renamed: Mapping[str, str]) -> Question:
    """The question with the names that a spreadsheet may have: values, and former and current names of them."""
    if not has_labels(question):
        return question
    names = [renamed.get(str(value), value) for value in question.options]
    former = [old for old, new in renamed.items() if new in names]
    return replace(question, options=tuple(dict.fromkeys((*question.options, *names, *former))))
