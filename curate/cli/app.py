"""Arguments → one command, with its errors explained on stderr and turned into an exit code.

Exit codes: 0 done; 1 an explained failure, or a check that did not pass; 2 wrong usage; 130 interrupted.

Nothing heavy is imported here: each command imports what it needs when it runs, so that `curate --help` starts fast.
"""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

import errno
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli import data, inspect, models, sources, start, store, training, versions
from curate.cli.console import note
from curate.cli.options import GroupedHelp
from curate.cli.startup import INTERRUPTED
from schemas.errors import CurateError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from typer._click import Command

COMMANDS: "dict[str, list[Callable[..., None]]]" = {
    "Start": [start.init, start.doctor, start.demo],
    "Data": [data.import_, data.rejects, data.score, data.dedup, data.select],
    "Versions": [versions.freeze, versions.versions, versions.diff, versions.export, versions.restore],
    "Inspect": [store.status, inspect.show, inspect.search, store.sql, store.trace],
    "Train": [
        *(training.preview, training.plan, training.train, training.runs, training.verify, training.retrain),
        *(training.chat, training.templates, training.check_packing),
    ],
    "Deploy": [models.merge, models.gguf, models.ollama, models.serve, models.check_serving],
}
"""Heading of the help -> functions, named like their commands. `curate review …` is the group below."""

app = typer.Typer(
    name="curate",
    help="Curate instruction data and fine-tune on versioned datasets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=GroupedHelp,
    rich_markup_mode=None,  # see GroupedHelp
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.", envvar="CURATE_DEBUG")
    ] = False,
) -> None:
    """Curate instruction data and fine-tune on versioned datasets."""
    if debug:
        os.environ["CURATE_DEBUG"] = "1"


class ReviewGroup(GroupedHelp):
    """`curate review …`, whose commands are imported when they are needed: they would take a tenth of every start."""

    _imported: "MutableMapping[str, Command] | None" = None

    @property
    def commands(self) -> "MutableMapping[str, Command]":
        """The commands by name."""
        if self._imported is None:
            from curate.cli.review import app as review

            self._imported = typer.main.get_group(review).commands
        return self._imported

    @commands.setter
    def commands(self, empty: "MutableMapping[str, Command]") -> None:
        """Ignore the empty mapping that Typer sets when it creates the group."""


app.add_typer(sources.app, name="sources", rich_help_panel="Data")
for panel, commands in COMMANDS.items():
    for command in commands:
        name = command.__name__.rstrip("_").replace("_", "-")
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(
    typer.Typer(
        cls=ReviewGroup,
        help="Review conversations with annotators, on a labelling server or in spreadsheets.",
        no_args_is_help=True,
        rich_markup_mode=None,  # see GroupedHelp
    ),
    name="review",
    rich_help_panel="Review",
)


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that lacks a character displays its number
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_encoding(sys.argv[1:])
        app()
    except (CurateError, ModuleNotFoundError) as error:
        explained = error if isinstance(error, CurateError) else _explain_missing(error)
        if explained is None or os.environ.get("CURATE_DEBUG"):
            raise
        _note_error(explained)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None or os.environ.get("CURATE_DEBUG"):
            raise
        _note_error(CurateError("The output cannot be written: the disk is full.", "Free some space."))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again at exit
        sys.exit(1)
    except (KeyboardInterrupt, RuntimeError, SystemExit) as end:
        if not _is_interruption(end):
            raise
        note("Interrupted; nothing is damaged. Run the same command again to finish.")
        sys.exit(INTERRUPTED)


def _check_encoding(arguments: list[str]) -> None:
    """Reject arguments that are not UTF-8, which neither the store nor JSON can hold; Python passes lone surrogates."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise CurateError(
                f"This argument is not UTF-8: {argument!r}.", "Rename the file, or set a locale such as LANG=C.UTF-8."
            )


def _note_error(error: CurateError) -> None:
    note(f"Error: {error.what}")
    if error.hint:
        note(f"  → {error.hint}")


def _explain_missing(error: ModuleNotFoundError) -> CurateError | None:
    """The command that installs a missing package of one of our extras; None for any other package."""
    from curate.doctor import find_extra
    from schemas.environment import install_command

    extra = find_extra(error.name or "")
    if extra is None:
        return None
    return CurateError(f"This needs {error.name}, which is not installed.", install_command(extra))


def _is_interruption(end: BaseException) -> bool:
    """Whether an exception stands for Ctrl-C: Python's before a command runs, DuckDB's, or Typer's exit code."""
    if isinstance(end, SystemExit):
        return end.code == INTERRUPTED
    return isinstance(end, KeyboardInterrupt) or str(end) == "Query interrupted"
