"""Types of a review: questions, tasks, answers, the policies that resolve answers, and the labelling server's protocol.

The types are independent of the labelling tool. `curate/review/argilla/client.py` implements `ReviewServer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import polars as pl

KindName = Literal["rating", "choice", "labels", "text"]
"""The names of `curate.review.question_kinds.KINDS`."""

MetadataType = Literal["text", "integer", "float"]

StandardQuestion = Literal["quality", "decision", "issues", "turns", "answer", "note"]
STANDARD_QUESTIONS: tuple[StandardQuestion, ...] = ("quality", "decision", "issues", "turns", "answer", "note")
QUALITY, DECISION, ISSUES, TURNS, ANSWER, NOTE = STANDARD_QUESTIONS
"""Questions with a defined effect. A recipe can omit some and add others."""

KEEP, FIX, DROP = "keep", "fix", "drop"
DECISIONS = (KEEP, FIX, DROP)

ASSIGNED = "assigned"
"""The metadata of a task with the names of the annotators that it is offered to; without it, all of them."""

SUBMITTED, DISCARDED, DRAFT, WITHDRAWN = "submitted", "discarded", "draft", "withdrawn"
"""The status of an answer. Only submitted answers count. `withdrawn`: deleted on the server since an earlier pull."""

ANSWER_SCHEMA: dict[str, Any] = {
    "record": pl.String,
    "conversation": pl.String,
    "reviewer": pl.String,
    "response": pl.String,
    "status": pl.String,
    "answered_at": pl.Datetime("us", "UTC"),
    "answers": pl.String,
}
"""Columns of an answers frame: one row per annotator and conversation; `answers` is JSON, question -> value."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `options` are the integers of a rating, or the texts of a choice or of labels."""

    name: str
    kind: KindName
    title: str
    options: tuple[int | str, ...] = ()
    required: bool = False
    help: str = ""

    def as_json(self) -> dict[str, Any]:
        """The question as JSON values, as stored in `review_sets.questions`."""
        return {**asdict(self), "options": list(self.options)}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A suggested answer: `agent` is the score or rule that made it, `score` its confidence from 0 to 1."""

    question: str
    value: int | str | tuple[str, ...]
    agent: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation as shown to annotators: (role, text) of each turn, assistant turns numbered from 1.

    `earlier` describes the answers given in other sets, and `answered_by` names their annotators, who are not asked
    again. The names of these fields are part of the digest by which a push recognises unchanged tasks.
    """

    conversation: str
    messages: tuple[tuple[str, str], ...]
    metadata: Mapping[str, str | float | int | list[str]]
    suggestions: tuple[Suggestion, ...]
    earlier: str = ""
    answered_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetPlan:
    """The settings of a review set: questions, answers per conversation, guidelines, metadata to filter by.

    `metadata` gives the type of each key that the server can filter by. Keys in `hidden` are not visible to annotators:
    a score shown with a blind task would be a suggestion. Annotators never see the tasks' other metadata.
    """

    questions: tuple[Question, ...]
    overlap: int
    guidelines: str
    metadata: Mapping[str, MetadataType]
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SendResult:
    """The record id of a sent task, or the reason why the server rejected it.

    `stale_suggestions` are suggestions of an earlier send that are no longer made but remain, because the record has an
    answer.
    """

    record: str | None
    reason: str = ""
    stale_suggestions: tuple[Suggestion, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoteSet:
    """A review set on a server: its id there, its questions and the answers per conversation."""

    id: str
    name: str
    questions: tuple[Question, ...]
    overlap: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some records of a set: record id -> conversation, and the answers to them.

    `surplus_marks` is the number of marks in these answers on turns that the conversation does not have.
    """

    records: dict[str, str]
    answers: pl.DataFrame
    surplus_marks: int = 0


class ReviewServer(Protocol):
    """The operations of a labelling server that push and pull require. Every method raises `ReviewError`."""

    @property
    def url(self) -> str:
        """The server's address."""

    def find_set(self, name: str) -> RemoteSet | None:
        """The set with this name, or None."""

    def create_set(self, name: str, plan: SetPlan) -> RemoteSet:
        """Create a set."""

    def rejection_reason(self, task: Task) -> str | None:
        """The reason why the server would reject this task, or None."""

    def send(self, remote: RemoteSet, tasks: Sequence[Task]) -> list[SendResult]:
        """Create or update the record of each task, by conversation, and keep existing answers; results in order.

        Suggestions that are no longer made are removed from records without answers.
        """

    @property
    def batch_size(self) -> int:
        """The number of tasks per `send`."""

    def count(self, remote: RemoteSet) -> int:
        """The number of records in the set."""

    def activity(self, remote: RemoteSet) -> str:
        """A text that changes with every answer."""

    def pages(self, remote: RemoteSet) -> Iterator[Page]:
        """All records of the set with their answers."""

    def accounts(self) -> frozenset[str]:
        """The names of the accounts that can answer."""

    @property
    def can_assign(self) -> bool:
        """Whether the server offers a task only to the annotators in its metadata."""

    def change_options(
        self, remote: RemoteSet, questions: Sequence[Question], renamed: Mapping[str, str], *, dry_run: bool
    ) -> list[dict[str, Any]]:
        """Offer these options, with their texts; the changes: question, added, renamed and retired texts."""

    def answers_elsewhere(self, name: str, remotes: Sequence[str]) -> dict[str, int]:
        """The number of an account's answers in each set whose id is not in `remotes`."""

    def delete_account(self, name: str) -> None:
        """Delete an account with its answers."""

    def delete_records(self, remote: RemoteSet, records: Sequence[str]) -> None:
        """Delete records with their answers; those that do not exist are ignored."""


_MEAN = re.compile(r"mean\s*>=\s*(?P<least>\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Policy:
    """The rule that resolves several answers to one verdict. `min_mean`: the lowest mean rating that `mean` keeps."""

    name: Literal["any-drop", "majority", "mean", "expert"]
    min_mean: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy named by `text`. Raises `ValueError` if there is none.

        >>> Policy.parse("mean >= 3.5")
        Policy(name='mean', min_mean=3.5)
        """
        name = text.strip()
        if name in ("any-drop", "majority", "expert"):
            return cls(name)  # type: ignore[arg-type]
        mean = _MEAN.fullmatch(name)
        if mean is None:
            raise ValueError(
                f"{text!r} is not a policy; use any-drop, majority, expert or a mean such as 'mean >= 3.5'"
            )
        return cls("mean", float(mean["least"]))

    def __str__(self) -> str:
        """The policy as written in a recipe.

        >>> str(Policy("mean", 3.5)), str(Policy("majority"))
        ('mean >= 3.5', 'majority')
        """
        return f"mean >= {self.min_mean:g}" if self.name == "mean" else self.name
