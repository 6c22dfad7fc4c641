"""Batches of records and the condition of `[import] where` → the same batches; other rows are rejects with a reason."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import polars as pl

from curate.ingest.column_names import MAX_LISTED
from curate.ingest.readers import REJECTS, Batch
from curate.ingest.shapes.cell_path import base_column, path_cells
from curate.ingest.shapes.frames import query_frames
from schemas.errors import SourceError, nearest
from schemas.rule import Expression
from schemas.text import join_names, shorten

EXCLUDED = "excluded-by-where"
"""Code of the rejects for which the condition is not true."""


def filter_batches(path: str, batches: Iterator[Batch], where: str | None) -> Iterator[Batch]:
    """The batches, in which every row for which `where` is false or null is a reject with the code `EXCLUDED`.

    Cells are text; one that is compared with a number counts as a number, or as null if it is not one. Raises
    `RecipeError` for an invalid condition, and `SourceError` for an unknown column or a value that cannot be compared.
    """
    return batches if where is None else _filtered(path, batches, Expression.read(where, "import.where"))


def _filtered(path: str, batches: Iterator[Batch], condition: Expression) -> Iterator[Batch]:
    known: set[str] = set()
    for batch in batches:
        if batch.table.height and not known:
            _check_columns(path, batch.table.columns, condition)
        known.update(batch.table.columns)
        yield _filter_batch(path, batch, condition) if batch.table.height else batch


def _check_columns(path: str, columns: list[str], condition: Expression) -> None:
    for name in condition.names:
        if _column(name, columns) is None:
            text = ".".join(name)
            raise SourceError(
                f"{path}: {shorten(condition.text)!r} reads {text}, which is not a column{nearest(text, columns)}",
                f"Columns: {join_names(columns, MAX_LISTED)}. Write texts in single quotes: label = 'good'",
            )


def _column(name: tuple[str, ...], columns: list[str]) -> str | None:
    """The column with this name, or the path in one; also written as `meta.NAME`, as in the rules of a recipe."""
    names = [".".join(name), *([".".join(name[1:])] if name[0] == "meta" and len(name) > 1 else [])]
    paths = [text for text in names if base_column(text, columns)]
    return next((text for text in names if text in columns), paths[0] if paths else None)


def _filter_batch(path: str, batch: Batch, condition: Expression) -> Batch:
    holds = _holds(path, batch.table, condition)
    if holds.all():
        return batch
    kept, excluded = holds.arg_true().cast(pl.Int64), (~holds).arg_true().cast(pl.Int64)
    reason = f"The condition {shorten(condition.text)} is not true."
    rejects = batch.texts_at(excluded).with_columns(code=pl.lit(EXCLUDED), reason=pl.lit(reason))
    return Batch(
        batch.table.filter(holds),
        batch.row.gather(kept),
        batch.line.gather(kept),
        pl.concat([batch.rejects.select(*REJECTS), rejects.select(*REJECTS)]).sort("row"),
        lambda positions: batch.raw(kept.gather(positions)),
    )


def _holds(path: str, table: pl.DataFrame, condition: Expression) -> pl.Series:
    """Whether the condition is true for each row."""
    used = {name: _column(name, table.columns) for name in condition.names}
    aliases = {name: f"c{number}" for number, name in enumerate(used)}
    found = {name: path_cells(table, column) if column else None for name, column in used.items()}
    missing = pl.Series([None], dtype=pl.String).new_from_index(0, table.height)
    cells = {aliases[name]: missing if values is None else values for name, values in found.items()}
    rows = pl.DataFrame([pl.int_range(table.height, eager=True).alias("row")] + [c.alias(a) for a, c in cells.items()])
    numbers = [pl.col(alias).cast(pl.Float64, strict=False).alias(f"n{alias}") for alias in aliases.values()]
    sql = condition.sql(lambda name, as_number: f"n{aliases[name]}" if as_number else aliases[name])
    try:
        true = query_frames(f"SELECT row FROM cells WHERE ({sql}) IS TRUE", cells=rows.with_columns(numbers))["row"]
    except duckdb.Error as error:
        raise SourceError(
            f"{path}: {shorten(condition.text)!r} cannot be evaluated: {shorten(str(error).splitlines()[0])}",
            "Cells are text; write texts in single quotes: label = 'good'",
        ) from error
    return rows["row"].is_in(true.implode())
