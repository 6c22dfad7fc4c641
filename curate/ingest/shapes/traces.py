"""Inputs and outputs of a model, recorded by a tracing tool or as requests and responses → the turns of both.

Layouts: examples and runs of LangSmith (`inputs`, `outputs`), observations of Langfuse (`input`, `output`), logs with
`request` and `response`, and the output of an OpenAI batch next to its requests. An input is a list of messages, an
object with one under `messages`, or an object with one text; an output is a message, a response with `choices`, a list
of messages, or a text. Serialised messages of LangChain are read as well.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.pairs import ANSWER_NAMES, QUESTION_NAMES
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    fits_json,
    json_like,
    number_cells,
    problem_rows,
    shorten_expr,
)
from schemas.errors import SourceError

_QUESTION_KEYS = (*(name for name in QUESTION_NAMES if len(name) > 1), "text", "content", "topic")
_ANSWER_KEYS = (*(name for name in ANSWER_NAMES if len(name) > 1), "text", "content", "result", "message")
_ONE_TEXT = rf'(?s)^\s*\{{\s*"(?:{"|".join(_QUESTION_KEYS)})"\s*:\s*"(?:[^"\\]|\\.)*"\s*\}}\s*$'
_MESSAGE = r'"(?:role|content|lc|kwargs)"\s*:'


@fits_json()
def _has_messages(cells: pl.Series) -> pl.Series:
    """Whether each cell is a list of messages, or an object with one."""
    a_list = cells.str.contains(r"^\s*\[\s*(?:\[\s*)?\{")
    an_object = cells.str.contains(r'^\s*\{(?s:.*)"messages"\s*:\s*\[')
    return (a_list | an_object) & cells.str.contains(_MESSAGE)


@fits_json()
def _is_input(cells: pl.Series) -> pl.Series:
    """Whether each cell is one of these, or an object with one text."""
    return cells.str.contains(_ONE_TEXT) | _has_messages(cells)


@fits_json()
def _is_completion(cells: pl.Series) -> pl.Series:
    """Whether each cell is a response with `choices`, or a list of them."""
    choices = cells.str.contains(r"^\s*\[") | cells.str.contains(r'"choices"\s*:\s*\[')
    return choices & cells.str.contains(r'"message"\s*:\s*\{')


_is_result = json_like("{", r'"status_code"\s*:', r'"body"\s*:')
FIELDS = {
    "input": Field(("inputs", "request"), required=True, fits=_is_input),
    "output": Field(("outputs", "response"), required=True),
}
GENERATION_FIELDS = {
    "input": Field(("input",), required=True, fits=_has_messages),
    "output": Field(("output", "expectedOutput", "expected_output"), required=True),
}
COMPLETION_FIELDS = {
    "input": Field(("messages", "input", "prompt"), required=True, fits=_has_messages),
    "output": Field(("response", "choices", "completion"), required=True, fits=_is_completion),
}
BATCH_FIELDS = {
    "response": Field(("response",), required=True, fits=_is_result),
    "custom_id": Field(("custom_id",), required=True),
    "body": Field(("body",)),
}


def _first_text(cell: str, keys: tuple[str, ...]) -> str:
    texts = (f"CASE WHEN json_type({cell}, '$.{key}') = 'VARCHAR' THEN {cell} ->> '$.{key}' END" for key in keys)
    return f"coalesce({', '.join(texts)})"


def _message(role: str, text: str) -> str:
    return f"json_array(json_object('role', '{role}', 'content', {text}))"


_OPENAI_MESSAGES = """
    to_json([CASE WHEN json_exists(m, '$.role') THEN m ELSE json_object(
        'role', coalesce(nullif(m ->> '$.type', 'constructor'),
            regexp_replace(lower(m ->> '$.id[#-1]'), 'message(chunk)?$', '')),
        'content', coalesce(m -> '$.kwargs.content', m -> '$.data.content', m -> '$.content'),
        'tool_call_id', coalesce(m ->> '$.kwargs.tool_call_id', m ->> '$.data.tool_call_id', m ->> '$.tool_call_id'),
        'tool_calls', [json_object('id', c ->> '$.id', 'name', c ->> '$.name', 'arguments', c -> '$.args')
            FOR c IN from_json(coalesce(m -> '$.kwargs.tool_calls', m -> '$.data.tool_calls', m -> '$.tool_calls'),
                '["JSON"]')]) END
        FOR m IN from_json({list}, '["JSON"]')])
