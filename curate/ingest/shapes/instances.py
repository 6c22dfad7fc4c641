"""Self-Instruct, an instruction with a list of inputs and outputs per row → one conversation per instance.

https://github.com/yizhongw/self-instruct
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import list_cells
from curate.ingest.shapes.parts import join_texts, parse_parts
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain_text, json_like

_are_instances = json_like("[", r'"output"\s*:', r"^\s*\[\s*\{")
FIELDS = {
    "instances": Field(("instances", "examples"), required=True, fits=_are_instances),
    "instruction": Field(("instruction", "prompt", "task"), required=True, fits=is_plain_text),
}

_INSTANCES = """
    SELECT row AS position, instance.input AS input, instance.output AS gpt
    FROM (
        SELECT row, unnest(instances) AS instance, generate_subscripts(instances, 1) AS n
        FROM (SELECT row, from_json(cell, '[{"input": "VARCHAR", "output": "VARCHAR"}]') AS instances FROM cells)
    )
    ORDER BY row, n
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table of instructions and lists of instances."""
    cells, problems = list_cells(mapping.column(table, "instances"))
    instructions = mapping.rows(table, ["instruction"], "position").fill_null("")
    instances = query_frames(_INSTANCES, cells=cells).join(instructions, on="position", maintain_order="left")
    human = pl.when(pl.col("instruction").str.strip_chars() != "").then(join_texts("instruction", "input"))
    parts = instances.select("position", human.otherwise(pl.lit("")).alias("human"), pl.col("gpt").fill_null(""))
    return parse_parts(table.height, parts, [problems])
