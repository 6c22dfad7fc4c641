"""OpenAI `tool_calls` → the JSON text of `function_call` turns.

One call is an object, `{"name": …, "arguments": {…}, "id": …}`; several calls are a list of them. Arguments keep
their original text: a string that contains a JSON object is replaced by that object, other values stay unchanged and
are left to validation.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import split_list, split_object

_ENTRIES = """
    SELECT row, position, n,
        coalesce(c.function.name, c.name) AS name,
        coalesce(c.function.arguments, c.arguments, c.function.parameters, c.parameters) AS arguments,
        arguments ->> '$' AS as_text,
        json_valid(as_text) AS holds_json,
        c.id AS id
    FROM (
        SELECT row, position, unnest(entries) AS c, generate_subscripts(entries, 1) AS n
        FROM (SELECT row, position, from_json(calls, '[{
            "id": "JSON", "name": "JSON", "arguments": "JSON", "parameters": "JSON",
            "function": {"name": "JSON", "arguments": "JSON", "parameters": "JSON"}
        }]') AS entries FROM calls)
    )
    ORDER BY row, position, n
"""
_KEYS = ("arguments", "parameters")


def format_calls(calls: pl.DataFrame) -> pl.DataFrame:
    r"""The texts of `function_call` turns: `row`, `position`, `value`, from `row`, `position`, `calls` (a JSON list).

    >>> call = '{"id": "c1", "function": {"name": "add", "arguments": "{\\"a\\": 1.0}"}}'
    >>> format_calls(pl.DataFrame({"row": [0], "position": [1], "calls": [f"[{call}]"]})).item(0, "value")
    '{"name": "add", "arguments": {"a": 1.0}, "id": "c1"}'
    """
    entries = _add_original_text(query_frames(_ENTRIES, calls=calls), calls)
    ending = pl.when(pl.col("id").is_null()).then(pl.lit("}")).otherwise(pl.format(', "id": {}', "id") + "}")
    name = pl.col("name").fill_null("null")
    call = pl.concat_str(pl.lit('{"name": '), name, pl.lit(', "arguments": '), _arguments(), ending)
    turns = entries.group_by("row", "position", maintain_order=True).agg(call.alias("calls"))
    as_list = pl.concat_str(pl.lit("["), pl.col("calls").list.join(", "), pl.lit("]"))
    value = pl.when(pl.col("calls").list.len() == 1).then(pl.col("calls").list.first()).otherwise(as_list)
    return turns.select("row", "position", value.alias("value"))


def has_object_arguments(calls: pl.Expr) -> pl.Expr:
    """Whether the arguments of a call may be an object, whose text DuckDB reformats."""
    return calls.str.contains(r'"(?:arguments|parameters)"\s*:\s*[{\[]')


def is_other_notation(text: pl.Expr) -> pl.Expr:
    """Whether a call is not written as `{"name": …, "arguments": {…}}`: OpenAI's nesting, or arguments as a string."""
    return text.str.contains(r'"arguments"\s*:\s*"|"function"\s*:\s*\{') | (
        text.str.contains(r'"parameters"\s*:') & ~text.str.contains(r'"arguments"\s*:')
    )


def wrap_in_list(text: pl.Expr) -> pl.Expr:
    """The text of a JSON object as a list of one element; other texts unchanged."""
    is_object = text.str.strip_chars_start().str.starts_with("{")
    return pl.when(is_object).then(pl.concat_str(pl.lit("["), text, pl.lit("]"))).otherwise(text)


def _arguments() -> pl.Expr:
    """The arguments as written in the turn: an object if they are one, `{}` if they are empty."""
    inner = pl.col("as_text").str.strip_chars()
    is_string = pl.col("arguments").str.starts_with('"')
    is_object = pl.col("holds_json") & inner.str.starts_with("{")
    return (
        pl.when(pl.col("arguments").is_null() | (is_string & (inner == "")))
        .then(pl.lit("{}"))
        .when(is_string & is_object)
        .then(inner)
        .otherwise(pl.coalesce("original", "arguments"))
    )


def _add_original_text(entries: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """The entries with `original`: the unchanged text of arguments that are not a string.

    Python loops over these turns, because DuckDB would rewrite `1e5`; most files have arguments as strings.
    """
    nested = entries.filter(pl.col("arguments").str.contains(r"^[{\[]")).select("row", "position").unique()
    if nested.is_empty():
        return entries.with_columns(original=pl.lit(None, pl.String))
    originals = [
        (row, position, n, text)
        for row, position, cell in nested.join(calls, on=["row", "position"]).select(calls.columns).iter_rows()
        for n, text in enumerate(map(_original_arguments, split_list(cell)), start=1)
    ]
    schema = {"row": pl.Int64, "position": pl.Int64, "n": pl.Int64, "original": pl.String}
    frame = pl.DataFrame(originals, schema=schema, orient="row")
    return entries.join(frame, on=["row", "position", "n"], how="left", maintain_order="left")


def _original_arguments(call: str) -> str | None:
    keys = split_object(call)
    keys = {**keys, **split_object(keys["function"])} if keys.get("function", "").startswith("{") else keys
    return next((keys[key] for key in _KEYS if key in keys), None)
