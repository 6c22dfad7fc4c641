"""JSON lists of turns → one row per element: role, text and all other known keys, and the problems of elements.

ShareGPT and OpenAI messages use different keys (`from` and `value`, `role` and `content`); all other keys mean the
same in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import KEY_END, split_list, split_object
from curate.ingest.shapes.roles import to_role, unknown_roles
from curate.ingest.shapes.shape import PROBLEMS, problem_rows, shorten_expr

ROLE_KEYS = ("from", "role", "speaker", "author")
TEXT_KEYS = ("value", "content", "text", "message")
TRAIN_KEYS = ("train", "weight", "loss", "trainable", "loss_weight")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text; lists with other parts are read by `block_messages`."""

TRUE_FLAGS, FALSE_FLAGS = ("true", "1", "1.0"), ("false", "0", "0.0")

_ELEMENT = {
    **dict.fromkeys((*ROLE_KEYS, *TRAIN_KEYS, *REASONING_KEYS, "tool_call_id"), "VARCHAR"),
    **dict.fromkeys((*TEXT_KEYS, "tool_calls", "function_call"), "JSON"),
}


def _first_of(keys: tuple[str, ...]) -> str:
    return "coalesce(" + ", ".join(f'e."{key}"' for key in keys) + ")"


_ELEMENTS = f"""
    SELECT row, position, name, left(content, 1) AS kind, content ->> '$' AS text, tool_call_id, trains, reasoning,
        CASE WHEN kind IN ('[', '{{') THEN content END AS nested,
        CASE
            WHEN left(tool_calls, 2) <> '[]' THEN tool_calls
            WHEN function_call IS NOT NULL THEN '[' || function_call || ']'
        END AS calls
    FROM (
        SELECT row, position, {_first_of(ROLE_KEYS)} AS name, {_first_of(TEXT_KEYS)} AS content,
            {_first_of(TRAIN_KEYS)} AS trains, {_first_of(REASONING_KEYS)} AS reasoning,
            e.tool_call_id AS tool_call_id, e.tool_calls AS tool_calls, e.function_call AS function_call
        FROM (
            SELECT row, unnest(turns) AS e, generate_subscripts(turns, 1) AS position
            FROM (SELECT row, from_json(cell, '[{json.dumps(_ELEMENT)}]') AS turns FROM lists)
        )
    )
"""
_PART = '{"type": "VARCHAR", "text": "JSON", "value": "JSON", "thought": "VARCHAR"}'
_PARTS = f"""
    SELECT row, position, string_agg(text ->> '$', '' ORDER BY n) AS joined,
        bool_and(coalesce(left(text, 1) = '"' AND coalesce(part.type, 'text') IN {TEXT_PARTS}
            AND part.thought IS DISTINCT FROM 'true', false)) AS all_text,
        first(part.type) FILTER (WHERE part.type NOT IN {TEXT_PARTS}) AS other
    FROM (
        SELECT row, position, part, n, coalesce(part.text, CASE WHEN part.type = 'text' THEN part.value END) AS text
        FROM (
            SELECT row, position, unnest(parts) AS part, generate_subscripts(parts, 1) AS n
            FROM (
                SELECT row, position,
                    from_json(nested, '[{_PART}]') AS parts
                FROM nested WHERE left(nested, 1) = '['
            )
        )
    )
    GROUP BY row, position
"""


def read_elements(lists: pl.DataFrame, roles: Mapping[str, str]) -> pl.DataFrame:
    """One row per element of the lists: role (by known names, and by `roles`), text, and all other known keys."""
    is_nan = (pl.col("kind") != '"') & pl.col("text").is_in(["NaN", "Infinity", "-Infinity"])
    elements = query_frames(_ELEMENTS, lists=lists).with_columns(
        to_role(pl.col("name"), roles).alias("from"), pl.when(~is_nan).then("text").alias("text")
    )
    nested = elements.filter(pl.col("nested").is_not_null()).select("row", "position", "from", "nested")
    if nested.is_empty():
        return elements.with_columns(all_text=pl.lit(None, pl.Boolean), other=pl.lit(None, pl.String))
    for columns in (query_frames(_PARTS, nested=nested), _original_texts(nested, lists)):
        elements = elements.join(columns, on=["row", "position"], how="left", maintain_order="left")
    is_text = pl.col("all_text") & (pl.col("from") != "function_call")
    text = pl.when(is_text).then("joined").when(pl.col("nested") == "[]").then(pl.lit("")).otherwise("original")
    return elements.with_columns(pl.when(pl.col("nested").is_null()).then("text").otherwise(text).alias("text"))


