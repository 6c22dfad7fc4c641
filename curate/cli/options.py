"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from curate.cli import completion
from schemas.text import shell_quote

DEFAULT_STORE = Path("curate.duckdb")
StoreOption = Annotated[
    Path, typer.Option("--store", metavar="FILE", help="DuckDB file of the project.", envvar="CURATE_STORE")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Recipe to read.", show_default="curate.toml if it exists"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, for example train.steps=20; repeatable."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="FOLDER", help="Base model.", show_default="train.model")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME",
        autocompletion=completion.TEMPLATES,
        help="Chat template, a name or a Jinja file.",
        show_default="train.template",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the result; write nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ImportLimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="Number of imports to list, the newest ones.", show_default="40 in a table, all as JSON"
    ),
]
MAX_IMPORTS = 40
"""Imports that a table lists."""


def repeat_options(context: typer.Context, omitted: Collection[str]) -> str:
    """The options of the running command as they were typed, except the parameters `omitted`, each after a space."""
    words: list[str] = []
    for parameter in context.command.params:
        source, name = context.get_parameter_source(parameter.name or ""), parameter.name or ""
        if (
            parameter.param_type_name != "option"
            or name in omitted
            or name not in context.params
            or source is None
            or source.name != "COMMANDLINE"
        ):
            continue
        value, option = context.params[name], max(parameter.opts, key=len)
        values = value if isinstance(value, list | tuple) else [value]
        off = parameter.secondary_opts[:1]  # --no-header
        words += (
            off
            if value is False
            else [option if one is True else f"{option} {shell_quote(str(one))}" for one in values]
        )
    return "".join(f" {word}" for word in words)
