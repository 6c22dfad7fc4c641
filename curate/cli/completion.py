"""The incomplete value of an argument or option → its completions, read from the store or from a registry.

Nothing is printed if the store is missing, locked or damaged: the shell then completes file names.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import typer

Completer = Callable[[typer.Context, str], list[str]]

WORDS, CURRENT = "COMP_WORDS", "COMP_CWORD"
"""Variables in which bash gives the words of the command line, and the number of the one to complete."""


def from_store(query: str) -> Completer:
    """Complete with the texts that a query returns from the store of --store."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        import duckdb

        path = Path(context.params["store"]).absolute()
        try:  # without schemas.store, which waits for a locked store and migrates an old one
            with duckdb.connect(str(path), read_only=True) as connection:
                return [name for (name,) in connection.execute(query).fetchall() if name.startswith(incomplete)]
        except duckdb.Error:
            return []

    return complete


def from_names(names: Callable[[], Iterable[str]]) -> Completer:
    """Complete with the names of a registry, which is imported when they are needed."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001, Typer passes both
        return [name for name in names() if name.startswith(incomplete)]

    return complete


VERSIONS = from_store("SELECT version FROM versions ORDER BY seq DESC")
DATASETS = from_store("SELECT DISTINCT name FROM versions ORDER BY name")
RUNS = from_store("SELECT run FROM runs WHERE status = 'done' ORDER BY try_cast(substr(run, 2) AS INTEGER) DESC")
REVIEW_SETS = from_store("SELECT review_set FROM review_sets ORDER BY ALL")
SOURCES = from_store("SELECT DISTINCT path FROM sources ORDER BY path")
REJECT_CODES = from_store("SELECT DISTINCT code FROM rejects ORDER BY code")


def _templates() -> list[str]:
    from train.tokens.chat_template import RAW, bundled_names, known_unsloth_names

    return sorted({"tokenizer", RAW, *bundled_names(), *known_unsloth_names()})


def _scorers() -> list[str]:
    from curate.scorers.plan import scorer_names

    return scorer_names()


def _file_formats() -> Iterable[str]:
    from curate.ingest.readers.formats import FORMATS

    return FORMATS


def _shapes() -> Iterable[str]:
    from curate.ingest.shapes import SHAPES

    return SHAPES


def _repairs() -> Iterable[str]:
    from curate.ingest.repairs import REPAIRS

    return REPAIRS


def _export_formats() -> Iterable[str]:
    from curate.versions.formats import FORMATS

    return FORMATS


def _queues() -> Iterable[str]:
    from curate.review.queue import QUEUES

    return QUEUES


def _gpus() -> list[str]:
    from train.model.gpus import GPUS

    return ["this", *GPUS]


def _quants() -> Iterable[str]:
    from train.export.quant_choice import DEFAULT_KINDS

    return DEFAULT_KINDS


TEMPLATES = from_names(_templates)
SCORERS = from_names(_scorers)
FILE_FORMATS = from_names(_file_formats)
SHAPES = from_names(_shapes)
REPAIRS = from_names(_repairs)
EXPORT_FORMATS = from_names(_export_formats)
QUEUES = from_names(_queues)
GPUS = from_names(_gpus)
QUANTS = from_names(_quants)


def one_of(*names: str) -> Completer:
    """Complete with these names."""
    return from_names(lambda: names)


def complete_in_bash(app: typer.Typer) -> None:
    """Print the completions for bash, which takes support@1 for three words and replaces only the last of them."""
    words, current = join_versions(os.environ[WORDS].split("\n"), int(os.environ[CURRENT]))
    os.environ |= {WORDS: "\n".join(words), CURRENT: str(current)}
    kept = words[current].rfind("@") + 1 if current < len(words) else 0
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            app(prog_name="curate")
    finally:
        for line in printed.getvalue().splitlines():
            typer.echo(line[kept:])


def join_versions(words: Sequence[str], current: int) -> tuple[list[str], int]:
    """The words with @ joined to its neighbours, and the place of the current word among them.

    >>> join_versions(["curate", "diff", "support", "@", "1", "sup", "@"], 6)
    (['curate', 'diff', 'support@1', 'sup@'], 3)
    """
    joined: list[str] = []
    place = 0
    for number, word in enumerate(words):
        if joined and (word == "@" or joined[-1].endswith("@")):
            joined[-1] += word
        else:
            joined.append(word)
        if number == current:
            place = len(joined) - 1
    return joined, place if current < len(words) else len(joined)
