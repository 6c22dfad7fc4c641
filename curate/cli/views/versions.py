"""Results of freeze, versions, diff, export and restore → text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from curate.cli.console import note, print_table
from schemas.digest import canonical_json
from schemas.text import plural, printable

if TYPE_CHECKING:  # the commands import only what they run
    from curate.versions.bundle import ExportResult
    from curate.versions.diff import VersionDiff
    from curate.versions.freeze import FreezeResult
    from curate.versions.restore import RestoreResult

SHORT_DIGEST = 12
"""Digits of an id or a digest in a table."""


def show_freeze(result: FreezeResult) -> None:
    """Print a version, its splits and its digest."""
    version = result.version
    state = ("frozen" if result.written else "would be frozen") if result.new else "already exists, unchanged"
    splits = ", ".join(
        f"{count:,} {split} ({plural(result.groups[split], 'group')})" for split, count in version.counts.items()
    )
    typer.echo(f"{version.label} {state}: {plural(sum(version.counts.values()), 'conversation')} = {splits}")
    typer.echo(f"digest {version.digest}")
    typer.echo(f"parent {version.parent or 'none'}")
    if result.moved:
        typer.echo(f"In the other split than in {version.parent}: {plural(result.moved, 'conversation')}.")
    if not version.counts["held_out"]:
        typer.echo("held_out is empty: a small share of few groups may select none. Try --held-out 20%.")


def note_disputes(count: int) -> None:
    """Report how many of the frozen conversations have disputed reviews, so that rules decide on them."""
    if count:
        note(
            f"{plural(count, 'conversation')} with disputed reviews, decided by rules: "
            "curate review push NAME --queue disagreement"
        )


def show_versions(versions: Sequence[Mapping[str, Any]]) -> None:
    """Print the versions as a table, with shortened digests and dates."""
    if not versions:
        return note("There are no versions yet. Next: curate freeze NAME")
    rows = [
        {
            **{key: cell for key, cell in version.items() if key != "conversations"},
            "digest": version["digest"][:SHORT_DIGEST],
            "frozen_at": version["frozen_at"][:10],
            "runs": " ".join(version["runs"]),
        }
        for version in versions
    ]
    return print_table(rows, list(rows[0]))


def show_diff(diff: VersionDiff, changes: Sequence[Mapping[str, Any]]) -> None:
    """Print the counts, recipe changes and reasons of a diff, and the conversations in `changes`."""
    before, after = sum(diff.before.counts.values()), sum(diff.after.counts.values())
    typer.echo(f"{diff.before.label}: {plural(before, 'conversation')}; {diff.after.label}: {after:,}")
    typer.echo(", ".join(f"{count:,} {change}" for change, count in diff.counts.items()))
    for key in diff.recipe:
        typer.echo(printable(f"recipe {key.key}: {canonical_json(key.before)} → {canonical_json(key.after)}"))
    if diff.changes.height:
        print_table(diff.reasons.to_dicts(), ["change", "conversations", "reason"])
    for change in changes:
        _show_change(change)
    if changes and len(changes) < diff.changes.height:
        note(f"{diff.changes.height - len(changes):,} more: --limit 0 shows all.")


def _show_change(change: Mapping[str, Any]) -> None:
    ids = " → ".join(change[end][:SHORT_DIGEST] for end in ("before", "after") if change[end])
    splits = " → ".join(dict.fromkeys(change[end] for end in ("split_before", "split_after") if change[end]))
    typer.echo(printable(f"{change['change']:8} {ids} ({splits}) {change['origin'] or ''} {change['reason']}"))
    for turn in change.get("turns", []):
        typer.echo(printable(f"    turn {turn['position'] + 1}, {turn['role']}"))
        for line in turn["lines"]:
            typer.echo(printable(f"    {line}"))


def show_export(result: ExportResult) -> None:
    """Print the files of an export, and how many conversations were left out and why."""
    typer.echo(f"{result.version.label} written to {result.to} as {result.format}, read back and compared")
    for name, file in result.files.items():
        typer.echo(f"  {name}: {plural(file.conversations, 'conversation')} ({file.split})")
    for reason, count in result.reasons.items():
        typer.echo(f"  left out: {count:,}, {reason}")


def show_restore(result: RestoreResult) -> None:
    """Print the restored version and its recomputed digest."""
    version = result.version
    state = "restored" if result.new else "already exists, its members were written again"
    total = plural(sum(version.counts.values()), "conversation")
    typer.echo(f"{version.label} {state}: {total}, {result.conversations:,} of them new to the store")
    typer.echo(f"digest {version.digest}, recomputed from the conversations")
