"""A prompt and a list of answers per row, rated or not → all answers, the first one, or the best-rated one.

Layouts: Nectar (`answers` with `rank`), UltraFeedback (`completions` with `overall_score`), Stack Exchange preferences
(`answers` with `pm_score`), and lists of texts. A prompt that is a transcript and ends with the assistant's name
(`Human: … Assistant:`) becomes its turns.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import polars as pl

from curate.ingest.shapes import transcript
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import list_cells
from curate.ingest.shapes.pairs import QUESTION_NAMES
from curate.ingest.shapes.parts import parse_parts
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, fits_json, is_plain_text
from curate.ingest.shapes.system_prompt import SYSTEM, read_prompts

Choice = Literal["all", "first", "best"]

TEXT_KEYS = ("answer", "response", "text", "content", "completion", "output", "generated_text", "body", "value")
_SCORES = ("overall_score", "pm_score", "score", "rating", "reward")
"""Keys of ratings of which the highest is the best."""

_RATING = rf'"(?:{"|".join((*_SCORES, "rank"))})"\s*:\s*"?-?\d'
_TEXT = rf'"(?:{"|".join(TEXT_KEYS)})"\s*:\s*"'
_OTHER = r'"(?:role|from|answer_start|speaker|arguments)"\s*:'
"""Keys of turns, of SQuAD's answers and of tool calls."""


@fits_json("[")
def _are_answers(cells: pl.Series) -> pl.Series:
    """Whether each cell is a list of texts, or of objects with a text."""
    objects = cells.str.contains(r"^\s*\[\s*\{") & cells.str.contains(_TEXT) & ~cells.str.contains(_OTHER)
    return objects | cells.str.contains(r'^\s*\[\s*"')


def _are_answers_of(cells: pl.Series, *, rated: bool) -> pl.Series:
    """The same, if some answer has a rating, or if none has."""
    fits = _are_answers(cells)
    return fits & (cells.str.contains(_RATING).any() == rated) if fits.any() else fits


_NAMES = ("answers", "completions", "responses", "generations", "candidates", "replies", "outputs", "solutions")
FIELDS = {
    "answers": Field(_NAMES, required=True, fits=_are_answers),
    "prompt": Field(("prompt", "instruction", *QUESTION_NAMES), required=True, fits=is_plain_text),
    "system": SYSTEM,
}
BEST_FIELDS = {**FIELDS, "answers": Field(_NAMES, required=True, fits=partial(_are_answers_of, rated=True))}
FIRST_FIELDS = {**FIELDS, "answers": Field(_NAMES, required=True, fits=partial(_are_answers_of, rated=False))}

_ANSWERS = f"""
    SELECT row AS position, n,
        CASE WHEN json_type(answer) = 'VARCHAR' THEN answer ->> '$' ELSE coalesce(
            {", ".join(f"answer ->> '$.{key}'" for key in TEXT_KEYS)}) END AS gpt,
        coalesce({", ".join(f"try_cast(answer ->> '$.{key}' AS DOUBLE)" for key in _SCORES)},
            -try_cast(answer ->> '$.rank' AS DOUBLE)) AS rating
    FROM (
        SELECT row, unnest(answers) AS answer, generate_subscripts(answers, 1) AS n
        FROM (SELECT row, from_json(cell, '["JSON"]') AS answers FROM cells)
    )
    ORDER BY row, n
"""
_SPEAKER = r"^\s*(?:###\s*)?(?:Human|User|System)\s*:"
_ASSISTANT_NEXT = r"\s(?:###\s*)?Assistant\s*:\s*$"


def parse(table: pl.DataFrame, mapping: ColumnMapping, *, choice: Choice = "all") -> ParsedTable:
    """The conversations of prompts and lists of answers; of equally rated answers, the first is the best."""
    cells, problems = list_cells(mapping.column(table, "answers"))
    answers = query_frames(_ANSWERS, cells=cells)
    if choice == "best":
        answers = answers.sort("position", "rating", "n", descending=[False, True, False], nulls_last=True)
        unrated = pl.when(pl.col("rating").is_null()).then(pl.lit("No answer of the row has a rating."))
        answers = answers.unique("position", keep="first", maintain_order=True).with_columns(no_answer=unrated)
    if choice == "first":
        answers = answers.unique("position", keep="first", maintain_order=True)
    prompts = mapping.column(table, "prompt").fill_null("")
    is_transcript = prompts.str.contains(_SPEAKER) & prompts.str.contains(_ASSISTANT_NEXT)
    system, broken = read_prompts(mapping.column(table, "system"))
    rows = pl.DataFrame(
        {
            "position": pl.int_range(table.height, eager=True),
            "system": system,
            "human": prompts.set(is_transcript, None),
        }
    ).with_columns(pl.when(pl.col("system").str.strip_chars() != "").then("system").alias("system"))
    parts = answers.drop("n", "rating").join(rows, on="position", maintain_order="left")
    names = [name for name in ("position", "system", "human", "gpt", "no_answer") if name in parts.columns]
    return parse_parts(
        table.height, parts.select(names), [problems, broken], earlier=_transcript_turns(prompts, is_transcript)
    )


parse_best = partial(parse, choice="best")
parse_first = partial(parse, choice="first")


def _transcript_turns(prompts: pl.Series, is_transcript: pl.Series) -> pl.DataFrame:
    """The turns of the prompts that are transcripts, without the last name: `row`, `from`, `value`."""
    found = pl.DataFrame({"text": prompts}).with_row_index("position").filter(is_transcript)
    texts = found.select(pl.col("text").str.replace(_ASSISTANT_NEXT, ""))
    turns = transcript.parse(texts, ColumnMapping("transcript", {"transcript": "text"})).turns
    positions = found["position"].cast(pl.Int64).gather(turns["row"])
    return turns.with_columns(positions.alias("row"))
