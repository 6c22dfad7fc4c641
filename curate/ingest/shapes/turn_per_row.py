"""Long format, one turn per row as exported by ticket systems and chat logs → one conversation per conversation id.

A conversation has the position of its first row.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.call_turns import join_parallel_calls
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.roles import to_role, unknown_roles
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, complete_turns, problem_rows, shorten_expr
from schemas.errors import SourceError

FIELDS = {
    "group_by": Field(
        (
            *("conversation_id", "conversation", "ticket_id", "ticket", "thread_id", "thread"),
            *("dialogue_id", "dialog_id", "session_id", "session", "chat_id", "chat", "case_id", "case"),
            *("conv_id", "message_tree_id"),
        ),
        required=True,
    ),
    "order_by": Field(
        (
            *("created_at", "timestamp", "time", "sent_at", "date", "created", "datetime"),
            *("turn", "turn_id", "turn_index", "position", "index", "order", "seq", "sequence", "message_index"),
        )
    ),
    "role": Field(
        ("role", "author", "speaker", "from", "sender", "author_role", "sender_type", "speaker_role"),
        required=True,
        fits=lambda cells: pl.DataFrame({"cell": cells}).select(to_role(pl.col("cell")).is_not_null()).to_series(),
    ),
    "text": Field(("text", "body", "content", "message", "value", "utterance"), required=True),
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with one turn per row. The table must contain all rows of a conversation.

    Raises `SourceError` if the order column has values that are neither numbers nor dates.
    """
    rows = _rows(table, mapping)
    ungrouped = rows.filter(pl.col("group").is_null())
    grouped = rows.filter(pl.col("group").is_not_null())
    grouped = grouped.with_columns(pl.col("position").first().over("group").alias("row"))
    turns = grouped.sort("row", "order", "position").with_columns(to_role(pl.col("name"), mapping.roles).alias("from"))
    ungrouped = ungrouped.with_columns(pl.col("position").alias("row"))
    members = pl.concat([grouped, ungrouped]).select("row", "position").sort("position")
    parsed = ParsedTable(join_parallel_calls(complete_turns(turns)), members=members)
    return parsed.reject(*_problems(ungrouped, grouped, mapping))


def _rows(table: pl.DataFrame, mapping: ColumnMapping) -> pl.DataFrame:
    """The table as `position`, `group`, `order`, `name`, `value`; blank cells are null."""
    columns = {"group": "group_by", "order": "order_by", "name": "role", "value": "text"}
    rows = pl.DataFrame([mapping.column(table, name).alias(short) for short, name in columns.items()])
    stripped = pl.col("group", "order", "name").str.strip_chars()
    rows = rows.with_columns(pl.when(stripped != "").then(stripped).name.keep()).with_row_index("position")
    ordered = "order_by" in mapping.fields
    order = _to_sort_keys(rows["order"], mapping.fields["order_by"]) if ordered else rows["position"].cast(pl.Float64)
    return rows.with_columns(pl.col("position").cast(pl.Int64), order.alias("order"))


def _to_sort_keys(cells: pl.Series, column: str) -> pl.Series:
    """The cells as numbers: numbers unchanged, dates as seconds since the epoch, in UTC unless they have a zone.

    NaN and infinities are null, like empty cells.
    """
    numbers = cells.cast(pl.Float64, strict=False)
    not_finite = ~numbers.is_finite()
    cells, numbers = cells.set(not_finite, None), numbers.set(not_finite, None)
    if numbers.null_count() == cells.null_count():
        return numbers
    dates = query_frames(
        "SELECT epoch(TRY_CAST(cell AS TIMESTAMPTZ)) AS date FROM given", given=pl.DataFrame({"cell": cells})
    )
    invalid = cells.filter(cells.is_not_null() & dates["date"].is_null())
    if invalid.len():
        raise SourceError(
            f"The turns cannot be ordered by {column}: {invalid[0]!r} is neither a number nor a date like "
            "2026-11-21 09:30.",
            f"Write {column} as ISO 8601, or omit --order-by if the rows are already in order.",
        )
    return dates["date"].cast(pl.Float64)


def _problems(ungrouped: pl.DataFrame, grouped: pl.DataFrame, mapping: ColumnMapping) -> list[pl.DataFrame]:
    unnamed = grouped.filter(pl.col("name").is_null())
    unknown = unknown_roles(grouped.with_columns(to_role(pl.col("name"), mapping.roles).alias("from")))
    unknown_role = pl.format("The role of a row is unknown: {}", shorten_expr(pl.col("name")))
    unordered = grouped.filter(pl.col("order").is_null())
    return [
        problem_rows(ungrouped, "missing-group", "The column with the conversation id is empty in this row."),
        problem_rows(unnamed, "missing-role", "The role of a row is empty."),
        problem_rows(unknown, "unknown-role", unknown_role),
        problem_rows(unordered, "missing-order", "The order column of a row is empty, or is not a finite number."),
    ]
