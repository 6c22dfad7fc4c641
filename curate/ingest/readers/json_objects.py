"""JSON objects, one per text → a table of text; shared by the readers of JSON lines and JSON lists.

DuckDB extracts the values of all known keys in one parse. It validates strings strictly, keeps whole numbers of any
length, and a broken text affects no other. NaN, which DuckDB accepts and JSON does not define, is detected
afterwards. Python's parser provides the reason for every rejected text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from curate.ingest.readers.batch import UNUSABLE, Batch
from curate.ingest.readers.byte_stream import ByteStream, Positions
from curate.ingest.readers.limits import TOO_LARGE
from curate.ingest.readers.text_arrays import (
    Problem,
    RecordNumbers,
    build_batch,
    check_utf8,
    decode_texts,
    find_large,
    text_bytes,
    to_arrow,
    utf8_problem,
)
from curate.ingest.readers.unusable_values import SURROGATE_REASON, recover_object
from curate.ingest.shapes.frames import open_cursor
from curate.ingest.shapes.json_cells import KEY_END, NOT_JSON, reject_constant
from schemas.errors import SourceError

MOST_COLUMNS = 5_000
"""A file with more distinct keys than this has data in place of keys."""

SLICES = 8
"""Parts of a batch, which DuckDB distributes to its threads."""

_KEYS = pl.Schema([("keys", pl.List(pl.String())), ("object", pl.Boolean())])

SPACED_COLON = r"[ \t\r\n]:"
"""Matches the end of a key that is followed by white space."""


class ParsedObjects(NamedTuple):
    """The content of a list of texts."""

    table: pl.DataFrame
    """One row per text."""
    problems: list[Problem]
    """The texts that are not valid objects, by position; their rows in `table` are undefined."""


class ObjectReader:
    """Reads objects batch by batch and collects their keys: a key that first occurs later becomes a later column."""

    def __init__(self, stream: ByteStream) -> None:
        self.columns: list[str] = []
        self._stream = stream
        self._rows = 0
        self._text = "text"
        """SQL of a record's text; lists of turns are read as the value of a key."""
        self._connection = open_cursor()

    def batch(self, texts: pa.LargeStringArray, line: Positions, parsed: ParsedObjects | None = None) -> Batch:
        """The next records of the source: `texts`, which start on the lines `line`; `parsed` is the result of `parse`.

        Raises `SourceError` if they are not UTF-8.
        """
        table, problems = parsed or self.parse(texts)
        check_utf8(self._stream, texts, problems, line)
        row = self._rows + 1 + np.arange(len(texts))
        self._rows += len(texts)
        good = np.delete(np.arange(len(texts)), [problem.position for problem in problems])
        return build_batch(table[good] if problems else table, texts, good, problems, RecordNumbers(row, line))

    def final_reject(self, line: int, code: str, reason: str) -> Batch:
        """A reject without text after the last record, for a source that may be incomplete."""
        table = pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
        at = RecordNumbers(np.array([self._rows + 1]), np.array([line]))
        return build_batch(table, pa.array([""], pa.large_string()), at.row[:0], [Problem(0, code, reason)], at)

    def parse(self, texts: pa.LargeStringArray) -> ParsedObjects:
        """A table with one row per text, and the problems of texts that are not valid objects.

        The texts may contain invalid UTF-8. A trailing comma is accepted, because it is unambiguous.
        """
        if large := find_large(texts, self._stream.limits):
            return self._parse_others(texts, large)
        first = None if self._rows else load_first(texts)
        self._wrap_turns(first)
        table, invalid = self._guess_cells(texts, first) if not self.columns else self._cells(texts)
        text = decode_texts(texts)
        doubtful = _doubtful(table, invalid, text)
        keys = self._keys(_take(texts, doubtful)) if len(doubtful) else pl.DataFrame(schema=_KEYS)
        if self._add_columns(keys["keys"]):
            table, invalid = self._cells(texts)
        has_duplicate = keys.select(pl.col("keys").list.n_unique() < pl.col("keys").list.len()).to_series()
        maybe_nan = text.str.contains(NOT_JSON).arg_true()
        problems = [
            *(_explain(at, text_bytes(texts, at)) for at in (*invalid, *doubtful.filter(~keys["object"]))),
            *(Problem(at, "duplicate-key", "A key occurs twice.") for at in doubtful.filter(has_duplicate)),
            *(problem for at in maybe_nan if (problem := _nan_problem(at, text_bytes(texts, at)))),
        ]
        first = sorted({problem.position: problem for problem in reversed(problems)}.values())
        return self._recover(texts, ParsedObjects(table, first))

    def parse_plain(self, texts: pa.LargeStringArray, keys: Sequence[str]) -> tuple[pl.DataFrame, Positions]:
        """The table of texts that have exactly these keys, and the positions of those that may be anything else.

        For a file without such positions whose first record has the keys, the table is that of `parse`.
        """
        self.columns = list(keys)
        table, invalid = self._cells(texts)
        text = decode_texts(texts)
        others = [invalid, _doubtful(table, invalid, text), text.str.contains(NOT_JSON).arg_true().cast(pl.Int64)]
        return table, pl.concat(others).to_numpy()

    def _parse_others(self, texts: pa.LargeStringArray, large: list[int]) -> ParsedObjects:
        """`parse` without the texts above the limit, which are problems."""
        is_large = np.zeros(len(texts), np.bool_)
        is_large[large] = True
        table, problems = self.parse(pc.if_else(to_arrow(is_large), pa.scalar("{}", pa.large_string()), texts))
        reason = self._stream.limits.reason
        return ParsedObjects(table, sorted([*problems, *(Problem(at, TOO_LARGE, reason) for at in large)]))

    def _recover(self, texts: pa.LargeStringArray, parsed: ParsedObjects) -> ParsedObjects:
        """The objects that become valid without values such as NaN, as rows; Python loops over invalid texts only."""
        broken = (at for at, code, _ in parsed.problems if code == "broken-json")
        found = [(at, recover_object(text_bytes(texts, at).decode(errors="replace"))) for at in broken]
        recovered = {at: value for at, value in found if value is not None}
        if not recovered:
            return parsed
        again = self.parse(pa.array([value.text for value in recovered.values()], pa.large_string()))
        marks = pl.Series(UNUSABLE, [json.dumps(value.reasons, ensure_ascii=False) for value in recovered.values()])
        order = np.arange(len(texts))
        order[list(recovered)] = len(texts) + np.arange(len(recovered))
        table = pl.concat([parsed.table, again.table.with_columns(marks)], how="diagonal")[order]
        others = [problem for problem in parsed.problems if problem.position not in recovered]
        positions = list(recovered)
        moved = [Problem(positions[at], code, reason) for at, code, reason in again.problems]
        columns = [table[name] for name in (*self.columns, UNUSABLE)]  # `select` takes some names as patterns
        return ParsedObjects(pl.DataFrame(columns), sorted([*others, *moved]))

    def _cells(self, texts: pa.LargeStringArray) -> tuple[pl.DataFrame, pl.Series]:
        """The value of every known key in every text, and the positions of the texts that are not valid JSON."""
        pointers = ["/" + key.replace("~", "~0").replace("/", "~1") for key in self.columns]
        query = f"SELECT try(({self._text}) ->> $pointers::VARCHAR[]) AS cells FROM texts"
        rows = self._query(query, texts, pointers=pointers)
        columns = [pl.col("cells").list.get(at, null_on_oob=True).alias(key) for at, key in enumerate(self.columns)]
        table = rows.select(columns) if columns else pl.DataFrame(height=rows.height)
        return table, rows["cells"].is_null().arg_true().cast(pl.Int64)

    def _keys(self, texts: pa.LargeStringArray) -> pl.DataFrame:
        """Columns `keys` and `object`: the keys of each text in order, and whether the text is an object."""
        query = "SELECT coalesce(try(json_keys(text)), []) AS keys, json_type(text) = 'OBJECT' AS object"
        return self._query(f"{query} FROM (SELECT {self._text} AS text FROM texts)", texts)

    def _guess_cells(self, texts: pa.LargeStringArray, first: object) -> tuple[pl.DataFrame, pl.Series]:
        """`_cells` for the keys of the first record. Few files have others, and the search for these takes as long."""
        self.columns = list(first) if isinstance(first, dict) and len(first) <= MOST_COLUMNS else []
        table, invalid = self._cells(texts)
        if not self.columns or invalid.head(1).to_list() != [0]:
            return table, invalid
        self.columns = []  # DuckDB does not accept the record
        return self._cells(texts)

    def _wrap_turns(self, value: object) -> None:
        """If the first record is a list of turns, read lists as the value of `conversations`, or of `messages`."""
        turn = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
        key = "messages" if "role" in turn else "conversations" if "from" in turn else None
        if key:
            wrapped = f"'{{\"{key}\":' || text || '}}'"
            self._text = f"CASE WHEN ltrim(text, ' ') LIKE '[%' THEN {wrapped} ELSE text END"

    def _query(self, query: str, texts: pa.LargeStringArray, **parameters: list[str]) -> pl.DataFrame:
        step = max(1, -(-len(texts) // SLICES))
        slices = [pa.record_batch([texts[at : at + step]], ["text"]) for at in range(0, len(texts), step)]
        self._connection.register("texts", pa.Table.from_batches(slices, pa.schema([("text", pa.large_string())])))
        frame: pl.DataFrame = self._connection.sql(query, params=parameters or None).pl()
        return frame

    def _add_columns(self, keys: pl.Series) -> bool:
        """Add the new keys to the columns; return whether there were any."""
        seen = keys.explode(empty_as_null=False).unique(maintain_order=True)
        new = [key for key in seen if key not in self.columns]
        self.columns += new
        if len(self.columns) > MOST_COLUMNS:
            raise SourceError(
                f"{self._stream.path} has more than {MOST_COLUMNS:,} distinct keys, such as {new[-1]!r}.",
                "It may map ids to rows: write one object per row, with the id as a separate field.",
            )
        return bool(new)


def load_first(texts: pa.LargeStringArray) -> object:
    """The first record; None if it is not valid, or a key has half of a surrogate pair, which DuckDB cannot store."""
    try:
        value = json.loads(text_bytes(texts, 0)) if len(texts) else None
        "".join(value if isinstance(value, dict) else []).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _take(texts: pa.LargeStringArray, positions: pl.Series) -> pa.LargeStringArray:
    """The texts at these positions; all or none, as in most files, are not copied."""
    return texts.slice(0, len(positions)) if len(positions) in (0, len(texts)) else texts.take(positions.to_arrow())


def _doubtful(table: pl.DataFrame, invalid: pl.Series, text: pl.Series) -> pl.Series:
    """Positions of the texts that may have an unknown key or a duplicate key, or may not be objects.

    A text with as many ends of keys as it has values in the table has no other keys.
    """
    values = table.select(pl.sum_horizontal(pl.lit(0), pl.all().is_not_null())).to_series() if table.width else 0
    sure = (_count_key_ends(text) == values) & text.str.starts_with("{")
    doubtful = (~sure).arg_true().cast(pl.Int64)
    return doubtful.filter(~doubtful.is_in(invalid.implode()))


def _count_key_ends(text: pl.Series) -> pl.Series:
    """Number of matches of `KEY_END` in each text. Most colons directly follow the quote, which is fast to count."""
    ends = text.str.count_matches('":')
    spaced = text.str.contains(SPACED_COLON).arg_true()
    return ends.scatter(spaced, text.gather(spaced).str.count_matches(KEY_END)) if spaced.len() else ends


def _nan_problem(position: int, text: bytes) -> Problem | None:
    """The problem of a text with NaN or an infinity outside of strings; None if there is none."""
    try:
        json.loads(text, parse_constant=reject_constant)
    except (ValueError, RecursionError):
        return _explain(position, text)
    return None


def _explain(position: int, text: bytes) -> Problem:
    """The problem of a text that is not a valid object."""
    try:
        value = json.loads(text.strip(b"\r\n").decode(), parse_constant=reject_constant)
    except UnicodeDecodeError:
        return utf8_problem(position, text)
    except json.JSONDecodeError as error:
        return Problem(position, "broken-json", f"Invalid JSON: {_describe(error)}.")
    except (ValueError, RecursionError) as error:
        return Problem(position, "broken-json", f"Invalid JSON: {error}.")
    if not isinstance(value, dict):
        return Problem(position, "not-an-object", f"Expected an object, found {_KINDS[type(value)]}.")
    return Problem(position, "broken-json", SURROGATE_REASON)


_KINDS = {
    list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false", type(None): "null"
}  # fmt: skip


def _describe(error: json.JSONDecodeError) -> str:
    text = error.doc.rstrip()
    if error.pos >= len(text):
        return "the text ends too early"
    if error.msg == "Extra data":
        return f"more text follows the value, at character {error.pos + 1}"
    if error.msg.startswith("Unterminated string"):
        return f"the string that starts at character {error.pos + 1} is not closed"
    message = error.msg.removesuffix(" at")
    return f"{message[0].lower()}{message[1:]} at character {error.pos + 1}"
