"""A table and its mapping → the column that marks answers as good or bad, and the options that import the good ones.

Published preference data marks answers by `label` (TRL), `kto_tag` (LlamaFactory), thumbs and votes. A bad answer must
not be trained on like a good one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from curate.ingest.column_names import name_words
from curate.ingest.shapes.judgements import BAD, FALSE, GOOD, LABELS, REVERSED, TRUE, plain_expr, plain_text
from curate.ingest.shapes.shape import ColumnMapping
from schemas.errors import SourceError
from schemas.text import join_names, plural, quote_name, shell_quote, shorten

_SAMPLE = 100
"""Cells that are inspected first: a column with any other value among them is not a label."""

_MAX_VALUES = 6
"""Values that an error lists."""

_MISSING = {"", "null", "none", "nan", "n/a"}

_MAX_DISTINCT = 20
"""Distinct values of a label column that also has values which judge nothing, such as neutral."""


@dataclass(frozen=True, slots=True)
class AnswerLabels:
    """A column that marks answers: its values with the number of rows, by meaning, and the rows without one."""

    column: str
    good: dict[str, int]
    bad: dict[str, int]
    other: dict[str, int]
    missing: int


def check_labels(table: pl.DataFrame, mapping: ColumnMapping, where: str | None = None) -> None:
    """Raise `SourceError` if an unmapped column marks some answer as bad in the rows that `where` selected."""
    found = find_labels(table, mapping.fields)
    if found is None:
        return
    counts = ", ".join(
        f"{shorten(value, 30)!r} ({kind}, {plural(rows, 'row')})"
        for kind, values in (("good", found.good), ("bad", found.bad), ("neither", found.other))
        for value, rows in list(values.items())[:_MAX_VALUES]
    )
    rest = f", no value ({plural(found.missing, 'row')})" if found.missing else ""
    everything = f"Import all answers, also the bad ones:{mapping.as_command()}"
    condition = f"({where}) AND {_is_good(found)}" if where else _is_good(found)
    good = mapping.as_command(f"--where {_shell_quote(condition)}")
    raise SourceError(
        f"The column {found.column} marks answers as good or bad: {counts}{rest}.",
        f"Import the good answers; the other rows become rejects:{good}\n{everything}"
        if found.good
        else f"No row is marked as good. {everything}",
    )


def label_hint(table: pl.DataFrame) -> str:
    """A line for the hint of another error: the condition that selects the good answers; empty without labels."""
    found = find_labels(table, {})
    if found is None or not found.good:
        return ""
    condition = _shell_quote(_is_good(found))
    return f"\nThe column {found.column} marks some answers as bad; add --where {condition} to import only good ones."


def find_labels(table: pl.DataFrame, fields: Mapping[str, str]) -> AnswerLabels | None:
    """The first column outside `fields` that marks some answer as bad; None if there is none."""
    used = set(fields.values())
    found = (_labels(table[name], name) for name in table.columns if name not in used)
    return next((labels for labels in found if labels is not None and labels.bad), None)


def _labels(cells: pl.Series, name: str) -> AnswerLabels | None:
    """The labels in a column; None if it has other values."""
    plain = " ".join(name_words(name))
    is_named = plain in LABELS | REVERSED
    good, bad = (GOOD | TRUE, BAD | FALSE) if is_named else (GOOD, BAD)
    if plain in REVERSED:
        good, bad = GOOD | FALSE, BAD | TRUE
    if not is_named and not _are_all(cells.head(_SAMPLE), good | bad | _MISSING):
        return None
    counts = pl.DataFrame({"value": cells}).group_by("value", maintain_order=True).len().sort("len", descending=True)
    counts = counts.with_columns(plain=_plain(counts["value"]).fill_null(""))
    texts = set(counts["plain"])
    if texts - good - bad - _MISSING and not (is_named and texts & BAD and counts.height <= _MAX_DISTINCT):
        return None

    def rows(among: set[str]) -> dict[str, int]:
        return dict(counts.filter(pl.col("plain").is_in(list(among))).select("value", "len").iter_rows())

    return AnswerLabels(name, rows(good), rows(bad), rows(texts - good - bad - _MISSING), sum(rows(_MISSING).values()))


def _are_all(cells: pl.Series, values: set[str]) -> bool:
    """Whether all cells that are not null have one of the plain `values`. Of most columns, the first one has not."""
    first = cells[0] if cells.len() else None
    if first is not None and plain_text(first) not in values:
        return False
    return set(_plain(cells).drop_nulls()) <= values


def _plain(cells: pl.Series) -> pl.Series:
    return pl.DataFrame({"cell": cells}).select(plain_expr(pl.col("cell"))).to_series()


def _is_good(labels: AnswerLabels) -> str:
    """The SQL condition that is true for good answers."""
    name = labels.column
    column = name if re.fullmatch(r"[a-z]\w*", name) and name not in _KEYWORDS else quote_name(name)
    values = ["'" + value.replace("'", "''") + "'" for value in labels.good]
    return f"{column} = {values[0]}" if len(values) == 1 else f"{column} IN ({join_names(values, len(values))})"


def _shell_quote(condition: str) -> str:
    """The condition as one word of a shell, in double quotes if it needs no escape in them."""
    return shell_quote(condition) if re.search(r'["$`\\!]', condition) else f'"{condition}"'


_KEYWORDS = {"like", "positive", "negative", "is", "not", "or", "and"}
"""Names of labels that are words of SQL."""
