"""Presenting: what scores, a selection and versions look like to a person. Light, for commands that import no files."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from curate.cli.console import note, print_line, print_table, truncate
from schemas.text import plural

if TYPE_CHECKING:
    from curate.dedup.clusters import DedupReport
    from curate.selection import SelectionReport


def show_duplicates(found: DedupReport) -> None:
    """Print how many near-duplicates there are, and those that are closest to being none."""
    print_line(
        f"{found.near_duplicates:,} of {plural(found.conversations, 'conversation')} are near-duplicates of one that"
        f" stays, {found.exact:,} of them in the very same words. With those they resemble they make"
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


def show_selection(selection: SelectionReport, *, dry_run: bool) -> None:
    """Print rule by rule how many leave, with examples, and what a freeze takes."""
    steps = [asdict(step) for step in selection.rules]
    if not steps:
        note("There is no rule: all conversations stay. [select.rules] in the recipe, or --where, says which leave.")
    else:
        print_table(steps, ["name", "rule", "before", "dropped", "unknown", "after"])
    for step in steps:
        for example in step["examples"]:
            typer.echo(truncate(f"{step['name']:12} {example['id'][:12]}  {example['prompt']}", sys.stdout))
    print_line(
        f"Rules keep {selection.kept_by_rules:,} of {selection.conversations:,}; people keep"
        f" {selection.kept_by_humans:,} more and drop {selection.dropped_by_humans:,}."
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
