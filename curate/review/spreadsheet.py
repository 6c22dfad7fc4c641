"""A review set → a CSV file for a spreadsheet program; the filled file → answers in the store.

One row per conversation, with its text, the suggestions, one column per question and the annotator's name. Cells that a
spreadsheet would run as formulas are escaped in the file and unescaped on import.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.readers.first_rows import REVIEW_COLUMNS
from curate.review.labels import accepted_names
from curate.review.pull import PullResult, store_answers
from curate.review.question_kinds import KINDS, split_labels
from curate.review.questions import MARK, last_answer, markable_turns, uses_turn_numbers
from curate.review.queue import QueueQuery
from curate.review.sets import (
    PreparedSet,
    RemoteRef,
    ReviewTask,
    parse_questions,
    prepare_set,
    save_members,
    save_set,
    save_suggestions,
)
from schemas.atomic import write_hint, write_text
from schemas.digest import canonical_json
from schemas.errors import ExportError, ReviewError, SourceError
from schemas.recipe import Recipe, ReviewSection
from schemas.review import ANSWER, ANSWER_SCHEMA, DECISION, ISSUES, QUALITY, SUBMITTED, TURNS, Question, Task
from schemas.store import writing
from schemas.text import escape_formula, shorten, unescape_formula
from schemas.timing import timed

SET, CONVERSATION, _, _, TEXT = REVIEW_COLUMNS
REVIEWER = "reviewer"

SUGGESTED = "suggested "
"""Prefix of the columns with suggested answers, which are empty for blind tasks."""

SUGGESTIBLE = (QUALITY, DECISION, ISSUES)
"""The questions that scores and rules suggest answers to."""

CELL_LIMIT = 32_767
"""Characters in a cell of Excel, which cuts longer texts without a warning."""


@dataclass(frozen=True, slots=True)
class SheetExport:
    """The result of an export. `rejected` lists conversations that do not fit into a cell: conversation and reason."""

    path: str
    review_set: str
    rows: int
    blind: int
    rejected: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class SheetImport:
    """The result of an import: rows with answers, empty rows, rejected rows (line and reason), results of sets."""

    path: str
    answered: int
    empty: int
    rejected: list[dict[str, Any]]
    sets: list[PullResult]


def export_sheet(
    store: Path,
    recipe: Recipe,
    path: Path,
    name: str,
    query: QueueQuery,
    *,
    replace: bool = False,
    dry_run: bool = False,
) -> SheetExport:
    """Write the set `name` to the CSV file `path`. Raises `ExportError` if it exists, unless `replace`.

    `dry_run` writes neither the file nor the set.
    """
    if path.exists() and not replace:
        raise ExportError(f"{path} exists and may contain answers.", "Choose another name, or add --replace.")
    prepared = prepare_set(store, recipe, name, query, rejection_reason=_too_long)
    tasks, rejected = _split_too_long(prepared)
    rows = [_row(name, each, prepared.plan.questions) for each in tasks]  # one by one: annotators read them all
    result = SheetExport(str(path), name, len(rows), sum(each.blind for each in tasks), rejected)
    if dry_run:
        return result
    _write(path, pl.DataFrame(rows, schema=dict.fromkeys(_columns(prepared.plan.questions), pl.String)))
    with writing(store) as connection:
        save_set(connection, prepared, RemoteRef())
        save_members(connection, name, tasks)
        save_suggestions(connection, name, tasks)
    return result


def import_sheet(
    store: Path,
    section: ReviewSection,
    path: Path,
    reviewer: str | None = None,
    *,
    partial: bool | None = None,
    dry_run: bool = False,
) -> SheetImport:
    """Store the answers of a filled spreadsheet and resolve them by the recipe's policy, as `pull` does.

    Rows with invalid cells are rejected with their line and a reason; the others count. `dry_run` writes nothing.
    Raises `SourceError` if the file is not a review spreadsheet.
    """
    frame = _read(path)
    with writing(store, dry_run=dry_run) as connection:
        questions = {
            name: tuple(accepted_names(each, section.renamed) for each in asked)
            for name, asked in _load_questions(connection, frame, path).items()
        }
        conversations = _load_conversations(connection, frame)
        answers, rejected, empty = _parse_rows(frame, questions, conversations, reviewer)
        results = [
            store_answers(connection, section, name, pl.DataFrame(rows, schema=ANSWER_SCHEMA), partial=partial)
            for name, rows in answers.items()
        ]
    return SheetImport(str(path), sum(map(len, answers.values())), empty, rejected, results)


# --- export ---


def _split_too_long(prepared: PreparedSet) -> tuple[list[ReviewTask], list[dict[str, str]]]:
    """The tasks whose text fits into a cell, and the rejected ones: members of a pushed set can be longer."""
    reasons = {each.task.conversation: _too_long(each.task) for each in prepared.tasks}
    fitting = [each for each in prepared.tasks if reasons[each.task.conversation] is None]
    too_long = [{"conversation": one, "reason": reason} for one, reason in reasons.items() if reason is not None]
    return fitting, [*prepared.rejected, *too_long]


def _too_long(task: Task) -> str | None:
    length = len(_text(task))
    return None if length < CELL_LIMIT else f"{length:,} characters, but a spreadsheet cell holds {CELL_LIMIT:,}"


def _text(task: Task) -> str:
    earlier = [("earlier answers", task.earlier)] if task.earlier else []
    return "\n\n".join(f"[{role}]\n{text}" for role, text in [*task.messages, *earlier])


def _columns(questions: Sequence[Question]) -> list[str]:
    suggested = [f"{SUGGESTED}{question.name}" for question in questions if question.name in SUGGESTIBLE]
    return [*REVIEW_COLUMNS, *suggested, *(question.name for question in questions), REVIEWER]


def _row(name: str, each: ReviewTask, questions: Sequence[Question]) -> dict[str, str]:
    """The cells of one conversation; the last answer prefills its question."""
    metadata = each.task.metadata
    row = {SET: name, CONVERSATION: each.task.conversation, TEXT: _text(each.task)}
    row |= {key: str(metadata[key]) for key in ("source", "line") if key in metadata}
    suggested = {suggestion.question: suggestion.value for suggestion in each.task.suggestions}
    for question in questions:
        if question.name == ANSWER or question.name in SUGGESTIBLE:
            value = suggested.get(question.name, "")
            column = question.name if question.name == ANSWER else f"{SUGGESTED}{question.name}"
            row[column] = ", ".join(value) if isinstance(value, tuple) else str(value)
    return {column: escape_formula(cell) for column, cell in row.items()}


@timed("writing the spreadsheet")
def _write(path: Path, frame: pl.DataFrame) -> None:
    """Write the file, with the byte order mark by which Excel recognises UTF-8."""
    try:
        write_text(path, "\ufeff" + frame.write_csv())
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}.", write_hint(error, path)) from error


# --- import ---


@timed("reading the spreadsheet")
def _read(path: Path) -> pl.DataFrame:
    """The cells as texts, with the column `at`: the line on which the row starts.

    The delimiter is detected from the header: Excel writes semicolons in many locales. Rows are read by Python's csv
    module, since annotators fill in the file by hand.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SourceError(f"There is no file {path}.", "Create one: curate review export FILE.csv") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8.", "In Excel, save it as CSV UTF-8.") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = next(reader, [])
    missing = [column for column in (SET, CONVERSATION) if column not in columns]
    if missing:
        raise SourceError(
            f"{path} is not a review spreadsheet: it has no column {' and no column '.join(missing)}.",
            "Create one with curate review export FILE.csv, and keep its columns.",
        )
    rows, at = [], reader.line_num + 1
    for cells in reader:
        if any(cells):
            rows.append({**dict(zip(columns, map(unescape_formula, cells), strict=False)), "at": str(at)})
        at = reader.line_num + 1
    return pl.DataFrame(rows, schema=dict.fromkeys([*columns, "at"], pl.String)).fill_null("")


