"""Results of the review commands → text and tables of at most 80 columns. `--json` has all fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.cli.console import note, print_line, print_table
from curate.review.agreement import ANNOTATORS, RULES, SPREADSHEET, ReviewStats, Rows
from curate.review.pull import PullResult
from curate.review.push import PushResult
from curate.review.removal import AnnotatorRemoval, MemberRemoval
from curate.review.spreadsheet import SheetExport, SheetImport
from schemas.text import plural, shell_quote

RULES_DECIDE = "rules decide"
"""Printed instead of a verdict where there is none by annotators."""

NO_VALUE = "-"
"""Printed for a figure that cannot be computed yet."""


def show_push(result: PushResult, *, dry_run: bool) -> None:
    """Print how many conversations were sent, and why some were rejected."""
    conversations, answers = plural(result.conversations, "conversation"), plural(result.overlap, "answer")
    print_line(f"{result.review_set} on {result.server}: {conversations}, {result.blind:,} blind, {answers} each.")
    print_line("Nothing was sent (dry run)." if dry_run else f"{result.sent:,} sent, {result.unchanged:,} unchanged.")
    for row in result.labels:
        renamed = [f"{old} → {new}" for old, new in row["renamed"].items()]
        parts = {"added": row["added"], "renamed": renamed, "retired": row["retired"]}
        changes = "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)
        print_line(f"Labels of {row['question']}: {changes or 'another order'}.")
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
    if result.surplus_marks:
        note(f"Ignored {plural(result.surplus_marks, 'mark')} on answers that the conversation does not have.")
    for each in result.deleted_accounts:
        name, answers = each["annotator"], plural(each["answers"], "answer")
        if each["answers"]:
            note(f"{name} has no account on the server any more; {answers} to this set still count.")
            note(f"To count them no longer: curate review users remove {shell_quote(name)}")
    if result.unknown:
        note(f"Ignored {plural(result.unknown, 'answer')} to records that this store did not push.")
    if result.ended:
        verdicts = plural(result.ended, "earlier verdict")
        note(f"{verdicts} ended: changed or withdrawn answers no longer lead to it. Rules decide these conversations.")
    if outcomes.get("disputed"):
        note("Disputed: curate review push NAME --queue disagreement asks another annotator.")
    note("Next: curate review status, then curate freeze NAME.")


def show_annotator_removal(result: AnnotatorRemoval, *, dry_run: bool) -> None:
    """Print the sets with answers that no longer count, and the verdicts that change."""
    print_line(f"{result.annotator}: {plural(sum(row['answers'] for row in result.sets), 'answer')} no longer counted.")
    if result.sets:
        print_table(result.sets, ["set", "answers"])
    _print_changed(result.verdicts)
    if dry_run:
        print_line("Nothing was changed (dry run). Answers since the latest pull are not included.")
    elif result.account:
        note(f"The account {result.annotator} was deleted; its answers stay in the store.")


def show_member_removal(result: MemberRemoval, *, dry_run: bool) -> None:
    """Print how many conversations left the set, by answers, and the verdicts that change."""
    print_line(
        f"{result.review_set}: {plural(result.conversations, 'conversation')} removed: {result.answered:,} answered,"
        f" {result.partial:,} with too few answers, {result.unanswered:,} unanswered."
    )
    _print_changed(result.verdicts)
    note("Their answers stay in the store and count; without enough answers, rules decide.")
    if dry_run:
        print_line("Nothing was changed (dry run). Answers since the latest pull are not included.")


def _print_changed(verdicts: Rows) -> None:
    """Print how many verdicts change in each way, and some of the conversations."""
    print_line(f"{plural(len(verdicts), 'verdict')} changed{':' if verdicts else '.'}")
    counts = Counter((row["before"] or RULES_DECIDE, row["after"] or RULES_DECIDE) for row in verdicts)
    rows = [{"before": before, "after": after, "verdicts": count} for (before, after), count in counts.most_common()]
    if rows:
        print_table(rows, ["before", "after", "verdicts"])
        print_line(f"for example {', '.join(row['conversation'][:12] for row in verdicts[:3])}")


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
    notes: Sequence[str] = ()


def review_tables(stats: ReviewStats) -> list[TableView]:
    """The tables of the statistics that have rows."""
    tables = [
        TableView("Review sets", [{key: row[key] for key in SET_COLUMNS} for row in stats.sets],
                  list(map(_set_note, stats.sets))),
        TableView("Annotators", list(map(_annotator, stats.annotators)), (PACE_NOTE,)),
        TableView("Inter-annotator agreement", list(map(_agreement, stats.agreement)), AGREEMENT_NOTES),
        TableView("Suggestion bias: answers equal to the suggestion", list(map(_bias, stats.suggestion_bias)),
                  (BIAS_NOTE,)),
        *_label_tables(stats.labels),
        *(TableView(CONFUSIONS[key], rows) for key, rows in stats.confusions.items()),
    ]  # fmt: skip
    return [table for table in tables if table.rows]


ANNOTATORS_PER_TABLE = 5


def _label_tables(labels: Rows) -> list[TableView]:
    """How often each annotator chose each option: a table per question and some annotators."""
    tables = []
    for question in dict.fromkeys(row["question"] for row in labels):
        counts = {(row["label"], row["reviewer"]): row["answers"] for row in labels if row["question"] == question}
        names = sorted({reviewer for _, reviewer in counts})
        for start in range(0, len(names), ANNOTATORS_PER_TABLE):
            shown = names[start : start + ANNOTATORS_PER_TABLE]
            rows = [
                {"label": label, **{name: counts.get((label, name), 0) for name in shown}}
                for label in dict.fromkeys(label for label, _ in counts)
            ]
            tables.append(TableView(f"Answers to {question} by annotator", rows))
    return tables


SET_COLUMNS = ("set", "conversations", "done", "partial", "unanswered", "blind", "deleted")
PACE_NOTE = "pace: median time between answers, without gaps of more than 30 minutes."
AGREEMENT_NOTES = (
    "alpha: Krippendorff's; 1 if all answers are equal, 0 if they agree as by chance.",
    "blind alpha: of the answers given without suggestions.",
    "shared: conversations with several answers.",
)
BIAS_NOTE = "difference: in percentage points, with its 95 % confidence interval."
CONFUSIONS = {
    RULES: "Decisions: rules (rows) by annotators (columns)",
    ANNOTATORS: "Decisions: pairs of annotators, the first by name (rows) by the other (columns)",
}


def _set_note(row: Mapping[str, Any]) -> str:
    place = "in a spreadsheet" if row["server"] == SPREADSHEET else f"on {row['server']}"
    return f"{row['set']}: {place}, {plural(row['overlap'], 'answer')} per conversation."


def _annotator(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "annotator": row["reviewer"],
        "submitted": row["submitted"],
        "discarded": row["discarded"],
        "drafts": row["draft"],
        "pace": NO_VALUE if row["seconds_each"] is None else f"{row['seconds_each']:,.0f} s",
        "first": f"{row['first'].astimezone():%Y-%m-%d}",
        "latest": f"{row['last'].astimezone():%Y-%m-%d}",
    }


def _agreement(row: Mapping[str, Any]) -> dict[str, Any]:
    alpha, blind = (NO_VALUE if row[key] is None else f"{row[key]:.2f}" for key in ("alpha", "alpha_blind"))
    return {
        "question": row["question"],
        "scale": row["level"],
        "alpha": alpha,
        "blind alpha": blind,
        "annotators": row["annotators"],
        "shared": row["shared"],
    }


def _bias(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question": row["question"],
        "shown": f"{row['equal_if_shown']:.0%} of {row['shown']:,}",
        "blind": f"{row['equal_if_blind']:.0%} of {row['blind']:,}",
        "difference": f"{100 * row['difference']:+.0f} ± {100 * row['margin']:.0f}",
    }
