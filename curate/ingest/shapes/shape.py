"""What a shape is: which columns it looks for, and what reading rows of that shape gives back.

In: a table whose cells are all text (nested JSON as JSON text). Out: a `ParsedTable`, turns and problems.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

TURNS = {"row": pl.Int64, "from": pl.String, "value": pl.String, "train": pl.Boolean, "tool_call_id": pl.String}
TOOLS = {"row": pl.Int64, "tools": pl.String}
PROBLEMS = {"row": pl.Int64, "code": pl.String, "reason": pl.String}
MEMBERS = {"row": pl.Int64, "position": pl.Int64}

PARSE_RULES = {
    "missing-conversation": "The cell with the conversation is not empty.",
    "broken-json": "A cell with turns is valid JSON.",
    "too-deep": "Lists and objects stand inside each other at most 500 times.",
    "not-a-list": "A cell with turns holds a list.",
    "empty-conversation": "A conversation has turns.",
    "duplicate-key": "No key stands in an object twice.",
    "missing-role": "Every turn says who speaks.",
    "unknown-role": "Every turn is by somebody whose role is known.",
    "broken-tool-call": "Tool calls are a list of objects.",
    "non-text-content": "Every turn is text, without images or sound.",
    "odd-train-flag": "Whether a turn is learned is said by true, false, 1 or 0.",
    "two-system-texts": "The system column and the first turn do not contradict each other.",
    "broken-tools": "The tools of a conversation are a JSON list of objects.",
    "broken-history": "A history is a list of pairs of question and answer.",
    "no-speaker": "A transcript names its speakers.",
    "text-before-speaker": "A transcript begins with a speaker.",
    "reserved-character": "A transcript holds no U+FDD0 or U+FDD1, which are no characters.",
    "missing-group": "In long format every row names its conversation.",
    "missing-order": "In long format every row says where in its conversation it stands.",
}
"""What a row must be to be read at all, by the code of the problem that says it is not."""


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """How the columns of a source become conversations: a shape, and the column of each of its fields."""

    shape: str
    fields: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The mapping as plain JSON, for the store and for `--json`."""
        return {"shape": self.shape, "fields": dict(self.fields)}

    def as_options(self) -> str:
        """The command-line options that ask for this mapping and no other.

        >>> ColumnMapping("pairs", {"question": "title", "answer": "best reply"}).as_options()
        "--shape pairs --map question=title --map 'answer=best reply'"
        """
        return " ".join([f"--shape {self.shape}", *(_option(name, column) for name, column in self.fields.items())])

    def column(self, table: pl.DataFrame, name: str) -> pl.Series:
        """The cells of a field; nulls when the field is not mapped or this table lacks its column."""
        column = self.fields.get(name)
        if column is None or column not in table.columns:
            return pl.Series(name, [None], dtype=pl.String).new_from_index(0, table.height)
        return table[column].rename(name)


@dataclass(frozen=True, slots=True)
class ParsedTable:
    """What reading a table gave: every row ends in `turns` or in `problems`, never in both.

    `turns`: row (position in the table, from 0), from, value, train, tool_call_id; sorted by row, turns in order.
    `tools`: row, tools (JSON text of a list), only rows that have tools.
    `problems`: row, code, reason; one per row.
    `members`: row, position; only where several rows of the table make one conversation (long format): every
    position of the table with the `row` that its conversation or problem is found under. Empty for other shapes.
    """

    turns: pl.DataFrame
    tools: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=TOOLS))
    problems: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PROBLEMS))
    members: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=MEMBERS))


@dataclass(frozen=True, slots=True)
class Field:
    """A column that a shape looks for.

    `names` say what the column is; `weak` names could be anything else too, so two of them are not enough to
    choose a shape without asking. `fits` tells for each cell whether it can be this field: a named column needs
    one such cell. With `anywhere`, a column of any name will do when half of its cells fit and names found nothing.
    """

    names: tuple[str, ...]
    required: bool = False
    weak: tuple[str, ...] = ()
    fits: Callable[[pl.Series], pl.Series] | None = None
    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A way to write conversations into rows: a sentence, its fields, and the function that reads it."""

    summary: str
    fields: Mapping[str, Field]
    read: Callable[[pl.DataFrame, ColumnMapping], ParsedTable]
    detected: bool = True
    """Whether it is chosen without being asked for; if not, it is only proposed."""
    last: bool = False
    """Whether it is chosen without being asked for only where no other shape fits."""
    asked: bool = True
    """Whether somebody asks in it; if not, its conversations are one turn of the assistant's."""


def is_plain(cells: pl.Series) -> pl.Series:
    """Which cells are words, not a JSON list of objects."""
    return ~cells.str.contains(r"^\s*\[\s*\{").fill_null(False)


def without_problems(turns: pl.DataFrame, tools: pl.DataFrame, problems: Sequence[pl.DataFrame]) -> ParsedTable:
    """A `ParsedTable` in which rows with a problem have no turns, and only their first problem is told."""
    found = pl.concat([pl.DataFrame(schema=PROBLEMS), *problems]).unique("row", keep="first", maintain_order=True)
    if found.is_empty():
        return ParsedTable(turns, tools)
    found = found.sort("row")
    return ParsedTable(
        turns.join(found, on="row", how="anti", maintain_order="left"), tools.join(found, on="row", how="anti"), found
    )


def cut(text: pl.Expr, length: int = 60) -> pl.Expr:
    """At most `length` characters of a text, for a sentence that quotes it."""
    text = text.fill_null("")
    return pl.when(text.str.len_chars() > length).then(text.str.head(length) + "…").otherwise(text)


def problem(rows: pl.DataFrame, code: str, reason: str | pl.Expr) -> pl.DataFrame:
    """Problems for `rows`, which have a column `row` and the columns that the expression `reason` needs."""
    assert code in PARSE_RULES, code
    sentence = pl.lit(reason) if isinstance(reason, str) else reason
    return rows.select(pl.col("row").cast(pl.Int64), pl.lit(code).alias("code"), sentence.alias("reason"))


def _option(name: str, column: str) -> str:
    if name in ("group_by", "order_by", "role", "text"):
        return f"--{name.replace('_', '-')} {shlex.quote(column)}"
    return f"--map {shlex.quote(f'{name}={column}')}"
