"""A column of tool definitions → the tools of each conversation, a JSON list of objects as chat templates expect them.

A tool of OpenAI, `{"type": "function", "function": {…}}`, and a bare function, `{"name": …, "parameters": {…}}`, keep
their text. Other notations become the former: Anthropic and MCP (`input_schema`, `inputSchema`), Gemini
(`functionDeclarations`), Bedrock (`toolSpec`), OpenAI's Responses API (flat), and definitions or parameters as JSON
text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import (
    filled_cells,
    is_nonstandard,
    join_object,
    reject_constant,
    split_list,
    split_object,
)
from curate.ingest.shapes.shape import PROBLEMS, TOOLS, Field, problem_rows
from curate.ingest.shapes.tool_calls import wrap_in_list
from schemas.text import shorten

TOOLS_FIELD = Field(("tools", "functions", "available_tools", "toolConfig", "tool_config"))

_PLAIN = """
    SELECT cell FROM (
        SELECT cell, CASE
            WHEN json_valid(text) AND NOT nonstandard AND NOT regexp_matches(text, ':\\s*null')
            THEN CASE WHEN json_type(text::JSON) = 'ARRAY' THEN CAST(text::JSON AS JSON[]) END END AS entries
        FROM texts
    )
    WHERE len(entries) > 0 AND list_bool_and([
        coalesce(json_type(t, '$.name') = 'VARCHAR' AND trim(t ->> '$.name') <> ''
            AND coalesce(json_type(t, '$.parameters'), 'OBJECT') = 'OBJECT' AND NOT json_exists(t, '$.type')
            AND NOT json_exists(t, '$.input_schema') AND NOT json_exists(t, '$.inputSchema'), false)
        OR coalesce(json_type(t, '$.function.name') = 'VARCHAR' AND trim(t ->> '$.function.name') <> ''
            AND coalesce(json_type(t, '$.function.parameters'), 'OBJECT') = 'OBJECT', false)
        FOR t IN entries
    ])
"""

_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema", "parameters_json_schema")
_DECLARATIONS = ("functionDeclarations", "function_declarations")
_KEEPS_NULL = ("default", "const")
"""Keys of a JSON schema whose value may be null; elsewhere null means that the key is missing."""

_GEMINI_TYPE = re.compile(r'("type"\s*:\s*)"(STRING|NUMBER|INTEGER|BOOLEAN|ARRAY|OBJECT)"')


class ToolDefinitionError(ValueError):
    """A cell that does not define tools; the text is the reason."""


def parse_tools(cells: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tools (`row`, `tools`), and the problems of cells that do not define tools.

    Python loops over the distinct cells in other notations than OpenAI's, because DuckDB would rewrite their numbers.
    """
    filled = filled_cells(cells).filter(~pl.col("cell").is_in(["[]", "{}"]))
    if filled.is_empty():
        return pl.DataFrame(schema=TOOLS), pl.DataFrame(schema=PROBLEMS)
    distinct = filled.select(pl.col("cell").unique(maintain_order=True))
    texts = distinct.with_columns(
        wrap_in_list(pl.col("cell")).alias("text"), nonstandard=is_nonstandard(distinct["cell"])
    )
    plain = distinct.join(query_frames(_PLAIN, texts=texts), on="cell", how="semi")
    others = distinct.join(plain, on="cell", how="anti")
    read = pl.DataFrame(
        [(cell, *_try(cell)) for cell in others["cell"]],
        schema={"cell": pl.String, "tools": pl.String, "reason": pl.String},
        orient="row",
    )
    kept = plain.with_columns(wrap_in_list(pl.col("cell")).alias("tools"), reason=pl.lit(None, pl.String))
    found = filled.join(pl.concat([kept, read]), on="cell", how="left", maintain_order="left")
    sound = found.filter(pl.col("tools").is_not_null() & (pl.col("tools") != "[]")).select(*TOOLS)
    return sound, problem_rows(found.filter(pl.col("reason").is_not_null()), "broken-tools", pl.col("reason"))


def _try(text: str) -> tuple[str | None, str | None]:
    try:
        return read_tools(text), None
    except ToolDefinitionError as error:
        return None, str(error)
    except RecursionError:
        return None, "The tools nest too many lists and objects."


def read_tools(text: str) -> str:
    """The JSON list of the tools that a text defines. Raises `ToolDefinitionError`.

    >>> read_tools('{"name": "now", "input_schema": {"type": "object"}}')
    '[{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]'
    """
    try:
        json.loads(text, parse_constant=reject_constant)
    except ValueError as error:
        raise ToolDefinitionError(f"The tools are not JSON: {shorten(text, 60)}") from error
    tools = list(_definitions(text))
    return f"[{', '.join(tools)}]"


