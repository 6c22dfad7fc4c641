"""What a person sees: results on stdout (or JSON), progress and logs on stderr, options that all commands share."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from schemas.text import BIDI, printable

if TYPE_CHECKING:
    from rich.progress import Progress
    from typer._click import Context, HelpFormatter

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="FILE",
        help="The DuckDB file of this project.",
        envvar="CURATE_STORE",
        show_default="curate.duckdb",
    ),
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="The recipe.", show_default="curate.toml if it is there")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, such as train.steps=20."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class GroupedHelp(TyperGroup):
    """A command's help with its commands under the headings of their `rich_help_panel`, whole sentences, no frames.

    Typer's own grouped help imports Rich's Markdown, syntax and traceback parts, which takes longer than all else:
    `curate --help` would need 2.5 times what `import typer, rich` does (tests/bench/bench_start.py).
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


def print_json(value: object) -> None:
    """Print `value` as JSON on stdout; dates and paths become text, what a terminal would obey is escaped."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str).translate(_ESCAPED))


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], title: str = "") -> None:
    """Print rows as a table on stdout. Cells are data: markup and control characters in them are shown, not obeyed.

    What does not fit is folded into the next line, never cut: names are there to be typed, so sentences are folded
    first. Columns without names have no head.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, cells = Console(), [[printable(row[column]) for column in columns] for row in rows]
    named = any(column.strip() for column in columns)
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_header=named)
    texts = [[column, *(row[place] for row in cells)] for place, column in enumerate(columns)]
    for column, width in zip(columns, column_widths(texts, console.width - BETWEEN * len(columns) + 1), strict=True):
        table.add_column(column, overflow="fold", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


BETWEEN = 3
"""Characters between two columns of a table; half as many stand at its edges."""

SENTENCE, WORD = 3, 12
"""A text with so many spaces is a sentence; of a column of sentences longer words than this may be folded."""


def column_widths(texts: Sequence[Sequence[str]], available: int) -> list[int]:
    """How wide each column of a table is, together at most `available`, by its texts, the head among them.

    Where not all have room, each keeps its words whole, and what is left is shared out, to the narrowest first. Where
    not even the words have room, the widest columns give way.

    >>> column_widths([["file", "tickets.csv"], ["because", "Turn 2 (gpt) is empty."]], 31)
    [11, 20]
    >>> column_widths([["file", "tickets.csv"], ["because", "Turn 2 (gpt) is empty."]], 16)
    [9, 7]
    """
    wanted, least = [_longest(column) for column in texts], [_longest_word(column) for column in texts]
    room = range(1, max(available, 1) + 1)
    cap = max((cap for cap in room if sum(min(width, cap) for width in least) <= available), default=1)
    least = [min(width, cap) for width in least]

    def raised(level: int) -> list[int]:
        return [min(most, max(width, level)) for width, most in zip(least, wanted, strict=True)]

    return raised(max((level for level in room if sum(raised(level)) <= available), default=0))


def _longest(texts: Iterable[str]) -> int:
    """The cells of a terminal that the longest line takes: two for a Chinese character."""
    from rich.cells import cell_len

    return max((cell_len(line) for text in texts for line in text.splitlines()), default=0)


def _longest_word(texts: Sequence[str]) -> int:
    longest = _longest(word for text in texts for word in text.split())
    is_prose = any(text.count(" ") >= SENTENCE for text in texts)
    return max(_longest(texts[0].split()), min(longest, WORD)) if is_prose else longest


_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *BIDI)}
"""For JSON, whose own escapes end at U+001F; read back it is the same."""


def note(message: str) -> None:
    """Print a line for people on stderr."""
    typer.echo(_folded(printable(message), sys.stderr), err=True)


def say(message: str) -> None:
    """Print a sentence on stdout."""
    typer.echo(_folded(printable(message), sys.stdout))


def _folded(text: str, stream: TextIO) -> str:
    """`text` broken between words where a terminal shows it; in files, and in lines to paste, as it is."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    fold = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line if line.lstrip().startswith("→") else fold(line) for line in text.split("\n"))


def fitting(text: str, stream: TextIO) -> str:
    """`text` on one line, cut with an ellipsis where a terminal shows it and has no room; in files, as it is."""
    from rich.text import Text

    line = Text(printable(text))
    if stream.isatty():
        line.truncate(shutil.get_terminal_size().columns, overflow="ellipsis")
    return line.plain


@contextmanager
def progress_bar(description: str, total: float | None = None) -> Iterator[Progress]:
    """A progress bar on stderr with one task, number 0; nothing is shown when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        progress.add_task(description, total=total)
        yield progress
