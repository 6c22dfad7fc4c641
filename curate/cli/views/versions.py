"""Results of freeze, export and restore → text for people."""

from __future__ import annotations

import typer

from curate.versions.bundle import ExportResult
from curate.versions.freeze import FreezeResult
from curate.versions.restore import RestoreResult
from schemas.text import plural


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
    state = "restored" if result.new else "existed, its members were written again"
    total = plural(sum(version.counts.values()), "conversation")
    typer.echo(f"{version.label} {state}: {total}, {result.conversations:,} of them new to the store")
    typer.echo(f"digest {version.digest}, recomputed from the conversations")