def _load_questions(connection: DuckDBPyConnection, frame: pl.DataFrame, path: Path) -> dict[str, tuple[Question, ...]]:
    """The questions of each set in the file. Raises `ReviewError` for a set that the store does not have."""
    known = dict(connection.execute("SELECT review_set, questions FROM review_sets").fetchall())
    names = frame[SET].unique().to_list()
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ReviewError(
            f"{path} belongs to the review set {shorten(repr(unknown[0]), 80)}, which this store does not have.",
            f"Known sets: {', '.join(sorted(known)) or 'none'}. Use --store for another store.",
        )
    questions = {name: parse_questions(known[name]) for name in names}
    for name in names:
        missing = [question.name for question in questions[name] if question.name not in frame.columns]
        if missing:
            raise SourceError(f"{path} lacks the column {missing[0]} of the set {name}.", "Add it again.")
    return questions


@dataclass(frozen=True, slots=True)
class _Conversation:
    """The turns of a conversation that can be marked, and its last answer."""

    turns: frozenset[int]
    answer: str


def _load_conversations(connection: DuckDBPyConnection, frame: pl.DataFrame) -> dict[str, _Conversation]:
    """The conversations in the file that are members of their set."""
    connection.register("sheet", frame.select(SET, CONVERSATION).unique())
    rows = connection.sql(
        """SELECT s.conversation, c.conversations AS turns FROM sheet s JOIN conversations c ON c.id = s.conversation
           JOIN review_records r ON r.review_set = s."set" AND r.conversation = s.conversation"""
    ).pl()
    connection.unregister("sheet")
    return {
        row["conversation"]: _Conversation(frozenset(markable_turns(row["turns"])), last_answer(row["turns"]) or "")
        for row in rows.iter_rows(named=True)
    }


