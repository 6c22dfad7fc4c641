"""The options -q and -v, which every command has → what is printed on stderr."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from curate.cli.console import note, print_error, settings

if TYPE_CHECKING:
    from logging import LogRecord

    from typer._click.core import Parameter

STARTED = time.perf_counter()
PACKAGES = ("curate", "schemas", "train")


def _set_quiet(given: bool) -> bool:
    settings.quiet = settings.quiet or given
    return _check(given)


def _set_verbose(given: bool) -> bool:
    if given and not settings.verbose:
        settings.verbose = True
        _log_steps()
    return _check(given)


def _check(given: bool) -> bool:
    if settings.quiet and settings.verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other.", param_hint="--quiet, --verbose")
    return given


QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", callback=_set_quiet, expose_value=False, help="Print only results and errors.")
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=_set_verbose, expose_value=False, help="Log the steps and their seconds on stderr."
    ),
]


def add_options(command: TyperCommand | TyperGroup) -> None:
    """Add both options to a command, or to a group and all its commands."""
    command.params += options()
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            assert isinstance(inner, TyperCommand | TyperGroup)
            add_options(inner)


@cache
def options() -> list[Parameter]:
    """The two options."""

    def both(quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
        pass

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(both)
    return list(typer.main.get_command(app).params)


def reset() -> None:
    """Forget the options of an earlier command in this process."""
    settings.quiet = settings.verbose = False


def _log_steps() -> None:
    """Print the log messages of our packages on stderr from now on."""
    import logging

    class StepHandler(logging.Handler):
        """Each message with the seconds since the start; of a later command without -v only warnings."""

        def emit(self, record: LogRecord) -> None:
            if settings.verbose:
                print_error(f"{time.perf_counter() - STARTED:7.2f} s  {record.getMessage()}")
            elif record.levelno >= logging.WARNING:
                note(record.getMessage())

    for logger in map(logging.getLogger, PACKAGES):
        logger.addHandler(StepHandler())
        logger.setLevel(logging.DEBUG)
