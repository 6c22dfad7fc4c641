"""Conversations as a list of turns in one cell: what ShareGPT and OpenAI messages have in common.

In: cells with JSON lists of objects. Out: turns and problems. The two families differ in the keys they use
(`from` and `value`, `role` and `content`); every other key means the same in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import polars as pl

from curate.ingest.shapes import tool_calls
from curate.ingest.shapes.json_cells import given, lists, query_frames, split_list, split_object, too_deep
from curate.ingest.shapes.roles import role
from curate.ingest.shapes.shape import (
    PROBLEMS,
    TOOLS,
    TURNS,
    ColumnMapping,
    Field,
    ParsedTable,
    cut,
    problem,
    without_problems,
)
from curate.ingest.shapes.system_prompt import with_system
from schemas.conversation import ASSISTANT_ROLES

ROLE_KEYS = ("from", "role", "speaker", "author")
TEXT_KEYS = ("value", "content", "text", "message")
TRAIN_KEYS = ("train", "weight", "loss", "trainable")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
KEY = r'"\s*:'
"""Every key of an object ends in a match; not every match ends a key."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a content part that are words; any other part (image_url, input_audio …) cannot be trained on here."""

TOOLS_FIELD = Field(("tools", "functions", "available_tools"))
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")

_ELEMENT = {
    **dict.fromkeys((*ROLE_KEYS, *TRAIN_KEYS, *THOUGHT_KEYS, "tool_call_id"), "VARCHAR"),
    **dict.fromkeys((*TEXT_KEYS, "tool_calls", "function_call"), "JSON"),
}


def _either(keys: tuple[str, ...]) -> str:
    return "coalesce(" + ", ".join(f'e."{key}"' for key in keys) + ")"


_SPOKEN = f"""
    SELECT row, position, name, left(content, 1) AS kind, content ->> '$' AS text, tool_call_id, trains, thought,
        CASE WHEN kind IN ('[', '{{') THEN content END AS nested,
        CASE
            WHEN left(tool_calls, 2) <> '[]' THEN tool_calls
            WHEN function_call IS NOT NULL THEN '[' || function_call || ']'
        END AS calls
    FROM (
        SELECT row, position, {_either(ROLE_KEYS)} AS name, {_either(TEXT_KEYS)} AS content,
            {_either(TRAIN_KEYS)} AS trains, {_either(THOUGHT_KEYS)} AS thought,
            e.tool_call_id AS tool_call_id, e.tool_calls AS tool_calls, e.function_call AS function_call
        FROM (
            SELECT row, unnest(turns) AS e, generate_subscripts(turns, 1) AS position
            FROM (SELECT row, from_json(cell, '[{json.dumps(_ELEMENT)}]') AS turns FROM found)
        )
    )
"""
_PARTS = f"""
    SELECT row, position, string_agg(part.text, '' ORDER BY n) AS words,
        bool_and(part.text IS NOT NULL AND coalesce(part.type, 'text') IN {TEXT_PARTS}) AS all_words,
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
    """Which cells hold a list of turns in the keys of `SHAREGPT` or `MESSAGES`: the first key decides, or any later.

    Quotes inside a text are escaped in JSON, so a key that a text merely quotes is not found.
    """
    cells = cells.str.strip_chars_start()
    if not cells.str.starts_with("[").any():
        return pl.repeat(False, cells.len(), eager=True)
    key = pl.col("cell").str.extract(r'^\[\s*\{\s*"([^"]*)"')
    later = pl.when(_has_key("role")).then(pl.lit(MESSAGES)).when(_has_key("from")).then(pl.lit(SHAREGPT))
    first = key.replace_strict(_FIRST_KEYS, default=None, return_dtype=pl.String)
    found = pl.when(key.is_not_null()).then(pl.coalesce(first, later)).eq(name).fill_null(False)
    return pl.DataFrame({"cell": cells}).select(found).to_series()


def _has_key(key: str) -> pl.Expr:
    return pl.col("cell").str.contains(rf'"{key}"\s*:\s*"')


def read(table: pl.DataFrame, mapping: ColumnMapping, name: str) -> ParsedTable:
    """The conversations in the column of the field `name`, with the columns `system` and `tools` beside it."""
    cells = _continued(mapping.column(table, name), mapping.column(table, "completion"))
    found, unreadable = lists(cells)
    spoken = _spoken(found)
    turns, doubled = with_system(_turns(spoken, found), mapping.column(table, "system"))
    tools, broken_tools = read_tools(mapping.column(table, "tools"))
    problems = [unreadable, _missing(cells, spoken), _twice(spoken, found), *_problems(spoken), doubled, broken_tools]
    return without_problems(turns, tools, problems)


def read_tools(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tools (`row`, `tools`): a JSON list of objects, in its own text; and the problems of cells without one."""
    held = given(cells).filter(~pl.col("cell").is_in(["[]", "{}"]))
    if held.is_empty():
        return pl.DataFrame(schema=TOOLS), pl.DataFrame(schema=PROBLEMS)
    valid = query_frames("SELECT row FROM held WHERE json_valid(cell)", held=held)
    is_sound = pl.col("row").is_in(valid["row"].implode()) & pl.col("cell").str.contains(r"^\[?\s*\{")
    reason = pl.format("The tools are no JSON list of objects: {}", cut(pl.col("cell")))
    sound = held.filter(is_sound).select("row", tool_calls.as_list(pl.col("cell")).alias("tools"))
    return sound, problem(held.filter(~is_sound), "broken-tools", reason)