def _definitions(text: str) -> Iterator[str]:
    """The tools in a list, an object or JSON text of one of them; the objects of Gemini and Bedrock hold several."""
    text = text.strip()
    if text.startswith('"'):
        yield from _nested_text(text)
    elif text.startswith("["):
        for entry in split_list(text):
            yield from _definitions(entry)
    elif text.startswith("{"):
        yield from _object_definitions(text)
    else:
        raise ToolDefinitionError(f"A tool is not an object: {shorten(text, 60)}")


def _nested_text(text: str) -> Iterator[str]:
    inner = json.loads(text).strip()
    try:
        json.loads(inner, parse_constant=reject_constant)
    except ValueError as error:
        raise ToolDefinitionError(f"A tool is text and not a JSON object: {shorten(inner, 60)}") from error
    yield from _definitions(inner)


def _object_definitions(text: str) -> Iterator[str]:
    keys = split_object(text)
    if key := next((key for key in _DECLARATIONS if key in keys), None):
        lower = _GEMINI_TYPE.sub(lambda found: f'{found[1]}"{found[2].lower()}"', keys[key])
        yield from _definitions(lower)
    elif keys.get("toolSpec", "").startswith("{"):
        yield _function(split_object(keys["toolSpec"]))
    elif "tools" in keys and "name" not in keys:
        yield from _definitions(keys["tools"])
    elif keys.get("function", "").startswith("{"):
        yield _openai_tool(text, keys)
    else:
        yield _bare_function(text, keys)


def _openai_tool(text: str, keys: dict[str, str]) -> str:
    function = split_object(keys["function"])
    parameters = _check_function(function)
    if function.get("parameters", "{}").startswith("{") and not _SCHEMA_ALIASES & function.keys():
        return _drop_nulls(text)
    return _function({**function, "parameters": parameters})


_SCHEMA_ALIASES = {*_SCHEMA_KEYS} - {"parameters"}


def _bare_function(text: str, keys: dict[str, str]) -> str:
    _check_function(keys)
    has_own_type = keys.get("type") not in ('"function"', '"custom"')
    if has_own_type and keys.get("parameters", "{}").startswith("{") and not _SCHEMA_ALIASES & keys.keys():
        return _drop_nulls(text)
    return _function(keys)


def _check_function(keys: dict[str, str]) -> str:
    """The JSON schema of the parameters of a function. Raises `ToolDefinitionError` if it is not valid."""
    name = keys.get("name", "null")
    if not name.startswith('"') or not json.loads(name).strip():
        raise ToolDefinitionError(f"A tool has no name; its keys are: {shorten(', '.join(keys) or 'none', 60)}")
    schema = next((keys[key] for key in _SCHEMA_KEYS if keys.get(key, "null") != "null"), "{}")
    if schema.startswith('"'):
        schema = json.loads(schema).strip() or "{}"
    elif schema.startswith("{") and (inner := split_object(schema)).keys() == {"json"}:  # Bedrock
        schema = inner["json"]
    try:
        is_object = isinstance(json.loads(schema, parse_constant=reject_constant), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise ToolDefinitionError(
            f"The parameters of the tool {json.loads(name)} are not an object: {shorten(schema, 60)}"
        )
    return schema


def _function(keys: dict[str, str]) -> str:
    """A function in OpenAI's notation. Keys of other notations that are not part of a function are kept."""
    schema = _check_function(keys)
    rest = {key: value for key, value in keys.items() if key not in (*_SCHEMA_KEYS, "cache_control", "type")}
    has_schema = any(key in keys for key in _SCHEMA_KEYS)
    pairs = {**rest, **({"parameters": schema} if has_schema else {})}
    return _drop_nulls(f'{{"type": "function", "function": {join_object(pairs.items())}}}')


def _drop_nulls(text: str) -> str:
    """A JSON schema without the keys whose value is null, in its original text if there are none."""
    if "null" not in text:
        return text
    if text.startswith("["):
        entries = list(split_list(text))
        shortened = [_drop_nulls(entry) for entry in entries]
        return text if shortened == entries else f"[{', '.join(shortened)}]"
    if not text.startswith("{"):
        return text
    values = split_object(text)
    kept = {
        key: value if key in _KEEPS_NULL else _drop_nulls(value)
        for key, value in values.items()
        if key in _KEEPS_NULL or value != "null"
    }
    return text if kept == values else join_object(kept.items())
