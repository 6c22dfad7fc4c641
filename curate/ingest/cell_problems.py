"""A table and its mapping → rows whose cells have no value at a path, or a value that cannot be stored."""

from __future__ import annotations

import json

import polars as pl

from curate.ingest.readers.batch import UNUSABLE
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.cell_path import base_column, path_cells
from curate.ingest.shapes.shape import PROBLEMS, ColumnMapping, ParsedTable, number_cells, problem_rows


def missing_values(table: pl.DataFrame, mapping: ColumnMapping, parsed: ParsedTable) -> pl.DataFrame:
    """Problems of rows in which the path of a required field leads to no value, if every row is one conversation."""
    if parsed.members.height:
        return pl.DataFrame(schema=PROBLEMS)
    required = [name for name, field in SHAPES[mapping.shape].fields.items() if field.required]
    paths = [path for name in required if (path := mapping.fields.get(name)) and path not in table.columns]
    missing = [
        problem_rows(
            number_cells(cells).filter(pl.col("cell").is_null()), "missing-value", f"{path} has no value in this row."
        )
        for path in paths
        if (cells := path_cells(table, path)) is not None
    ]
    return pl.concat([pl.DataFrame(schema=PROBLEMS), *missing])


def unusable_values(
    table: pl.DataFrame, mapping: ColumnMapping, parsed: ParsedTable, *, every: bool
) -> tuple[pl.DataFrame, pl.Series]:
    """Problems of conversations with a mapped cell that cannot be stored, and the rows of those with other such cells.

    With `every`, any such cell is a problem: columns of `--sql` come from unknown others. Python loops over these rows.
    """
    if UNUSABLE not in table.columns:
        return pl.DataFrame(schema=PROBLEMS), pl.Series([], dtype=pl.Int64)
    used = {base_column(column, table.columns) for column in mapping.fields.values()}
    marked = number_cells(table[UNUSABLE], "mark").drop_nulls().rename({"row": "position"})
    reasons = [
        next((reason for name, reason in json.loads(mark).items() if every or name in used), None)
        for mark in marked["mark"]
    ]
    found = marked.select("position", reason=pl.Series(reasons, dtype=pl.String))
    members = parsed.members if parsed.members.height else found.select("position", row="position")
    found = members.join(found, on="position").sort("reason", nulls_last=True).unique("row", keep="first").sort("row")
    problems = problem_rows(found.filter(pl.col("reason").is_not_null()), "broken-json", pl.col("reason"))
    return problems, found.filter(pl.col("reason").is_null())["row"]
