"""JSON objects, one per text, to a table of text: the part that JSON lines and JSON arrays share.

DuckDB takes the cells out of the texts, all known keys in one parse: strict about what a string may hold, exact
about whole numbers of any length, and a broken text costs nothing but itself. What it lets pass and JSON does not
have (NaN) is found afterwards, and every refused text is explained with the help of Python's own parser.
"""

from __future__ import annotations

import json
from typing import NamedTuple, NoReturn

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import Positions
from curate.ingest.readers.text_arrays import Numbers, Problem, as_bytes, as_text, batch_of, not_utf8, refuse_foreign
from curate.ingest.shapes.json_cells import NOT_JSON
from schemas.errors import SourceError

MOST_COLUMNS = 5_000
"""More different keys than this are no columns, but data that stands where keys belong."""

SLICES = 8
"""A batch is cut into as many parts, which DuckDB shares among its threads."""

KEY = r'"\s*:'
"""Every key of an object ends in a match; not every match ends a key."""

SPACED_COLON = r"[ \t\r\n]:"
"""A key ends in a match where white space stands behind it."""


class Objects(NamedTuple):
    """What some texts hold."""

    table: pl.DataFrame
    """A row for each text."""
    problems: list[Problem]
    """Which texts are no proper objects, in their order; their rows mean nothing."""


