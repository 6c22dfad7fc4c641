"""The recipe's `[review]` section and conversations → the questions, guidelines and tasks that annotators see.

Questions depend on the recipe alone, except for the number of answers that can be marked: that of the longest
conversation in the set. A task shows the conversation with the assistant's answers numbered, its metadata, and the
answers suggested by scores and rules, unless it is blind.
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
    STANDARD_QUESTIONS,
    TURNS,
    Policy,
    Question,
    StandardQuestion,
    Suggestion,
    Task,
)
from schemas.text import indent_json

RATINGS = (1, 2, 3, 4, 5)

MIN_MARKS, MAX_MARKS = 2, 250
"""How many answers a set offers for marking. Argilla requires two options and cannot add any later."""

MARK = "answer"
"""Label of an assistant turn, before its number among the assistant's turns: `answer 2`. Also the option to mark it."""

ROLE_NAMES = {
    "system": "system",
    "human": "user",
    "gpt": "assistant",
    "function_call": "tool call",
    "observation": "tool result",
}
MARKED_NAMES = {"gpt": f"{MARK} {{}}", "function_call": f"{MARK} {{}} tool call"}  # Argilla: at most 20 characters
TOOLS_ROLE = "tools"

ORIGINAL = "original"
"""Agent of the suggestion that prefills the correction with the last answer."""


def build_questions(section: ReviewSection, answers: int) -> tuple[Question, ...]:
    """The questions of a set whose longest conversation has `answers` answers: the recipe's, then its additional ones.

    Only the question that the policy depends on is required.
    """
    marks = max(MIN_MARKS, min(answers, MAX_MARKS))
    more = (Question(name, each.kind, each.title, each.options, each.required) for name, each in section.more.items())
    return (*(_standard_question(name, section, marks) for name in section.questions), *more)


def _standard_question(name: StandardQuestion, section: ReviewSection, marks: int) -> Question:
    required = name == (QUALITY if section.policy.startswith("mean") else DECISION)
    options = tuple(f"{MARK} {number}" for number in range(1, marks + 1))
    return {
        QUALITY: Question(QUALITY, "rating", "How good is it?", RATINGS, required, "1 is useless, 5 is perfect."),
        DECISION: Question(
            DECISION, "choice", "Should the model be trained on it?", DECISIONS, required,
            "fix: train with the correction below, or without the answers marked below.",
        ),
        ISSUES: Question(ISSUES, "labels", "What is wrong with it?", section.labels),
        TURNS: Question(
            TURNS, "labels", "Which answers should be excluded from training?", options, False,
            "The assistant's turns are numbered. Marked answers stay as context.",
        ),
        ANSWER: Question(
            ANSWER, "text", "Corrected last answer", (), False,
            "Edit the text to correct it. Unchanged or empty text is not a correction.",
        ),
        NOTE: Question(NOTE, "text", "Note", ()),
    }[name]  # fmt: skip


def build_guidelines(section: ReviewSection, questions: Sequence[Question], overlap: int) -> str:
    """Instructions for annotators as Markdown: the recipe's, then the meaning of each question, then the policy."""
    policy = Policy.parse(section.policy)
    annotators = "one annotator" if overlap == 1 else f"{overlap} annotators"
    rules = {
        "majority": "The majority decides; after a tie, another annotator is asked.",
        "any-drop": "One drop excludes the conversation; one fix is enough to change it.",
        "mean": f"It is kept if the mean quality is at least {policy.min_mean:g}, unless more than half of the "
        "annotators answer drop or fix.",
        "expert": f"The decision of {', then '.join(section.experts)} overrides all others.",
    }
    meanings = [f"**{question.title}** {MEANINGS.get(question.name, OTHER_MEANING)}" for question in questions]
    parts = [section.guidelines.strip(), INTRODUCTION, *meanings,
             f"Each conversation is answered by {annotators}. {rules[policy.name]}"]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


INTRODUCTION = (
    "These conversations may be used to train a model; your answers decide which ones, and in which form. A star marks"
    " suggestions from scores and rules. Suggestions can be wrong, and some conversations are shown without them on"
    " purpose: give your own judgement. Discard conversations that you cannot judge."
)
MEANINGS: dict[str, str] = {
    QUALITY: "1 is useless, 5 is perfect: correct, complete, and in the tone that the model should have.",
    DECISION: "keep: the model is trained on the conversation as it is. fix: it is trained on the conversation with"
    " your correction, or without the answers that you mark; without either, the conversation is excluded until a"
    " correction is submitted. drop: the conversation is excluded.",
    ISSUES: "The selected issues are stored with the verdict, for the maintainers of the dataset.",
    TURNS: "The assistant's answers are numbered in the conversation. The model reads marked answers as context but is"
    " not trained to write them.",
    ANSWER: "Your text replaces the last answer; the original conversation is kept as well. Unchanged or empty text is"
    " not a correction.",
    NOTE: "For the maintainers of the dataset; the model never sees it.",
}
"""What each standard question means and how its answer is used."""

OTHER_MEANING = "The answer is stored with the conversation and does not affect the verdict."


def render_messages(
    turns: Sequence[Mapping[str, Any]], tools: str | None = None, *, by_turn: bool = False
) -> tuple[tuple[str, str], ...]:
    r"""Role and text of each message, assistant turns numbered from 1, the JSON of tools indented.

    `by_turn` numbers all turns instead, for sets of earlier releases, in which every turn could be marked.

    >>> render_messages([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
    (('user', 'Hi'), ('answer 1', 'Hello'))
    """
    roles = [turn["from"] for turn in turns]
    if by_turn:
        names = [f"{number} {ROLE_NAMES[role]}" for number, role in enumerate(roles, 1)]
    else:
        numbers = itertools.count(1)
        names = [
            MARKED_NAMES[role].format(next(numbers)) if role in MARKED_NAMES else ROLE_NAMES[role] for role in roles
        ]
    texts = [
        indent_json(turn["value"]) if turn["from"] in ("function_call", "observation") else turn["value"]
        for turn in turns
    ]
    head = ((TOOLS_ROLE, indent_json(tools)),) if tools else ()
    return head + tuple(zip(names, texts, strict=True))


