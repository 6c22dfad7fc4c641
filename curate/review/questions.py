"""Asking: the recipe's `[review]` and conversations come in; what people are asked and shown goes out.

A set's questions follow from the recipe alone, but for the answers that can be marked, which go as far as its longest
conversation does. A task is a conversation as a person sees it: the assistant's answers numbered, its metadata, and
what the scores would answer, unless it is blind.
"""

from __future__ import annotations

import itertools
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
    Policy,
    Question,
    StandardQuestion,
    Suggestion,
    Task,
)

RATINGS = (1, 2, 3, 4, 5)

FEWEST_MARKS, MOST_MARKS = 2, 250
"""How many answers a set offers for marking: Argilla wants two options, and cannot add to them later."""

MARK = "answer"
"""In front of an assistant turn's number among its conversation's: `answer 2` stands over the turn and is its mark."""

ROLE_NAMES = {
    "system": "system",
    "human": "user",
    "gpt": "assistant",
    "function_call": "tool call",
    "observation": "tool result",
}
MARKED_NAMES = {"gpt": f"{MARK} {{}}", "function_call": f"{MARK} {{}} tool call"}  # of 20 characters at most
TOOLS_ROLE = "tools"

ORIGINAL = "original"
"""The agent behind the answer that stands in the correction's box: it is there to be changed, no opinion."""


def questions_of(section: ReviewSection, answers: int) -> tuple[Question, ...]:
    """The questions of a set whose longest conversation has so many answers, in the recipe's order, its own ones last.

    What the policy reads is required, the rest is not.
    """
    offered = max(FEWEST_MARKS, min(answers, MOST_MARKS))
    own = (Question(name, more.kind, more.title, more.options, more.required) for name, more in section.more.items())
    return (*(_standard(name, section, offered) for name in section.questions), *own)


def _standard(name: StandardQuestion, section: ReviewSection, offered: int) -> Question:
    required = name == (QUALITY if section.policy.startswith("mean") else DECISION)
    marks = tuple(f"{MARK} {number}" for number in range(1, offered + 1))
    return {
        QUALITY: Question(QUALITY, "rating", "How good is it?", RATINGS, required, "1 is useless, 5 is perfect."),
        DECISION: Question(
            DECISION, "choice", "Should a model learn from it?", DECISIONS, required,
            "fix: after the correction below, or without the answers marked below.",
        ),
        ISSUES: Question(ISSUES, "labels", "What is wrong with it?", section.labels),
        TURNS: Question(
            TURNS, "labels", "Which answers should not be learned from?", marks, False,
            "Their numbers stand over the assistant's turns. Marked ones stay as context.",
        ),
        ANSWER: Question(
            ANSWER, "text", "The last answer, corrected", (), False,
            "Change the text to correct it; left as it is, or empty, it corrects nothing.",
        ),
        NOTE: Question(NOTE, "text", "A note to the others", ()),
    }[name]  # fmt: skip


def guidelines_of(section: ReviewSection, questions: Sequence[Question], overlap: int) -> str:
    """What reviewers should know, in Markdown: the recipe's words, what the questions mean, what becomes of answers."""
    policy = Policy.read(section.policy)
    people = "One person answers" if overlap == 1 else f"{overlap} people answer"
    becomes = {
        "mean": f"It is kept where the mean quality is {policy.least:g} or more, unless more than half of the "
        "people say drop or fix.",
        "expert": f"Where {', then '.join(section.experts)} decides, that counts alone.",
    }
    asked = [f"**{question.title}** {MEANINGS.get(question.name, OWN_MEANING)}" for question in questions]
    parts = [section.guidelines.strip(), INTRODUCTION, *asked,
             f"{people} for each conversation. {becomes.get(policy.name) or BECOMES[policy.name]}"]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