def _continued(cells: pl.Series, completion: pl.Series) -> pl.Series:
    """The lists, each with the list of its completion behind it."""
    if completion.null_count() == completion.len():
        return cells
    pair = pl.DataFrame({"cell": cells.str.strip_chars(), "completion": completion.str.strip_chars()})
    both_lists = pl.all_horizontal(pl.all().str.contains(r"^\[\s*\{") & pl.all().str.ends_with("]"))
    text = pl.concat_str(pl.col("cell").str.head(-1), pl.lit(", "), pl.col("completion").str.slice(1))
    return pair.select(pl.when(both_lists).then(text).otherwise("cell")).to_series()


def _missing(cells: pl.Series, spoken: pl.DataFrame) -> pl.DataFrame:
    """Problems of rows that have nothing to read: a blank cell, or a list without turns."""
    rows = pl.DataFrame({"cell": cells.fill_null("").str.strip_chars()}).with_row_index("row")
    silent = rows.with_columns(pl.col("row").cast(pl.Int64)).join(spoken, on="row", how="anti", maintain_order="left")
    blank = pl.col("cell").is_in(["", "null"])
    return pl.concat(
        [
            problem(silent.filter(blank), "missing-conversation", "The column with the turns is empty here."),
            problem(silent.filter(~blank), "empty-conversation", "The list has no turns."),
        ]
    )


def _spoken(found: pl.DataFrame) -> pl.DataFrame:
    """One line per element of the lists: who, what, and everything that hangs on it."""
    no_number = (pl.col("kind") != '"') & pl.col("text").is_in(["NaN", "Infinity", "-Infinity"])
    spoken = query_frames(_SPOKEN, found=found).with_columns(
        role(pl.col("name")).alias("from"), pl.when(~no_number).then("text").alias("text")
    )
    nested = spoken.filter(pl.col("nested").is_not_null()).select("row", "position", "from", "nested")
    if nested.is_empty():
        return spoken.with_columns(all_words=pl.lit(None, pl.Boolean), other=pl.lit(None, pl.String))
    spoken = spoken.join(query_frames(_PARTS, nested=nested), on=["row", "position"], how="left", maintain_order="left")
    spoken = spoken.join(_own_texts(nested, found), on=["row", "position"], how="left", maintain_order="left")
    is_words = pl.col("all_words") & (pl.col("from") != "function_call")
    text = pl.when(is_words).then("words").when(pl.col("nested") == "[]").then(pl.lit("")).otherwise("own")
    return spoken.with_columns(pl.when(pl.col("nested").is_null()).then("text").otherwise(text).alias("text"))


