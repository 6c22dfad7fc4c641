"""A column of system prompts, texts or content blocks → turns that start with them."""

from __future__ import annotations

import json

import polars as pl

from curate.ingest.shapes.content_blocks import Text, UnsupportedBlockError, read_blocks
from curate.ingest.shapes.json_cells import split_list, split_object
from curate.ingest.shapes.shape import PROBLEMS, Field, complete_turns, number_cells, problem_rows

SYSTEM = Field(("system", "system_prompt", "system_message", "system_instruction"))

_BLOCK_KEYS = {"text", "type", "parts"}


def add_system_prompt(turns: pl.DataFrame, text: str) -> pl.DataFrame:
    """The turns, with a system prompt first in each conversation that has none."""
    rows = turns.select("row").unique(maintain_order=True)
    lacking = rows.join(turns.filter(pl.col("from") == "system"), on="row", how="anti", maintain_order="left")
    added = lacking.with_columns(pl.lit("system").alias("from"), pl.lit(text).alias("value"))
    return pl.concat([complete_turns(added), turns]).sort("row", maintain_order=True)


def add_system_turns(turns: pl.DataFrame, cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns with their system prompts first, and the problems of prompts without text or with two texts."""
    if cells.null_count() == cells.len():
        return turns, pl.DataFrame(schema=PROBLEMS)
    texts, broken = read_prompts(cells)
    prompts = number_cells(texts, "system").filter(pl.col("system").str.strip_chars() != "")
    first = turns.filter(pl.col("row") != pl.col("row").shift(1, fill_value=-1))
    prompts = prompts.join(first, on="row", maintain_order="left")
    has_one = pl.col("from").fill_null("") == "system"
    contradicting = problem_rows(
        prompts.filter(has_one & (pl.col("value") != pl.col("system"))),
        "two-system-texts",
        "The system column and the first turn of the list are two different system prompts.",
    )
    added = prompts.filter(~has_one).select("row", pl.lit("system").alias("from"), pl.col("system").alias("value"))
    return pl.concat([complete_turns(added), turns]).sort("row", maintain_order=True), pl.concat(
        [broken, contradicting]
    )


def read_prompts(cells: pl.Series) -> tuple[pl.Series, pl.DataFrame]:
    """The texts of system prompts, and the problems of those with other content. Blocks of a prompt become its text.

    Python loops over the distinct cells that may be JSON: `[{"text": …}]` of Bedrock and Anthropic, `{"parts": …}` of
    Gemini, or a message. JSON with other keys is the text of a prompt.
    """
    may_be_json = cells.str.contains(r"^\s*[\[{]").fill_null(False)
    if not may_be_json.any():
        return cells, pl.DataFrame(schema=PROBLEMS)
    read = {cell: _read_prompt(cell.strip()) for cell in cells.filter(may_be_json).unique()}
    texts = {cell: text for cell, (text, _) in read.items() if text is not None}
    reasons = {cell: reason for cell, (_, reason) in read.items() if reason is not None}
    broken = number_cells(cells).filter(pl.col("cell").is_in(list(reasons)))
    reason = pl.col("cell").replace_strict(reasons, default=None, return_dtype=pl.String)
    return cells.replace(texts), problem_rows(broken, "non-text-content", reason)


def _read_prompt(cell: str) -> tuple[str | None, str | None]:
    """The text of a prompt in blocks, and the reason if it has none; neither if the cell is a text itself."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None, None
    entries = value if isinstance(value, list) else [value]
    if all(isinstance(entry, str) for entry in entries) and len(entries) > 1:
        return None, f"The system prompt is a list of {len(entries)} texts."
    if not all(isinstance(entry, str) or (isinstance(entry, dict) and _is_block(entry)) for entry in entries):
        return None, None
    try:
        texts = split_list(cell) if cell.startswith("[") else [cell]
        blocks = [block for text in texts for block in read_blocks(_content(text))]
    except UnsupportedBlockError as error:
        return None, f"The system prompt is not text: it contains {error}."
    return "".join(block.text for block in blocks if isinstance(block, Text)), None


def _is_block(entry: dict[str, object]) -> bool:
    return bool(entry.keys() & _BLOCK_KEYS) or entry.keys() >= {"role", "content"}


def _content(entry: str) -> str:
    """The content of a message; other values unchanged."""
    return split_object(entry).get("content", entry) if entry.startswith("{") and '"role"' in entry else entry