INTRODUCTION = (
    "These conversations may be used to train a model; your answers decide which, and how. A star marks what scores and"
    " rules suggest. They can be wrong, and in some conversations they are left out on purpose: say what you think."
    " Discard what you cannot judge."
)
MEANINGS: dict[str, str] = {
    QUALITY: "1 is useless, 5 is perfect: right, complete, and in the tone that the model should have.",
    DECISION: "keep: the model learns from it as it is. fix: it learns from it with your correction, or without the"
    " answers that you mark; with neither, it is left out until somebody says how. drop: it is left out.",
    ISSUES: "What you name is kept with the verdict, for those who look after the data.",
    TURNS: "The assistant's answers are numbered in the conversation. The model reads those that you mark as context,"
    " and does not learn to write them.",
    ANSWER: "What you write takes the place of the last answer; the conversation as it was is kept beside it. Left as"
    " it is, or empty, it corrects nothing.",
    NOTE: "For the others who look after the data; the model never sees it.",
}
"""What each standard question means, and what happens with the answer."""

OWN_MEANING = "The answer is kept with the conversation and decides nothing by itself."
BECOMES = {
    "majority": "What most of them say is done; where as many say one as the other, one more person is asked.",
    "any-drop": "A single drop leaves it out, a single fix is enough to change it.",
}


def messages_of(
    turns: Sequence[Mapping[str, Any]], tools: str | None = None, *, by_turn: bool = False
) -> tuple[tuple[str, str], ...]:
    r"""Who speaks and what, the assistant's turns numbered from 1, JSON of tools laid out over lines.

    `by_turn` numbers all turns, as sets do that were made when every turn could be marked.

    >>> messages_of([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
    (('user', 'Hi'), ('answer 1', 'Hello'))
    """
    head = ((TOOLS_ROLE, _laid_out(tools)),) if tools else ()
    names = [f"{number} {ROLE_NAMES[turn['from']]}" for number, turn in enumerate(turns, 1)]
    return head + tuple(
        (name, _laid_out(turn["value"]) if _is_tool(turn["from"]) else turn["value"])
        for name, turn in zip(names if by_turn else _names(turns), turns, strict=True)
    )


def _names(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers = itertools.count(1)
    roles = [turn["from"] for turn in turns]
    return [MARKED_NAMES[role].format(next(numbers)) if role in MARKED_NAMES else ROLE_NAMES[role] for role in roles]


def numbers_turns(questions: Sequence[Question]) -> bool:
    """Whether a set offers the numbers of turns and not of answers, as older ones do."""
    return any(question.name == TURNS and str(question.options[0]).isdecimal() for question in questions)


def count_marks(messages: Sequence[tuple[str, str]]) -> int:
    """How many numbers stand in a task, in either way of numbering."""
    return sum(role[:1].isdecimal() or role.startswith(f"{MARK} ") for role, _ in messages)


def offered_marks(questions: Sequence[Question]) -> int:
    """How many marks a set offers; none where it does not ask."""
    return max((len(question.options) for question in questions if question.name == TURNS), default=0)


def beyond_marks(task: Task, offered: int) -> str | None:
    """Why the set cannot offer a mark for all answers of a task; null where it can, or asks for none at all."""
    marks = count_marks(task.messages)
    if not offered or marks <= offered:
        return None
    more = "a new set offers more" if offered < MOST_MARKS else "no set offers more"
    return f"it has {marks} answers, and the set offers marks for {offered}; {more}"


def marked_turns(roles: Sequence[str]) -> dict[str, int]:
    """What each mark means: the number of the turn, told from the roles that a task showed.

    >>> marked_turns(["tools", "user", "answer 1 tool call", "tool result", "answer 2"])
    {'answer 1': 2, 'answer 2': 4}
    """
    turns = enumerate((role for role in roles if role != TOOLS_ROLE), 1)
    return {" ".join(role.split()[:2]): number for number, role in turns if role.startswith(f"{MARK} ")}


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
    messages = messages_of(row["conversations"], row["tools"], by_turn=numbers_turns(questions))
    return Task(row["conversation"], messages, row["metadata"], suggestions)


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
