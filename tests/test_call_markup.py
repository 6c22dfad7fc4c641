"""Tools, tool calls and results inside texts, as in Hermes and Glaive, and the columns of xLAM."""

import json
from pathlib import Path

import polars as pl
import pytest

from curate.ingest.call_markup import read_call_markup
from curate.ingest.column_mapping import find_mapping, parse_table
from curate.ingest.pipeline import import_files
from curate.ingest.shapes.shape import ParsedTable
from schemas.import_recipe import ImportSection

TOOL = '{"name": "depth", "parameters": {"type": "object", "max": 1e5}}'
CALL = '{"name": "depth", "arguments": {"a": 1.0}}'
CALL_MARK = "<tool_call>"
CALLED = [("human", "How deep?"), ("function_call", CALL), ("observation", "4"), ("gpt", "4 m.")]


def rows(*objects: dict[str, object]) -> tuple[ParsedTable, list[int]]:
    """The rows of a JSON lines file, and the conversations with calls in texts."""
    names = list(dict.fromkeys(name for row in objects for name in row))
    cells = [{name: cell_text(row.get(name)) for name in names} for row in objects]
    table = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.String))
    parsed, changed = read_call_markup(parse_table(table, find_mapping(table, ImportSection())))
    return parsed, changed.sort().to_list()


def cell_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def talk(parsed: ParsedTable, row: int = 0) -> list[tuple[str, str]]:
    assert parsed.problems.is_empty(), parsed.problems["reason"].to_list()
    return parsed.turns.filter(pl.col("row") == row).select("from", "value").rows()


def chat(*turns: tuple[str, str], **columns: str) -> dict[str, object]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **columns}


HERMES = [
    ("human", "How deep?"),
    ("gpt", f"<tool_call>\\n{CALL}\\n</tool_call>".replace("\\n", "\n")),
    ("tool", "<tool_response>\n4\n</tool_response>\n"),
    ("gpt", "4 m."),
]


def test_calls_and_results_of_hermes_become_turns():
    plain = chat(("human", "Hi"), ("gpt", "Hello"))
    parsed, changed = rows(plain, chat(*HERMES), plain)
    assert talk(parsed, 1) == CALLED
    assert talk(parsed, 0) == talk(parsed, 2) == [("human", "Hi"), ("gpt", "Hello")]
    assert changed == [1]
    assert parsed.turns["row"].is_sorted()


@pytest.mark.parametrize("tools", [f"[{TOOL}]", TOOL, f"\n[{TOOL}]\n"])
def test_tools_in_the_system_prompt_become_tools_and_leave_the_prompt(tools):
    system = f"You call functions within <tools> </tools> tags. <tools> {tools} </tools> Be brief."
    parsed, _ = rows(
        chat(("system", system), *HERMES), chat(("system", f"<tools>{tools}</tools>"), *HERMES[:1], HERMES[3])
    )
    assert talk(parsed) == [("system", "You call functions within <tools> </tools> tags. Be brief."), *CALLED]
    assert talk(parsed, 1) == [CALLED[0], CALLED[3]]
    assert parsed.tools["tools"].to_list() == [f"[{TOOL}]"] * 2


def test_tools_in_a_column_are_kept_and_the_same_ones_leave_the_prompt():
    system = ("system", f"Tools: <tools>[{TOOL}]</tools>")
    other = TOOL.replace("depth", "heat")
    parsed, changed = rows(
        chat(system, *HERMES, tools=f"[{TOOL}]"), chat(system, *HERMES[:1], HERMES[3], tools=f"[{other}]")
    )
    assert (talk(parsed)[0], talk(parsed, 1)[0]) == (("system", "Tools:"), system)
    assert parsed.tools.rows() == [(0, f"[{TOOL}]"), (1, f"[{other}]")]
    assert changed == [0]


def test_text_before_a_call_is_a_turn_and_several_calls_are_parallel():
    answer = f"<think>Hm.</think>\nLet me look.\n<tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>\n"
    results = "<tool_response>4</tool_response>\n<tool_response>5</tool_response>"
    parsed, _ = rows(chat(("human", "How deep?"), ("gpt", answer), ("human", results), ("gpt", "4 m.")))
    assert talk(parsed)[1:] == [
        ("gpt", "<think>Hm.</think>\nLet me look."),
        ("function_call", f"[{CALL}, {CALL}]"),
        *(("observation", "4"), ("observation", "5"), ("gpt", "4 m.")),
    ]


@pytest.mark.parametrize(
    ("payload", "call"),
    [
        ('{"arguments": {"a": 1.0}, "name": "depth"}', CALL),
        ("{'arguments': {'a': 1.0}, 'name': 'depth'}", CALL),
        ('{"name": "depth", "arguments": "{\\"a\\": 1.0}"}', CALL),
        (
            '{"name": "depth", "arguments": {"a": 1e5, "b": null}}',
            '{"name": "depth", "arguments": {"a": 1e5, "b": null}}',
        ),
        (f"[{CALL}, {CALL}]", f"[{CALL}, {CALL}]"),
        ('{"name": "now"}', '{"name": "now", "arguments": {}}'),
    ],
)
def test_calls_in_the_notations_of_hermes_keep_their_values(payload, call):
    parsed, _ = rows(chat(HERMES[0], ("gpt", f"<tool_call>{payload}</tool_call>")))
    assert talk(parsed)[1] == ("function_call", call)


