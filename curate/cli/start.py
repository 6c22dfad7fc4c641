"""The words of `curate init`, `doctor` and `demo`: how to begin. Each command imports what it needs when it runs."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.console import print_json
from curate.cli.options import JsonOption, StoreOption


def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("curate.toml"),
    replace: Annotated[bool, typer.Option("--replace", help="Write over a recipe that is there.")] = False,
) -> None:
    """Write a full recipe: every key with its default and what it means.

    \b
    curate init
    """
    from curate.recipe_template import write_recipe

    write_recipe(path, replace=replace)
    typer.echo(f"{path} is written. Next: curate import FILE, then curate score.")
    typer.echo("To train, name a base model in it: model = … under [train].")


def doctor(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say what is installed, which device there is, what clashes, and what to type.

    \b
    curate doctor
    """
    from dataclasses import asdict

    from curate.doctor import diagnose
    from schemas.store import store_path

    findings = diagnose(store_path(store))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        typer.echo("\n".join(finding.as_text() for finding in findings))
    if any(finding.state == "clash" for finding in findings):
        raise typer.Exit(1)


def demo(
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder for it.")] = Path("curate-demo"),
) -> None:
    """Walk the whole way on a sample, from a CSV to a tuned model, with the commands that do it.

    An earlier demo in that folder is kept, beside the new one.

    \b
    curate demo --to demo
    """
    from curate.demo import demonstrate

    demonstrate(to, typer.echo)
