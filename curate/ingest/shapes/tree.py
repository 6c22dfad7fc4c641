"""Messages that name their parent, one per row or nested in their replies → one conversation per branch.

A branch is the path from a first message to an answer that no other answer follows, so that rival replies are never
joined; a message is part of every branch below it. Layouts: the flat and the nested files of OpenAssistant,
https://huggingface.co/datasets/OpenAssistant/oasst1
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import polars as pl

from curate.ingest.shapes.branches import Mask, find_branches, mark_descendants, number_parents
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.parts import NO_ANSWER
from curate.ingest.shapes.roles import to_role
from curate.ingest.shapes.shape import (
    MEMBERS,
    PROBLEMS,
    ColumnMapping,
    Field,
    ParsedTable,
    complete_turns,
    json_like,
    mostly,
    problem_rows,
    shorten_expr,
)
from schemas.conversation import ASSISTANT_ROLES

LOWER_RANKED = "lower-ranked"


_has_replies = json_like("{", r'"replies"\s*:\s*\[', r'"role"\s*:')


def _has_roles(cells: pl.Series) -> pl.Series:
    return mostly(pl.DataFrame({"cell": cells}).select(to_role(pl.col("cell")).is_not_null()).to_series())


def _has_ranked_replies(cells: pl.Series) -> pl.Series:
    return _has_replies(cells) & cells.str.contains(r'"rank"\s*:\s*\d').any()


def _is_rank(cells: pl.Series) -> pl.Series:
    return cells.cast(pl.Float64, strict=False).is_not_null()


_PARENT = ("parent_id", "parent_message_id", "parent_uuid", "reply_to_id", "in_reply_to", "parent_comment_id")
FIELDS = {
    "parent": Field(_PARENT, required=True),
    "id": Field(("message_id", "id", "uuid", "node_id", "comment_id"), required=True),
    "role": Field(("role", "author_role", "speaker_role", "author", "sender"), required=True, fits=_has_roles),
    "text": Field(("text", "content", "body", "message", "value"), required=True),
}
RANKED_FIELDS = {**FIELDS, "rank": Field(("rank",), required=True, fits=_is_rank)}
NESTED_FIELDS = {"tree": Field(("prompt", "tree", "thread"), required=True, fits=_has_replies)}
RANKED_NESTED_FIELDS = {"tree": Field(("prompt", "tree", "thread"), required=True, fits=_has_ranked_replies)}

_NESTED = """
    WITH RECURSIVE nodes AS (
        SELECT row, [0] AS path, cell::JSON AS node FROM cells
        UNION ALL
        SELECT row, list_append(path, n), reply FROM (
            SELECT row, path, unnest(replies) AS reply, generate_subscripts(replies, 1) AS n
            FROM (SELECT row, path, from_json(node -> '$.replies', '["JSON"]') AS replies FROM nodes)
        )
    )
    SELECT row, array_to_string(path, ' ') AS id, array_to_string(path[:-2], ' ') AS parent, node ->> '$.role' AS role,
        node ->> '$.text' AS text, node ->> '$.rank' AS rank
    FROM nodes ORDER BY row, path
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping, *, best: bool = False) -> ParsedTable:
    """The branches of a table with one message per row; with `best` only those of the best-ranked replies.

    The table must contain all messages of a tree.
    """
    messages = mapping.rows(table, ("id", "parent", "role", "text", "rank"), "position")
    messages = messages.with_columns(pl.col("id", "parent").str.strip_chars(), tree=pl.lit(0))
    return _to_table(messages, mapping.roles, best=best)


def parse_nested(table: pl.DataFrame, mapping: ColumnMapping, *, best: bool = False) -> ParsedTable:
    """The branches of a column of messages with nested `replies`."""
    cells = mapping.column(table, "tree")
    sound, problems = valid_cells(cells)
    blank = pl.DataFrame({"row": pl.int_range(cells.len(), eager=True)}).join(
        pl.concat([sound.select("row"), problems.select("row")]), on="row", how="anti"
    )
    problems = pl.concat([problems, problem_rows(blank, "missing-conversation", "The column with the tree is empty.")])
    messages = query_frames(_NESTED, cells=sound).with_columns(pl.col("row").alias("tree"), position="row")
    return _to_table(messages.drop("row"), mapping.roles, best=best, problems=problems)


