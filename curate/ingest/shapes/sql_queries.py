"""Questions and the SQL queries that answer them, as in Spider and BIRD → the turns human, gpt.

The human turn is the question, a blank line and the schema or evidence if there is a column of them.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import parse_pairs
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain_text, mostly_like

_is_sql = mostly_like(r"(?i)^\s*(?:select|with|insert|update|delete)\b.*\b(?:from|into|set|as)\b")
FIELDS = {
    "query": Field(("query", "sql"), required=True, fits=_is_sql),
    "question": Field(("question",), required=True, fits=is_plain_text),
    "context": Field(("schema", "evidence", "context", "sql_context")),
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table of questions and SQL queries."""
    return parse_pairs(table, mapping, question="question", context="context", answer="query")
