"""Near-duplicates and selections → terminal output."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from curate.cli.console import note, print_line, print_table, truncate
from schemas.text import plural

if TYPE_CHECKING:
    from curate.dedup.clusters import DedupReport
    from curate.selection import SelectionReport

SHORT_ID = 12
"""Digits of an id in front of a prompt."""


def show_duplicates(report: DedupReport) -> None:
    """Print the number of near-duplicates and clusters, and the least similar pairs."""
    among = f"among {plural(report.conversations, 'conversation')}"
    if report.clusters:
        print_line(
            f"Found {plural(report.near_duplicates, 'near-duplicate')} ({report.exact:,} exact) in "
            f"{plural(report.clusters, 'cluster')} {among}; largest cluster: {report.largest:,}."
        )
    else:
        print_line(f"Found no near-duplicates {among} at a similarity of {report.similarity}.")
    rows = [
        {
            "similarity": f"{pair['similarity']:.3f}",
            "near-duplicate": f"{str(pair['conversation'])[:SHORT_ID]} {pair['prompt']}",
            "kept": f"{str(pair['nearest'])[:SHORT_ID]} {pair['nearest_prompt']}",
        }
        for pair in report.examples
    ]
    if rows:
        print_table(rows, list(rows[0]), "Least similar pairs")
    if not report.written:
        note("Nothing was written. Next: curate dedup without --dry-run.")
    elif report.clusters:
        note('Next: curate select with a rule "not near_duplicate"; curate sql "FROM clusters" lists the clusters.')


def show_selection(report: SelectionReport, *, dry_run: bool) -> None:
    """Print how many conversations each rule drops, with examples, and the number for the next freeze."""
    if report.rules:
        columns = ["name", "rule", "before", "dropped", "unknown", "after"]
        print_table(map(asdict, report.rules), columns)
    else:
        note("There are no rules, so all conversations are kept. Add rules to [select.rules], or use --where.")
    for rule in report.rules:
        for example in rule.examples:
            print_line(truncate(f"{rule.name:12} {example['id'][:SHORT_ID]}  {example['prompt']}", sys.stdout))
    print_line(
        f"Rules keep {report.kept_by_rules:,} of {plural(report.conversations, 'conversation')}; human verdicts keep "
        f"{report.kept_by_humans:,} more and drop {report.dropped_by_humans:,}. "
        f"The next freeze includes {report.kept:,}."
    )
    for name in report.shadowed:
        note(f"In rules, {name} is a built-in name; write meta.{name} for the source column.")
    for rule in report.rules:
        if rule.before and not rule.after:
            note(f"The rule {rule.name} keeps none of {plural(rule.before, 'conversation')}. Check its expression.")
    unknown = sum(rule.unknown for rule in report.rules)
    if unknown:
        note(f"A rule evaluated to NULL for {plural(unknown, 'conversation')}, which counts as failed.")
    if dry_run:
        note("Nothing was written. Next: curate select without --dry-run.")
    else:
        reasons = f", {plural(report.reasons, 'verdict')} by another rule" if report.reasons else ""
        note(f"{plural(report.verdicts, 'verdict')} changed{reasons}. Next: curate freeze NAME.")
