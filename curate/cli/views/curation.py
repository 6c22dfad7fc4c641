"""Presenting: what scores, a selection and versions look like to a person. Light, for commands that import no files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from curate.cli.console import note, print_line, print_table, truncate
from schemas.text import plural, printable

if TYPE_CHECKING:
    from curate.dedup.clusters import Deduplicated
    from curate.scorers.runner import ScoreReport
    from curate.selection import Selection
    from curate.versions.diff import Comparison

WIDE = 120
"""Columns of a terminal from which on three examples stand in a row, instead of one."""


def show_scores(report: ScoreReport) -> None:
    """Print how the columns of scores stand, and how many values were computed."""
    from curate.scorers.runner import as_rows

    numbers, others = as_rows(report, 3 if shutil.get_terminal_size().columns >= WIDE else 1)
    print_table(numbers, ["score", "min", "median", "p95", "max", "lowest", "highest"])
    print_table(others, ["score", "value", "conversations", "share", "examples"])
    note(f"Computed now, since they were missing: {plural(sum(report.computed.values()), 'value')}.")
    note("Next: curate score --why ID says how a quality came about; curate select applies the recipe's rules.")


def show_explanation(explained: Mapping[str, Any]) -> None:
    """Print one conversation's scores, and what its quality lost by them."""
    print_table(({"score": name, "value": value} for name, value in explained["scores"].items()), ["score", "value"])
    print_table(
        explained["penalties"], ["score", "value", "fine", "worst", "weight", "taken"], "quality = 1 - what is taken"
    )


def show_duplicates(found: Deduplicated) -> None:
    """Print how many near-duplicates there are, and those that are closest to being none."""
    print_line(
        f"{found.near_duplicates:,} of {plural(found.conversations, 'conversation')} are near-duplicates of one that"
        f" stays, {found.same_words:,} of them in the very same words. With those they resemble they make"
        f" {plural(found.clusters, 'cluster')}, the largest of {found.largest:,}."
        if found.clusters
        else f"None of {plural(found.conversations, 'conversation')} resembles another by {found.similarity}."
    )
    rows = [
        {
            "similarity": f"{one['similarity']:.3f}",
            "near-duplicate": f"{str(one['conversation'])[:12]} {one['prompt']}",
            "stays": f"{str(one['nearest'])[:12]} {one['nearest_prompt']}",
        }
        for one in found.examples
    ]
    if rows:
        print_table(rows, list(rows[0]), "The least alike of them")
    if not found.written:
        note("Nothing was written. Next: curate dedup, without --dry-run.")
    elif found.clusters:
        note('Next: a rule "not near_duplicate" and curate select; curate sql "FROM clusters" lists all.')


def show_selection(selection: Selection, *, dry_run: bool) -> None:
    """Print rule by rule how many leave, with examples, and what a freeze takes."""
    steps = [asdict(step) for step in selection.rules]
    if not steps:
        note("There is no rule: all conversations stay. [select.rules] in the recipe, or --where, says which leave.")
    else:
        print_table(steps, ["name", "rule", "before", "leaving", "unknown", "after"])
    for step in steps:
        for example in step["examples"]:
            typer.echo(truncate(f"{step['name']:12} {example['id'][:12]}  {example['prompt']}", sys.stdout))
    print_line(
        f"Rules keep {selection.kept_by_rules:,} of {selection.conversations:,}; people keep"
        f" {selection.kept_by_people:,} more and drop {selection.dropped_by_people:,}."
        f" A freeze takes {selection.kept:,}."
    )
    for name in selection.shadowed:
        note(f"In rules {name} is curate's own; the column {name} of a source is meta.{name}.")
    for step in steps:
        if step["before"] and not step["after"]:
            note(
                f"The rule {step['name']} keeps none of {plural(step['before'], 'conversation')}: is it what you mean?"
            )
    unknown = sum(step["unknown"] for step in steps)
    if unknown:
        note(f"A rule gave NULL, neither true nor false, for {plural(unknown, 'conversation')}: not kept.")
    if dry_run:
        note("Nothing was written. Next: curate select, without --dry-run.")
    else:
        note(f"{plural(selection.verdicts, 'verdict')} changed. Next: curate freeze NAME.")


def note_disputes(disputed: int) -> None:
    """Say how many of the frozen conversations people differ on: no verdict of theirs stands, so the rules decide."""
    if disputed:
        note(
            f"People differ on {disputed:,} of them, where rules decide: curate review push NAME --queue disagreement."
        )


def show_versions(listed: Sequence[Mapping[str, Any]]) -> None:
    """Print the versions as a table, digests and dates cut short."""
    if not listed:
        return note("No version is frozen yet: curate freeze NAME makes one.")
    cut = [
        {
            **{key: cell for key, cell in row.items() if key != "conversations"},
            "digest": row["digest"][:12],
            "frozen_at": row["frozen_at"][:10],
            "runs": " ".join(row["runs"]),
        }
        for row in listed
    ]
    return print_table(cut, list(cut[0]))


def show_changes(seen: Comparison, changes: Sequence[Mapping[str, Any]]) -> None:
    """Print how two versions differ and why, and the conversations in `changes`, edits as text."""
    for line in seen.summary():
        typer.echo(printable(line))
    if seen.changes.height:
        print_table(seen.reasons.to_dicts(), ["change", "conversations", "reason"])
    for change in changes:
        _show_change(change)
    if changes and len(changes) < seen.changes.height:
        note(f"{seen.changes.height - len(changes):,} more: --limit 0 shows all.")


def _show_change(change: Mapping[str, Any]) -> None:
    ids = " → ".join(change[side][:12] for side in ("before", "after") if change[side])
    splits = " → ".join(dict.fromkeys(change[side] for side in ("split_before", "split_after") if change[side]))
    typer.echo(printable(f"{change['change']:8} {ids} ({splits}) {change['origin'] or ''} {change['reason']}"))
    for turn in change.get("turns", []):
        typer.echo(printable(f"    turn {turn['position'] + 1}, {turn['role']}"))
        for line in turn["lines"]:
            typer.echo(printable(f"    {line}"))
