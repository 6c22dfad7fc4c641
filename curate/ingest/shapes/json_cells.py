"""JSON in cells: asked of DuckDB for all rows at once, and read letter by letter where a value's own text counts.

DuckDB and Polars both write numbers anew (`1e5` becomes `100000.0`, long integers lose digits), so `split_object` and
`split_list` cut the text of a nested value out of the cell, as it stands there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import NoReturn

import duckdb
import polars as pl

from curate.ingest.shapes.shape import PROBLEMS, cut, problem

_DECODER = json.JSONDecoder(parse_int=str)  # as a number it may have 4,300 digits, and here its text counts
_BLANK = " \t\n\r"

DEEPEST = 500
"""Lists and objects inside each other. Python's reader gives up at 1,000, and so would all that comes after."""

NOT_JSON = r"(?i)[:,\[ \t\r\n-](?:nan|inf|infinity)[ \t\r\n]*[,}\]]"
"""What DuckDB takes for numbers and JSON does not have, as JSON writers or as C spell it; a string may hold it too."""

_LONG = "[0-9]{4301}"
"""More digits than Python reads as a number: `sys.get_int_max_str_digits`."""

_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def query_frames(query: str, **frames: pl.DataFrame) -> pl.DataFrame:
    """The answer of an in-memory DuckDB to `query`, which may name the frames.

    A cursor sees nothing of the others and costs nothing; the database beneath them takes 11 ms to open.
    """
    with _database().cursor() as connection:
        for name, frame in frames.items():
            connection.register(name, frame)
        answer: pl.DataFrame = connection.sql(query).pl()
    return answer


@cache
def _database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET GLOBAL TimeZone = 'UTC'")  # a time without a zone means the same on every machine
    return connection


def given(cells: pl.Series) -> pl.DataFrame:
    """The cells that hold something: `row` (from 0), `cell`."""
    frame = pl.DataFrame({"cell": cells}).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    held = frame.with_columns(pl.col("cell").str.strip_chars()).filter(~pl.col("cell").is_in(["", "null"]))
    return frame.head(0) if cells.null_count() == cells.len() else held


def lists(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells that hold a JSON list (`row`, `cell`), and the problems of those that hold something else."""
    held = given(cells)
    if held.is_empty():
        return held, pl.DataFrame(schema=PROBLEMS)
    broken = query_frames("SELECT row FROM held WHERE NOT json_valid(cell)", held=held)
    valid = held.join(broken, on="row", how="anti", maintain_order="left") if broken.height else held
    deep = too_deep(valid["cell"])
    sound = valid.filter(~deep)
    is_list = pl.col("cell").str.starts_with("[")
    expected = pl.format("A list of turns is expected, found: {}", cut(pl.col("cell")))
    return sound.filter(is_list), pl.concat(
        [
            problem(held.join(broken, on="row", how="semi"), "broken-json", _why_broken()),
            problem(
                valid.filter(deep), "too-deep", f"Lists and objects stand inside each other more than {DEEPEST} times."
            ),
            problem(sound.filter(~is_list), "not-a-list", expected),
        ]
    )


def too_deep(texts: pl.Series) -> pl.Series:
    """Which JSON texts nest more than `DEEPEST` lists and objects.

    A loop over the few texts that have so many brackets at all: depth cannot be told by a pattern.
    """
    brackets = texts.str.count_matches("[", literal=True) + texts.str.count_matches("{", literal=True)
    suspects = (brackets > DEEPEST).fill_null(False)
    if not suspects.any():
        return suspects
    return pl.Series([many and _depth(text) > DEEPEST for many, text in zip(suspects, texts, strict=True)])


def unreadable(texts: pl.Series) -> pl.Series:
    """Which of the JSON texts DuckDB alone reads: too deep, with NaN or an infinity, or a number of 4,301 digits.

    A loop over the few texts that may be so: a pattern cannot tell a string from what stands outside of it.
    """
    deep = too_deep(texts)
    doubtful = ((texts.str.contains(NOT_JSON) | texts.str.contains(_LONG)) & ~deep).fill_null(False)
    if not doubtful.any():
        return deep
    return deep | pl.Series([may_be and not _is_read(text) for may_be, text in zip(doubtful, texts, strict=True)])


def _is_read(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    return deepest


def split_list(text: str) -> Iterator[str]:
    """The text of each element of a JSON list, as it stands.

    >>> list(split_list('[1.0, {"a":  1e5}]'))
    ['1.0', '{"a":  1e5}']
    """
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield text[at:end]
        at = _after_comma(text, end)


def split_object(text: str) -> dict[str, str]:
    """The text of each value of a JSON object, as it stands, by key.

    >>> split_object('{"name": "add", "arguments": {"a": 1.0}}')
    {'name': '"add"', 'arguments': '{"a": 1.0}'}
    """
    found = {}
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, end) + 1)
        _, end = _DECODER.raw_decode(text, at)
        found[key] = text[at:end]
        at = _after_comma(text, end)
    return found


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _after_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _why_broken() -> pl.Expr:
    python = pl.format("This is how Python prints a list, not JSON (json.dumps writes it): {}", cut(pl.col("cell")))
    other = pl.format("This is no valid JSON: {}", cut(pl.col("cell")))
    return pl.when(pl.col("cell").str.contains(r"^[\[{]\s*\{?\s*'")).then(python).otherwise(other)