def _parse_rows(
    frame: pl.DataFrame,
    questions: Mapping[str, Sequence[Question]],
    conversations: Mapping[str, _Conversation],
    reviewer: str | None,
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]], int]:
    """Set -> rows of an answers frame; the rejected rows; the number of empty rows."""
    answers: dict[str, list[dict[str, Any]]] = {}
    rejected: list[dict[str, Any]] = []
    empty = 0
    for row in frame.iter_rows(named=True):  # one by one: each can be invalid for another reason
        name, conversation = row[SET], row[CONVERSATION]
        if _is_empty(row, questions[name], conversations.get(conversation)):
            empty += 1
            continue
        try:
            answer = _parse_row(row, questions[name], conversations, reviewer)
        except ValueError as error:
            rejected.append({"line": int(row["at"]), "conversation": conversation, "reason": str(error)})
        else:
            answers.setdefault(name, []).append(answer)
    return answers, rejected, empty


def _is_empty(row: Mapping[str, str], questions: Sequence[Question], conversation: _Conversation | None) -> bool:
    """Whether no cell is filled, except for an unchanged last answer."""
    original = "\n".join(conversation.answer.splitlines()).strip() if conversation else ""
    return all(
        not row[question.name].strip()
        or (question.name == ANSWER and "\n".join(row[ANSWER].splitlines()).strip() == original)
        for question in questions
    )


def _parse_row(
    row: Mapping[str, str],
    questions: Sequence[Question],
    conversations: Mapping[str, _Conversation],
    reviewer: str | None,
) -> dict[str, Any]:
    """A row of an answers frame. Raises `ValueError` with the reason if a cell is invalid."""
    conversation, annotator = row[CONVERSATION], row.get(REVIEWER, "").strip() or reviewer
    if conversation not in conversations:
        raise ValueError(f"the set {row[SET]} has no conversation {conversation!r}")
    if not annotator:
        raise ValueError("the annotator is missing: fill the column reviewer, or add --annotator NAME")
    values: dict[str, Any] = {}
    for question in questions:
        cell = row[question.name]
        if cell.strip():
            if question.name == TURNS:
                parse = _parse_turn if uses_turn_numbers([question]) else _parse_mark
                values[TURNS] = [parse(mark, conversations[conversation].turns) for mark in split_labels(cell)]
            else:
                values[question.name] = KINDS[question.kind].parse_cell(cell, question)
        elif question.required:
            raise ValueError(f"{question.name} is empty")
    return {
        "record": None,
        "conversation": conversation,
        "reviewer": annotator,
        "response": f"{row[SET]}:{conversation}:{annotator}",
        "status": SUBMITTED,
        "answered_at": datetime.now(UTC),
        "answers": canonical_json(values),
    }


def _parse_turn(text: str, turns: frozenset[int]) -> int:
    number = text.removesuffix(".0")
    if not number.isdecimal() or int(number) not in turns:
        raise ValueError(f"turns has {text!r}, but the assistant's turns are {', '.join(map(str, sorted(turns)))}")
    return int(number)


def _parse_mark(text: str, turns: frozenset[int]) -> int:
    """The number of the turn that `answer 2`, or `2`, refers to."""
    number = text.lower().removeprefix(MARK).strip().removesuffix(".0")
    if not number.isdecimal() or not 0 < int(number) <= len(turns):
        raise ValueError(f"turns has {text!r}, but the conversation has the answers 1 to {len(turns)}")
    return sorted(turns)[int(number) - 1]