parse_best = partial(parse, best=True)
parse_nested_best = partial(parse_nested, best=True)


def _to_table(
    messages: pl.DataFrame, roles: Mapping[str, str], *, best: bool, problems: pl.DataFrame | None = None
) -> ParsedTable:
    """The branches of messages with `tree`, `id`, `parent`, `role`, `text`, `rank`, `position` (of the row)."""
    messages = messages.with_columns(to_role(pl.col("role"), roles).alias("from")).with_row_index("message")
    messages = messages.with_columns(pl.col("message").cast(pl.Int64))
    parents, missing = number_parents(messages, "tree")
    lower = mark_descendants(parents, _lower_ranked(messages)) if best else np.zeros(len(parents), np.bool_)
    lost = mark_descendants(parents, missing)
    answers = messages["from"].is_in(ASSISTANT_ROLES).fill_null(False).to_numpy()
    branches = find_branches(parents, answers & ~lower & ~lost)
    parent = shorten_expr(pl.col("parent"))
    no_parent = pl.format("The parent {} of the message, or of one before it, is missing.", parent)
    failed = [
        _failed(messages, lost | branches.unreachable, "missing-parent", no_parent),
        _failed(messages, lower, LOWER_RANKED, "Another reply to the same message has a better rank."),
        _failed(messages, branches.unanswered, NO_ANSWER, "No answer follows the message."),
    ]
    rejected = pl.concat(failed).unique("message", keep="first", maintain_order=True)
    return _number(
        messages, branches.messages, rejected, pl.DataFrame(schema=PROBLEMS) if problems is None else problems
    )


def _lower_ranked(messages: pl.DataFrame) -> Mask:
    """Which replies have a sibling with a better rank: a lower one, or the first of equal ones."""
    rank = pl.col("rank").cast(pl.Float64, strict=False).fill_null(np.inf)
    place = pl.struct(rank, "message").rank("ordinal").over("tree", "parent")
    is_reply = pl.col("parent").fill_null("") != ""
    return messages.select((is_reply & (place > 1)).fill_null(False)).to_series().to_numpy()


def _failed(messages: pl.DataFrame, which: Mask, code: str, reason: str | pl.Expr) -> pl.DataFrame:
    rows = messages.filter(pl.Series(which)).with_columns(row="message")
    return problem_rows(rows, code, reason).rename({"row": "message"})


def _number(
    messages: pl.DataFrame, branches: pl.DataFrame, rejected: pl.DataFrame, problems: pl.DataFrame
) -> ParsedTable:
    """The parsed table: branches, rejected messages and problems of whole rows, numbered by their last row."""
    ends = branches.select("end").unique().select(message="end", order=pl.lit(0))
    single = rejected.with_columns(order=pl.lit(0))
    whole = problems.select(pl.lit(None, pl.Int64).alias("message"), "code", "reason", position="row")
    own = pl.concat([ends, single], how="diagonal").join(messages.select("message", "position"), on="message")
    numbered = (
        pl.concat([own, whole], how="diagonal")
        .sort("position", "message")
        .with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    )
    by_end = numbered.filter(pl.col("code").is_null()).select("row", end="message")
    entries = branches.join(by_end, on="end", maintain_order="left").join(messages, on="message", maintain_order="left")
    turns = entries.select("row", pl.coalesce("from", "role").fill_null("").alias("from"), value="text")
    alone = numbered.filter(pl.col("code").is_not_null())
    return ParsedTable(
        complete_turns(turns.sort("row", maintain_order=True)),
        problems=alone.select(*PROBLEMS),
        members=pl.concat([entries.select(*MEMBERS), alone.select(*MEMBERS)]).unique().sort("position", "row"),
    )