class ObjectReader:
    """Reads objects batch by batch and learns their keys on the way: a key that comes late is a late column."""

    def __init__(self, path: str) -> None:
        self.columns: list[str] = []
        self._path = path
        self._rows = 0
        self._connection = duckdb.connect()

    def batch(self, texts: pa.LargeStringArray, line: Positions, found: Objects | None = None) -> Batch:
        """The next records of the source: `texts`, which start in the lines `line`, and what `read` found in them.

        Raises `SourceError` where they are in another encoding than UTF-8.
        """
        table, problems = found or self.read(texts)
        refuse_foreign(self._path, texts, problems, line)
        row = self._rows + 1 + np.arange(len(texts))
        self._rows += len(texts)
        good = np.delete(np.arange(len(texts)), [problem.position for problem in problems])
        return batch_of(table[good] if problems else table, texts, good, problems, Numbers(row, line))

    def refusal(self, line: int, code: str, reason: str) -> Batch:
        """A last record that is none: the source ends in a way that may have lost some."""
        nothing = pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
        at = Numbers(np.array([self._rows + 1]), np.array([line]))
        return batch_of(nothing, pa.array([""], pa.large_string()), at.row[:0], [Problem(0, code, reason)], at)

    def read(self, texts: pa.LargeStringArray) -> Objects:
        """A table with a row for each text, and why some of its rows are to be left out.

        The texts need not be valid UTF-8. A trailing comma is let pass: it can mean only one thing.
        """
        table, unread = self._cells(texts)
        text = as_text(texts)
        doubtful = _doubtful(table, unread, text)
        found = self._keys(texts.take(doubtful.to_arrow()))
        if self._learn(found["keys"]):
            table, unread = self._cells(texts)
        twice = found.select(pl.col("keys").list.n_unique() < pl.col("keys").list.len()).to_series()
        odd = text.str.contains(NOT_JSON).arg_true()
        problems = [
            *(_explain(at, as_bytes(texts, at)) for at in (*unread, *doubtful.filter(~found["object"]))),
            *(Problem(at, "duplicate-key", "A key stands in it twice.") for at in doubtful.filter(twice)),
            *(problem for at in odd if (problem := _no_number(at, as_bytes(texts, at)))),
        ]
        return Objects(table, sorted({problem.position: problem for problem in reversed(problems)}.values()))

    def _cells(self, texts: pa.LargeStringArray) -> tuple[pl.DataFrame, pl.Series]:
        """The value of every known key in every text, and the positions of the texts that are no JSON."""
        pointers = ["/" + key.replace("~", "~0").replace("/", "~1") for key in self.columns]
        found = self._query("SELECT try(text ->> $pointers::VARCHAR[]) AS cells FROM texts", texts, pointers=pointers)
        columns = [pl.col("cells").list.get(at, null_on_oob=True).alias(key) for at, key in enumerate(self.columns)]
        table = found.select(columns) if columns else pl.DataFrame(height=found.height)
        return table, found["cells"].is_null().arg_true().cast(pl.Int64)

    def _keys(self, texts: pa.LargeStringArray) -> pl.DataFrame:
        """Columns `keys` and `object`: the keys of each text in its order, and whether it is an object."""
        query = "SELECT coalesce(try(json_keys(text)), []) AS keys, json_type(text) = 'OBJECT' AS object FROM texts"
        return self._query(query, texts)

    def _query(self, query: str, texts: pa.LargeStringArray, **parameters: list[str]) -> pl.DataFrame:
        step = max(1, -(-len(texts) // SLICES))
        slices = [pa.record_batch([texts[at : at + step]], ["text"]) for at in range(0, len(texts), step)]
        self._connection.register("texts", pa.Table.from_batches(slices, pa.schema([("text", pa.large_string())])))
        found: pl.DataFrame = self._connection.sql(query, params=parameters or None).pl()
        return found

    def _learn(self, keys: pl.Series) -> bool:
        """Add the keys that are new to the columns; say whether there were any."""
        seen = keys.explode(empty_as_null=False).unique(maintain_order=True)
        new = [key for key in seen if key not in self.columns]
        self.columns += new
        if len(self.columns) > MOST_COLUMNS:
            raise SourceError(
                f"{self._path} has more than {MOST_COLUMNS:,} different keys, such as {new[-1]!r}.",
                "It may map ids to rows: write one object per row, with the id as a field of its own.",
            )
        return bool(new)


def _doubtful(table: pl.DataFrame, unread: pl.Series, text: pl.Series) -> pl.Series:
    """Positions of the texts that may have an unknown key, have a key twice, or be no object.

    A text with as many ends of keys as it has values in the table has no other keys.
    """
    values = table.select(pl.sum_horizontal(pl.lit(0), pl.all().is_not_null())).to_series() if table.width else 0
    sure = (_key_ends(text) == values) & text.str.starts_with("{")
    doubtful = (~sure).arg_true().cast(pl.Int64)
    return doubtful.filter(~doubtful.is_in(unread.implode()))


def _key_ends(text: pl.Series) -> pl.Series:
    """How many matches of `KEY` each text has. Most colons stand right behind their quote, which is quickly counted."""
    ends = text.str.count_matches('":')
    spaced = text.str.contains(SPACED_COLON).arg_true()
    return ends.scatter(spaced, text.gather(spaced).str.count_matches(KEY)) if spaced.len() else ends


def _no_number(position: int, text: bytes) -> Problem | None:
    """The problem of a text with a number that JSON does not have; None where it only looked like one."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _explain(position, text)
    return None


def _explain(position: int, text: bytes) -> Problem:
    """What is wrong with a text that is no object, in words."""
    try:
        value = json.loads(text.strip(b"\r\n").decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return not_utf8(position, text)
    except json.JSONDecodeError as error:
        return Problem(position, "broken-json", f"It is no valid JSON: {_in_words(error)}.")
    except (ValueError, RecursionError) as error:
        return Problem(position, "broken-json", f"It is no valid JSON: {error}.")
    if not isinstance(value, dict):
        return Problem(position, "not-an-object", f"It is {_KINDS[type(value)]}, and an object was expected.")
    return Problem(position, "broken-json", r"A string in it holds half of a surrogate pair, such as \ud800.")


_KINDS = {
    list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false", type(None): "null"
}  # fmt: skip


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value; null is what says that there is none")


def _in_words(error: json.JSONDecodeError) -> str:
    text = error.doc.rstrip()
    if error.pos >= len(text):
        return "it ends too early"
    if error.msg == "Extra data":
        return f"more text follows it, at character {error.pos + 1}"
    if error.msg.startswith("Unterminated string"):
        return f"the string that starts at character {error.pos + 1} has no end"
    message = error.msg.removesuffix(" at")
    return f"{message[0].lower()}{message[1:]} at character {error.pos + 1}"
