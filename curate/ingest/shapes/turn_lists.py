"""Cells with a JSON list of turns → turns and problems; shared by ShareGPT and OpenAI messages.

The two families use different keys (`from` and `value`, `role` and `content`); all other keys mean the same in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import polars as pl

from curate.ingest.shapes import tool_calls
from curate.ingest.shapes.json_cells import (
    KEY_END,
    filled_cells,
    is_too_deep,
    list_cells,
    query_frames,
    split_list,
    split_object,
)
from curate.ingest.shapes.roles import to_role
from curate.ingest.shapes.shape import (
    PROBLEMS,
    TOOLS,
    TURNS,
    ColumnMapping,
    Field,
    ParsedTable,
    drop_problem_rows,
    number_cells,
    problem_rows,
    shorten_expr,
)
from curate.ingest.shapes.system_prompt import add_system_turns
from schemas.conversation import ASSISTANT_ROLES

ROLE_KEYS = ("from", "role", "speaker", "author")
TEXT_KEYS = ("value", "content", "text", "message")
TRAIN_KEYS = ("train", "weight", "loss", "trainable")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a content part that are text; other parts (image_url, input_audio …) are not supported."""

TOOLS_FIELD = Field(("tools", "functions", "available_tools"))
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")

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
_PARTS = f"""
    SELECT row, position, string_agg(part.text, '' ORDER BY n) AS joined,
        bool_and(part.text IS NOT NULL AND coalesce(part.type, 'text') IN {TEXT_PARTS}) AS all_text,
        first(part.type) FILTER (WHERE part.type NOT IN {TEXT_PARTS}) AS other
    FROM (
        SELECT row, position, unnest(parts) AS part, generate_subscripts(parts, 1) AS n
        FROM (
            SELECT row, position, from_json(nested, '[{{"type": "VARCHAR", "text": "VARCHAR"}}]') AS parts
            FROM nested WHERE left(nested, 1) = '['
        )
    )
    GROUP BY row, position
"""


SHAREGPT, MESSAGES = "sharegpt", "messages"
_FIRST_KEYS = {"from": SHAREGPT, "value": SHAREGPT, "speaker": SHAREGPT, "role": MESSAGES, "content": MESSAGES}


def is_family(cells: pl.Series, name: str) -> pl.Series:
    """Whether each cell contains a list of turns of the family `SHAREGPT` or `MESSAGES`.

    The first key decides, or a later one if the first is unknown. Quotes in a text are escaped in JSON, so a key that
    occurs in a text is not mistaken for one.
    """
    cells = cells.str.strip_chars_start()
    if not cells.str.starts_with("[").any():
        return pl.repeat(False, cells.len(), eager=True)
    key = pl.col("cell").str.extract(r'^\[\s*\{\s*"([^"]*)"')
    later = pl.when(_has_key("role")).then(pl.lit(MESSAGES)).when(_has_key("from")).then(pl.lit(SHAREGPT))
    first = key.replace_strict(_FIRST_KEYS, default=None, return_dtype=pl.String)
    is_named = pl.when(key.is_not_null()).then(pl.coalesce(first, later)).eq(name).fill_null(False)
    return pl.DataFrame({"cell": cells}).select(is_named).to_series()


def _has_key(key: str) -> pl.Expr:
    return pl.col("cell").str.contains(rf'"{key}"\s*:\s*"')


def parse(table: pl.DataFrame, mapping: ColumnMapping, name: str) -> ParsedTable:
    """The conversations in the column of the field `name`, with the columns of the fields `system` and `tools`."""
    cells = _append_completion(mapping.column(table, name), mapping.column(table, "completion"))
    lists, invalid = list_cells(cells)
    elements = _elements(lists)
    turns, contradicting = add_system_turns(_turns(elements, lists), mapping.column(table, "system"))
    tools, broken_tools = parse_tools(mapping.column(table, "tools"))
    empty, duplicates = _empty_rows(cells, elements), _duplicate_keys(elements, lists)
    problems = [invalid, empty, duplicates, *_problems(elements), contradicting, broken_tools]
    return drop_problem_rows(turns, tools, problems)


