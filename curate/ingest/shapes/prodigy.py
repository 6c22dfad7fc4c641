"""Annotations of Prodigy per row → the text and what the annotator chose or wrote.

The answer is the written text (`user_input`), else the texts of the accepted options, else the label; examples that
the annotator rejected or ignored are rejected. https://prodi.gy/docs/api-interfaces
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.parts import parse_parts
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain_text, mostly_like, shorten_expr

FIELDS = {
    "decision": Field(("answer",), required=True, fits=mostly_like(r"^(?:accept|reject|ignore)$")),
    "prompt": Field(("text", "prompt", "question", "input"), required=True, fits=is_plain_text),
    "written": Field(("user_input", "response")),
    "accept": Field(("accept",)),
    "options": Field(("options",)),
    "label": Field(("label",)),
}

_ANSWERS = """
    SELECT row AS position, prompt AS human, decision, coalesce(nullif(trim(written), ''), (
            SELECT string_agg(coalesce(o ->> '$.text', o ->> '$.id'), ', ') FROM (
                SELECT unnest(from_json(CASE WHEN json_valid(options) THEN options ELSE '[]' END, '["JSON"]')) AS o)
            WHERE list_contains(
                from_json(CASE WHEN json_valid(accept) THEN accept ELSE '[]' END, '["VARCHAR"]'), o ->> '$.id')),
        nullif(trim(label), '')) AS gpt
    FROM rows ORDER BY row
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of accepted examples."""
    answers = query_frames(_ANSWERS, rows=mapping.rows(table, FIELDS))
    decided = pl.format("The annotator did not accept the example: {}.", shorten_expr(pl.col("decision")))
    no_answer = (
        pl.when(pl.col("decision").fill_null("") != "accept")
        .then(decided)
        .when(pl.col("gpt").is_null())
        .then(pl.lit("The example has no text, no accepted option and no label."))
    )
    parts = answers.select("position", pl.col("human").fill_null(""), "gpt", no_answer=no_answer)
    return parse_parts(table.height, parts)
