"""JSON in cells → parsed columns by DuckDB, for all rows at once, and values in their original text by a Python parser.

DuckDB and Polars both reformat numbers (`1e5` becomes `100000.0`, long integers lose digits), so `split_object` and
`split_list` copy the text of nested values unchanged from the cell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.shape import PROBLEMS, number_cells, problem_rows, shorten_expr

_DECODER = json.JSONDecoder(parse_int=str)  # integers of more than 4,300 digits raise; only their text is needed

DEEPEST = 500
"""Maximum nesting of lists and objects. Python's parser, used by later steps, fails at 1,000."""

KEY_END = r'"\s*:'
"""The end of every key of an object matches; not every match is the end of a key."""

NOT_JSON = r"(?i)[:,\[ \t\r\n-](?:nan|inf|infinity)[ \t\r\n]*[,}\]]"
"""Numbers that DuckDB accepts and JSON does not define, as written by JSON libraries or by C; strings may match too."""

_LONG = "[0-9]{4301}"
"""More digits than Python parses as an integer: `sys.get_int_max_str_digits`."""

_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_SPACE = re.compile(r"[ \t\r\n]*")


def filled_cells(cells: pl.Series) -> pl.DataFrame:
    """The cells that are not blank or `null`: `row` (from 0), `cell`."""
    frame = number_cells(cells)
    filled = frame.with_columns(pl.col("cell").str.strip_chars()).filter(~pl.col("cell").is_in(["", "null"]))
    return frame.head(0) if cells.null_count() == cells.len() else filled


def list_cells(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells that contain a JSON list (`row`, `cell`), and the problems of the other cells that are not blank."""
    sound, problems = valid_cells(cells)
    is_list = pl.col("cell").str.starts_with("[")
    not_a_list = pl.format("Expected a list of turns, found: {}", shorten_expr(pl.col("cell")))
    return sound.filter(is_list), pl.concat([problems, problem_rows(sound.filter(~is_list), "not-a-list", not_a_list)])


def valid_cells(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The cells that contain JSON (`row`, `cell`), and the problems of the other cells that are not blank."""
    filled = filled_cells(cells)
    if filled.is_empty():
        return filled, pl.DataFrame(schema=PROBLEMS)
    broken = query_frames("SELECT row FROM filled WHERE NOT json_valid(cell)", filled=filled)
    valid = filled.join(broken, on="row", how="anti", maintain_order="left") if broken.height else filled
    deep = is_too_deep(valid["cell"])
    return valid.filter(~deep), pl.concat(
        [
            problem_rows(filled.join(broken, on="row", how="semi"), "broken-json", _explain_broken()),
            problem_rows(valid.filter(deep), "too-deep", f"Lists and objects are nested more than {DEEPEST} levels."),
        ]
    )


def is_too_deep(texts: pl.Series) -> pl.Series:
    """Whether each JSON text nests more than `DEEPEST` lists and objects.

    A regular expression cannot count nesting, so Python loops over the few texts that have enough brackets.
    """
    brackets = texts.str.count_matches("[", literal=True) + texts.str.count_matches("{", literal=True)
    doubtful = (brackets > DEEPEST).fill_null(False)
    if not doubtful.any():
        return doubtful
    return pl.Series([many and _depth(text) > DEEPEST for many, text in zip(doubtful, texts, strict=True)])


def is_nonstandard(texts: pl.Series) -> pl.Series:
    """Whether only DuckDB accepts a JSON text: too deep, NaN or an infinity, or an integer of over 4,300 digits.

    A regular expression cannot distinguish strings from values, so Python loops over the few texts that match.
    """
    deep = is_too_deep(texts)
    doubtful = ((texts.str.contains(NOT_JSON) | texts.str.contains(_LONG)) & ~deep).fill_null(False)
    if not doubtful.any():
        return deep
    return deep | pl.Series([may_be and not _is_standard(text) for may_be, text in zip(doubtful, texts, strict=True)])


def _is_standard(text: str) -> bool:
    try:
        json.loads(text, parse_constant=reject_constant)
    except ValueError:
        return False
    return True


def reject_constant(name: str) -> NoReturn:
    """Raise `ValueError` for NaN and infinities, as the `parse_constant` of Python's JSON parser."""
    raise ValueError(f"{name} is not a JSON value; write null for a missing value")


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    return deepest


def is_object(text: str) -> bool:
    """Whether a text is a JSON object for Python's parser, which also accepts NaN and infinities."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def split_list(text: str) -> Iterator[str]:
    """The original text of each element of a JSON list.

    >>> list(split_list('[1.0, {"a":  1e5}]'))
    ['1.0', '{"a":  1e5}']
    """
    at = skip_space(text, skip_space(text, 0) + 1)
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield text[at:end]
        at = _after_comma(text, end)


def join_object(items: Iterable[tuple[str, str]]) -> str:
    """A JSON object from the texts of its values by key; a key may occur twice."""
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in items) + "}"


def split_object(text: str) -> dict[str, str]:
    """The original text of each value of a JSON object, by key.

    >>> split_object('{"name": "add", "arguments": {"a": 1.0}}')
    {'name': '"add"', 'arguments': '{"a": 1.0}'}
    """
    return dict(object_items(text))


def object_items(text: str) -> Iterator[tuple[str, str]]:
    """Each key of a JSON object, also if it occurs twice, and the original text of its value."""
    at = skip_space(text, skip_space(text, 0) + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        at = skip_space(text, skip_space(text, end) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield key, text[at:end]
        at = _after_comma(text, end)


def skip_space(text: str, at: int) -> int:
    """The position of the first character from `at` on that is not white space."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _after_comma(text: str, at: int) -> int:
    at = skip_space(text, at)
    return skip_space(text, at + 1) if text[at] == "," else at


def _explain_broken() -> pl.Expr:
    cell = shorten_expr(pl.col("cell"))
    python = pl.format("A list as printed by Python, not JSON (json.dumps writes JSON): {}", cell)
    is_python = pl.col("cell").str.contains(r"^[\[{]\s*\{?\s*'")
    return pl.when(is_python).then(python).otherwise(pl.format("Invalid JSON: {}", cell))