def parse_tools(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tools (`row`, `tools`), a JSON list of objects in its original text, and the problems of other cells."""
    filled = filled_cells(cells).filter(~pl.col("cell").is_in(["[]", "{}"]))
    if filled.is_empty():
        return pl.DataFrame(schema=TOOLS), pl.DataFrame(schema=PROBLEMS)
    valid = query_frames("SELECT row FROM filled WHERE json_valid(cell)", filled=filled)
    is_sound = pl.col("row").is_in(valid["row"].implode()) & pl.col("cell").str.contains(r"^\[?\s*\{")
    reason = pl.format("The tools are not a JSON list of objects: {}", shorten_expr(pl.col("cell")))
    sound = filled.filter(is_sound).select("row", tool_calls.wrap_in_list(pl.col("cell")).alias("tools"))
    return sound, problem_rows(filled.filter(~is_sound), "broken-tools", reason)


def _append_completion(cells: pl.Series, completion: pl.Series) -> pl.Series:
    """Each list concatenated with its completion: a list of turns, or a single turn."""
    if completion.null_count() == completion.len():
        return cells
    pair = pl.DataFrame({"cell": cells.str.strip_chars(), "completion": completion.str.strip_chars()})
    single = pl.col("completion").str.starts_with("{") & pl.col("completion").str.ends_with("}")
    pair = pair.with_columns(
        pl.when(single).then(pl.format("[{}]", "completion")).otherwise("completion").alias("completion")
    )
    both_lists = pl.all_horizontal(pl.all().str.contains(r"^\[\s*\{") & pl.all().str.ends_with("]"))
    text = pl.concat_str(pl.col("cell").str.head(-1), pl.lit(", "), pl.col("completion").str.slice(1))
    return pair.select(pl.when(both_lists).then(text).otherwise("cell")).to_series()


def _empty_rows(cells: pl.Series, elements: pl.DataFrame) -> pl.DataFrame:
    """Problems of rows without turns: a blank cell, or an empty list."""
    empty = number_cells(cells.fill_null("").str.strip_chars()).join(
        elements, on="row", how="anti", maintain_order="left"
    )
    blank = pl.col("cell").is_in(["", "null"])
    return pl.concat(
        [
            problem_rows(empty.filter(blank), "missing-conversation", "The column with the turns is empty."),
            problem_rows(empty.filter(~blank), "empty-conversation", "The list has no turns."),
        ]
    )


def _elements(lists: pl.DataFrame) -> pl.DataFrame:
    """One row per element of the lists: role, text, and all other known keys."""
    is_nan = (pl.col("kind") != '"') & pl.col("text").is_in(["NaN", "Infinity", "-Infinity"])
    elements = query_frames(_ELEMENTS, lists=lists).with_columns(
        to_role(pl.col("name")).alias("from"), pl.when(~is_nan).then("text").alias("text")
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
        for row, position, element in _original_elements(selected, lists)
    ]
    return pl.DataFrame(originals, schema={**selected.schema, "original": pl.String}, orient="row")


def _original_elements(selected: pl.DataFrame, lists: pl.DataFrame) -> Iterator[tuple[int, int, dict[str, str]]]:
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


def _duplicate_keys(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
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


def _problems(elements: pl.DataFrame) -> list[pl.DataFrame]:
    """The problems of single elements, in the order of precedence."""
    no_role = elements.filter(pl.col("name").is_null())
    unknown = elements.filter(pl.col("name").is_not_null() & pl.col("from").is_null())
    no_list = elements.filter(~pl.col("calls").str.starts_with("["))
    no_text = elements.filter(pl.col("nested").is_not_null() & pl.col("text").is_null())
    odd_flag = elements.filter(~pl.col("trains").str.to_lowercase().is_in([*_TRUE, *_FALSE]))

    def reason(text: str, *columns: str | pl.Expr) -> pl.Expr:
        return pl.format(f"Turn {{}} {text}", "position", *columns)

    name, calls, trains = (shorten_expr(pl.col(column)) for column in ("name", "calls", "trains"))
    part = pl.col("other").fill_null("a structure without text")
    return [
        problem_rows(no_role, "missing-role", reason(f"has no role (none of {', '.join(ROLE_KEYS)}).")),
        problem_rows(unknown, "unknown-role", reason("has an unknown role: {}", name)),
        problem_rows(no_list, "broken-tool-call", reason("has tool calls that are not a list: {}", calls)),
        problem_rows(no_text, "non-text-content", reason("is not text: it contains {}.", part)),
        problem_rows(odd_flag, "odd-train-flag", reason("has the training flag {}, not true, false, 1 or 0.", trains)),
    ]


def _turns(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """The turns of all elements. The tool calls of an assistant become a separate turn after its text."""
    excluded = pl.col("trains").str.to_lowercase().is_in(_FALSE).fill_null(False)
    turns = elements.select(
        "row",
        "position",
        pl.col("from"),
        _text_with_reasoning().alias("value"),
        (~(excluded & pl.col("from").is_in(ASSISTANT_ROLES))).alias("train"),
        pl.when(pl.col("from") == "observation").then("tool_call_id").alias("tool_call_id"),
    )
    turns = _add_call_turns(turns, _tool_calls(elements, lists))
    return _drop_empty_announcements(_normalise_calls(turns)).select(*TURNS)


def _text_with_reasoning() -> pl.Expr:
    """The text of a turn, preceded by its reasoning in the notation of open reasoning models.

    The chat templates of Qwen3 and DeepSeek-R1 extract `<think>…</think>` from the text again.
    """
    text, reasoning = pl.col("text").fill_null(""), pl.col("reasoning")
    has_reasoning = (reasoning.str.strip_chars() != "") & (pl.col("from") == "gpt")
    return pl.when(has_reasoning).then(pl.format("<think>\n{}\n</think>\n\n{}", reasoning, text)).otherwise(text)


def _tool_calls(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """The assistant elements with tool calls: `row`, `position`, `calls` with arguments in their original text."""
    has_calls = pl.col("calls").is_not_null() & (pl.col("from") == "gpt")
    calls = elements.filter(has_calls).select("row", "position", "calls")
    objects = calls.filter(tool_calls.has_object_arguments(pl.col("calls"))).select("row", "position")
    if objects.is_empty():
        return calls
    originals = [
        (row, position, element.get("tool_calls") or f"[{element['function_call']}]")
        for row, position, element in _original_elements(objects, lists)
    ]
    frame = pl.DataFrame(originals, schema={**objects.schema, "original": pl.String}, orient="row")
    joined = calls.join(frame, on=["row", "position"], how="left", maintain_order="left")
    return joined.select("row", "position", pl.coalesce("original", "calls").alias("calls"))


def _add_call_turns(turns: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The turns with a `function_call` turn after each element with tool calls; its own turn is dropped if empty."""
    if calls.is_empty():
        return turns
    texts = tool_calls.format_calls(calls)
    both = turns.join(texts, on=["row", "position"], how="left", suffix="_call", maintain_order="left")
    own_turns = both.filter(pl.col("value_call").is_null() | (pl.col("value").str.strip_chars() != ""))
    call_turns = both.filter(pl.col("value_call").is_not_null()).with_columns(
        pl.lit("function_call").alias("from"), pl.col("value_call").alias("value")
    )
    ranked = pl.concat([own_turns.with_columns(rank=0), call_turns.with_columns(rank=1)])
    return ranked.sort("row", "position", "rank").drop("value_call", "rank")


def _normalise_calls(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with all `function_call` texts in one notation; invalid ones stay and are left to validation."""
    other = turns.filter((pl.col("from") == "function_call") & tool_calls.is_other_notation(pl.col("value")))
    if other.is_empty():
        return turns
    valid = query_frames("SELECT row, position, value FROM other WHERE json_valid(value)", other=other)
    valid = valid.filter(~is_too_deep(valid["value"]))
    calls = valid.select("row", "position", tool_calls.wrap_in_list(pl.col("value")).alias("calls"))
    texts = tool_calls.format_calls(calls)
    joined = turns.join(texts, on=["row", "position"], how="left", suffix="_call", maintain_order="left")
    is_call = pl.col("from") == "function_call"
    return joined.with_columns(
        pl.when(is_call).then(pl.coalesce("value_call", "value")).otherwise("value").alias("value")
    )


def _drop_empty_announcements(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns without empty assistant texts directly before a tool call: both are one message."""
    if not (turns["from"] == "function_call").any():
        return turns
    calls_next = (pl.col("from").shift(-1) == "function_call") & (pl.col("row").shift(-1) == pl.col("row"))
    empty = (pl.col("from") == "gpt") & (pl.col("value").str.strip_chars() == "")
    return turns.filter(~(empty & calls_next).fill_null(False))