def _own_texts(nested: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """The text of tool calls and results that are lists or objects, as it stands in the cell: `row`, `position`, `own`.

    A loop over turns: only letter by letter does `1e5` stay `1e5`, and most files have texts here.
    """
    wanted = nested.filter(pl.col("from").is_in(["function_call", "observation"])).select("row", "position")
    own = [
        (row, position, next((element[key] for key in TEXT_KEYS if key in element), None))
        for row, position, element in _elements(wanted, found)
    ]
    return pl.DataFrame(own, schema={**wanted.schema, "own": pl.String}, orient="row")


def _elements(wanted: pl.DataFrame, found: pl.DataFrame) -> Iterator[tuple[int, int, dict[str, str]]]:
    """The keys of each wanted element with the text of their values; `wanted` has `row` and `position`."""
    together = wanted.group_by("row", maintain_order=True).agg("position").join(found, on="row")
    for row, positions, cell in together.select("row", "position", "cell").iter_rows():
        elements = list(split_list(cell))
        for position in positions:
            yield row, position, split_object(elements[position - 1])


_TWICE = """
    SELECT row, position FROM (
        SELECT row, generate_subscripts(turns, 1) AS position, json_keys(unnest(turns)) AS keys
        FROM (SELECT row, from_json(cell, '["JSON"]') AS turns FROM doubtful)
    )
    WHERE len(keys) <> len(list_distinct(keys))
"""


def _twice(spoken: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Problems of turns with a key twice: which of its texts is meant nobody can tell.

    A list with as many ends of keys as its turns have roles and texts has no others; only the rest is looked at.
    """
    said = pl.col("name").is_not_null().cast(pl.Int64) + pl.col("kind").is_not_null().cast(pl.Int64)
    known = spoken.group_by("row").agg(said.sum().alias("known"))
    ends = pl.col("cell").str.count_matches(KEY)
    doubtful = found.join(known, on="row", how="left", maintain_order="left").filter(ends > pl.col("known"))
    twice = query_frames(_TWICE, doubtful=doubtful) if doubtful.height else doubtful.select("row", position="row")
    return problem(twice, "duplicate-key", pl.format("Turn {} has a key twice.", "position"))


def _problems(spoken: pl.DataFrame) -> list[pl.DataFrame]:
    """What is wrong with single elements, in the order in which it is told."""
    no_role = spoken.filter(pl.col("name").is_null())
    unknown = spoken.filter(pl.col("name").is_not_null() & pl.col("from").is_null())
    silent = pl.col("nested").is_not_null() & pl.col("text").is_null()
    odd_flag = ~pl.col("trains").str.to_lowercase().is_in([*_TRUE, *_FALSE])
    part = pl.col("other").fill_null("a structure without text")
    keys = ", ".join(ROLE_KEYS)
    return [
        problem(no_role, "missing-role", pl.format(f"Turn {{}} has no role (none of {keys}).", "position")),
        problem(
            unknown,
            "unknown-role",
            pl.format("Turn {} is by {}, which is no role that is known.", "position", cut(pl.col("name"))),
        ),
        problem(
            spoken.filter(~pl.col("calls").str.starts_with("[")),
            "broken-tool-call",
            pl.format("Turn {} has tool calls that are no list: {}", "position", cut(pl.col("calls"))),
        ),
        problem(
            spoken.filter(silent), "non-text-content", pl.format("Turn {} is not text: it has {}.", "position", part)
        ),
        problem(
            spoken.filter(odd_flag),
            "odd-train-flag",
            pl.format("Turn {} says {} where true, false, 1 or 0 is expected.", "position", cut(pl.col("trains"))),
        ),
    ]


def _turns(spoken: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """The turns of all elements. An assistant's tool calls become a turn of their own, behind its words."""
    silent = pl.col("trains").str.to_lowercase().is_in(_FALSE).fill_null(False)
    learned = pl.col("from").is_in(ASSISTANT_ROLES)
    turns = spoken.select(
        "row",
        "position",
        pl.col("from"),
        _with_thought().alias("value"),
        (~(silent & learned)).alias("train"),
        pl.when(pl.col("from") == "observation").then("tool_call_id").alias("tool_call_id"),
    )
    turns = _with_calls(turns, _called(spoken, found))
    return _without_empty_announcements(_normalised(turns)).select(*TURNS)


def _with_thought() -> pl.Expr:
    """The text of a turn; reasoning that stands beside it goes in front, marked as open reasoning models write it.

    `<think>…</think>` is what the templates of Qwen3 and DeepSeek-R1 split off again when they render.
    """
    text, thought = pl.col("text").fill_null(""), pl.col("thought")
    has_thought = (thought.str.strip_chars() != "") & (pl.col("from") == "gpt")
    return pl.when(has_thought).then(pl.format("<think>\n{}\n</think>\n\n{}", thought, text)).otherwise(text)


def _called(spoken: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """The assistant elements that call tools: `row`, `position`, `calls` with arguments in their own text."""
    called = spoken.filter(pl.col("calls").is_not_null() & (pl.col("from") == "gpt")).select("row", "position", "calls")
    objects = called.filter(tool_calls.has_object_arguments(pl.col("calls"))).select("row", "position")
    if objects.is_empty():
        return called
    own = [
        (row, position, element.get("tool_calls") or f"[{element['function_call']}]")
        for row, position, element in _elements(objects, found)
    ]
    frame = pl.DataFrame(own, schema={**objects.schema, "own": pl.String}, orient="row")
    joined = called.join(frame, on=["row", "position"], how="left", maintain_order="left")
    return joined.select("row", "position", pl.coalesce("own", "calls").alias("calls"))


def _with_calls(turns: pl.DataFrame, called: pl.DataFrame) -> pl.DataFrame:
    """The turns with a `function_call` turn behind each element that calls tools; an element without words goes."""
    if called.is_empty():
        return turns
    both = turns.join(
        tool_calls.written(called), on=["row", "position"], how="left", suffix="_call", maintain_order="left"
    )
    said = both.filter(pl.col("value_call").is_null() | (pl.col("value").str.strip_chars() != ""))
    asked = both.filter(pl.col("value_call").is_not_null()).with_columns(
        pl.lit("function_call").alias("from"), pl.col("value_call").alias("value")
    )
    together = pl.concat([said.with_columns(rank=0), asked.with_columns(rank=1)])
    return together.sort("row", "position", "rank").drop("value_call", "rank")


def _normalised(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with every `function_call` text spelt one way; what cannot be read stays, for the rules to judge."""
    odd = turns.filter((pl.col("from") == "function_call") & tool_calls.in_other_spelling(pl.col("value")))
    if odd.is_empty():
        return turns
    valid = query_frames("SELECT row, position, value FROM odd WHERE json_valid(value)", odd=odd)
    valid = valid.filter(~too_deep(valid["value"]))
    texts = tool_calls.written(valid.select("row", "position", tool_calls.as_list(pl.col("value")).alias("calls")))
    joined = turns.join(texts, on=["row", "position"], how="left", suffix="_call", maintain_order="left")
    is_call = pl.col("from") == "function_call"
    return joined.with_columns(
        pl.when(is_call).then(pl.coalesce("value_call", "value")).otherwise("value").alias("value")
    )


def _without_empty_announcements(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns without empty assistant texts directly before a tool call: they are one message, and say nothing."""
    if not (turns["from"] == "function_call").any():
        return turns
    calls_next = (pl.col("from").shift(-1) == "function_call") & (pl.col("row").shift(-1) == pl.col("row"))
    empty = (pl.col("from") == "gpt") & (pl.col("value").str.strip_chars() == "")
    return turns.filter(~(empty & calls_next).fill_null(False))
