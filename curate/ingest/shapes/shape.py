"""The interface of a shape: the columns it looks for, and the result of parsing a table of that shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce, wraps
from operator import and_
from typing import Any

import polars as pl

from curate.ingest.shapes.cell_path import path_cells
from schemas.text import shell_quote

TURNS = {"row": pl.Int64, "from": pl.String, "value": pl.String, "train": pl.Boolean, "tool_call_id": pl.String}
TOOLS = {"row": pl.Int64, "tools": pl.String}
PROBLEMS = {"row": pl.Int64, "code": pl.String, "reason": pl.String}
MEMBERS = {"row": pl.Int64, "position": pl.Int64}

_FIRST = 1_000
"""Cells whose first character `fits_json` inspects."""

PARSE_RULES = {
    "missing-conversation": "The cell with the conversation is not empty.",
    "broken-json": "A cell with turns is valid JSON.",
    "too-deep": "Lists and objects are nested at most 500 levels.",
    "not-a-list": "A cell with turns contains a list.",
    "empty-conversation": "A conversation has turns.",
    "duplicate-key": "An object has no key twice.",
    "missing-role": "Every turn has a role.",
    "missing-text": "Every turn has its text under a known key, or under the key of --text-key.",
    "unknown-role": "Every turn has a known role.",
    "broken-tool-call": "Tool calls are a list of objects.",
    "non-text-content": "Every turn is text, without images or audio.",
    "odd-train-flag": "The training flag of a turn is true, false, 1 or 0.",
    "two-system-texts": "The system column and the first turn do not contradict each other.",
    "broken-tools": "The tools of a conversation are a JSON list of objects.",
    "broken-history": "A history is a list of question and answer pairs.",
    "no-speaker": "A transcript names its speakers.",
    "text-before-speaker": "A transcript starts with a speaker.",
    "reserved-character": "A transcript does not contain the noncharacters U+FDD0 and U+FDD1.",
    "uses-tools": "A conversation of a ChatGPT export uses no tools, which the export does not describe completely.",
    "missing-parent": "The parent of a message is in the file.",
    "missing-replies": "All replies of a thread are in the file.",
    "lower-ranked": "With best-branch, a reply has the best rank among the replies to its message.",
    "no-question": "An answer has its question in the file.",
    "no-message": "A row of a chat export is a message, not a notice such as a join.",
    "no-winner": "One of two answers won.",
    "no-answer": "A prompt has an answer.",
    "missing-group": "In long format, every row has a conversation id.",
    "refers-to-media": "A row has no image, sound or video, and no placeholder of one in a question.",
    "excluded-by-where": "The condition of --where is true for the row.",
    "missing-value": "A path of --map, such as answers.text[0], leads to a value in the row.",
    "missing-order": "In long format, every row has a value in the order column.",
}
"""Code of a problem → the rule that a row must satisfy to be parsed."""


IMPORT_COMMAND = "    curate import FILE"
"""The beginning of an import command in a hint, on a line of its own."""


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """A shape, and the source column of each of its fields."""

    shape: str
    fields: dict[str, str]
    roles: dict[str, str] = field(default_factory=dict)
    """Name → role, in addition to the names that are known."""
    keys: dict[str, str] = field(default_factory=dict)
    """In lists of turns: `role` and `text` → the key, or path, that holds it in place of the known keys."""

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> ColumnMapping:
        """The mapping in a value of `sources.mapping`."""
        return cls(stored["shape"], *(stored.get(name, {}) for name in ("fields", "roles", "keys")))

    def stored(self) -> dict[str, Any]:
        """The mapping as part of `sources.mapping` and of the id of an import: without roles and keys if not given."""
        more = {"roles": self.roles, "keys": self.keys}
        return {"shape": self.shape, "fields": self.fields, **{name: value for name, value in more.items() if value}}

    def as_options(self) -> str:
        """The command-line options that select exactly this mapping.

        >>> ColumnMapping("pairs", {"question": "title", "answer": "best reply"}).as_options()
        "--shape pairs --map question=title --map 'answer=best reply'"
        """
        return " ".join(
            [
                *(f"--shape {self.shape}", *(_option(name, column) for name, column in self.fields.items())),
                *(f"--{name}-key {shell_quote(key)}" for name, key in self.keys.items()),
                *(f"--role {shell_quote(f'{name}={role}')}" for name, role in self.roles.items()),
            ]
        )

    def as_command(self, more: str = "") -> str:
        r"""The line of a hint with the import command that selects this mapping, with `more` options.

        The caller that knows the file replaces `FILE`.

        >>> ColumnMapping("text", {"text": "body"}).as_command("--add")
        '\n    curate import FILE --add --shape text --text body'
        """
        return f"\n{IMPORT_COMMAND} {more and f'{more} '}{self.as_options()}"

    def column(self, table: pl.DataFrame, name: str) -> pl.Series:
        """The cells of a field; nulls if the field is not mapped or its column is missing in this table."""
        column = self.fields.get(name)
        cells = None if column is None else path_cells(table, column)
        if cells is None:
            return pl.Series(name, [None], dtype=pl.String).new_from_index(0, table.height)
        return cells.rename(name)

    def rows(self, table: pl.DataFrame, names: Iterable[str], index: str = "row") -> pl.DataFrame:
        """The cells of several fields, each a column, with their positions in the column `index` (Int64, from 0)."""
        cells = pl.DataFrame([self.column(table, name) for name in names])
        return cells.with_row_index(index).with_columns(pl.col(index).cast(pl.Int64))


@dataclass(frozen=True, slots=True)
class ParsedTable:
    """The result of parsing a table: every conversation is in `turns` or in `problems`, never in both.

    `turns`: row (position in the table, from 0), from, value, train, tool_call_id; sorted by row, turns in order.
    `tools`: row, tools (JSON text of a list); only rows with tools.
    `problems`: row, code, reason; one per row.
    `members`: row, position; empty if every row of the table is one conversation. Otherwise `row` numbers the
    conversations, in the order of the table, and `members` has every position of the table at least once: with the
    conversations or problems that it contains (several answers to a prompt) or is part of (long format).
    """

    turns: pl.DataFrame
    tools: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=TOOLS))
    problems: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PROBLEMS))
    members: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=MEMBERS))

    def reject(self, *problems: pl.DataFrame) -> ParsedTable:
        """The table with the first problem of each row, its own ones last, and without turns and tools of them."""
        first = pl.concat([*problems, self.problems]).unique("row", keep="first", maintain_order=True).sort("row")
        if first.is_empty():
            return self
        turns = self.turns.join(first, on="row", how="anti", maintain_order="left")
        return ParsedTable(turns, self.tools.join(first, on="row", how="anti"), first, self.members)


Fits = Callable[[pl.Series], pl.Series]
"""The cells of a column → whether each can be a value of a field."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column that a shape looks for.

    `names` identify the column. `weak_names` are ambiguous: a shape with two of them is not detected. `fits` returns
    for each cell whether it can be a value of the field; a named column needs one such cell. With `any_name`, if no
    column is found by name, any column matches in which at least half of the cells fit. `find` returns the columns
    itself, from all of them by name.
    """

    names: tuple[str, ...]
    required: bool = False
    weak_names: tuple[str, ...] = ()
    fits: Fits | None = None
    any_name: bool = False
    find: Callable[[Mapping[str, pl.Series]], list[str]] | None = None


Parse = Callable[[pl.DataFrame, ColumnMapping], ParsedTable]
"""A table and its mapping → its conversations."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A way to write conversations as rows: its fields, and the function that parses a table."""

    fields: Mapping[str, Field]
    parse: Parse
    summary: str = ""
    """What becomes a prompt and an answer, if the names of the fields do not show it."""
    detected: bool = True
    """Whether it is used without `--shape`; otherwise it is only suggested."""
    fallback: bool = False
    """Whether it is detected only if no other shape fits."""
    has_questions: bool = True
    """Whether its conversations have user turns; otherwise they are a single assistant turn."""
    spans_rows: bool = False
    """Whether several rows can form one conversation, so that `parse` needs the whole table."""
    proven: bool = False
    """Whether the cells that its fields accept leave no doubt: it precedes other shapes with the same columns."""
    gives_way: bool = False
    """Whether other shapes that fit are used in its place."""


