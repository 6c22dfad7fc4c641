"""Tool calls: OpenAI's `tool_calls` become the JSON text of a `function_call` turn.

One call is one object, `{"name": …, "arguments": {…}, "id": …}`; several at once are a list of them. Arguments keep
their text to the letter: a string that holds a JSON object becomes that object, anything else stays what it is and
is left for the rules to judge.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.json_cells import query_frames, split_list, split_object

_ENTRIES = """
    SELECT row, position, n,
        coalesce(c.function.name, c.name) AS name,
        coalesce(c.function.arguments, c.arguments, c.function.parameters, c.parameters) AS arguments,
        arguments ->> '$' AS spelt,
        json_valid(spelt) AS holds_json,
        c.id AS id
    FROM (
        SELECT row, position, unnest(entries) AS c, generate_subscripts(entries, 1) AS n
        FROM (SELECT row, position, from_json(calls, '[{
            "id": "JSON", "name": "JSON", "arguments": "JSON", "parameters": "JSON",
            "function": {"name": "JSON", "arguments": "JSON", "parameters": "JSON"}
        }]') AS entries FROM called)
    )
    ORDER BY row, position, n
"""
_KEYS = ("arguments", "parameters")


def written(called: pl.DataFrame) -> pl.DataFrame:
    r"""The texts of `function_call` turns: `row`, `position`, `value`, from `row`, `position`, `calls` (a JSON list).

    >>> call = '{"id": "c1", "function": {"name": "add", "arguments": "{\\"a\\": 1.0}"}}'
    >>> written(pl.DataFrame({"row": [0], "position": [1], "calls": [f"[{call}]"]})).item(0, "value")
    '{"name": "add", "arguments": {"a": 1.0}, "id": "c1"}'
    """
    entries = _with_own_text(query_frames(_ENTRIES, called=called), called)
    ending = pl.when(pl.col("id").is_null()).then(pl.lit("}")).otherwise(pl.format(', "id": {}', "id") + "}")
    name = pl.col("name").fill_null("null")
    call = pl.concat_str(pl.lit('{"name": '), name, pl.lit(', "arguments": '), _arguments(), ending)
    together = entries.group_by("row", "position", maintain_order=True).agg(call.alias("calls"))
    many = pl.concat_str(pl.lit("["), pl.col("calls").list.join(", "), pl.lit("]"))
    value = pl.when(pl.col("calls").list.len() == 1).then(pl.col("calls").list.first()).otherwise(many)
    return together.select("row", "position", value.alias("value"))


def has_object_arguments(calls: pl.Expr) -> pl.Expr:
    """Whether some call may have its arguments as an object, whose text DuckDB has written anew."""
    return calls.str.contains(r'"(?:arguments|parameters)"\s*:\s*[{\[]')


def in_other_spelling(text: pl.Expr) -> pl.Expr:
    """Whether a text is not yet `{"name": …, "arguments": {…}}`: OpenAI's nesting, or arguments as a string."""
    return text.str.contains(r'"arguments"\s*:\s*"|"function"\s*:\s*\{') | (
        text.str.contains(r'"parameters"\s*:') & ~text.str.contains(r'"arguments"\s*:')
    )


def as_list(text: pl.Expr) -> pl.Expr:
    """A single call as a list of one."""
    one = text.str.strip_chars_start().str.starts_with("{")
    return pl.when(one).then(pl.concat_str(pl.lit("["), text, pl.lit("]"))).otherwise(text)


def _arguments() -> pl.Expr:
    """The arguments as they stand in the turn: an object where there is one, `{}` where there is nothing."""
    inner = pl.col("spelt").str.strip_chars()
    is_text = pl.col("arguments").str.starts_with('"')
    is_object = pl.col("holds_json") & inner.str.starts_with("{")
    return (
        pl.when(pl.col("arguments").is_null() | (is_text & (inner == "")))
        .then(pl.lit("{}"))
        .when(is_text & is_object)
        .then(inner)
        .otherwise(pl.coalesce("own", "arguments"))
    )


def _with_own_text(entries: pl.DataFrame, called: pl.DataFrame) -> pl.DataFrame:
    """The entries with `own`: the text of arguments that are no string, cut out of the calls as they stand.

    A loop over turns: only letter by letter does `1e5` stay `1e5`, and most files have arguments as strings.
    """
    nested = entries.filter(pl.col("arguments").str.contains(r"^[{\[]")).select("row", "position").unique()
    if nested.is_empty():
        return entries.with_columns(own=pl.lit(None, pl.String))
    own = [
        (row, position, n, text)
        for row, position, calls in nested.join(called, on=["row", "position"]).select(called.columns).iter_rows()
        for n, text in enumerate(map(_own_arguments, split_list(calls)), start=1)
    ]
    schema = {"row": pl.Int64, "position": pl.Int64, "n": pl.Int64, "own": pl.String}
    frame = pl.DataFrame(own, schema=schema, orient="row")
    return entries.join(frame, on=["row", "position", "n"], how="left", maintain_order="left")


def _own_arguments(call: str) -> str | None:
    keys = split_object(call)
    keys = {**keys, **split_object(keys["function"])} if keys.get("function", "").startswith("{") else keys
    return next((keys[key] for key in _KEYS if key in keys), None)
