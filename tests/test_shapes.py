"""Shapes: the turns parsed from the cells of each, and the problems of cells that cannot be parsed."""

import json
from pathlib import Path

import polars as pl
import pytest

from curate.ingest.column_mapping import parse_table
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.shape import PARSE_RULES, ColumnMapping, ParsedTable
from schemas.errors import SourceError

CALL = '{"name": "add", "arguments": {"a": 1.0}}'


def read(shape: str, table: dict[str, list], **fields: str) -> ParsedTable:
    frame = pl.DataFrame(table, schema=dict.fromkeys(table, pl.String))
    return parse_table(frame, ColumnMapping(shape, fields or {name: name for name in table}))


def talk(parsed: ParsedTable, row: int = 0) -> list[tuple[str, str]]:
    return parsed.turns.filter(pl.col("row") == row).select("from", "value").rows()


def messages(*turns: object, **columns: str) -> ParsedTable:
    """One row of OpenAI messages."""
    table = {"messages": [json.dumps(turns, ensure_ascii=False)], **{name: [cell] for name, cell in columns.items()}}
    return read("messages", table)


def sharegpt(*turns: tuple[str, object]) -> ParsedTable:
    """One row of ShareGPT turns."""
    return read("sharegpt", {"conversations": [json.dumps([{"from": who, "value": text} for who, text in turns])]})


def problems(parsed: ParsedTable) -> list[tuple[int, str]]:
    assert parsed.turns.join(parsed.problems, on="row", how="semi").is_empty(), "a row has turns and a problem"
    assert set(parsed.problems["code"]) <= PARSE_RULES.keys()
    return parsed.problems.select("row", "code").rows()


USER, ANSWER = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}


def calling(arguments: object, content: str | None = None, **more: object) -> dict:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call], **more}


# ------------------------------------------------------------------------------------------------- alpaca and pairs


def test_the_input_follows_the_instruction_after_a_blank_line():
    table = {
        "instruction": ["Sum up.", "Hi", "Hi", "Hi"],
        "input": ["A text.", "", None, " \n"],
        "output": list("abcd"),
    }
    parsed = read("alpaca", table)
    assert parsed.turns.filter(pl.col("from") == "human")["value"].to_list() == ["Sum up.\n\nA text.", "Hi", "Hi", "Hi"]
    assert parsed.turns["row"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert parsed.turns.schema == {
        "row": pl.Int64, "from": pl.String, "value": pl.String, "train": pl.Boolean, "tool_call_id": pl.String,
    }  # fmt: skip


def test_a_missing_cell_is_an_empty_turn():
    parsed = read("pairs", {"question": ["Hi", None], "answer": [None, "Ho"]})
    assert (talk(parsed, 0), talk(parsed, 1)) == ([("human", "Hi"), ("gpt", "")], [("human", ""), ("gpt", "Ho")])


def test_the_system_prompt_comes_first_and_the_history_before_the_question():
    table = {
        "instruction": ["c", "e"],
        "output": ["d", "f"],
        "system": ["Be brief.", " "],
        "history": ['[["a", "b"], ["a2", "b2"]]', "[]"],
    }
    parsed = read("alpaca", table)
    earlier = [("human", "a"), ("gpt", "b"), ("human", "a2"), ("gpt", "b2")]
    assert talk(parsed) == [("system", "Be brief."), *earlier, ("human", "c"), ("gpt", "d")]
    assert talk(parsed, 1) == [("human", "e"), ("gpt", "f")]


def test_a_history_that_is_not_a_list_of_pairs_is_a_problem_of_its_row_only():
    history = ['[["a"]]', "[[", '{"a": 1}', '[["a", "b"]]', "null"]
    parsed = read("pairs", {"question": list("abcde"), "answer": list("abcde"), "history": history})
    assert problems(parsed) == [(0, "broken-history"), (1, "broken-json"), (2, "not-a-list")]
    assert parsed.turns["row"].unique().to_list() == [3, 4]


def test_context_follows_the_question():
    parsed = read("pairs", {"question": ["Who?"], "context": ["Ada wrote it."], "answer": ["Ada"]})
    assert talk(parsed) == [("human", "Who?\n\nAda wrote it."), ("gpt", "Ada")]


# -------------------------------------------------------------------------------------------------------- ShareGPT


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("human", "human"), ("User", "human"), ("gpt", "gpt"), ("chatgpt", "gpt"), ("bing", "gpt"), ("bard", "gpt")),
        *(("system", "system"), ("function_call", "function_call"), ("tool_call", "function_call")),
        *(("function-response", "observation"), ("observation", "observation"), ("tool", "observation")),
    ],
)
def test_common_role_names_are_known(name, role):
    assert talk(sharegpt((name, "x"))) == [(role, "x")]


