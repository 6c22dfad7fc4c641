"""Sheets: the same questions in a spreadsheet. A set goes out as a CSV file, people fill it, and it comes back in.

One row a conversation; a column for the text, one per question, and the reviewer's name. Cells that a spreadsheet
would take for formulas get an apostrophe in front and lose it on the way back.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.review.pull import Pulled, take_answers
from curate.review.questions import MARK, last_answer, learned_turns, numbers_turns
from curate.review.queue import Wanted
from curate.review.sets import Entry, Place, Prepared, note_members, note_set, note_shown, prepare, read_questions
from schemas.atomic import write_hint, write_text
from schemas.digest import canonical_json
from schemas.errors import ExportError, ReviewError, SourceError
from schemas.recipe import Recipe, ReviewSection
from schemas.review import ANSWER, ANSWERS, DECISION, ISSUES, QUALITY, SUBMITTED, TURNS, Question, Task
from schemas.store import writing

SET, CONVERSATION, REVIEWER, TEXT = "set", "conversation", "reviewer", "text"
OWN_COLUMNS = (SET, CONVERSATION, "source", "line", TEXT)
"""What stands before the questions; a person reads these and leaves them as they are."""

SUGGESTED = "suggested "
"""In front of a question's name: the column with what the scores would answer, empty where the row is blind."""

GUESSED = (QUALITY, DECISION, ISSUES)
"""The questions that scores and rules have an opinion on."""

CELL_LIMIT = 32_767
"""Characters that Excel keeps of a cell; it cuts the rest without a word."""

FORMULA = r"^('*[=+\-@\t\r])"
BACK = r"^'('*[=+\-@\t\r])"
"""A cell that a spreadsheet takes for a formula, also behind apostrophes, and the same one apostrophe later."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What an export wrote. `unfit` lists what does not fit into a cell: conversation and reason."""

    path: str
    review_set: str
    rows: int
    blind: int
    unfit: list[dict[str, str]]

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Filled:
    """What an import took: rows with answers, rows still empty, rows refused (line and reason), and what came of it."""

    path: str
    answered: int
    empty: int
    refused: list[dict[str, Any]]
    pulled: list[Pulled]

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


def export_sheet(store: Path, recipe: Recipe, path: Path, name: str, wanted: Wanted, *, replace: bool = False) -> Sheet:
    """Write the set `name` to the CSV file `path`. Raises `ExportError` when it is there and `replace` is not said."""
    if path.exists() and not replace:
        raise ExportError(f"{path} is there already; it may hold answers.", "Another name, or --replace.")
    prepared = prepare(store, recipe, name, wanted, unfit=_too_long)
    fitting, unfit = _fitting(prepared)
    rows = [_row(name, entry, prepared.plan.questions) for entry in fitting]  # few: a person reads them all
    columns = _columns(prepared.plan.questions)
    _write(path, pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String)))
    with writing(store) as connection:
        note_set(connection, prepared, Place())
        note_members(connection, name, fitting)
        note_shown(connection, name, fitting)
    return Sheet(str(path), name, len(rows), sum(entry.blind for entry in fitting), unfit)


def import_sheet(
    store: Path, section: ReviewSection, path: Path, reviewer: str | None = None, *, partial: bool = False
) -> Filled:
    """Take the answers of a filled sheet and judge by the recipe's policy, as `pull` does.

    A row whose cells make no sense is refused, with its line and a reason; the others count. Raises `SourceError`
    for a file that is no such sheet.
    """
    frame = _read(path)
    with writing(store) as connection:
        asked = _questions(connection, frame, path)
        known = _known(connection, frame)
        rows, refused, empty = _answers(frame, asked, known, reviewer)
        taken = [
            take_answers(connection, section, name, _frame([answer for one, answer in rows if one == name]),
                         partial=partial)
            for name in dict.fromkeys(name for name, _ in rows)
        ]  # fmt: skip
    return Filled(str(path), len(rows), empty, refused, taken)


def neutralise(cells: pl.Expr) -> pl.Expr:
    """Cells that no spreadsheet takes for formulas.

    >>> pl.Series(["=1+1", "'=1", "-5", "plain"]).to_frame("c").select(neutralise(pl.col("c")))["c"].to_list()
    ["'=1+1", "''=1", "'-5", 'plain']
    """
    return cells.str.replace(FORMULA, "'$1")


def restore_cells(cells: pl.Expr) -> pl.Expr:
    """Cells as they were before `neutralise`.

    >>> pl.Series(["'=1+1", "''=1", "-5", "'tis"]).to_frame("c").select(restore_cells(pl.col("c")))["c"].to_list()
    ['=1+1', "'=1", '-5', "'tis"]
    """
    return cells.str.replace(BACK, "$1")


# --- out ---