def _original_texts(nested: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """The original text of tool calls and results that are lists or objects: `row`, `position`, `original`.

    Python loops over these turns, because DuckDB would rewrite `1e5`; most files have strings here.
    """
    selected = nested.filter(pl.col("from").is_in(["function_call", "observation"])).select("row", "position")
    originals = [
        (row, position, next((element[key] for key in TEXT_KEYS if key in element), None))
        for row, position, element in original_elements(selected, lists)
    ]
    return pl.DataFrame(originals, schema={**selected.schema, "original": pl.String}, orient="row")


def original_elements(selected: pl.DataFrame, lists: pl.DataFrame) -> Iterator[tuple[int, int, dict[str, str]]]:
    """For each selected element `row`, `position` and its keys with the original text of their values."""
    by_row = selected.group_by("row", maintain_order=True).agg("position").join(lists, on="row")
    for row, positions, cell in by_row.select("row", "position", "cell").iter_rows():
        elements = list(split_list(cell))
        for position in positions:
            yield row, position, split_object(elements[position - 1])


_DUPLICATE_KEYS = """
    SELECT row, position FROM (
        SELECT row, generate_subscripts(turns, 1) AS position, json_keys(unnest(turns)) AS keys
        FROM (SELECT row, from_json(cell, '["JSON"]') AS turns FROM doubtful)
    )
    WHERE len(keys) <> len(list_distinct(keys))
"""


def find_duplicate_keys(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """Problems of turns in which a key occurs twice, so that its value is ambiguous.

    A list with as many ends of keys as its turns have roles and texts has no other keys; only other lists are checked.
    """
    count = pl.col("name").is_not_null().cast(pl.Int64) + pl.col("kind").is_not_null().cast(pl.Int64)
    known = elements.group_by("row").agg(count.sum().alias("known"))
    ends = pl.col("cell").str.count_matches(KEY_END)
    doubtful = lists.join(known, on="row", how="left", maintain_order="left").filter(ends > pl.col("known"))
    if doubtful.is_empty():
        return pl.DataFrame(schema=PROBLEMS)
    turns = query_frames(_DUPLICATE_KEYS, doubtful=doubtful)
    return problem_rows(turns, "duplicate-key", pl.format("Turn {} has a duplicate key.", "position"))


def element_problems(elements: pl.DataFrame, role_key: str | None) -> list[pl.DataFrame]:
    """The problems of single elements, in the order of precedence. `role_key` is the given key of the role."""
    no_role = elements.filter(pl.col("name").is_null())
    unknown = unknown_roles(elements)
    no_list = elements.filter(~pl.col("calls").str.starts_with("["))
    no_text = elements.filter(pl.col("nested").is_not_null() & pl.col("text").is_null())
    odd_calls = elements.filter(
        pl.col("calls").is_not_null() & pl.col("from").is_in(["human", "system", "observation"])
    )
    odd_flag = elements.filter(~pl.col("trains").str.to_lowercase().is_in([*TRUE_FLAGS, *FALSE_FLAGS]))

    role_keys = f"no {role_key}" if role_key else f"none of {', '.join(ROLE_KEYS)}"

    def reason(text: str, *columns: str | pl.Expr) -> pl.Expr:
        return pl.format(f"Turn {{}} {text}", "position", *columns)

    name, calls, trains = (shorten_expr(pl.col(column)) for column in ("name", "calls", "trains"))
    part = pl.col("other").fill_null("a structure without text")
    return [
        problem_rows(no_role, "missing-role", reason("has no role ({}).", pl.lit(role_keys))),
        problem_rows(unknown, "unknown-role", reason("has an unknown role: {}", name)),
        problem_rows(no_list, "broken-tool-call", reason("has tool calls that are not a list: {}", calls)),
        problem_rows(odd_calls, "broken-tool-call", reason("calls tools, but is not an assistant turn: {}", calls)),
        problem_rows(no_text, "non-text-content", reason("is not text: it contains {}.", part)),
        problem_rows(odd_flag, "odd-train-flag", reason("has the training flag {}, not true, false, 1 or 0.", trains)),
    ]
