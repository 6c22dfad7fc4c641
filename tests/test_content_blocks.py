"""Content blocks of Anthropic, Gemini, Bedrock, OpenAI and LlamaFactory: the turns of small rows in their layouts."""

import json

import polars as pl
import pytest

from curate.ingest.column_mapping import find_mapping, parse_table
from curate.ingest.shapes.shape import ParsedTable
from schemas.import_recipe import ImportSection

CALL = '{"name": "depth", "arguments": {"a": 1e5}, "id": "t1"}'
ASK, ANSWER = {"role": "user", "content": "How deep?"}, {"role": "assistant", "content": "4 m."}
TALK = [("human", "How deep?"), ("gpt", "4 m.")]
CALLING = [
    ("human", "How deep?"),
    ("gpt", "Let me look."),
    ("function_call", CALL),
    ("observation", "4"),
    ("gpt", "4 m."),
]


def rows(*objects: dict[str, object]) -> ParsedTable:
    """The rows of a JSON lines file, with the mapping that is found. `1e5` in the arguments of calls keeps its text."""
    names = list(dict.fromkeys(name for row in objects for name in row))
    cells = [{name: cell_text(row.get(name)) for name in names} for row in objects]
    table = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.String))
    return parse_table(table, find_mapping(table, ImportSection()))


def cell_text(value: object) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value)
    return None if text is None else text.replace("100000.0", "1e5")


def talk(parsed: ParsedTable, row: int = 0) -> list[tuple[str, str]]:
    assert parsed.problems.is_empty(), parsed.problems["reason"].to_list()
    return parsed.turns.filter(pl.col("row") == row).select("from", "value").rows()


def reasons(parsed: ParsedTable) -> list[tuple[str, str]]:
    assert parsed.turns.is_empty()
    return parsed.problems.select("code", "reason").rows()


def content(role: str, *blocks: object) -> dict[str, object]:
    return {"role": role, "content": list(blocks)}


ANTHROPIC = [
    ASK,
    content(
        "assistant",
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "t1", "name": "depth", "input": {"a": 1e5}},
    ),
    content("user", {"type": "tool_result", "tool_use_id": "t1", "content": "4"}),
    content("assistant", {"type": "text", "text": "4 ", "cache_control": None}, {"type": "text", "text": "m."}),
]
BEDROCK = [
    content("user", {"text": "How deep?"}),
    content(
        "assistant", {"text": "Let me look."}, {"toolUse": {"toolUseId": "t1", "name": "depth", "input": {"a": 1e5}}}
    ),
    content("user", {"toolResult": {"toolUseId": "t1", "content": [{"json": 4}], "status": "success"}}),
    content("assistant", {"text": "4 m."}, {"cachePoint": {"type": "default"}}),
]
GEMINI = [
    {"role": "user", "parts": [{"text": "How deep?"}]},
    {
        "role": "model",
        "parts": [
            {"text": "Let me look."},
            {"functionCall": {"id": "t1", "name": "depth", "args": {"a": 1e5}}, "thoughtSignature": "x"},
        ],
    },
    {"role": "user", "parts": [{"functionResponse": {"id": "t1", "name": "depth", "response": 4}}]},
    {"role": "model", "parts": {"text": "4 m."}},
]
RESPONSES = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "How deep?"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]},
    {"type": "function_call", "id": "fc1", "call_id": "t1", "name": "depth", "arguments": '{"a": 1e5}'},
    {"type": "function_call_output", "call_id": "t1", "output": "4"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4 m."}]},
]
LLAMAFACTORY = [
    content("user", {"type": "text", "value": "How deep?"}),
    content(
        "assistant",
        {"type": "text", "value": "Let me look."},
        {"type": "tool_call", "value": '{"name": "depth", "arguments": {"a": 1e5}, "id": "t1"}'},
    ),
    content("tool", {"type": "text", "value": "4"}),
    content("assistant", {"type": "text", "value": "4 m."}),
]
VERCEL = [
    content("user", {"type": "text", "text": "How deep?"}),
    content(
        "assistant",
        {"type": "text", "text": "Let me look."},
        {"type": "tool-call", "toolCallId": "t1", "toolName": "depth", "input": {"a": 1e5}},
    ),
    content("tool", {"type": "tool-result", "toolCallId": "t1", "output": {"type": "text", "value": "4"}}),
    content("assistant", {"type": "text", "text": "4 m."}),
]


