"""Tickets with their comments per row → one conversation per ticket, between the requester and the support.

Zendesk: the comments of `requester_id` are the user's, all other public comments the assistant's; internal notes are
left out. Intercom: the author types `user`, `lead` and `contact` are the user, `admin` and `bot` the assistant.
Consecutive comments of one side are joined with blank lines.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.html_text import html_to_text
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    complete_turns,
    json_like,
    number_cells,
    problem_rows,
)

_are_comments = json_like("[", r'"author_id"\s*:', r'"(?:plain_)?body"\s*:')
_are_parts = json_like("[{", r'"author"\s*:', r'"part_type"\s*:')
FIELDS = {
    "comments": Field(("comments",), required=True, fits=_are_comments),
    "requester": Field(("requester_id",), required=True),
}
PART_FIELDS = {
    "parts": Field(("conversation_parts",), required=True, fits=_are_parts),
    "source": Field(("source",), required=True, fits=lambda cells: cells.str.contains(r'"author"\s*:')),
}

_COMMENTS = """
    SELECT row, CASE WHEN comment.author_id = requester THEN 'human' ELSE 'gpt' END AS "from",
        coalesce(comment.plain_body, comment.body) AS value
    FROM (
        SELECT row, requester, unnest(comments) AS comment, generate_subscripts(comments, 1) AS n
        FROM (
            SELECT row, requester, from_json(cell, '[{"author_id": "VARCHAR", "body": "VARCHAR",
                "plain_body": "VARCHAR", "public": "VARCHAR"}]') AS comments FROM cells
        )
    )
    WHERE coalesce(comment.public, 'true') = 'true' ORDER BY row, n
"""
_PARTS = """
    SELECT row, CASE WHEN author IN ('user', 'lead', 'contact') THEN 'human'
            WHEN author IN ('admin', 'bot', 'team') THEN 'gpt' ELSE coalesce(author, '') END AS "from",
        body AS value
    FROM (
        SELECT row, 0 AS n, source ->> '$.author.type' AS author, source ->> '$.body' AS body FROM cells
        UNION ALL
        SELECT row, n, part ->> '$.author.type', part ->> '$.body' FROM (
            SELECT row, unnest(parts) AS part, generate_subscripts(parts, 1) AS n FROM (
                SELECT row, from_json(coalesce(cell -> '$.conversation_parts', cell), '["JSON"]') AS parts FROM cells))
        WHERE part ->> '$.part_type' IN ('comment', 'open', 'assignment', 'close') AND part ->> '$.body' IS NOT NULL
    )
    WHERE coalesce(body, '') <> '' ORDER BY row, n
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of tickets with comments."""
    cells, problems = valid_cells(mapping.column(table, "comments"))
    requesters = number_cells(mapping.column(table, "requester"), "requester")
    cells = cells.join(requesters, on="row", maintain_order="left")
    return _to_table(table.height, query_frames(_COMMENTS, cells=cells), problems)


def parse_parts(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of Intercom: the first message in `source`, the following ones in `conversation_parts`."""
    cells, problems = valid_cells(mapping.column(table, "parts"))
    sources, broken = valid_cells(mapping.column(table, "source"))
    both = cells.join(sources.rename({"cell": "source"}), on="row", maintain_order="left")
    comments = query_frames(_PARTS, cells=both)
    texts = [html_to_text(body) for body in comments["value"]]  # a Python loop: bodies of Intercom are HTML
    comments = comments.with_columns(value=pl.Series(texts, dtype=pl.String))
    return _to_table(table.height, comments, pl.concat([problems, broken]))


def _to_table(height: int, comments: pl.DataFrame, problems: pl.DataFrame) -> ParsedTable:
    side = pl.struct("row", "from").rle_id()
    joined = comments.group_by(side.alias("side"), maintain_order=True).agg(
        pl.first("row"), pl.first("from"), pl.col("value").str.join("\n\n")
    )
    rest = pl.DataFrame({"row": pl.int_range(height, eager=True)}).join(joined, on="row", how="anti")
    empty = problem_rows(rest, "empty-conversation", "The ticket has no public comments.")
    return ParsedTable(complete_turns(joined)).reject(problems, empty)
