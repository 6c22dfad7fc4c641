"""What a person sees: results on stdout (or JSON), progress and logs on stderr, options that all commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

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

    What does not fit is folded into the next line, never cut: names are there to be typed. Columns without names have
    no head.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    named = any(column.strip() for column in columns)
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_header=named)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in columns))
    Console().print(table)


def printable(value: object) -> str:
    r"""`value` as text that a terminal shows and does not obey: numbers grouped, control characters made visible.

    >>> printable(31034), printable(0.5), printable(None), printable("a\x1b[31m")
    ('31,034', '0.5', '', 'a␛[31m')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).translate(_VISIBLE)


_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""What turns the direction of writing around, also of what stands behind it."""

_VISIBLE = {
    **dict.fromkeys(_BIDI, 0xFFFD),
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),  # C1: some terminals obey these too
}
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *_BIDI)}
"""For JSON, whose own escapes end at U+001F; read back it is the same."""


def note(message: str) -> None:
    """Print a line for people on stderr."""
    typer.echo(printable(message), err=True)


@contextmanager
def progress_bar(description: str, total: float | None = None) -> Iterator[Progress]:
    """A progress bar on stderr with one task, number 0; nothing is shown when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        progress.add_task(description, total=total)
        yield progress