"""
"""The messages of a list, those of LangChain with the keys of OpenAI."""

_READ = f"""
    WITH cells AS (
        SELECT row, CASE WHEN left(ltrim(input), 1) IN ('[', '{{', '"') AND json_valid(input) THEN input::JSON
                ELSE to_json(input) END AS input,
            CASE WHEN left(ltrim(output), 1) IN ('[', '{{', '"') AND json_valid(output) THEN output::JSON
                ELSE to_json(output) END AS output
        FROM given
    ), lists AS (
        SELECT row, input -> '$.tools' AS tools,
            CASE
                WHEN json_type(input, '$[0]') = 'ARRAY' THEN input -> '$[0]'
                WHEN json_type(input) = 'ARRAY' THEN input
                WHEN json_type(input, '$.messages[0]') = 'ARRAY' THEN input -> '$.messages[0]'
                WHEN json_type(input, '$.messages') = 'ARRAY' THEN input -> '$.messages'
                WHEN json_type(input, '$.input') = 'ARRAY' THEN input -> '$.input'
                WHEN json_type(input) = 'VARCHAR' THEN {_message("user", "input ->> '$'")}
                WHEN {_first_text("input", _QUESTION_KEYS)} IS NOT NULL
                    THEN {_message("user", _first_text("input", _QUESTION_KEYS))}
                ELSE input END AS messages,
            CASE
                WHEN json_type(output, '$[0].message') = 'OBJECT' THEN json_array(output -> '$[0].message')
                WHEN json_type(output) = 'ARRAY' THEN output
                WHEN json_type(output, '$.choices[0].message') = 'OBJECT'
                    THEN json_array(output -> '$.choices[0].message')
                WHEN json_type(output, '$.generations[0][0].message') = 'OBJECT'
                    THEN json_array(output -> '$.generations[0][0].message')
                WHEN json_type(output, '$.generations[0][0].text') = 'VARCHAR'
                    THEN {_message("assistant", "output ->> '$.generations[0][0].text'")}
                WHEN json_type(output, '$.message') = 'OBJECT' THEN json_array(output -> '$.message')
                WHEN json_type(output, '$.messages') = 'ARRAY' THEN output -> '$.messages'
                WHEN json_type(output, '$.output') = 'OBJECT' THEN json_array(output -> '$.output')
                WHEN json_type(output, '$.output') = 'ARRAY'
                    THEN to_json([m FOR m IN from_json(output -> '$.output', '["JSON"]') IF m ->> '$.type' = 'message'])
                WHEN json_exists(output, '$.role') THEN json_array(output)
                WHEN json_type(output) = 'VARCHAR' AND trim(output ->> '$') <> ''
                    THEN {_message("assistant", "output ->> '$'")}
                WHEN {_first_text("output", _ANSWER_KEYS)} IS NOT NULL
                    THEN {_message("assistant", _first_text("output", _ANSWER_KEYS))}
                END AS completion
        FROM cells
    )
    SELECT row, {_OPENAI_MESSAGES.replace("{list}", "messages")} AS messages,
        {_OPENAI_MESSAGES.replace("{list}", "completion")} AS completion, completion IS NULL AS no_output,
        CASE WHEN json_type(tools) = 'ARRAY' THEN tools END AS tools,
        coalesce(completion ->> '$[0].role' IN ('user', 'system', 'human', 'developer'), false) AS complete
    FROM lists ORDER BY row
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The turns of inputs and outputs; an output that starts with a question is the whole conversation."""
    return _parse(mapping.rows(table, ("input", "output")))


def _parse(given: pl.DataFrame) -> ParsedTable:
    read = query_frames(_READ, given=given).with_columns(pl.col("messages", "completion", "tools").cast(pl.String))
    complete = pl.when("complete")
    lists = read.select(
        complete.then("completion").otherwise("messages").alias("messages"),
        complete.then(None).otherwise("completion").alias("completion"),
        "tools",
    )
    parsed = turn_lists.parse(lists, ColumnMapping("messages", {name: name for name in lists.columns}), "messages")
    unread = given.sort("row").filter(read["no_output"])
    blank = pl.col("output").fill_null("").str.strip_chars().is_in(["", "null", "{}", "[]"])
    other = pl.format("The output has no message or text: {}", shorten_expr(pl.col("output")))
    reason = pl.when(blank).then(pl.lit("The row has no output.")).otherwise(other)
    return parsed.reject(problem_rows(unread, "no-answer", reason))


def parse_batch(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The turns of an OpenAI batch: the rows of its requests and results, joined by `custom_id`.

    Raises `SourceError` if the table has no requests.
    """
    rows = mapping.rows(table, ("custom_id", "body", "response"), "position")
    if rows["body"].null_count() == rows.height:
        raise SourceError(
            "This is the output of an OpenAI batch, which has the answers without their questions.",
            "Import it together with the requests, the output first: cat output.jsonl requests.jsonl | curate import -",
        )
    results = rows.filter(pl.col("response").is_not_null())
    requests = rows.filter(pl.col("response").is_null()).unique("custom_id", keep="last", maintain_order=True)
    joined = results.join(requests, on="custom_id", how="left", suffix="_request", maintain_order="left")
    return _join_members(joined, rows)


def _join_members(joined: pl.DataFrame, rows: pl.DataFrame) -> ParsedTable:
    """The parsed table of results with their requests; a row of one without the other is a problem."""
    alone = pl.concat([joined.select("position"), joined.select(position="position_request")]).drop_nulls()
    rest = rows.join(alone, on="position", how="anti")
    pairs = joined.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    body = number_cells(pairs["response"]).select(pl.col("cell").str.json_path_match("$.body")).to_series()
    parsed = _parse(pairs.select("row", input="body_request", output=body))
    unanswered = rest.with_columns(row=pl.int_range(pl.len()) + pairs.height)
    ids = shorten_expr(pl.col("custom_id"))
    lost = pairs.filter(pl.col("position_request").is_null())
    members = pl.concat(
        [
            pairs.select("row", "position"),
            pairs.select("row", position="position_request").drop_nulls(),
            unanswered.select("row", "position"),
        ]
    )
    return replace(parsed, members=members).reject(
        problem_rows(lost, "no-question", pl.format("No request has the custom_id {}.", ids)),
        problem_rows(unanswered, "no-answer", pl.format("No result has the custom_id {}.", ids)),
    )
