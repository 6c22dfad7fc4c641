"""Long format: one turn a row, as ticket systems and chat logs export it.

In: rows with a column that names the conversation, one that says who speaks, one with the words and perhaps one
that orders them. Out: one conversation per name, found under the position of its first row.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.json_cells import query_frames
from curate.ingest.shapes.roles import role
from curate.ingest.shapes.shape import TOOLS, TURNS, ColumnMapping, Field, ParsedTable, cut, problem, without_problems
from schemas.errors import SourceError

FIELDS = {
    "group_by": Field(
        (
            *(
                "conversation_id",
                "conversation",
                "ticket_id",
                "ticket",
                "thread_id",
                "thread",
                "dialogue_id",
                "dialog_id",
            ),
            *("session_id", "session", "chat_id", "chat", "case_id", "case", "conv_id", "message_tree_id"),
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
        fits=lambda cells: pl.DataFrame({"cell": cells}).select(role(pl.col("cell")).is_not_null()).to_series(),
    ),
    "text": Field(("text", "body", "content", "message", "value", "utterance"), required=True),
}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with one turn a row. All rows of a conversation must be in this table.

    Raises `SourceError` when the order column has values that are neither numbers nor dates.
    """
    rows = _rows(table, mapping)
    lost = rows.filter(pl.col("group").is_null())
    grouped = rows.filter(pl.col("group").is_not_null())
    grouped = grouped.with_columns(pl.col("position").first().over("group").alias("row"))
    turns = grouped.sort("row", "order", "position").select(
        "row",
        role(pl.col("name")).alias("from"),
        pl.col("value").fill_null(""),
        train=pl.lit(True),
        tool_call_id=pl.lit(None, pl.String),
    )
    lost = lost.with_columns(pl.col("position").alias("row"))
    members = pl.concat([grouped, lost]).select("row", "position").sort("position")
    found = without_problems(turns.select(*TURNS), pl.DataFrame(schema=TOOLS), _problems(lost, grouped))
    return ParsedTable(found.turns, found.tools, found.problems, members)


def _rows(table: pl.DataFrame, mapping: ColumnMapping) -> pl.DataFrame:
    """The table as `position`, `group`, `order`, `name`, `value`; blank cells are null."""
    columns = {"group": "group_by", "order": "order_by", "name": "role", "value": "text"}
    rows = pl.DataFrame([mapping.column(table, name).alias(short) for short, name in columns.items()])
    stripped = pl.col("group", "order", "name").str.strip_chars()
    rows = rows.with_columns(pl.when(stripped != "").then(stripped).name.keep()).with_row_index("position")
    ordered = "order_by" in mapping.fields
    order = _order(rows["order"], mapping.fields["order_by"]) if ordered else rows["position"].cast(pl.Float64)
    return rows.with_columns(pl.col("position").cast(pl.Int64), order.alias("order"))


def _order(cells: pl.Series, column: str) -> pl.Series:
    """The cells as numbers that sort as they mean: numbers as they are, dates as seconds, in UTC unless they say.

    Not-a-number and infinities are no places: null, like an empty cell.
    """
    numbers = cells.cast(pl.Float64, strict=False)
    nowhere = ~numbers.is_finite()
    cells, numbers = cells.set(nowhere, None), numbers.set(nowhere, None)
    if numbers.null_count() == cells.null_count():
        return numbers
    dates = query_frames(
        "SELECT epoch(TRY_CAST(cell AS TIMESTAMPTZ)) AS date FROM given", given=pl.DataFrame({"cell": cells})
    )
    unreadable = cells.filter(cells.is_not_null() & dates["date"].is_null())
    if unreadable.len():
        raise SourceError(
            f"The turns cannot be ordered by {column}: {unreadable[0]!r} is neither a number nor a date like "
            "2026-11-21 09:30.",
            f"Write {column} as ISO 8601, or leave --order-by out when the rows already stand in order.",
        )
    return dates["date"].cast(pl.Float64)


def _problems(lost: pl.DataFrame, grouped: pl.DataFrame) -> list[pl.DataFrame]:
    unknown = pl.col("name").is_not_null() & role(pl.col("name")).is_null()
    who = pl.format("The row by {} has no role that is known.", cut(pl.col("name")))
    unordered = grouped.filter(pl.col("order").is_null())
    return [
        problem(lost, "missing-group", "The column that names the conversation is empty here."),
        problem(grouped.filter(pl.col("name").is_null()), "missing-role", "A row does not say who speaks."),
        problem(grouped.filter(unknown), "unknown-role", who),
        problem(unordered, "missing-order", "A row says no place in the column that orders the turns."),
    ]
