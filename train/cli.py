"""The training commands' words: options in, one call, results out. Everything heavy is imported inside."""

from __future__ import annotations

import typer

PANEL = "Train"


def register(app: typer.Typer) -> None:
    """Add the training commands to the roof's `app`."""
