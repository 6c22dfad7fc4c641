"""Arguments → one command, with its errors explained on stderr and turned into an exit code.

Exit codes: 0 done; 1 an explained failure, or a check that did not pass; 2 wrong usage; 130 interrupted.

`curate --help` starts fast: a command is imported when it runs, and imports what it needs itself.
"""

from __future__ import annotations

import itertools
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from typer._click import Context

from curate.cli import verbosity
from curate.cli.groups import LazyCommand, LazyGroup
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

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.params = [*verbosity.options(), *self.params]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        verbosity.reset()
        return super().parse_args(ctx, args)


MAX_HELP_WIDTH = 500
"""Columns of the help at most; Typer's default is 80. Below it, the help is as wide as the terminal."""

app = typer.Typer(
    name="curate",
    help="Curate instruction data and fine-tune on versioned datasets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=Commands,
    rich_markup_mode=None,  # see GroupedHelp
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_HELP_WIDTH},
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
    arguments = sys.argv[1:]
    try:
        _check_encoding(arguments)
        if os.environ.get("_CURATE_COMPLETE") == "complete_bash":
            from curate.cli.completion import complete_in_bash

            complete_in_bash(app)
        else:
            app(prog_name="curate")
    except BaseException as end:  # also the exit of a command
        if isinstance(end, SystemExit) and not end.code:
            raise
        from curate.cli.failures import exit_after

        exit_after(end, as_json="--json" in itertools.takewhile(lambda argument: argument != "--", arguments))


def _check_encoding(arguments: list[str]) -> None:
    """Reject arguments that are not UTF-8, which neither the store nor JSON can hold; Python passes lone surrogates."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise CurateError(
                f"This argument is not UTF-8: {argument!r}.", "Rename the file, or set a locale such as LANG=C.UTF-8."
            )