@pytest.mark.parametrize("turns", [ANTHROPIC, BEDROCK, GEMINI, RESPONSES, LLAMAFACTORY, VERCEL])
def test_text_calls_and_results_in_blocks_become_turns(turns):
    parsed = rows({"messages": turns}, {"messages": [ASK, ANSWER]}, {"messages": turns})
    assert talk(parsed, 0) == talk(parsed, 2) == CALLING
    assert talk(parsed, 1) == TALK
    ids = parsed.turns.filter(pl.col("from") == "observation")["tool_call_id"].to_list()
    assert ids == ([None] * 2 if turns is LLAMAFACTORY else ["t1"] * 2)


@pytest.mark.parametrize(
    "thinking",
    [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "reasoning", "value": "Hm."},
        {"type": "reasoning", "text": "Hm."},
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "x"}}},
        {"text": "Hm.", "thought": True},
    ],
)
def test_reasoning_in_a_block_precedes_the_answer(thinking):
    parsed = rows({"messages": [ASK, content("assistant", thinking, {"text": "4 m."})]})
    assert talk(parsed) == [("human", "How deep?"), ("gpt", "<think>\nHm.\n</think>\n\n4 m.")]


@pytest.mark.parametrize(
    "block", [{"type": "redacted_thinking", "data": "x"}, {"reasoningContent": {"redactedContent": "x"}}]
)
def test_encrypted_reasoning_is_omitted(block):
    assert talk(rows({"messages": [ASK, content("assistant", block, {"text": "4 m."})]})) == TALK


def test_reasoning_between_texts_keeps_its_place():
    blocks = [{"text": "a"}, {"type": "thinking", "thinking": "b"}, {"text": "c"}]
    parsed = rows({"messages": [ASK, content("assistant", *blocks)]})
    assert talk(parsed)[1] == ("gpt", "a<think>\nb\n</think>\n\nc")


