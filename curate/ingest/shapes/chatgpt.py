"""A ChatGPT data export, a tree of messages per conversation → the branch that ChatGPT shows.

`mapping` has the messages by id with their parents, `current_node` the last message of the shown branch; other branches
are abandoned edits and regenerated answers. Hidden messages, those of weight 0, empty system messages and summaries of
thoughts are left out. A conversation with images or tools is rejected: the export does not describe them completely.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from curate.ingest.shapes.branches import collect_paths, in_circle, number_parents
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.roles import to_role
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, complete_turns, json_like, problem_rows

_TEXTS = ("text", "multimodal_text")
_THOUGHTS = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")
"""Content that ChatGPT does not show as a message."""


_is_mapping = json_like("{", r'"message"\s*:', r'"children"\s*:\s*\[')
FIELDS = {
    "mapping": Field(("mapping",), required=True, fits=_is_mapping),
    "current": Field(("current_node",), required=True),
}

_MESSAGES = """
    SELECT row, id, parent, message ->> '$.author.role' AS role, message ->> '$.author.name' AS tool,
        coalesce(message ->> '$.recipient', 'all') AS recipient, message ->> '$.content.content_type' AS kind,
        coalesce(message ->> '$.metadata.is_visually_hidden_from_conversation', 'false') = 'true'
            OR try_cast(message ->> '$.weight' AS DOUBLE) = 0 AS hidden,
        array_to_string([coalesce(p ->> '$.text', p ->> '$') FOR p IN parts IF is_text(p)], chr(10) || chr(10)) AS text,
        [coalesce(p ->> '$.content_type', 'object') FOR p IN parts IF NOT is_text(p)][1] AS other
    FROM (
        SELECT row, id, parent, message, from_json(message -> '$.content.parts', '["JSON"]') AS parts
        FROM (
            SELECT row, entry.key AS id, entry.value ->> '$.parent' AS parent, entry.value -> '$.message' AS message
            FROM cells, json_each(cells.cell) AS entry
        )
    )
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The shown branches of a table of ChatGPT conversations."""
    cells, problems = valid_cells(mapping.column(table, "mapping"))
    query = _MESSAGES.replace(
        "is_text(p)", "(json_type(p) = 'VARCHAR' OR p ->> '$.content_type' = 'audio_transcription')"
    )
    messages = query_frames(query, cells=cells).with_row_index("message").with_columns(pl.col("message").cast(pl.Int64))
    shown = _shown_branch(messages, mapping.column(table, "current"))
    rows = pl.DataFrame({"row": pl.int_range(table.height, eager=True)})
    lost = rows.join(shown, on="row", how="anti")
    no_branch = problem_rows(lost, "missing-conversation", "current_node is not the id of a message in mapping.")
    visible = shown.filter(~pl.col("hidden").fill_null(False) & ~pl.col("kind").is_in(_THOUGHTS))
    system = pl.col("role") == "system"
    visible = visible.filter(pl.col("role").is_not_null() & ~(system & (pl.col("text").fill_null("") == "")))
    role = pl.coalesce(to_role(pl.col("role")), "role")
    turns = complete_turns(visible.select("row", role.alias("from"), value="text"))
    return ParsedTable(turns).reject(problems, no_branch, *_problems(visible))


def _shown_branch(messages: pl.DataFrame, current: pl.Series) -> pl.DataFrame:
    """The messages from the first one to the current one of each row, in order."""
    currents = pl.DataFrame({"id": current}).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    parents, _ = number_parents(messages, "row")
    circles = pl.DataFrame({"message": np.flatnonzero(in_circle(parents))})
    ends = messages.join(currents, on=["row", "id"]).join(circles, on="message", how="anti")["message"]
    paths = collect_paths(parents, ends.to_numpy())
    branch = paths.join(messages, on="message", how="left", maintain_order="left")
    return branch.sort("row", maintain_order=True)


def _problems(messages: pl.DataFrame) -> list[pl.DataFrame]:
    """The problems of rows with messages that are not texts of the user or the assistant."""
    by_tool = pl.col("role") == "tool"
    to_tool = (pl.col("role") == "assistant") & (pl.col("recipient") != "all")
    name = pl.when(by_tool).then(pl.col("tool").fill_null("unnamed")).otherwise("recipient")
    no_text = ~pl.col("kind").is_in(_TEXTS) | pl.col("other").is_not_null()
    kind = pl.coalesce("other", "kind").fill_null("no type")
    return [
        problem_rows(
            messages.filter(by_tool | to_tool), "uses-tools", pl.format("The conversation uses a tool: {}.", name)
        ),
        problem_rows(messages.filter(no_text), "non-text-content", pl.format("A message is not text: {}.", kind)),
    ]
