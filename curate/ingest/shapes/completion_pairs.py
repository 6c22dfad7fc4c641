"""Prompt and completion of OpenAI's first fine-tuning format → the same texts without separators.

A prompt ended with a fixed separator such as `###` or `->`, a completion started with a space and ended with a stop
sequence such as ` END`. Chat templates mark these places themselves.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import interleave
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, mostly_like
from curate.ingest.shapes.system_prompt import SYSTEM

_SEPARATOR = r"(?:\n\s*###|\n\s*---|\s*->|\s*=>)\s*$"
_STOP = r"(?:\s+END|\s*###|\s*<\|endoftext\|>|\s+)$"

FIELDS = {
    "prompt": Field(("prompt",), required=True, fits=mostly_like(_SEPARATOR)),
    "completion": Field(("completion",), required=True),
    "system": SYSTEM,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of prompts and completions, without separators, stop sequences and the leading space."""
    prompts, completions = (mapping.column(table, name).fill_null("") for name in ("prompt", "completion"))
    answers = completions.str.replace(_STOP, "").str.strip_chars_start()
    system = pl.DataFrame({"system": mapping.column(table, "system")})
    filled = system.select(pl.when(pl.col("system").str.strip_chars() != "").then("system")).to_series()
    return ParsedTable(interleave({"system": filled, "human": prompts.str.replace(_SEPARATOR, ""), "gpt": answers}))