def _fitting(prepared: Prepared) -> tuple[list[Entry], list[dict[str, str]]]:
    """The entries whose text fits into a cell, and why the others do not: those that were pushed may be longer."""
    reasons = {entry.task.conversation: _too_long(entry.task) for entry in prepared.entries}
    fitting = [entry for entry in prepared.entries if reasons[entry.task.conversation] is None]
    pushed = [{"conversation": one, "reason": reason} for one, reason in reasons.items() if reason is not None]
    return fitting, [*prepared.unfit, *pushed]


def _too_long(task: Task) -> str | None:
    length = len(_text(task))
    return None if length < CELL_LIMIT else f"{length:,} characters; a spreadsheet's cell keeps {CELL_LIMIT:,}"


def _text(task: Task) -> str:
    return "\n\n".join(f"[{role}]\n{text}" for role, text in task.messages)


def _columns(questions: Sequence[Question]) -> list[str]:
    suggested = [f"{SUGGESTED}{question.name}" for question in questions if question.name in GUESSED]
    return [*OWN_COLUMNS, *suggested, *(question.name for question in questions), REVIEWER]


def _row(name: str, entry: Entry, questions: Sequence[Question]) -> dict[str, str]:
    """The cells of one conversation; the last answer stands in its question's cell, to be changed."""
    suggested = {each.question: each.value for each in entry.task.suggestions}
    metadata = entry.task.metadata
    row = {SET: name, CONVERSATION: entry.task.conversation, TEXT: _text(entry.task)}
    row |= {key: str(metadata[key]) for key in ("source", "line") if key in metadata}
    for question in questions:
        value = suggested.get(question.name)
        cell = "" if value is None else ", ".join(value) if isinstance(value, tuple) else str(value)
        if question.name == ANSWER or question.name in GUESSED:
            row[question.name if question.name == ANSWER else f"{SUGGESTED}{question.name}"] = cell
    return row


def _write(path: Path, frame: pl.DataFrame) -> None:
    """Write the whole file, or none; with the mark by which Excel knows UTF-8."""
    try:
        write_text(path, "\ufeff" + frame.with_columns(neutralise(pl.all())).write_csv())
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}.", write_hint(error, path)) from error


# --- in ---


def _read(path: Path) -> pl.DataFrame:
    """The sheet's cells as texts, with the column `at`: the line on which a row starts.

    Excel writes semicolons in half of the world; the header tells. The records are read by Python's csv: a sheet
    holds what people fill in by hand.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SourceError(f"There is no file {path}.", "curate review export FILE.csv writes one.") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8.", "Save it as CSV UTF-8, as Excel calls it.") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = next(reader, [])
    missing = [column for column in (SET, CONVERSATION) if column not in columns]
    if missing:
        raise SourceError(
            f"{path} has no column {' and no column '.join(missing)}, so it is no sheet of a review.",
            "curate review export FILE.csv writes one; leave its columns in place.",
        )
    rows, at = [], reader.line_num + 1
    for cells in reader:
        if any(cells):
            rows.append({**dict(zip(columns, cells, strict=False)), "at": str(at)})
        at = reader.line_num + 1
    frame = pl.DataFrame(rows, schema=dict.fromkeys([*columns, "at"], pl.String))
    return frame.with_columns(restore_cells(pl.all()).fill_null(""))


def _questions(connection: DuckDBPyConnection, frame: pl.DataFrame, path: Path) -> dict[str, tuple[Question, ...]]:
    """What each set of the sheet asks. Raises `ReviewError` for a set that the store does not know."""
    known = dict(connection.execute("SELECT review_set, questions FROM review_sets").fetchall())
    names = frame[SET].unique().to_list()
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ReviewError(
            f"{path} is of the review set {unknown[0]!r}, which this store does not know.",
            f"The store knows {', '.join(sorted(known)) or 'none'}; --store names another store.",
        )
    asked = {name: read_questions(known[name]) for name in names}
    for name, questions in asked.items():
        missing = [question.name for question in questions if question.name not in frame.columns]
        if missing:
            raise SourceError(f"{path} lacks the column {missing[0]} of the set {name}.", "Give it its name back.")
    return asked


@dataclass(frozen=True, slots=True)
class _Known:
    """What a row is held against: which turns of the conversation can be marked, and its last answer."""

    turns: frozenset[int]
    answer: str


def _known(connection: DuckDBPyConnection, frame: pl.DataFrame) -> dict[str, _Known]:
    """The sheet's conversations; those that are not in their set are missing here."""
    connection.register("sheet", frame.select(SET, CONVERSATION).unique())
    rows = connection.sql(
        """SELECT s.conversation, c.conversations AS turns FROM sheet s JOIN conversations c ON c.id = s.conversation
           JOIN review_records r ON r.review_set = s."set" AND r.conversation = s.conversation"""
    ).pl()
    connection.unregister("sheet")
    return {
        row["conversation"]: _Known(frozenset(learned_turns(row["turns"])), last_answer(row["turns"]) or "")
        for row in rows.iter_rows(named=True)
    }