def uses_turn_numbers(questions: Sequence[Question]) -> bool:
    """Whether the marks of a set are numbers of turns instead of answers, as in sets of earlier releases."""
    return any(question.name == TURNS and str(question.options[0]).isdecimal() for question in questions)


def mark_limit(questions: Sequence[Question]) -> int:
    """How many answers can be marked in a set; 0 if it does not have the question `turns`."""
    return max((len(question.options) for question in questions if question.name == TURNS), default=0)


def too_many_answers(task: Task, limit: int) -> str | None:
    """The reason why a set with `limit` marks cannot show a task, or None. A limit of 0 accepts every task."""
    marks = sum(role[:1].isdecimal() or role.startswith(f"{MARK} ") for role, _ in task.messages)
    if not limit or marks <= limit:
        return None
    more = "a new set offers more" if limit < MAX_MARKS else "no set offers more"
    return f"it has {marks} answers, but the set offers marks for {limit}; {more}"


def map_marks(roles: Sequence[str]) -> dict[str, int]:
    """Mark -> number of the turn, from the roles shown in a task.

    >>> map_marks(["tools", "user", "answer 1 tool call", "tool result", "answer 2"])
    {'answer 1': 2, 'answer 2': 4}
    """
    turns = enumerate((role for role in roles if role != TOOLS_ROLE), 1)
    return {" ".join(role.split()[:2]): number for number, role in turns if role.startswith(f"{MARK} ")}


def last_answer(turns: Sequence[Mapping[str, Any]]) -> str | None:
    """The assistant's last text, which a correction replaces; None if there is none."""
    return next((turn["value"] for turn in reversed(turns) if turn["from"] == "gpt"), None)


def markable_turns(turns: Sequence[Mapping[str, Any]]) -> set[int]:
    """The numbers of the turns that can be excluded from the loss."""
    return {number for number, turn in enumerate(turns, 1) if turn["from"] in ASSISTANT_ROLES}


def build_task(row: Mapping[str, Any], questions: Sequence[Question], *, blind: bool) -> Task:
    """The task of a member: `conversation`, `conversations`, `tools`, `metadata`, `scores`, `rules_keep`, `earlier`.

    A blind task has no suggested verdict, but the text to correct.
    """
    suggestions = build_suggestions(row, questions)
    if blind:
        suggestions = tuple(suggestion for suggestion in suggestions if suggestion.question == ANSWER)
    messages = render_messages(row["conversations"], row["tools"], by_turn=uses_turn_numbers(questions))
    earlier = [json.loads(each["answers"]) for each in row["earlier"]]
    return Task(
        row["conversation"],
        messages,
        row["metadata"],
        suggestions,
        describe_answers(earlier, row["conversations"]),
        tuple(sorted(each["reviewer"] for each in row["earlier"])),
    )


def describe_answers(answers: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]) -> str:
    r"""The answers of annotators, who are numbered and not named.

    >>> turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No."}]
    >>> describe_answers([{"decision": "drop", "note": "Rude.", "turns": [2]}], turns)
    'Annotator 1\ndecision: drop\nturns: answer 1\nnote: Rude.'
    """
    numbers = [number for number, turn in enumerate(turns, 1) if turn["from"] in ASSISTANT_ROLES]
    marks = {number: f"{MARK} {place}" for place, number in enumerate(numbers, 1)}
    return "\n\n".join(
        "\n".join([f"Annotator {number}", *_describe(given, marks, last_answer(turns))])
        for number, given in enumerate(answers, 1)
    )


def _describe(given: Mapping[str, Any], marks: Mapping[int, str], original: str | None) -> list[str]:
    shown = {name: given[name] for name in sorted(given, key=_question_order)}
    if shown.get(TURNS):
        shown[TURNS] = [marks.get(turn, f"turn {turn}") for turn in shown[TURNS]]
    if (shown.get(ANSWER) or "").strip() == (original or "").strip():
        shown.pop(ANSWER, None)
    return [f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in shown.items()]


def _question_order(name: str) -> int:
    """The place of a question: standard ones first, in their order."""
    names: tuple[str, ...] = STANDARD_QUESTIONS
    return names.index(name) if name in names else len(names)


def build_suggestions(row: Mapping[str, Any], questions: Sequence[Question]) -> tuple[Suggestion, ...]:
    """The answers that scores and rules suggest to these questions, and the last answer as the text to correct."""
    by_name = {question.name: question for question in questions}
    scores: Mapping[str, Any] = row["scores"]
    suggestions = []
    if (quality := scores.get(QUALITY)) is not None:
        suggestions.append(Suggestion(QUALITY, 1 + round(4 * quality), QUALITY, round(quality, 4)))
    if row["rules_keep"] is not None:
        suggestions.append(Suggestion(DECISION, KEEP if row["rules_keep"] else DROP, "rules"))
    issues = by_name[ISSUES].options if ISSUES in by_name else ()
    labels = tuple(str(label) for label in issues if scores.get(str(label)) is True)
    if labels:
        suggestions.append(Suggestion(ISSUES, labels, " ".join(labels)))
    if (answer := last_answer(row["conversations"])) is not None:
        suggestions.append(Suggestion(ANSWER, answer, ORIGINAL))
    return tuple(suggestion for suggestion in suggestions if suggestion.question in by_name)