def number_cells(cells: pl.Series, name: str = "cell") -> pl.DataFrame:
    """The cells with their positions: `row` (Int64, from 0), and `name`."""
    return pl.DataFrame({name: cells}).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))


def complete_turns(turns: pl.DataFrame) -> pl.DataFrame:
    """The columns `TURNS` of a frame with `row`, `from`, `value`; a null value becomes the empty string."""
    text = pl.col("value").fill_null("")
    return turns.select("row", "from", text, train=pl.lit(True), tool_call_id=pl.lit(None, pl.String))


def is_plain_text(cells: pl.Series) -> pl.Series:
    """Whether each cell is text other than a JSON list of objects."""
    return ~cells.str.contains(r"^\s*\[\s*\{").fill_null(False)


def is_mostly(mask: pl.Series) -> bool:
    """Whether at least half of the values that are not null are true, and there are some."""
    filled = mask.len() - mask.null_count()
    return filled > 0 and int(mask.sum()) * 2 >= filled


def mostly(fits: pl.Series) -> pl.Series:
    """The mask, with false for null, if it is mostly true; otherwise all false."""
    return fits.fill_null(False) if is_mostly(fits) else pl.repeat(False, fits.len(), eager=True)


def mostly_like(pattern: str) -> Fits:
    """For `Field.fits`: whether each cell matches a regular expression; no cell fits unless at least half do."""
    return lambda cells: mostly(cells.str.contains(pattern))


