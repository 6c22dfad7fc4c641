"""Commands init, doctor and demo: a new project, a check of the installation, and an example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.console import print_json, print_line
from curate.cli.options import DEFAULT_STORE, JsonOption, StoreOption


def init(
    path: Annotated[Path, typer.Argument(help="Recipe to write.")] = Path("curate.toml"),
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a recipe with every key, its default and its meaning.

    \b
    curate init
    """
    from curate.recipe_template import write_recipe

    write_recipe(path, replace=replace)
    print_line(f"Wrote {path}. Next: curate import FILE, then curate score.")
    print_line("To train, set a base model in it: model = … under [train].")


def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Check the installed packages, the GPU and the store, and show a command for each problem.

    \b
    curate doctor
    """
    from curate.cli.views.doctor import show_findings
    from curate.doctor import run_checks

    findings = run_checks(store)
    print_json(findings) if as_json else show_findings(findings)
    if any(finding.state == "conflict" for finding in findings):
        raise typer.Exit(1)


def demo(
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the demo.")] = Path("curate-demo"),
) -> None:
    """Run all steps on a sample, from a CSV file to a fine-tuned model, and show each command.

    An earlier demo in the folder is renamed and kept.

    \b
    curate demo --to demo
    """
    from curate.demo import run_demo

    run_demo(to, print_line)
