"""Options that several commands share, and the layout of a group's help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

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
        "--template", metavar="NAME", help="Chat template, a name or a Jinja file.", show_default="train.template"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class GroupedHelp(TyperGroup):
    """Help of a group: its commands under the headings of their `rich_help_panel`, with complete sentences.

    Typer's own grouped help imports Rich's Markdown, syntax and traceback modules, which takes longer than everything
    else: `curate --help` would need 2.5 times as long as `import typer, rich` (tests/bench/bench_start.py).
    """

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands, in the order in which they were registered."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = command.rich_help_panel if isinstance(command, TyperCommand | TyperGroup) else None
            panels.setdefault(str(panel or "Commands"), []).append((name, command.get_short_help_str(limit=200)))
        width = max(len(name) for name in self.commands)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), purpose) for name, purpose in rows])