def _answers(
    frame: pl.DataFrame,
    asked: Mapping[str, Sequence[Question]],
    known: Mapping[str, _Known],
    reviewer: str | None,
) -> tuple[list[tuple[str, dict[str, Any]]], list[dict[str, Any]], int]:
    """The rows with answers (set, row of an answers frame), the refused ones, and how many are still empty."""
    taken: list[tuple[str, dict[str, Any]]] = []
    refused: list[dict[str, Any]] = []
    empty = 0
    for row in frame.iter_rows(named=True):  # one by one: each may be wrong in a way of its own
        if _is_empty(row, asked[row[SET]], known):
            empty += 1
            continue
        try:
            taken.append((row[SET], _answer(row, asked[row[SET]], known, reviewer)))
        except ValueError as error:
            refused.append({"line": int(row["at"]), "conversation": row[CONVERSATION], "reason": str(error)})
    return taken, refused, empty


def _is_empty(row: Mapping[str, str], questions: Sequence[Question], known: Mapping[str, _Known]) -> bool:
    """Whether nobody has filled the row yet: no cell but the last answer, and that as it was."""
    before = known.get(row[CONVERSATION], _Known(frozenset(), "")).answer
    left = {"", "\n".join(before.splitlines()).strip()}
    return all(
        not row[question.name].strip()
        or (question.name == ANSWER and "\n".join(row[ANSWER].splitlines()).strip() in left)
        for question in questions
    )


def _answer(
    row: Mapping[str, str],
    questions: Sequence[Question],
    known: Mapping[str, _Known],
    reviewer: str | None,
) -> dict[str, Any]:
    """A row of an answers frame. Raises `ValueError` with what is wrong about it."""
    conversation, who = row[CONVERSATION], row.get(REVIEWER, "").strip() or reviewer
    if conversation not in known:
        raise ValueError(f"the set {row[SET]} has no conversation {conversation!r}")
    if not who:
        raise ValueError("nobody says so: fill the column reviewer, or give --reviewer NAME")
    values = {}
    for question in questions:
        cell = row[question.name] if question.kind == "text" else row[question.name].strip()
        if cell.strip():
            values[question.name] = READERS[question.kind](cell, question, known[conversation].turns)
        elif question.required:
            raise ValueError(f"{question.name} is empty")
    return {
        "record": None,
        "conversation": conversation,
        "reviewer": who,
        "response": f"{row[SET]}:{conversation}:{who}",
        "status": SUBMITTED,
        "answered_at": datetime.now(UTC),
        "answers": canonical_json(values),
    }


def _read_rating(cell: str, question: Question, _: frozenset[int]) -> int:
    number = cell.removesuffix(".0")  # as spreadsheets write whole numbers at times
    if number not in map(str, question.options):
        raise ValueError(f"{question.name} is {cell!r}, not one of {', '.join(map(str, question.options))}")
    return int(number)


def _read_choice(cell: str, question: Question, _: frozenset[int]) -> str:
    found = {str(option).lower(): str(option) for option in question.options}.get(cell.lower())
    if found is None:
        raise ValueError(f"{question.name} is {cell!r}, not one of {', '.join(map(str, question.options))}")
    return found


def _read_labels(cell: str, question: Question, turns: frozenset[int]) -> list[Any]:
    parts = [part.strip() for part in cell.replace(";", ",").split(",") if part.strip()]
    if question.name == TURNS:
        read = _read_turn if numbers_turns([question]) else _read_mark
        return [read(part, turns) for part in parts]
    return [_read_choice(part, question, turns) for part in parts]


def _read_turn(text: str, turns: frozenset[int]) -> int:
    number = text.removesuffix(".0")
    if not number.isdecimal() or int(number) not in turns:
        said = ", ".join(map(str, sorted(turns)))
        raise ValueError(f"turns has {text!r}, and the assistant's turns are {said}")
    return int(number)


def _read_mark(text: str, turns: frozenset[int]) -> int:
    """The turn's number of an answer's, written as `answer 2` or `2`."""
    number = text.lower().removeprefix(MARK).strip().removesuffix(".0")
    if not number.isdecimal() or not 0 < int(number) <= len(turns):
        raise ValueError(f"turns has {text!r}, and the conversation has the answers 1 to {len(turns)}")
    return sorted(turns)[int(number) - 1]


def _read_text(cell: str, _: Question, __: frozenset[int]) -> str:
    return cell


READERS: dict[str, Callable[[str, Question, frozenset[int]], Any]] = {
    "rating": _read_rating,
    "choice": _read_choice,
    "labels": _read_labels,
    "text": _read_text,
}


def _frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ANSWERS)
