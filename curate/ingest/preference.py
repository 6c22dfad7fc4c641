"""A table with a better and a worse answer to each question → the options that import the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import polars as pl

from curate.ingest.column_names import find_named, name_words
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.pairs import QUESTION_NAMES
from curate.ingest.shapes.shape import ColumnMapping, is_mostly
from schemas.errors import SourceError

_SAMPLE = 100
"""Cells that are inspected."""

_SIDES = (
    *(("chosen", "rejected"), ("accepted", "rejected"), ("preferred", "rejected"), ("selected", "rejected")),
    *(("preferred", "dispreferred"), ("preferred", "unpreferred"), ("winner", "loser"), ("winning", "losing")),
    *(("win", "lose"), ("better", "worse"), ("best", "worst"), ("good", "bad"), ("pos", "neg"), ("correct", "wrong")),
    *(("positive", "negative"), ("correct", "incorrect"), ("desirable", "undesirable"), ("helpful", "harmful")),
)
"""Words in the names of two columns that differ only in them."""

_ANSWER_KEYS = ("answer", "text", "content", "value", "response", "output", "completion", "message")
"""Keys of an object that contain the text of an answer."""


def check_preference_data(table: pl.DataFrame, sides: Sequence[tuple[str, str]] = _SIDES) -> None:
    """Raise `SourceError` for rows with a better and a worse answer, with the options for the better one."""
    found = _find_sides(table.columns, sides)
    if found is None:
        return
    good, bad = found
    cells = table[good].head(_SAMPLE).drop_nulls()
    if cells.str.contains(r"(?i)^[\s\d.,+-]*(?:true|false|yes|no)?\s*$").all():
        return  # without texts: numbers or flags
    mapping = _good_side(table, good)
    raise SourceError(
        f"This is preference data (columns {good} and {bad}): a better and a worse answer to each question, "
        "not conversations.",
        f"Import only the better answers, of the column {good}:{mapping.as_command()}"
        if mapping
        else f"No column has the questions to {good}. Write each conversation with its better answer into one column.",
    )


CHOSEN = _SIDES[:1]
"""The names that published preference data uses: no other shape has them."""


def _find_sides(columns: Sequence[str], sides: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The columns of the better and the worse answer: equal names but for one word."""
    words = {name: tuple(name_words(name)) for name in columns}
    by_words = {of: name for name, of in reversed(words.items())}
    for good, bad in sides:
        for name, of in words.items():
            other = by_words.get(tuple(bad if word == good else word for word in of))
            if good in of and other is not None:
                return name, other
    return None


def _good_side(table: pl.DataFrame, good: str) -> ColumnMapping | None:
    """The mapping that imports the better answers; None if no column has the questions."""
    cells = table[good].head(_SAMPLE)
    for shape, name in (("messages", "messages"), ("sharegpt", "conversations")):
        column = _find(table, SHAPES[shape].fields[name].names, partial(_fits, shape, name))
        is_answer = cells.str.contains(r'^\s*(?:\[\s*)?\{[^{}]*"(?:from|role)"\s*:\s*"(?:gpt|assistant|model|bot)"')
        if column is not None and column != good and is_mostly(is_answer):
            return ColumnMapping(shape, {name: column, "completion": good})
        if _fits(shape, name, cells):
            return ColumnMapping(shape, {name: good})
    if _fits("transcript", "transcript", cells):
        return ColumnMapping("transcript", {"transcript": good})
    question = _find(table, ("instruction", *QUESTION_NAMES, "title", "text"), _is_text)
    inner = r'^\s*\{{(?s:.*)"{}"\s*:\s*"'
    key = next((key for key in _ANSWER_KEYS if is_mostly(cells.str.contains(inner.format(key)))), None)
    if question is None or (key is None and not _is_text(cells)):
        return None
    return ColumnMapping("pairs", {"question": question, "answer": f"{good}.{key}" if key else good})


def _find(table: pl.DataFrame, names: Sequence[str], fits: Callable[[pl.Series], bool]) -> str | None:
    named = find_named(names, table.columns)
    return next((column for column in named if fits(table[column].head(_SAMPLE))), None)


def _fits(shape: str, name: str, cells: pl.Series) -> bool:
    fits = SHAPES[shape].fields[name].fits
    return fits is not None and is_mostly(fits(cells))


def _is_text(cells: pl.Series) -> bool:
    return is_mostly(~cells.str.contains(r"^\s*(?:[\[{]|$)"))
