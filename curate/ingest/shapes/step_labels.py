"""PRM800K, a problem with solution steps that people labelled → the problem and the steps that led to a solution.

Of the completions of a step, the chosen one counts, or what the labeller wrote instead. A solution with a step that is
not rated 1, or that was not finished, is rejected. https://github.com/openai/prm800k
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.parts import parse_parts
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, json_like, shorten_expr

_has_steps = json_like("{", r'"steps"\s*:\s*\[', r'"completions"\s*:')
FIELDS = {
    "label": Field(("label",), required=True, fits=_has_steps),
    "question": Field(("question",), required=True, fits=lambda cells: cells.str.contains(r'"problem"\s*:')),
}

_SOLUTIONS = """
    SELECT row AS position, problem AS human, finish, array_to_string([s.text FOR s IN chosen], chr(10)) AS gpt,
        list_bool_and([coalesce(s.text IS NOT NULL AND s.rating = 1, false) FOR s IN chosen]) AS good
    FROM (
        SELECT row, problem, finish, [CASE
            WHEN s.chosen_completion IS NULL AND s.human_completion.text IS NOT NULL
                THEN {'text': s.human_completion.text, 'rating': 1}
            WHEN s.chosen_completion IS NOT NULL THEN s.completions[s.chosen_completion + 1]
            WHEN len(s.completions) = 1 THEN s.completions[1] END FOR s IN steps] AS chosen
        FROM (
            SELECT labels.row, questions.cell ->> '$.problem' AS problem, labels.cell ->> '$.finish_reason' AS finish,
                from_json(labels.cell -> '$.steps', '[{"completions": [{"text": "VARCHAR", "rating": "INTEGER"}],
                    "human_completion": {"text": "VARCHAR"}, "chosen_completion": "INTEGER"}]') AS steps
            FROM labels JOIN questions USING (row)
        )
    )
    ORDER BY row
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of finished solutions whose steps are all rated 1."""
    labels, problems = valid_cells(mapping.column(table, "label"))
    questions, broken = valid_cells(mapping.column(table, "question"))
    solutions = query_frames(_SOLUTIONS, labels=labels, questions=questions)
    finish = pl.format("The solution is not finished: {}.", shorten_expr(pl.col("finish")))
    no_answer = (
        pl.when(pl.col("finish").fill_null("solution") != "solution")
        .then(finish)
        .when(~pl.col("good").fill_null(False))
        .then(pl.lit("A step has no chosen completion that is rated 1."))
    )
    parts = solutions.select("position", pl.col("human").fill_null(""), "gpt", no_answer=no_answer)
    return parse_parts(table.height, parts, [problems, broken])
