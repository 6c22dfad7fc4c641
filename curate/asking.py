"""Asking: the recipe's `[review]` and conversations come in; what people are asked and shown goes out.

A set's questions follow from the recipe alone, but for the numbers of the turns, which go as far as its longest
conversation does. A task is a conversation as a person sees it: its turns numbered, its metadata, and what the
scores would answer, unless it is blind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from schemas.conversation import ASSISTANT_ROLES
from schemas.recipe import ReviewSection
from schemas.review import (
    ANSWER,
    DECISION,
    DECISIONS,
    DROP,
    ISSUES,
    KEEP,
    NOTE,
    QUALITY,
    TURNS,
    Question,
    StandardQuestion,
    Suggestion,
    Task,
)

RATINGS = (1, 2, 3, 4, 5)

FEWEST_TURNS, MOST_TURNS = 8, 250
"""How many numbers the question about turns offers: options of a set that is there cannot be added to later."""

ROLE_NAMES = {
    "system": "system",
    "human": "user",
    "gpt": "assistant",
    "function_call": "tool call",
    "observation": "tool result",
}
TOOLS_ROLE = "tools"

ORIGINAL = "original"
"""The agent behind the answer that stands in the correction's box: it is there to be changed, no opinion."""


def questions_of(section: ReviewSection, turns: int) -> tuple[Question, ...]:
    """The questions of a set whose longest conversation has so many turns, in the recipe's order, its own ones last.

    What the policy reads is required, the rest is not.
    """
    offered = max(FEWEST_TURNS, min(turns, MOST_TURNS))
    own = (Question(name, more.kind, more.title, more.options, more.required) for name, more in section.more.items())
    return (*(_standard(name, section, offered) for name in section.questions), *own)


def _standard(name: StandardQuestion, section: ReviewSection, turns: int) -> Question:
    required = name == (QUALITY if section.policy.startswith("mean") else DECISION)
    numbers = tuple(str(number) for number in range(1, turns + 1))
    return {
        QUALITY: Question(QUALITY, "rating", "How good is it?", RATINGS, required, "1 is useless, 5 is perfect."),
        DECISION: Question(
            DECISION, "choice", "Should a model learn from it?", DECISIONS, required,
            "fix: after the correction below, or without the turns marked below.",
        ),
        ISSUES: Question(ISSUES, "labels", "What is wrong with it?", section.labels),
        TURNS: Question(
            TURNS, "labels", "Which assistant turns should not be learned from?", numbers, False,
            "The numbers stand beside the roles. These turns stay as context.",
        ),
        ANSWER: Question(
            ANSWER, "text", "The last answer, corrected", (), False,
            "Change the text to correct it; left as it is, or empty, it corrects nothing.",
        ),
        NOTE: Question(NOTE, "text", "A note to the others", ()),
    }[name]  # fmt: skip


def messages_of(turns: Sequence[Mapping[str, Any]], tools: str | None = None) -> tuple[tuple[str, str], ...]:
    r"""Who speaks and what, the turns numbered from 1, JSON of tools laid out over lines.

    >>> messages_of([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
    (('1 user', 'Hi'), ('2 assistant', 'Hello'))
    """
    head = ((TOOLS_ROLE, _laid_out(tools)),) if tools else ()
    return head + tuple(
        (f"{number} {ROLE_NAMES[turn['from']]}", _laid_out(turn["value"]) if _is_tool(turn["from"]) else turn["value"])
        for number, turn in enumerate(turns, 1)
    )


def _is_tool(role: str) -> bool:
    return role in ("function_call", "observation")


def _laid_out(text: str) -> str:
    """JSON over several lines; any other text as it is."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except ValueError:
        return text


def last_answer(turns: Sequence[Mapping[str, Any]]) -> str | None:
    """The text that a correction replaces: the assistant's last one; null where there is none."""
    return next((turn["value"] for turn in reversed(turns) if turn["from"] == "gpt"), None)


def learned_turns(turns: Sequence[Mapping[str, Any]]) -> set[int]:
    """The numbers of the turns that can be marked as not to learn from."""
    return {number for number, turn in enumerate(turns, 1) if turn["from"] in ASSISTANT_ROLES}


def task_of(row: Mapping[str, Any], questions: Sequence[Question], *, blind: bool) -> Task:
    """The task of a chosen row: `conversation`, `conversations`, `tools`, `metadata`, `scores`, `ruled`."""
    suggestions = () if blind else suggestions_of(row, questions)
    return Task(row["conversation"], messages_of(row["conversations"], row["tools"]), row["metadata"], suggestions)


def suggestions_of(row: Mapping[str, Any], questions: Sequence[Question]) -> tuple[Suggestion, ...]:
    """What the scores and rules would answer to these questions, and the last answer as the text to correct."""
    asked = {question.name: question for question in questions}
    return tuple(suggestion for suggestion in _suggestions(row, asked) if suggestion.question in asked)


def _suggestions(row: Mapping[str, Any], asked: Mapping[str, Question]) -> list[Suggestion]:
    scores: Mapping[str, Any] = row["scores"]
    found = []
    if (quality := scores.get(QUALITY)) is not None:
        found.append(Suggestion(QUALITY, 1 + round(4 * quality), QUALITY, round(quality, 4)))
    if row["ruled"] is not None:
        found.append(Suggestion(DECISION, KEEP if row["ruled"] else DROP, "rules"))
    issues = asked[ISSUES].options if ISSUES in asked else ()
    true = tuple(str(label) for label in issues if scores.get(str(label)) is True)
    if true:
        found.append(Suggestion(ISSUES, true, ", ".join(true).replace(", ", " ")))
    if (answer := last_answer(row["conversations"])) is not None:
        found.append(Suggestion(ANSWER, answer, ORIGINAL))
    return found
