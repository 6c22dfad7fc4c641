"""Questions about a passage, as in SQuAD, BoolQ and PubMedQA → one conversation per question.

The prompt is the passage, a blank line and the question; the answer is the first of the accepted ones. A question
without an answer (SQuAD 2.0: `is_impossible`) is rejected. SQuAD has two layouts: one question per row, and the
original file with one article per row. https://rajpurkar.github.io/SQuAD-explorer
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import list_cells, valid_cells
from curate.ingest.shapes.parts import join_texts, parse_parts
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    fits_json,
    is_plain_text,
    json_like,
    mostly_like,
)


@fits_json()
def _has_spans(cells: pl.Series) -> pl.Series:
    """Whether each cell has answers with their places: columns of texts as on the Hugging Face Hub, or a list."""
    in_columns = cells.str.contains(r"^\s*\{") & cells.str.contains(r'"(?:text|spans)"\s*:\s*\[')
    is_list = cells.str.contains(r"^\s*\[\s*(?:\]|\{)") & cells.str.contains(r'^\s*\[\s*\]|"answer_start"\s*:')
    return in_columns | is_list


_are_paragraphs = json_like("[", r"^\s*\[", r'"qas"\s*:\s*\[')
_has_aliases = json_like("{", r'"value"\s*:\s*"', r'"aliases"\s*:\s*\[')
_has_contexts = json_like("{", r'"contexts"\s*:\s*\[')
_is_flag = mostly_like(r"(?i)^\s*(?:true|false)\s*$")

FIELDS = {
    "answers": Field(("answers", "answers_spans", "answer"), required=True, fits=_has_spans),
    "context": Field(("context", "passage", "paragraph", "document"), required=True, fits=is_plain_text),
    "question": Field(("question",), required=True, fits=is_plain_text),
    "impossible": Field(("is_impossible",)),
}
ARTICLE_FIELDS = {"paragraphs": Field(("paragraphs",), required=True, fits=_are_paragraphs)}

TRIVIA_FIELDS = {
    "answers": Field(("answer",), required=True, fits=_has_aliases),
    "question": Field(("question",), required=True, fits=is_plain_text),
}
YES_NO_FIELDS = {
    "context": Field(("passage",), required=True, fits=is_plain_text),
    "question": Field(("question",), required=True, fits=is_plain_text),
    "answer": Field(("answer",), required=True, fits=_is_flag),
}
ABSTRACT_FIELDS = {
    "context": Field(("context",), required=True, fits=_has_contexts),
    "question": Field(("question",), required=True, fits=is_plain_text),
    "answer": Field(("long_answer",), required=True, fits=is_plain_text),
}

_ANSWERS = """
    SELECT row AS position,
        coalesce(cell ->> '$.text[0]', cell ->> '$.spans[0]', cell ->> '$.value', cell ->> '$[0].text', cell ->> '$[0]')
            AS gpt
    FROM cells
"""
_CONTEXTS = """
    SELECT row, array_to_string(from_json(cell -> '$.contexts', '["VARCHAR"]'), chr(10) || chr(10)) AS context
    FROM cells
"""
_ARTICLES = """
    SELECT row AS position, context, qa.question AS question, qa.answers[1].text AS gpt, qa.is_impossible AS impossible
    FROM (
        SELECT row, p, paragraph.context AS context, unnest(paragraph.qas) AS qa,
            generate_subscripts(paragraph.qas, 1) AS q
        FROM (
            SELECT row, unnest(paragraphs) AS paragraph, generate_subscripts(paragraphs, 1) AS p
            FROM (
                SELECT row, from_json(cell, '[{"context": "VARCHAR", "qas": [{"question": "VARCHAR",
                    "is_impossible": "VARCHAR", "answers": [{"text": "VARCHAR"}]}]}]') AS paragraphs FROM cells
            )
        )
    )
    ORDER BY row, p, q
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with one question per row."""
    cells, problems = valid_cells(mapping.column(table, "answers"))
    rows = mapping.rows(table, ("context", "question", "impossible"), "position")
    parts = rows.join(query_frames(_ANSWERS, cells=cells), on="position", maintain_order="left")
    return parse_parts(table.height, _to_parts(parts), [problems])


def parse_articles(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table with one article per row."""
    cells, problems = list_cells(mapping.column(table, "paragraphs"))
    return parse_parts(table.height, _to_parts(query_frames(_ARTICLES, cells=cells)), [problems])


def parse_yes_no(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table of passages, questions and flags: the answer is `Yes` or `No`."""
    flags = mapping.column(table, "answer").str.strip_chars().str.to_lowercase()
    answers = flags.replace_strict({"true": "Yes", "false": "No"}, default=None, return_dtype=pl.String)
    return _parse_texts(table, mapping, mapping.column(table, "context"), answers)


def parse_abstracts(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of PubMedQA: `contexts`, a list of paragraphs, the question, and its long answer."""
    cells, problems = valid_cells(mapping.column(table, "context"))
    joined = query_frames(_CONTEXTS, cells=cells)
    rows = pl.DataFrame({"row": pl.int_range(table.height, eager=True)})
    contexts = rows.join(joined, on="row", how="left", maintain_order="left")["context"]
    return _parse_texts(table, mapping, contexts, mapping.column(table, "answer"), [problems])


def _parse_texts(
    table: pl.DataFrame,
    mapping: ColumnMapping,
    contexts: pl.Series,
    answers: pl.Series,
    problems: Sequence[pl.DataFrame] = (),
) -> ParsedTable:
    questions = pl.DataFrame(
        {
            "position": pl.int_range(table.height, eager=True),
            "context": contexts,
            "question": mapping.column(table, "question"),
            "gpt": answers,
            "impossible": pl.Series([None], dtype=pl.String).new_from_index(0, table.height),
        }
    )
    return parse_parts(table.height, _to_parts(questions), problems)


def _to_parts(questions: pl.DataFrame) -> pl.DataFrame:
    """The parts of questions with `context`, `question`, `gpt`, `impossible`."""
    is_impossible = (pl.col("impossible").str.to_lowercase() == "true").fill_null(False)
    has_answer = (pl.col("gpt").str.strip_chars() != "").fill_null(False)
    blank = pl.col("question").fill_null("").str.strip_chars() == ""
    return questions.select(
        "position",
        pl.when(blank).then(pl.lit("")).otherwise(join_texts("context", "question")).alias("human"),
        "gpt",
        pl.when(is_impossible)
        .then(pl.lit("The question is marked as impossible to answer."))
        .when(~has_answer)
        .then(pl.lit("The question has no answer in its text."))
        .alias("no_answer"),
    )
