"""Arguments → one command, with its errors explained on stderr and turned into an exit code.

Exit codes: 0 done; 1 an explained failure, or a check that did not pass; 2 wrong usage; 130 interrupted.

`curate --help` starts fast: a command is imported when it runs, and imports what it needs itself.
"""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from curate.cli.console import note
from curate.cli.groups import LazyCommand, LazyGroup
from curate.cli.startup import INTERRUPTED
from schemas.errors import CurateError

COMMANDS = {
    "Start": {
        "start.init": "Write a recipe with every key, its default and its meaning.",
        "start.doctor": "Check the installed packages, the GPU and the store, and show a command for each problem.",
        "start.demo": "Run all steps on a sample, from a CSV file to a fine-tuned model, and show each command.",
    },
    "Data": {
        "data.import_": "Import files: every row becomes a conversation, a duplicate, or a reject with a reason.",
        "data.rejects": "Show rejected rows with their reasons, or export them for repair and re-import.",
        "data.score": "Compute the missing scores of all conversations.",
        "data.dedup": "Find near-duplicate conversations and choose which one of each cluster to keep.",
        "data.select": "Apply the filter rules and show how many conversations each rule drops.",
        "sources.sources": (
            "List the imports with their ids and counts, and the conversations that only one import contributed."
        ),
    },
    "Versions": {
        "versions.freeze": "Freeze the kept conversations as the next version of NAME, with a leak-free split.",
        "versions.versions": "List the frozen versions with their sizes, parents and runs.",
        "versions.diff": (
            "Show the conversations that were added, removed, edited or moved between two versions, with reasons."
        ),
        "versions.export": "Write a version to files with checksums and a dataset card.",
        "versions.restore": "Restore a version from its exported folder and check its digest.",
    },
    "Inspect": {
        "store.status": "Show the contents of the store and the next command.",
        "inspect.show": "Show a conversation: all turns, scores, verdicts, near-duplicates, source lines and versions.",
        "inspect.search": "Find the conversations that contain all the words, in any turn and any case.",
        "store.sql": "Run a read-only SQL query on the store.",
        "store.trace": (
            "Trace a source line to its conversation, verdicts, versions and runs, "
            "or a conversation to its source lines."
        ),
    },
    "Train": {
        "training.preview": (
            "Show conversations as they are trained, with the tokens in the loss in colour and ⟦brackets⟧."
        ),
        "training.plan": "Show the tokens, packs, steps and dropped conversations of a training run before it starts.",
        "training.train": "Train an adapter on a version.",
        "training.runs": "List the runs with their versions, states, losses and adapters.",
        "training.verify": "Recompute every digest in an adapter's manifest and report differences.",
        "training.retrain": "Repeat a run with the same version and recipe, and compare the two adapters.",
        "training.chat": "Chat with an adapter, its base model, or both.",
        "training.templates": (
            "Check chat templates token by token against transformers, and show their handling of tools and reasoning."
        ),
        "training.check_packing": "Check that packed conversations do not attend to each other.",
    },
    "Deploy": {
        "models.merge": (
            "Merge an adapter into its base model: a complete model with tokenizer, "
            "chat template, stop tokens and manifest."
        ),
        "models.gguf": "Write a run as GGUF files for llama.cpp, measure each quantisation and recommend one.",
        "models.ollama": "Write an Ollama Modelfile with a run's chat template, stop tokens and GGUF.",
        "models.serve": "Serve a run or a GGUF with an OpenAI-compatible API until Ctrl-C.",
        "models.check_serving": (
            "Check that inference engines produce the training tokens and stop at the trained stop token."
        ),
    },
    "Review": {
        "review.review": "Review conversations with annotators, on a labelling server or in spreadsheets.",
    },
}
"""Heading of the help -> module and function of each command or group -> first sentence of its help."""


class Commands(LazyGroup):
    """The commands of `curate`."""

    lazy_commands = tuple(
        LazyCommand(target, purpose, panel)
        for panel, purposes in COMMANDS.items()
        for target, purpose in purposes.items()
    )


app = typer.Typer(
    name="curate",
    help="Curate instruction data and fine-tune on versioned datasets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=Commands,
    rich_markup_mode=None,  # see GroupedHelp
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from schemas.environment import DISTRIBUTION, installed_version

        typer.echo(f"curate {installed_version(DISTRIBUTION) or 'is not installed as a package'}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.", envvar="CURATE_DEBUG")
    ] = False,
    version: Annotated[  # noqa: ARG001, its callback prints it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Curate instruction data and fine-tune on versioned datasets."""
    if debug:
        os.environ["CURATE_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that lacks a character displays its number
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_encoding(sys.argv[1:])
        app()
    except (CurateError, ModuleNotFoundError, MemoryError, OSError) as error:
        explained = _explain(error)
        if explained is None or os.environ.get("CURATE_DEBUG"):
            raise
        _note_error(explained)
        if isinstance(error, OSError) and error.filename is None:  # or Python would try to write at exit again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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


def _explain(error: CurateError | ModuleNotFoundError | MemoryError | OSError) -> CurateError | None:
    """The error in two parts; None if its cause is unknown."""
    if isinstance(error, CurateError):
        return error
    if isinstance(error, MemoryError):
        return CurateError("There is not enough memory.", "Close other programs, or work on smaller files.")
    if isinstance(error, OSError):
        return _explain_os_error(error)
    return _explain_missing(error)


def _explain_os_error(error: OSError) -> CurateError | None:
    """The file and the cause; None for an error without a file, unless the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "The output" if error.filename is None else str(error.filename)
        cause = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        return CurateError(f"{what} cannot be written: {cause}.", "Free some space, and run the command again.")
    if error.filename is None:
        return None
    return CurateError(f"{error.filename}: {error.strerror}.", "Check the path and its permissions.")


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