def json_like(brackets: str, *patterns: str) -> Fits:
    """For `Field.fits` of JSON cells: whether each cell matches all regular expressions, as in `fits_json`."""
    return fits_json(brackets)(lambda cells: reduce(and_, (cells.str.contains(pattern) for pattern in patterns)))


def fits_json(brackets: str = "[{") -> Callable[[Fits], Fits]:
    """A decorator for `Field.fits` of JSON cells: no cell fits unless at least half of them do.

    The function runs only if a quarter of the first cells start with one of the brackets. One such cell is not enough:
    some inputs of Alpaca start with a bracket, and the exact tests of two shapes took 25 ms per batch.
    """

    def decorate(fits: Fits) -> Fits:
        @wraps(fits)
        def check(cells: pl.Series) -> pl.Series:
            first = cells.head(_FIRST).drop_nulls()
            starts = int(first.str.contains(rf"^\s*[{re.escape(brackets)}]").sum())
            if starts * 4 < max(first.len(), 1):
                return pl.Series([False]).new_from_index(0, cells.len())  # for a few rows, `pl.repeat` takes 0.1 ms
            return mostly(fits(cells))

        return check

    return decorate


def shorten_expr(text: pl.Expr, most: int = 60) -> pl.Expr:
    """`schemas.text.shorten` for a column; null becomes the empty string."""
    text = text.fill_null("")
    return pl.when(text.str.len_chars() > most).then(text.str.head(most) + "…").otherwise(text)


def problem_rows(rows: pl.DataFrame, code: str, reason: str | pl.Expr) -> pl.DataFrame:
    """Problems for `rows`, which have a column `row` and the columns used by the expression `reason`."""
    assert code in PARSE_RULES, code
    sentence = pl.lit(reason) if isinstance(reason, str) else reason
    rows = rows.rechunk()  # `pl.format` panics on a filtered column of several chunks (Polars 2.1.0)
    return rows.select(pl.col("row").cast(pl.Int64), pl.lit(code).alias("code"), sentence.alias("reason"))


def _option(name: str, column: str) -> str:
    if name in ("group_by", "order_by", "role", "text"):
        return f"--{name.replace('_', '-')} {shell_quote(column)}"
    return f"--map {shell_quote(f'{name}={column}')}"