def test_an_unknown_role_is_a_problem_with_the_turn_number():
    parsed = sharegpt(("human", "Hi"), ("narrator", "Enter Ada."))
    assert problems(parsed) == [(0, "unknown-role")]
    assert parsed.problems["reason"][0] == "Turn 2 has an unknown role: narrator"


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        *((None, "missing-conversation"), ("", "missing-conversation"), (" null ", "missing-conversation")),
        *(("[]", "empty-conversation"), ('{"a": 1}', "not-a-list"), ('"Hi"', "not-a-list"), ("7", "not-a-list")),
        *(("[" * 501 + "]" * 501, "too-deep"), ("[" * 5000 + "]" * 5000, "too-deep")),
        *(('[{"from": "human", "val', "broken-json"), ("[{'from': 'human'}]", "broken-json")),
        *(("[1]", "missing-role"), ("[null]", "missing-role"), ("[[]]", "missing-role")),
        *(('[{"value": "Hi"}]', "missing-role"), ('[{"from": null, "value": "Hi"}]', "missing-role")),
        *(('[{"from": "human", "value": {"a": 1}}]', "non-text-content"),),
        *(('[{"from": "gpt", "value": "Hi", "weight": 0.5}]', "odd-train-flag"),),
        *(('[{"from": "gpt", "value": "Hi", "tool_calls": {"name": "add"}}]', "broken-tool-call"),),
    ],
)
def test_a_cell_that_cannot_be_parsed_is_a_problem_of_its_row_only(cell, code):
    sound = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]'
    parsed = read("sharegpt", {"conversations": [sound, cell, sound]})
    assert problems(parsed) == [(1, code)]
    assert parsed.turns["row"].to_list() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("shape", "turn"),
    [
        ("messages", '{"role": "user", "content": "a", "content": "b"}'),
        ("messages", '{"role": "user", "content": "a", "role": "system"}'),
        ("messages", '{"role": "user", "content": "a", "name": "x", "name": "x"}'),
        ("messages", '{"role": "user", "content": null, "content": "b"}'),
        ("sharegpt", '{"from": "human", "value" : "a", "value": "b"}'),
    ],
)
def test_a_turn_with_a_duplicate_key_is_a_problem_of_its_row_only(shape, turn):
    name = "conversations" if shape == "sharegpt" else shape
    answer = '{"from": "gpt", "value": "\\"a\\": b"}' if shape == "sharegpt" else json.dumps(ANSWER)
    fine = answer.replace("gpt", "human").replace("assistant", "user")
    parsed = read(shape, {name: [f"[{turn}, {answer}]", f"[{fine}, {answer}]", f"[{fine}, {answer}, {turn}]"]})
    assert problems(parsed) == [(0, "duplicate-key"), (2, "duplicate-key")]
    assert parsed.problems["reason"].to_list() == ["Turn 1 has a duplicate key.", "Turn 3 has a duplicate key."]
    assert len(talk(parsed, 1)) == 2


def test_brackets_in_strings_do_not_count_as_nesting():
    cell = json.dumps([{"from": "human", "value": '\\"[{' * 600}, {"from": "gpt", "value": "Hello"}])
    assert problems(read("sharegpt", {"conversations": [cell]})) == []


def test_nan_is_not_an_answer():
    cell = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": NaN}]'
    assert talk(read("sharegpt", {"conversations": [cell]})) == [("human", "Hi"), ("gpt", "")]


def test_a_list_printed_by_python_is_a_problem_with_a_hint():
    parsed = read("sharegpt", {"conversations": ["[{'from': 'human', 'value': 'Hi'}]"]})
    assert parsed.problems["reason"][0].startswith("A list as printed by Python, not JSON")


def test_a_table_of_missing_cells_has_no_turns():
    assert read("sharegpt", {"conversations": [None, None]}).turns.is_empty()
    assert read("sharegpt", {"conversations": []}).turns.is_empty()


def test_tool_calls_and_results_keep_their_original_text():
    cell = (
        '[{"from": "human", "value": "?"}, {"from": "function_call", "value": {"name":  "f", "arguments": {"a": 1e5}}},'
        ' {"from": "observation", "value": [{"b":  1.10, "long": 12345678901234567890123}]}]'
    )
    parsed = read("sharegpt", {"conversations": [cell]})
    assert talk(parsed)[1:] == [
        ("function_call", '{"name":  "f", "arguments": {"a": 1e5}}'),
        ("observation", '[{"b":  1.10, "long": 12345678901234567890123}]'),
    ]


