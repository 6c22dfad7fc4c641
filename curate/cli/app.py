"""The roof: turns words into calls and results into words. It alone sees both `curate` and `train`.

Nothing heavy is imported here: each command imports what it needs when it runs, so `curate --help` is quick.
"""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

import errno
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated

import typer

import curate.cli.startup  # noqa: F401  before the imports below: says which file hides our `schemas` or `train`
from curate.__main__ import INTERRUPTED
from curate.cli import data, start, store, versions
from curate.cli.console import note
from curate.cli.options import GroupedHelp
from curate.cli.training import register as register_training_commands
from schemas.errors import CurateError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from typer._click import Command

app = typer.Typer(
    name="curate",
    help="From CSV and JSONL exports to a tuned model that names its data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=GroupedHelp,
    rich_markup_mode=None,  # see GroupedHelp
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


class ReviewGroup(GroupedHelp):
    """`curate review …`, whose commands are read when they are asked for: a tenth of every start otherwise."""

    _read: "MutableMapping[str, Command] | None" = None

    @property
    def commands(self) -> "MutableMapping[str, Command]":
        """The commands by name."""
        if self._read is None:
            from curate.cli.review import app as review

            self._read = typer.main.get_group(review).commands
        return self._read

    @commands.setter
    def commands(self, empty: "MutableMapping[str, Command]") -> None:
        """Nothing: what Typer sets when it makes the group."""


start.register(app)
data.register(app)
app.add_typer(
    typer.Typer(
        cls=ReviewGroup,
        help="Let people judge conversations: a labelling server, what goes there, what comes back.",
        no_args_is_help=True,
        rich_markup_mode=None,  # see GroupedHelp
    ),
    name="review",
    rich_help_panel="Review",
)
versions.register(app)
store.register(app)
register_training_commands(app)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 explained failure, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without our characters shows their numbers
            stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_broken_characters(sys.argv[1:])
        app()
    except (CurateError, ModuleNotFoundError) as error:
        explained = error if isinstance(error, CurateError) else _missing(error)
        if explained is None or os.environ.get("CURATE_DEBUG"):
            raise
        _explain(explained)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None or os.environ.get("CURATE_DEBUG"):
            raise
        _explain(CurateError("What is printed cannot be written: the disk is full.", "Free some space."))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end of the process would try again
        sys.exit(1)
    except KeyboardInterrupt:  # while the commands are set up
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # how DuckDB tells of Ctrl-C, on any connection
            raise
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer's answer to Ctrl-C
            _say_interrupted()
        raise


def _refuse_broken_characters(arguments: list[str]) -> None:
    """Neither the store nor JSON can hold a name that is not UTF-8; Python hands it on with lone surrogates."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise CurateError(
                f"What was typed is not UTF-8: {argument!r}.", "Rename the file, or set a locale such as LANG=C.UTF-8."
            )


def _explain(error: CurateError) -> None:
    """What is wrong and what to do next, on two lines; names in it come from data."""
    note(f"Error: {error.what}")
    if error.hint:
        note(f"  → {error.hint}")


def _missing(error: ModuleNotFoundError) -> CurateError | None:
    """What to install for a package of one of our extras; None when it is none of them, which is a surprise."""
    from curate.doctor import extra_of
    from schemas.environment import install_command

    extra = extra_of(error.name or "")
    if extra is None:
        return None
    return CurateError(f"This needs {error.name}, which is not installed.", install_command(extra))


def _say_interrupted() -> None:
    typer.echo("Interrupted; nothing is damaged. The same command again finishes the work.", err=True)
