"""Results → tables, records, lines or JSON on stdout; notes and progress → stderr; all fitted to the terminal."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from schemas.text import BIDI, printable, utc_timestamp

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(slots=True)
class Settings:
    """Options of the running command that apply to everything it prints."""

    quiet: bool = False
    verbose: bool = False


settings = Settings()


def print_json(value: object) -> None:
    """Print `value` as one JSON document on stdout (README.md).

    Dataclasses become objects, moments ISO 8601 in UTC, paths and other values text, numbers that are not finite null,
    and control characters escapes.
    """
    settings: dict[str, Any] = {"ensure_ascii": False, "default": _plain}
    try:
        text = json.dumps(value, indent=2, allow_nan=False, **settings)
    except ValueError:  # NaN or an infinity, for which JSON has no notation
        finite = json.loads(json.dumps(value, **settings), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=False, indent=2)
    typer.echo(text.translate(_ESCAPED))


def _plain(value: Any) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return utc_timestamp(value) if isinstance(value, datetime) else str(value)


_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *BIDI)}
"""Escapes in addition to those of JSON, which end at U+001F; they decode to the same text."""


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], title: str = "") -> None:
    """Print rows on stdout as a table, or as one record per row if the terminal is too narrow for the table.

    Nothing is cut, and a line breaks at spaces only, so that names can be copied. Cells are data: markup and control
    characters are displayed, not interpreted.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    cells = [[printable(row[column]).expandtabs() for column in columns] for row in rows]
    texts = [[column, *(row[place] for row in cells)] for place, column in enumerate(columns)]
    widths = column_widths(texts, console.width - COLUMN_GAP * (len(columns) - 1))
    if widths is None:
        for row in cells:
            fields = {f"{column}:" if column else "": cell for column, cell in zip(columns, row, strict=True)}
            print_fields(fields, title)
            title = ""
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(*_title_lines(title, console.width), table, "", sep="\n")


COLUMN_GAP = 2
"""Characters between two columns of a table."""

PROSE_SPACES, PROSE_WIDTH = 3, 20
"""A column is prose if a cell has so many spaces; it can be narrowed to this width. Other cells stay on one line."""


def column_widths(texts: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """The width of each column of a table, by its heading and cells; None if `available` is too little.

    If the columns do not fit as they are, the widest columns of prose are narrowed first.

    >>> column_widths([["file", "tickets.csv"], ["reason", "Turn 2 (gpt) is empty."]], 31)
    [11, 20]
    >>> column_widths([["file", "tickets.csv"], ["reason", "Turn 2 (gpt) is empty."]], 30) is None
    True
    """
    preferred = [_longest(line for text in column for line in text.splitlines()) for column in texts]
    least = [_least_width(heading, cells) for heading, *cells in texts]

    def widths(limit: int) -> list[int]:
        return [min(most, max(width, limit)) for width, most in zip(least, preferred, strict=True)]

    limits = range(max(preferred, default=0), -1, -1)
    return next((widths(limit) for limit in limits if sum(widths(limit)) <= available), None)


def _least_width(heading: str, cells: Sequence[str]) -> int:
    lines = [line for cell in cells for line in cell.splitlines()]
    if all(line.count(" ") < PROSE_SPACES for line in lines):
        return _longest([*lines, *heading.split()])
    return max(min(_longest(lines), PROSE_WIDTH), _longest(word for text in (heading, *lines) for word in text.split()))


def _longest(texts: Iterable[str]) -> int:
    """The largest number of terminal cells that a text occupies; a Chinese character occupies two."""
    from rich.cells import cell_len

    return max(map(cell_len, texts), default=0)


def print_fields(fields: Mapping[str, object], title: str = "") -> None:
    """Print one field per line on stdout: its name, and its value to the right, or below if a word is too long."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console, indent = Console(), _longest(fields) + 2
    lines = _title_lines(title, console.width)
    for name, value in fields.items():
        text = printable(value).expandtabs()
        longest = _longest(text.split())
        if longest <= console.width - indent:
            first, *others = wrap(text, console.width - indent)
            lines.append(Text.assemble((name, "bold"), " " * (indent - cell_len(name)), first))
            lines += [Text(" " * indent + line) for line in others]
        else:
            margin = "  " if longest <= console.width - 2 else ""
            lines += [Text(name, "bold"), *(Text(margin + line) for line in wrap(text, console.width - len(margin)))]
    console.print(*lines, "", sep="\n", soft_wrap=True)


def _title_lines(title: str, width: int) -> list[Text]:
    from rich.text import Text

    lines = wrap(printable(title), width) if title else []
    return [Text(line, "italic", no_wrap=True, overflow="ignore") for line in lines]


def wrap(text: str, width: int) -> list[str]:
    """The lines of `text`, broken at spaces to at most `width` terminal cells; a longer word is not broken.

    >>> wrap("  Turn 2 of 中文.csv is empty.", 16)
    ['  Turn 2 of', '  中文.csv is', '  empty.']
    """
    from rich.cells import cell_len

    lines = []
    for paragraph in text.split("\n"):
        margin = paragraph[: len(paragraph) - len(paragraph.lstrip())]
        line = ""
        for word in re.findall(r"\s*\S+", paragraph):
            if line and cell_len(line + word) > width:
                lines.append(line)
                line = margin + word.lstrip()
            else:
                line += word
        lines.append(line)
    return lines


def print_line(text: str) -> None:
    """Print text on stdout, wrapped if it is a terminal; control characters are displayed, not interpreted."""
    typer.echo(_wrap_for(sys.stdout, printable(text)))


def note(text: str) -> None:
    """Print text on stderr, unless --quiet is given: what is not part of the result, such as the next command."""
    if not settings.quiet:
        print_error(text)


def note_dry_run(dry_run: bool) -> None:
    """The last line of every dry run."""
    if dry_run:
        note("Nothing was written.")


def print_error(text: str) -> None:
    """Print text on stderr, wrapped if it is a terminal."""
    typer.echo(_wrap_for(sys.stderr, printable(text)), err=True)


def _wrap_for(stream: TextIO, text: str) -> str:
    """`text` with its lines wrapped, except commands, which start with → or $, if `stream` is a terminal."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = ([line] if line.lstrip().startswith(("→", "$")) else wrap(line, width) for line in text.split("\n"))
    return "\n".join(itertools.chain.from_iterable(lines))


def truncate(text: str, stream: TextIO) -> str:
    """`text` cut to one line with an ellipsis if `stream` is a terminal."""
    from rich.text import Text

    line = Text(printable(text))
    if stream.isatty():
        line.truncate(shutil.get_terminal_size().columns, overflow="ellipsis")
    return line.plain


def file_names(paths: Iterable[str]) -> dict[str, str]:
    """Path -> its name in a table: the file name, or the path if two files have the same name.

    >>> file_names(["a/x.csv", "b/y.csv"])
    {'a/x.csv': 'x.csv', 'b/y.csv': 'y.csv'}
    """
    unique = sorted(set(paths))
    names = {path: Path(path).name or path for path in unique}
    return names if len(set(names.values())) == len(unique) else {path: path for path in unique}


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; nothing is displayed if stderr is not a terminal.

    Yields the function that moves it: `advance(done, total, description)`; all are optional, a total of 0 is unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    hidden = settings.quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as progress:
        task = progress.add_task(description, total=None)

        def advance(done: float | None = None, total: float | None = None, description: str | None = None) -> None:
            shown = None if description is None else printable(description)
            progress.update(task, completed=done, total=total or None, description=shown)

        yield advance
