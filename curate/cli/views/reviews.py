"""Results of the review commands → text and tables of at most 80 columns. `--json` has all fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from curate.cli.console import note, print_line, print_table
from curate.review.agreement import ANNOTATORS, RULES, SPREADSHEET, ReviewStats, Rows
from curate.review.pull import PullResult
from curate.review.push import PushResult
from curate.review.spreadsheet import SheetExport, SheetImport
from schemas.text import plural

NO_VALUE = "-"
"""Printed for a figure that cannot be computed yet."""


def show_push(result: PushResult, *, dry_run: bool) -> None:
    """Print how many conversations were sent, and why some were rejected."""
    conversations, answers = plural(result.conversations, "conversation"), plural(result.overlap, "answer")
    print_line(f"{result.review_set} on {result.server}: {conversations}, {result.blind:,} blind, {answers} each.")
    print_line("Nothing was sent (dry run)." if dry_run else f"{result.sent:,} sent, {result.unchanged:,} unchanged.")
    _print_rejected(result.rejected_by_server)
    note(f"Next: annotators answer on {result.server}, then curate review pull {result.review_set}.")


def show_export(result: SheetExport) -> None:
    """Print how many conversations were written, and why some were rejected."""
    conversations = plural(result.rows, "conversation")
    print_line(f"{result.path}: {conversations} of the review set {result.review_set}, {result.blind:,} blind.")
    _print_rejected(result.rejected)
    note(f"Fill in the question columns and `reviewer`. Next: curate review import {result.path}")


def _print_rejected(rejected: list[dict[str, str]]) -> None:
    if rejected:
        print_line(f"{len(rejected):,} cannot be shown and were left out:")
        for row in rejected:
            print_line(f"  {row['conversation'][:12]}  {row['reason']}")


def show_import(result: SheetImport) -> None:
    """Print the rows with answers, each reason of rejected rows once, and the verdicts of each set."""
    rows = plural(result.answered, "row")
    print_line(f"{result.path}: {rows} with answers, {result.empty:,} empty, {len(result.rejected):,} rejected.")
    lines: dict[str, list[int]] = {}
    for row in result.rejected:  # few: filled in by hand
        lines.setdefault(row["reason"], []).append(row["line"])
    for reason, (first, *others) in lines.items():
        more = f" and {plural(len(others), 'more row')}" if others else ""
        print_line(f"  line {first}{more}: {reason}")
    for each in result.sets:
        show_pull(each)


def show_pull(result: PullResult) -> None:
    """Print the new answers of a set, and the outcomes of all its answers."""
    if result.unchanged:
        print_line(f"{result.review_set}: no new answers since the latest pull.")
    else:
        counts = ", ".join(f"{count:,} {status}" for status, count in result.answers.items() if count)
        print_line(f"{result.review_set}: new answers: {counts or 'none'}.")
    outcomes: dict[str, Any] = {outcome: count for outcome, count in result.outcomes.items() if count}
    if outcomes:
        print_line(f"Verdicts for {result.review_set}, combined with all other review sets:")
        print_table([outcomes], list(outcomes))
    print_line(f"{plural(result.verdicts, 'new verdict')}.")
    if result.uncorrected:
        conversations = plural(result.uncorrected, "conversation")
        note(f'{conversations} marked "fix" without a correction, excluded until one is submitted.')
    if result.deleted:
        records = plural(result.deleted, "record")
        note(f"{records} deleted on the server. Pulled answers are kept; a push creates the records again.")
    if result.unknown:
        note(f"Ignored {plural(result.unknown, 'answer')} to records that this store did not push.")
    if outcomes.get("undecided"):
        note("Undecided: the answer was withdrawn. Rules decide until there is another answer.")
    if outcomes.get("disputed"):
        note("Disputed: curate review push NAME --queue disagreement asks another annotator.")
    note("Next: curate review status, then curate freeze NAME.")


def show_stats(stats: ReviewStats, *, list_disputed: bool) -> None:
    """Print the tables of `review_tables`, and the disputed conversations."""
    for table in review_tables(stats):
        print_table(table.rows, list(table.rows[0]), table.title)
        if table.notes:
            print_line("\n".join((*table.notes, "")))
    if not stats.annotators:
        note("There are no answers yet.")
    if stats.disputed:
        disputed = plural(len(stats.disputed), "conversation")
        print_line(f"{disputed} disputed: curate review push NAME --queue disagreement")
        for row in stats.disputed if list_disputed else []:
            print_line(f"  {row['conversation'][:12]}  {row['answers']}")


@dataclass(frozen=True, slots=True)
class TableView:
    """A table with its title and the notes below it."""

    title: str
    rows: Rows
    notes: tuple[str, ...] = ()


def review_tables(stats: ReviewStats) -> list[TableView]:
    """The tables of the statistics that have rows."""
    tables = [
        TableView("Review sets", _rows(stats.sets, SETS), tuple(_set_notes(stats.sets))),
        TableView("Annotators", _rows(stats.annotators, ANNOTATOR), (PACE_NOTE,)),
        TableView("Inter-annotator agreement", _rows(stats.agreement, AGREEMENT), AGREEMENT_NOTES),
        TableView("Suggestion bias: answers equal to the suggestion", _rows(stats.suggestion_bias, BIAS), (BIAS_NOTE,)),
        *(TableView(CONFUSIONS[key], rows) for key, rows in stats.confusions.items()),
    ]
    return [table for table in tables if table.rows]


PACE_NOTE = "pace: median time between answers, without gaps of more than 30 minutes."
AGREEMENT_NOTES = (
    "alpha: Krippendorff's; 1 if all answers are equal, 0 if they agree as by chance.",
    "blind alpha: of the answers given without suggestions.",
    "shared: conversations with several answers.",
)
BIAS_NOTE = "difference: in percentage points, with its 95 % confidence interval."

Columns = Mapping[str, Callable[[Mapping[str, Any]], object]]
"""Heading -> the cell of a row."""

SETS: Columns = {
    "set": lambda row: row["set"],
    "conversations": lambda row: row["conversations"],
    "done": lambda row: row["done"],
    "partial": lambda row: row["partial"],
    "unanswered": lambda row: row["unanswered"],
    "blind": lambda row: row["blind"],
    "deleted": lambda row: row["deleted"],
}
ANNOTATOR: Columns = {
    "annotator": lambda row: row["reviewer"],
    "submitted": lambda row: row["submitted"],
    "discarded": lambda row: row["discarded"],
    "drafts": lambda row: row["draft"],
    "pace": lambda row: NO_VALUE if row["seconds_each"] is None else f"{row['seconds_each']:,.0f} s",
    "first": lambda row: row["first"][:10],
    "latest": lambda row: row["last"][:10],
}
AGREEMENT: Columns = {
    "question": lambda row: row["question"],
    "scale": lambda row: row["level"],
    "alpha": lambda row: NO_VALUE if row["alpha"] is None else f"{row['alpha']:.2f}",
    "blind alpha": lambda row: NO_VALUE if row["alpha_blind"] is None else f"{row['alpha_blind']:.2f}",
    "annotators": lambda row: row["annotators"],
    "shared": lambda row: row["shared"],
}
BIAS: Columns = {
    "question": lambda row: row["question"],
    "shown": lambda row: f"{row['equal_if_shown']:.0%} of {row['shown']:,}",
    "blind": lambda row: f"{row['equal_if_blind']:.0%} of {row['blind']:,}",
    "difference": lambda row: f"{100 * row['difference']:+.0f} ± {100 * row['margin']:.0f}",
}
CONFUSIONS = {
    RULES: "Decisions: rules (rows) by annotators (columns)",
    ANNOTATORS: "Decisions: pairs of annotators, the first by name (rows) by the other (columns)",
}


def _rows(rows: Rows, columns: Columns) -> Rows:
    return [{heading: cell(row) for heading, cell in columns.items()} for row in rows]


def _set_notes(sets: Rows) -> Iterator[str]:
    """The place of each set and its answers per conversation."""
    for row in sets:
        place = "in a spreadsheet" if row["server"] == SPREADSHEET else f"on {row['server']}"
        yield f"{row['set']}: {place}, {plural(row['overlap'], 'answer')} per conversation."
