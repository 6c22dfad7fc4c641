"""Tasks of Label Studio with their annotations per row → one conversation per annotation.

The prompt is the text of the task (`data`), the answer the text that an annotator wrote, or else the chosen labels.
Cancelled annotations are left out. https://labelstud.io/guide/export
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.pairs import QUESTION_NAMES
from curate.ingest.shapes.parts import parse_parts
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    json_like,
    number_cells,
    problem_rows,
    shorten_expr,
)

_PROMPT_KEYS = (*QUESTION_NAMES, "instruction", "text")

_are_annotations = json_like("[", r'"result"\s*:', r"^\s*\[")
FIELDS = {
    "annotations": Field(("annotations",), required=True, fits=_are_annotations),
    "data": Field(("data",), required=True, fits=lambda cells: cells.str.contains(r"^\s*\{")),
    "prompt": Field(()),
}

_TASKS = f"""
    SELECT row, coalesce({", ".join(f"cell ->> '$.{key}'" for key in _PROMPT_KEYS)}, CASE WHEN len(texts) = 1
        THEN texts[1] END) AS prompt
    FROM (
        SELECT row, cell, [cell ->> key FOR key IN json_keys(cell) IF json_type(cell -> key) = 'VARCHAR'] AS texts
        FROM (SELECT row, cell::JSON AS cell FROM cells)
    )
"""
_ANNOTATIONS = """
    SELECT row AS position, n,
        [array_to_string(from_json(coalesce(r -> '$.value.text', '[]'), '["VARCHAR"]'), chr(10))
            FOR r IN results IF r ->> '$.type' = 'textarea'] AS texts,
        [r ->> '$.from_name' FOR r IN results IF r ->> '$.type' = 'textarea'] AS names,
        array_to_string(flatten([from_json(coalesce(r -> '$.value.choices', '[]'), '["VARCHAR"]')
            FOR r IN results IF r ->> '$.type' = 'choices']), ', ') AS labels
    FROM (
        SELECT row, n, from_json(annotation -> '$.result', '["JSON"]') AS results
        FROM (
            SELECT row, unnest(annotations) AS annotation, generate_subscripts(annotations, 1) AS n
            FROM (SELECT row, from_json(cell, '["JSON"]') AS annotations FROM cells)
        )
        WHERE coalesce(annotation ->> '$.was_cancelled', 'false') <> 'true'
    )
    ORDER BY row, n
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of annotated tasks. `prompt` is a path into `data` if its keys are not known ones."""
    cells, problems = valid_cells(mapping.column(table, "annotations"))
    tasks, broken = valid_cells(mapping.column(table, "data"))
    prompts = query_frames(_TASKS, cells=tasks).select("row", "prompt")
    if "prompt" in mapping.fields:
        prompts = number_cells(mapping.column(table, "prompt"), "prompt")
    unasked = prompts.filter(pl.col("prompt").is_null()).join(tasks, on="row")
    no_prompt = pl.format(
        "No key of data is known to be a prompt; map it with --map prompt=data.KEY: {}", shorten_expr(pl.col("cell"))
    )
    annotations = query_frames(_ANNOTATIONS, cells=cells).join(prompts.rename({"row": "position"}), on="position")
    several = pl.col("texts").list.len() > 1
    names = pl.format("The annotation has several texts ({}).", pl.col("names").list.join(", "))
    text = pl.when(pl.col("texts").list.len() > 0).then(pl.col("texts").list.first()).otherwise("labels")
    empty = pl.when(text.fill_null("").str.strip_chars() == "").then(pl.lit("The annotation has no text and no label."))
    parts = annotations.select(
        "position", human="prompt", gpt=text, no_answer=pl.when(several).then(names).otherwise(empty)
    )
    return parse_parts(
        table.height,
        parts.sort("position", maintain_order=True),
        [problems, broken, problem_rows(unasked, "no-question", no_prompt)],
    )