def test_reasoning_items_belong_to_the_next_answer_or_call():
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "x"}
    call = {"type": "function_call", "call_id": "t1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "t1", "output": [{"type": "input_text", "text": "4"}]}
    parsed = rows(
        {"input": [ASK, reasoning, call, output, {**reasoning, "summary": []}, ANSWER]}, {"input": [ASK, reasoning]}
    )
    assert talk(parsed) == [
        ("human", "How deep?"),
        ("gpt", "<think>\nHm.\n</think>\n\n"),
        ("function_call", '{"name": "f", "arguments": {}, "id": "t1"}'),
        ("observation", "4"),
        ("gpt", "4 m."),
    ]
    assert talk(parsed, 1)[-1] == ("gpt", "<think>\nHm.\n</think>\n\n")


def test_parallel_calls_in_blocks_are_one_turn_with_a_result_each():
    calls = [{"type": "tool_use", "id": name, "name": name, "input": {}} for name in "ab"]
    results = [
        {"type": "tool_result", "tool_use_id": name, "content": [{"type": "text", "text": name}]} for name in "ab"
    ]
    parsed = rows(
        {"messages": [ASK, content("assistant", *calls), content("user", *results, {"type": "text", "text": "Go on."})]}
    )
    assert talk(parsed)[1:] == [
        ("function_call", '[{"name": "a", "arguments": {}, "id": "a"}, {"name": "b", "arguments": {}, "id": "b"}]'),
        *(("observation", "a"), ("observation", "b"), ("human", "Go on.")),
    ]


def test_results_that_are_data_keep_their_text():
    value = [{"type": "ship", "depth": 1e5}]
    parsed = rows({"messages": [ASK, content("user", {"type": "tool_result", "tool_use_id": "a", "content": value})]})
    assert talk(parsed)[1] == ("observation", '[{"type": "ship", "depth": 1e5}]')


def test_an_input_and_an_output_of_items_are_one_conversation():
    assert talk(rows({"input": RESPONSES[:1], "output": RESPONSES[-1:]})) == TALK


def test_a_refusal_is_an_answer():
    parsed = rows(
        {"messages": [ASK, {"role": "assistant", "content": None, "refusal": "No."}]},
        {"messages": [ASK, content("assistant", {"type": "refusal", "refusal": "No."})]},
    )
    assert talk(parsed) == talk(parsed, 1) == [("human", "How deep?"), ("gpt", "No.")]


def test_training_flags_apply_to_all_turns_of_a_message():
    flagged = [{**turn, "loss_weight": 0.0} for turn in LLAMAFACTORY]
    excluded = rows({"messages": flagged}).turns.filter(~pl.col("train"))
    assert excluded["from"].to_list() == ["gpt", "function_call", "gpt"]


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        (content("user", {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a"}), "image_url"),
        (content("user", {"type": "image", "source": {}}), "image"),
        (content("user", {"image": {"format": "png"}}), "image"),
        ({"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}]}, "inlineData"),
        (content("tool", {"type": "image_url", "image_url": {"url": "x"}}), "image_url"),
        ({"type": "web_search_call", "id": "w1"}, "web_search_call"),
        (content("user", {"type": "tool_result", "content": [{"type": "image"}]}), "a tool result with image"),
        (content("assistant", {"type": "tool_call", "value": "depth("}), "a tool call that is not a JSON object"),
        (content("user", {}), "an empty object"),
        (content("user", 5), "5"),
    ],
)
def test_a_block_that_is_not_text_is_a_problem_with_its_turn_and_type(turn, kind):
    parsed = rows({"messages": [ASK, turn]})
    assert reasons(parsed) == [("non-text-content", f"Turn 2 is not text: it contains {kind}.")]


def test_calls_of_a_user_are_a_problem():
    parsed = rows({"messages": [ASK, content("user", {"type": "tool_use", "id": "a", "name": "f", "input": {}})]})
    assert reasons(parsed)[0][0] == "broken-tool-call"
    assert reasons(parsed)[0][1].startswith("Turn 2 calls tools, but is not an assistant turn: ")


# -------------------------------------------------------------------------------------------------- system prompts


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("system", "Be brief."),
        ("system", [{"text": "Be "}, {"text": "brief."}]),
        ("system", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]),
        ("systemInstruction", {"role": "system", "parts": [{"text": "Be brief."}]}),
        ("system_instruction", {"parts": {"text": "Be brief."}}),
        ("system", {"role": "system", "content": "Be brief."}),
        ("system", ["Be brief."]),
    ],
)
@pytest.mark.parametrize("row", [{"messages": [ASK, ANSWER]}, {"question": "How deep?", "answer": "4 m."}])
def test_a_system_prompt_in_blocks_is_its_text(row, name, prompt):
    parsed = rows({**row, name: prompt}, row, {**row, name: "[]" if name == "system" else None})
    assert talk(parsed) == [("system", "Be brief."), *TALK]
    assert talk(parsed, 1) == talk(parsed, 2) == TALK


@pytest.mark.parametrize("prompt", ['{"persona": "mate"}', "[INST] Be brief.", "{name} is a mate.", "[1, 2]"])
def test_a_system_prompt_that_is_json_without_blocks_stays_text(prompt):
    assert talk(rows({"question": "How deep?", "answer": "4 m.", "system": prompt}))[0] == ("system", prompt)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([{"text": "a"}, {"type": "image"}], "The system prompt is not text: it contains image."),
        (["Be brief.", "Be kind."], "The system prompt is a list of 2 texts."),
    ],
)
@pytest.mark.parametrize("row", [{"messages": [ASK, ANSWER]}, {"question": "How deep?", "answer": "4 m."}])
def test_a_system_prompt_without_text_is_a_problem(row, prompt, reason):
    assert reasons(rows({**row, "system": prompt})) == [("non-text-content", reason)]