def test_a_tool_call_in_another_notation_is_normalised():
    nested = json.dumps({"id": "c1", "function": {"name": "add", "arguments": '{"a": 1.0}'}})
    parsed = sharegpt(
        ("function_call", nested), ("gpt", "2"), ("function_call", '{"name": "add", "parameters": {"a": 1.0}}')
    )
    assert talk(parsed) == [
        ("function_call", '{"name": "add", "arguments": {"a": 1.0}, "id": "c1"}'),
        ("gpt", "2"),
        ("function_call", CALL),
    ]


def test_consecutive_calls_are_one_list_of_parallel_calls():
    parsed = sharegpt(("function_call", CALL), ("function_call", f" [{CALL},{CALL}] "), ("observation", "2"))
    assert talk(parsed) == [("function_call", f"[{CALL}, {CALL},{CALL}]"), ("observation", "2")]


def test_consecutive_calls_with_different_training_flags_stay_apart():
    turn = {"from": "function_call", "value": CALL}
    parsed = read("sharegpt", {"conversations": [json.dumps([turn, {**turn, "train": False}])]})
    assert talk(parsed) == [("function_call", CALL), ("function_call", CALL)]


def test_calls_in_consecutive_rows_of_a_long_table_are_parallel():
    table = {"group_by": ["1"] * 4, "role": ["user", "tool_call", "tool_call", "tool"], "text": ["?", CALL, CALL, "2"]}
    assert talk(read("long", table)) == [("human", "?"), ("function_call", f"[{CALL}, {CALL}]"), ("observation", "2")]


def test_a_tool_call_that_is_not_json_is_left_to_validation():
    assert talk(sharegpt(("function_call", '{"name": "f", "arguments": "'))) == [
        ("function_call", '{"name": "f", "arguments": "')
    ]


def test_a_tool_call_that_is_nested_too_deep_is_left_to_validation():
    call = '{"function": {"name": "f", "arguments": ' + '{"a": ' * 2_000 + "1" + "}" * 2_002
    assert talk(sharegpt(("function_call", call))) == [("function_call", call)]


def test_an_empty_text_before_a_tool_call_is_dropped():
    assert talk(sharegpt(("gpt", " "), ("function_call", CALL))) == [("function_call", CALL)]
    assert talk(sharegpt(("gpt", ""), ("human", "Hi"))) == [("gpt", ""), ("human", "Hi")]


def test_tools_keep_their_original_text_and_empty_tools_are_null():
    cell = '[{"from": "human", "value": "Hi"}]'
    tools = [' [{"name":  "f", "max": 1e5}]', "[]", "", None, '{"name": "f"}', "f, g", '["f"]']
    parsed = read("sharegpt", {"conversations": [cell] * len(tools), "tools": tools})
    assert parsed.tools.rows() == [(0, '[{"name":  "f", "max": 1e5}]'), (4, '[{"name": "f"}]')]
    assert problems(parsed) == [(5, "broken-tools"), (6, "broken-tools")]


def test_the_system_column_becomes_the_first_turn_unless_the_list_has_the_same():
    hi, system = {"from": "human", "value": "Hi"}, {"from": "system", "value": "Be brief."}
    cells = [json.dumps(cell) for cell in ([hi], [system, hi], [{**system, "value": "Be long."}, hi], [hi])]
    texts = ["Be brief.", "Be brief.", "Be brief.", ""]
    parsed = read("sharegpt", {"conversations": cells, "system": texts})
    assert talk(parsed, 0) == talk(parsed, 1) == [("system", "Be brief."), ("human", "Hi")]
    assert talk(parsed, 3) == [("human", "Hi")]
    assert problems(parsed) == [(2, "two-system-texts")]


# -------------------------------------------------------------------------------------------------------- messages


def test_text_and_tool_calls_of_one_message_are_two_turns():
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    parsed = messages(USER, calling('{"a": 1.0}', "Let me see."), result, ANSWER)
    assert parsed.turns.select("from", "value", "tool_call_id").rows() == [
        ("human", "1+1?", None),
        ("gpt", "Let me see.", None),
        ("function_call", '{"name": "add", "arguments": {"a": 1.0}, "id": "c1"}', None),
        ("observation", "2", "c1"),
        ("gpt", "2", None),
    ]


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_message_with_only_tool_calls_is_one_turn(content):
    assert [who for who, _ in talk(messages(USER, calling("{}", content)))] == ["human", "function_call"]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ('{"a":  1e5, "b": "ü"}', '{"a":  1e5, "b": "ü"}'),
        ("", "{}"),
        (None, "{}"),
        ('{"a": ', r'"{\"a\": "'),
        ("[1]", '"[1]"'),
        ({"a": 1.10}, '{"a": 1.1}'),
    ],
)
def test_arguments_in_a_string_become_an_object_if_they_are_one(arguments, kept):
    expected = '{"name": "add", "arguments": ' + kept + ', "id": "c1"}'
    assert talk(messages(USER, calling(arguments)))[1] == ("function_call", expected)


