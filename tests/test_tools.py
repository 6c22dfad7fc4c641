"""Tool definitions in the notations of public datasets and vendors → a list that chat templates can print."""

import json

import polars as pl
import pytest

from curate.ingest.shapes.tools import parse_tools

SCHEMA = '{"type": "object", "properties": {"harbour": {"type": "string"}}}'
TOOL = f'{{"type": "function", "function": {{"name": "depth", "description": "d", "parameters": {SCHEMA}}}}}'


def tools(*cells: str | None) -> list[str | None]:
    """The tools of each cell; null if there are none."""
    parsed, problems = parse_tools(pl.Series(cells, dtype=pl.String))
    assert problems.is_empty(), problems["reason"].to_list()
    found = dict(parsed.iter_rows())
    return [found.get(row) for row in range(len(cells))]


def reason(cell: str) -> str:
    parsed, problems = parse_tools(pl.Series([cell]))
    assert parsed.is_empty()
    assert problems.select("row", "code").rows() == [(0, "broken-tools")]
    return problems["reason"][0]


@pytest.mark.parametrize(
    "cell",
    [
        f"[{TOOL}]",
        '[{"name":  "f", "max": 1e5}]',
        '[{"name": "f", "parameters": {"city": {"type": "str", "default": ""}}}]',
        '[{"type": "function", "function": {"name": "f", "strict": true}}]',
        '[{"name": "f", "parameters": {"properties": {"a": {"default": null, "enum": [null, 1.0]}}}}]',
    ],
)
def test_tools_in_openai_notation_keep_their_text(cell):
    assert tools(cell, cell, "[]", "", None, "{}") == [cell, cell, None, None, None, None]


@pytest.mark.parametrize(
    "cell",
    [
        f'[{{"name": "depth", "description": "d", "input_schema": {SCHEMA}}}]',  # Anthropic
        f'[{{"name": "depth", "description": "d", "inputSchema": {SCHEMA}}}]',  # MCP
        f'[{{"type": "custom", "name": "depth", "description": "d", "input_schema": {SCHEMA}}}]',
        f'[{{"type": "function", "name": "depth", "description": "d", "parameters": {SCHEMA}}}]',  # Responses API
        f'{{"tools": [{{"toolSpec": {{"name": "depth", "description": "d", "inputSchema": {{"json": {SCHEMA}}}}}}}]}}',
        f"[{TOOL}]".replace(SCHEMA, json.dumps(SCHEMA)),
        json.dumps([TOOL]),
        json.dumps(f"[{TOOL}]"),
        TOOL,
    ],
)
def test_tools_in_other_notations_become_openai_tools(cell):
    assert tools(cell) == [f"[{TOOL}]"]


@pytest.mark.parametrize("key", ["functionDeclarations", "function_declarations"])
def test_the_functions_of_gemini_become_openai_tools_with_types_of_json_schema(key):
    schema = '{"type": "OBJECT", "properties": {"type": {"type":"STRING", "description": "\\"type\\": \\"STRING\\""}}}'
    function = f'{{"name": "a", "parameters": {schema}}}'
    lower = schema.replace('"OBJECT"', '"object"').replace('"STRING",', '"string",')
    (found,) = tools(f'[{{"{key}": [{function}, {{"name": "b"}}]}}]')
    assert found == f'[{{"name": "a", "parameters": {lower}}}, {{"name": "b"}}]'


def test_keys_with_null_are_dropped_from_a_definition():
    cell = '[{"name": "f", "parameters": {"properties": {"a": {"type": "string", "enum": null}, "b": null, "c": 1e5}}}]'
    assert tools(cell) == ['[{"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "c": 1e5}}}]']


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("f, g", "The tools are not JSON: f, g"),
        ('["f"]', "A tool is text and not a JSON object: f"),
        ("[1]", "A tool is not an object: 1"),
        ("3", "A tool is not an object: 3"),
        ('[{"type": "code_interpreter"}]', "A tool has no name; its keys are: type"),
        ('[{"name": " "}]', "A tool has no name; its keys are: name"),
        ('[{"function": {"parameters": {}}}]', "A tool has no name; its keys are: parameters"),
        ('[{"name": "f", "parameters": [1]}]', "The parameters of the tool f are not an object: [1]"),
        ('[{"name": "f", "parameters": "a, b"}]', "The parameters of the tool f are not an object: a, b"),
        ('[{"name": "f", "a": NaN}]', 'The tools are not JSON: [{"name": "f", "a": NaN}]'),
        (
            '[{"name": "f", "a": [null, ' + "[" * 3_000 + "]" * 3_002 + "}]",
            "The tools nest too many lists and objects.",
        ),
    ],
)
def test_a_definition_that_is_not_valid_is_a_problem_with_its_reason(cell, expected):
    assert reason(cell) == expected
