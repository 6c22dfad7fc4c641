"""Groups of commands: their help under headings, and commands that are imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from curate.cli.verbosity import add_options

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter


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


class LazyCommand(TyperCommand):
    """What the help of a group says about a command or group, and where its code is.

    `target` is its module in `curate.cli` and its function, or its Typer object, such as "data.import_".
    """

    def __init__(self, target: str, purpose: str, panel: str) -> None:
        self.module, _, self.function = target.partition(".")
        name = self.function.rstrip("_").replace("_", "-")
        super().__init__(name, short_help=purpose, rich_help_panel=panel)

    def load(self) -> TyperCommand | TyperGroup:
        """The command with its options and complete help."""
        function = getattr(import_module(f"curate.cli.{self.module}"), self.function)
        if isinstance(function, typer.Typer):
            loaded: Command = typer.main.get_group(function)
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)  # see GroupedHelp
            app.command(self.name)(function)
            loaded = typer.main.get_command(app)
        assert isinstance(loaded, TyperCommand | TyperGroup)
        loaded.rich_help_panel = self.rich_help_panel
        add_options(loaded)
        return loaded


class LazyGroup(GroupedHelp):
    """A group that imports a command when it runs, or shows or completes its options.

    The other commands cost a start nothing: importing their options and building them took a third of each.
    """

    lazy_commands: tuple[LazyCommand, ...]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {str(command.name): command for command in self.lazy_commands}

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """The complete command; None if there is none of this name."""
        command = super().get_command(ctx, cmd_name)
        if isinstance(command, LazyCommand):
            self.commands[cmd_name] = command = command.load()
        return command