def test_arguments_that_are_objects_keep_their_original_text():
    cell = '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x":  1e5, "y": 1.0}}}]}]'
    parsed = read("messages", {"messages": [cell]})
    assert talk(parsed) == [("function_call", '{"name": "f", "arguments": {"x":  1e5, "y": 1.0}}')]


def test_arguments_keep_a_number_that_python_cannot_parse():
    call = f'{{"name": "f", "arguments": {{"x": {"1" * 5_000}}}}}'
    cell = f'[{{"role": "assistant", "tool_calls": [{{"function": {call}}}]}}]'
    assert talk(read("messages", {"messages": [cell]})) == [("function_call", call)]


def test_parallel_tool_calls_are_a_list():
    calls = [{"id": f"c{n}", "function": {"name": "add", "arguments": f'{{"n": {n}.0}}'}} for n in range(3)]
    parsed = messages(USER, {"role": "assistant", "content": None, "tool_calls": calls})
    assert (
        talk(parsed)[1][1]
        == "[" + ", ".join(f'{{"name": "add", "arguments": {{"n": {n}.0}}, "id": "c{n}"}}' for n in range(3)) + "]"
    )


def test_the_deprecated_function_call_and_its_result_are_read():
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1.0}'}}
    parsed = messages(USER, call, {"role": "function", "name": "add", "content": "2"})
    assert talk(parsed)[1:] == [("function_call", CALL), ("observation", "2")]


def test_the_developer_role_is_a_system_prompt():
    assert talk(messages({"role": "developer", "content": "Be brief."}, USER))[0] == ("system", "Be brief.")


def test_text_parts_are_joined_and_images_are_a_problem():
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    assert talk(messages({"role": "user", "content": parts}, ANSWER))[0] == ("human", "1+1?")
    parsed = messages(
        USER, ANSWER, {"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "x"}}]}
    )
    assert problems(parsed) == [(0, "non-text-content")]
    assert parsed.problems["reason"][0] == "Turn 3 is not text: it contains image_url."


def test_a_text_that_looks_like_json_stays_text():
    text = '[{"type": "text", "text": "Hi"}]'
    assert talk(messages({"role": "user", "content": text}))[0] == ("human", text)


def test_turns_with_weight_zero_are_excluded_from_the_loss():
    parsed = messages(
        {**USER, "weight": 0},
        {**ANSWER, "weight": 0},
        USER,
        {**ANSWER, "train": True},
        USER,
        {**ANSWER, "loss": "false"},
    )
    assert parsed.turns["train"].to_list() == [True, False, True, True, True, False]


def test_both_turns_of_an_excluded_message_are_excluded_from_the_loss():
    assert messages(USER, calling("{}", "Wait.", weight=0)).turns["train"].to_list() == [True, False, False]


def test_reasoning_content_precedes_the_answer():
    parsed = messages(USER, {**ANSWER, "reasoning_content": "One and one."})
    assert talk(parsed)[1] == ("gpt", "<think>\nOne and one.\n</think>\n\n2")


def test_a_completion_is_appended_to_its_prompt():
    parsed = read("messages", {"messages": [json.dumps([USER])], "completion": [json.dumps([ANSWER])]})
    assert talk(parsed) == [("human", "1+1?"), ("gpt", "2")]


# ------------------------------------------------------------------------------------------------------ transcripts


@pytest.mark.parametrize(
    "text",
    [
        "Human: Hi\nAssistant: Hello\nthere",
        "\n\nHuman: Hi\n\nAssistant: Hello\nthere",
        "### Human: Hi\n### Assistant: Hello\nthere",
        "**User:** Hi\n**Assistant:** Hello\nthere",
        "USER: Hi ASSISTANT: Hello\nthere",
        "Customer : Hi\nSupport : Hello\nthere",
    ],
)
def test_a_transcript_is_split_at_the_names_of_speakers(text):
    assert talk(read("transcript", {"transcript": [text]})) == [("human", "Hi"), ("gpt", "Hello\nthere")]


def test_a_name_within_a_line_is_text_if_other_names_start_lines():
    parsed = read("transcript", {"transcript": ["Human: The User: field?\nAssistant: It is new."]})
    assert talk(parsed) == [("human", "The User: field?"), ("gpt", "It is new.")]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *((None, "missing-conversation"), (" ", "missing-conversation"), ("Hello there", "no-speaker")),
        *(("A chat.\nHuman: Hi\nAssistant: Hello", "text-before-speaker"),),
        *(("Human: \ufdd0\nAssistant: Hello", "reserved-character"),),
    ],
)
def test_an_invalid_transcript_is_a_problem(text, code):
    parsed = read("transcript", {"transcript": ["Human: Hi\nAssistant: Hello", text]})
    assert problems(parsed) == [(1, code)]


