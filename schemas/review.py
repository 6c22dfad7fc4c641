"""A review: what people are asked about a conversation, what they answer, and the narrow door to a labelling server.

Nothing here knows which server it is. `curate/review/argilla/client.py` is one `ReviewServer`; another one would stand
beside it and nothing else would change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import polars as pl

Kind = Literal["rating", "choice", "labels", "text"]
MetadataKind = Literal["text", "whole", "number"]

StandardQuestion = Literal["quality", "decision", "issues", "turns", "answer", "note"]
STANDARD_QUESTIONS: tuple[StandardQuestion, ...] = ("quality", "decision", "issues", "turns", "answer", "note")
QUALITY, DECISION, ISSUES, TURNS, ANSWER, NOTE = STANDARD_QUESTIONS
"""The questions that this project gives a meaning; a recipe can leave some out and add others of its own."""

KEEP, FIX, DROP = "keep", "fix", "drop"
DECISIONS = (KEEP, FIX, DROP)

SUBMITTED, DISCARDED, DRAFT, WITHDRAWN = "submitted", "discarded", "draft", "withdrawn"
"""What an answer can be. Only a submitted one counts; `withdrawn` was there at an earlier pull and is no more."""

ANSWERS: dict[str, Any] = {
    "record": pl.String,
    "conversation": pl.String,
    "reviewer": pl.String,
    "response": pl.String,
    "status": pl.String,
    "answered_at": pl.Datetime("us", "UTC"),
    "answers": pl.String,
}
"""Columns of an answers frame: one row per person and conversation; `answers` is JSON, question -> value."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `options` are the whole numbers of a rating or the texts of a choice and of labels."""

    name: str
    kind: Kind
    title: str
    options: tuple[int | str, ...] = ()
    required: bool = False
    help: str = ""

    def as_json(self) -> dict[str, Any]:
        """The question as plain values."""
        return {**asdict(self), "options": list(self.options)}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What somebody who is no person would answer: `agent` says who, `score` how high it came out, from 0 to 1."""

    question: str
    value: int | str | tuple[str, ...]
    agent: str
    score: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The suggestion as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation as it is put before people: who speaks and the text of each turn, numbered from 1."""

    conversation: str
    messages: tuple[tuple[str, str], ...]
    metadata: Mapping[str, str | float | int]
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True, slots=True)
class SetPlan:
    """How a review set is to be: what it asks, how many answers it waits for, what can be filtered by.

    `metadata` says of each key to filter by whether it is a text, a whole number or a number; `hidden` are those that
    reviewers do not see, since a score beside a blind task would be a suggestion. Other keys of tasks they never see.
    """

    questions: tuple[Question, ...]
    overlap: int
    guidelines: str
    metadata: Mapping[str, MetadataKind]
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a task: the server's record id, or the reason why it was not taken.

    `left` are suggestions of an earlier send that are no longer made and still stand there: somebody has answered.
    """

    record: str | None
    reason: str = ""
    left: tuple[Suggestion, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoteSet:
    """A review set as a server knows it: its id there, what it asks, how many answers it waits for."""

    id: str
    name: str
    questions: tuple[Question, ...]
    overlap: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a set's records: server's record id -> conversation, and the answers to them."""

    records: dict[str, str]
    answers: pl.DataFrame


class ReviewServer(Protocol):
    """A labelling server, as narrow as pushing and pulling need it. Every method raises `ReviewError`."""

    @property
    def url(self) -> str:
        """Its address."""

    def find_set(self, name: str) -> RemoteSet | None:
        """The set of this name, null when the server has none."""

    def make_set(self, name: str, plan: SetPlan) -> RemoteSet:
        """A new set as it is planned."""

    def unfit(self, task: Task) -> str | None:
        """Why the server cannot take this task, as a sentence; null when it can."""

    def send(self, remote: RemoteSet, tasks: Sequence[Task]) -> list[Sent]:
        """Write tasks, new or known by their conversation, keeping their answers; what became of each, in order.

        What an earlier send suggested and this one does not is taken away where nobody has answered.
        """

    @property
    def batch_size(self) -> int:
        """How many tasks go into one `send`."""

    def count(self, remote: RemoteSet) -> int:
        """How many records the set has."""

    def activity(self, remote: RemoteSet) -> str:
        """A mark that changes whenever somebody answers."""

    def pages(self, remote: RemoteSet) -> Iterator[Page]:
        """All records of the set and their answers."""


_MEAN = re.compile(r"mean\s*>=\s*(?P<least>\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Policy:
    """How several people's answers become one verdict. `least` is the mean quality that `mean` asks for."""

    name: Literal["any-drop", "majority", "mean", "expert"]
    least: float = 0.0

    @classmethod
    def read(cls, text: str) -> Policy:
        """The policy that `text` names. Raises `ValueError` for another one.

        >>> Policy.read("mean >= 3.5")
        Policy(name='mean', least=3.5)
        """
        written = text.strip()
        if written in ("any-drop", "majority", "expert"):
            return cls(written)  # type: ignore[arg-type]
        mean = _MEAN.fullmatch(written)
        if mean is None:
            raise ValueError(f"{text!r} is no policy: any-drop, majority, expert, or a mean such as 'mean >= 3.5'")
        return cls("mean", float(mean["least"]))

    def __str__(self) -> str:
        """The policy as it is written.

        >>> str(Policy("mean", 3.5)), str(Policy("majority"))
        ('mean >= 3.5', 'majority')
        """
        return f"mean >= {self.least:g}" if self.name == "mean" else self.name
