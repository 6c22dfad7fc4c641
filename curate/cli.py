"""The roof: turns words into calls and results into words. It alone sees both `curate` and `train`.

Nothing heavy is imported here: each command imports what it needs when it runs, so `curate --help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from schemas.errors import CurateError
from train.cli import register as register_training_commands

DATA, REVIEW, VERSIONS, LOOK = "Data", "Review", "Versions", "Look"

app = typer.Typer(
    name="curate",
    help="From CSV and JSONL exports to a tuned model that names its data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of a failure.", envvar="CURATE_DEBUG")
    ] = False,
) -> None:
    """From CSV and JSONL exports to a tuned model that names its data."""
    if debug:
        os.environ["CURATE_DEBUG"] = "1"


register_training_commands(app)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 explained failure, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except CurateError as error:
        if os.environ.get("CURATE_DEBUG"):
            raise
        typer.echo(f"Error: {error.what}", err=True)
        if error.hint:
            typer.echo(f"  → {error.hint}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Interrupted; the store is as it was before this command.", err=True)
        sys.exit(130)