# ------------------------------------------------------------------------------------------------------ long format

LONG = {"group_by": "ticket", "order_by": "at", "role": "author", "text": "body"}


def long(rows: list[tuple[str | None, ...]], **fields: str) -> ParsedTable:
    table = {
        name: list(cells)
        for name, cells in zip(("ticket", "at", "author", "body"), zip(*rows, strict=True), strict=True)
    }
    return read("long", table, **(fields or LONG))


def test_turns_are_grouped_by_conversation_and_ordered():
    parsed = long(
        [("b", "2", "agent", "Bo"), ("a", "10", "agent", "Al"), ("b", "1", "customer", "B"), ("a", "9", "user", "A")]
    )
    assert talk(parsed, 0) == [("human", "B"), ("gpt", "Bo")]
    assert talk(parsed, 1) == [("human", "A"), ("gpt", "Al")]
    assert parsed.members.rows() == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_dates_are_ordered_by_their_point_in_time():
    parsed = long([("a", "2026-01-05T09:30:00+02:00", "user", "A"), ("a", "2026-01-05T08:00:00Z", "agent", "Al")])
    assert [text for _, text in talk(parsed)] == ["A", "Al"]


def test_dates_without_a_zone_have_the_same_order_in_every_time_zone(tmp_path, curate):
    """On this day 02:30 does not exist in Berlin: the clock changes from 02:00 to 03:00."""
    turns = [("02:30", "user"), ("03:05", "agent"), ("03:40", "user"), ("03:50", "agent")]
    rows = "".join(f"a,2026-03-29 {at},{who},{at}\n" for at, who in turns)
    (tmp_path / "chats.csv").write_text(f"ticket,at,author,body\n{rows}", encoding="utf-8")
    options = ["--group-by", "ticket", "--order-by", "at", "--role", "author", "--text", "body"]
    stored = []
    for zone in ("UTC", "Europe/Berlin"):
        command = ["--store", f"{zone[:3]}.duckdb"]
        assert curate("import", "chats.csv", *options, *command, TZ=zone).returncode == 0
        stored.append(curate("sql", "SELECT id, conversations FROM conversations", "--json", *command).stdout)
    assert json.loads(stored[0])[0]["conversations"][0]["value"] == "02:30"
    assert stored[0] == stored[1]


def test_without_an_order_column_rows_keep_their_order():
    rows = [("a", "x", "user", "A"), ("a", "x", "agent", "Al")]
    parsed = long(rows, **{name: column for name, column in LONG.items() if name != "order_by"})
    assert [text for _, text in talk(parsed)] == ["A", "Al"]


@pytest.mark.parametrize("nowhere", ["nan", "NaN", "inf", "-Infinity"])
@pytest.mark.parametrize("at", ["2", "2026-01-05 09:30"])
def test_an_order_value_that_is_not_finite_is_missing(at, nowhere):
    parsed = long([("a", at, "user", "A"), ("a", nowhere, "agent", "Al"), ("b", at, "user", "B")])
    assert problems(parsed) == [(0, "missing-order")]
    assert talk(parsed, 2) == [("human", "B")]


def test_an_order_value_that_is_neither_number_nor_date_is_an_error():
    with pytest.raises(SourceError, match="'5/1/2026 9:00' is neither a number nor a date"):
        long([("a", "5/1/2026 9:00", "user", "A")])


def test_an_invalid_row_rejects_its_whole_conversation():
    rows = [
        *(("a", "1", "user", "A"), ("a", "2", "wizard", "?"), (None, "1", "user", "C"), ("c", None, "user", "D")),
        *(("d", "1", None, "E"), ("e", "1", "user", "F")),
    ]
    parsed = long(rows)
    assert problems(parsed) == [(0, "unknown-role"), (2, "missing-group"), (3, "missing-order"), (4, "missing-role")]
    assert parsed.turns["row"].to_list() == [5]
    assert parsed.members["position"].to_list() == [0, 1, 2, 3, 4, 5]


def test_every_shape_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[1] / "curate" / "ingest" / "README.md").read_text()
    assert [name for name in SHAPES if f"`{name}`" not in guide] == []