@pytest.mark.parametrize(
    "answer",
    [
        f"Write <tool_call>{CALL}</tool_call> and then the result.",
        "The tag <tool_call> starts a call.",
        f"```\n<tool_call>{CALL}</tool_call>\n```",
    ],
)
def test_an_explanation_of_the_tags_stays_text(answer):
    parsed, changed = rows(chat(("human", "What is <tool_response>?"), ("gpt", answer)))
    assert talk(parsed) == [("human", "What is <tool_response>?"), ("gpt", answer)]
    assert changed == []


@pytest.mark.parametrize(
    "payload", ["depth(1)", '{"name": "depth", "arguments": "a=1"}', "[1]", '{"arguments": {}}', ""]
)
def test_a_call_that_is_not_valid_is_a_problem(payload):
    parsed, _ = rows(chat(HERMES[0], ("gpt", f"<tool_call>{payload}</tool_call>")))
    assert parsed.turns.is_empty()
    assert parsed.problems.rows() == [(0, "broken-tool-call", f"Turn 2 has a tool call that is not valid: {payload}")]


ACCESS = "You are a helpful assistant with access to the following functions. Use them if required"
GLAIVE = {
    "system": f"SYSTEM: {ACCESS} -\n{TOOL}\n\n{TOOL}\n",
    "chat": "USER: How deep?\n\n\n"
    """ASSISTANT: <functioncall> {"name": "depth", "arguments": '{"a": 1.0}'} <|endoftext|>\n\n\n"""
    "FUNCTION RESPONSE: 4\n\n\nASSISTANT: 4 m. <|endoftext|>\n\n\n",
}


UNCLOSED = [
    ("gpt", "<tool_call>"),
    ("gpt", '<functioncall>"arguments": \''),
    ("observation", "<tool_response>"),
    ("system", "<tools>["),
    ("system", "access to the following functions"),
]


@pytest.mark.parametrize(("role", "mark"), UNCLOSED)
def test_a_mark_repeated_a_hundred_thousand_times_is_read(role, mark):
    """A search that starts again at every mark needs 14 seconds for six thousand, and does not end here."""
    marked = [("human", "How deep?"), ("gpt", f"Like this: {CALL_MARK}")]
    parsed, _ = rows(chat((role, mark * 100_000), *marked))
    values = parsed.turns["value"].to_list()
    assert values == [] or values[0] == mark * 100_000
    assert len(parsed.problems) == ("functioncall" in mark)


def test_white_space_and_tags_without_an_end_around_calls():
    text = f"Like <tools> this:  \n<tool_call>\n{CALL} \n</tool_call>\n\n<tool_call>{CALL}</tool_call> "
    parsed, changed = rows(chat(("human", "Deep?"), ("gpt", text), *CALLED[2:]))
    assert talk(parsed)[1:3] == [("gpt", "Like <tools> this:"), ("function_call", f"[{CALL}, {CALL}]")]
    assert changed == [0]


def test_transcripts_of_glaive_have_tools_calls_and_results():
    no_tools = {
        "system": "SYSTEM: You are a helpful assistant, with no access to external functions.\n",
        "chat": "USER: Hi\n\n\nASSISTANT: Hello <|endoftext|>",
    }
    parsed, changed = rows(GLAIVE, no_tools)
    assert talk(parsed) == [("system", ACCESS), *CALLED]
    assert parsed.tools.rows() == [(0, f"[{TOOL}, {TOOL}]")]
    assert talk(parsed, 1)[1:] == [("human", "Hi"), ("gpt", "Hello")]
    assert talk(parsed, 1)[0] == ("system", "You are a helpful assistant, with no access to external functions.\n")
    assert changed == [0]


def test_glaive_as_lists_of_turns():
    call = """<functioncall> {"name": "depth", "arguments": '{"a": 1.0}'}"""
    turns = [("human", "How deep?"), ("gpt", f"Let me look. {call}"), ("tool", "FUNCTION RESPONSE: 4"), ("gpt", "4 m.")]
    parsed, _ = rows(chat(*turns))
    assert talk(parsed) == [CALLED[0], ("gpt", "Let me look."), *CALLED[1:]]


def test_the_import_states_how_many_conversations_had_calls_in_texts(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(
            json.dumps(row) + "\n" for row in [chat(*HERMES, tools=f"[{TOOL}]"), chat(("human", "Hi"), ("gpt", "Ho"))]
        )
    )
    (result,) = import_files(tmp_path / "s.duckdb", [str(path)], ImportSection())
    assert (result.rows_kept, result.warnings) == (2, {"calls-in-text": 1})


# ----------------------------------------------------------------------------------------------------------------- xLAM


def test_the_calls_of_xlam_answer_the_query():
    row = {"id": 0, "query": "How deep?", "answers": f"[{CALL}]", "tools": f"[{TOOL}]"}
    parsed, changed = rows(
        row, {**row, "answers": json.dumps([json.loads(CALL)] * 2)}, {**row, "answers": "[]"}, {**row, "answers": "["}
    )
    assert parsed.turns.filter(pl.col("row") == 0).select("from", "value").rows() == CALLED[:2]
    assert parsed.turns.filter(pl.col("row") == 1)["value"][1] == f"[{CALL}, {CALL}]"
    assert parsed.problems.select("row", "code").rows() == [(2, "no-answer"), (3, "broken-json")]
    assert parsed.tools.rows() == [(0, f"[{TOOL}]"), (1, f"[{TOOL}]")]
    assert changed == []
