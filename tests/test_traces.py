"""Inputs and outputs of a model, as tracing tools and OpenAI batches record them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.imports import import_one, pairs, rejects, talks, write

from schemas.errors import SourceError
from schemas.store import reading


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


ASKED, TOLD = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Pull."}
LANGCHAIN_ASKED = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "HumanMessage"],
    "kwargs": {"content": "How?"},
}
LANGCHAIN_TOLD = {"lc": 1, "type": "constructor", "id": ["x", "AIMessageChunk"], "kwargs": {"content": "Pull."}}


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"messages": [ASKED]}, {"role": "assistant", "content": "Pull."}),
        ({"messages": [ASKED], "model": "x"}, {"id": "c", "choices": [{"index": 0, "message": TOLD}]}),
        ({"messages": [ASKED]}, {"message": TOLD}),
        ({"messages": [ASKED]}, {"messages": [ASKED, TOLD]}),
        ({"messages": [ASKED]}, {"messages": [TOLD]}),
        ({"messages": [ASKED]}, {"output": "Pull."}),
        ({"messages": [ASKED]}, {"output": [{"type": "reasoning"}, {**TOLD, "type": "message"}]}),
        ({"messages": [ASKED]}, "Pull."),
        ({"messages": [[LANGCHAIN_ASKED]]}, {"generations": [[{"text": "Pull.", "message": LANGCHAIN_TOLD}]]}),
        ({"messages": [{"type": "human", "data": {"content": "How?"}}]}, {"generations": [[{"text": "Pull."}]]}),
        ({"question": "How?"}, {"answer": "Pull."}),
        ([ASKED], [TOLD]),
    ],
)
@pytest.mark.parametrize("names", [("inputs", "outputs"), ("request", "response")])
def test_the_messages_of_an_output_follow_those_of_its_input(
    tmp_path: Path, given: Any, output: Any, names: tuple[str, str]
) -> None:
    store = tmp_path / "x.duckdb"
    row = {"id": "1", names[0]: given, names[1]: output, "metadata": {"source": "x"}}
    assert import_one(store, write(tmp_path / "runs.jsonl", row)).shape == "trace"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull.")]]


def test_langfuse_generations_keep_their_output_and_their_tools(store: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"n": 1e5}'}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows = [
        {"id": "1", "input": json.dumps([ASKED]), "output": json.dumps(TOLD)},
        {"id": "2", "input": json.dumps({"messages": [ASKED], "tools": [tool]}), "output": json.dumps(calling)},
        {"id": "3", "input": json.dumps([ASKED]), "output": 'Turn, "then" pull.'},
        {"id": "4", "input": json.dumps([ASKED]), "output": None},
        {"id": "5", "input": json.dumps([ASKED]), "output": '{"score": 3}'},
    ]
    path = tmp_path / "langfuse.csv"
    pl.DataFrame(rows).write_csv(path)
    result = import_one(store, path)
    assert result.shape == "generation"
    assert [turns[-1] for turns in talks(store)] == [
        ("gpt", "Pull."),
        ("function_call", '{"name": "look", "arguments": {"n": 1e5}, "id": "c"}'),
        ("gpt", 'Turn, "then" pull.'),
    ]
    assert rejects(store) == [
        (4, "no-answer", "The row has no output."),
        (5, "no-answer", 'The output has no message or text: {"score": 3}'),
    ]
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM conversations WHERE tools IS NOT NULL").fetchall() == [(1,)]


def test_a_langfuse_dataset_has_expected_outputs(store: Path, tmp_path: Path) -> None:
    row = {"id": "1", "input": {"messages": [ASKED]}, "expectedOutput": TOLD, "metadata": None}
    assert import_one(store, write(tmp_path / "items.jsonl", row)).shape == "generation"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull.")]]


def test_an_alpaca_file_whose_inputs_are_json_stays_an_alpaca_file(store: Path, tmp_path: Path) -> None:
    row = {"instruction": "Read the text.", "input": '{"text": "Hi"}', "output": '{"greeting": true}'}
    assert import_one(store, write(tmp_path / "a.jsonl", row)).shape == "alpaca"


def test_an_alpaca_file_without_inputs_stays_an_alpaca_file(store: Path, tmp_path: Path) -> None:
    row = {"instruction": "Say hello.", "input": None, "output": "Hello."}
    assert import_one(store, write(tmp_path / "a.jsonl", row)).shape == "alpaca"


def batch_result(id_: str, text: str) -> dict[str, Any]:
    body = {"model": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return {"id": f"b{id_}", "custom_id": id_, "response": {"status_code": 200, "body": body}, "error": None}


def batch_request(id_: str, text: str) -> dict[str, Any]:
    body = {"model": "x", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": id_, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_the_output_of_an_openai_batch_is_read_together_with_its_requests(store: Path, tmp_path: Path) -> None:
    results = [batch_result("r2", "B"), batch_result("r1", "A"), batch_result("r9", "Z")]
    requests = [batch_request("r1", "A?"), batch_request("r2", "B?"), batch_request("r3", "C?")]
    result = import_one(store, write(tmp_path / "both.jsonl", *results, *requests))
    assert result.shape == "openai-batch"
    assert pairs(store) == [("B?", "B"), ("A?", "A")]
    assert (result.rows_read, result.rows_kept, result.conversations) == (6, 4, 2)
    assert rejects(store) == [
        (3, "no-question", "No request has the custom_id r9."),
        (6, "no-answer", "No result has the custom_id r3."),
    ]


def test_the_output_of_an_openai_batch_alone_is_an_error_with_the_command(store: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="answers without their questions") as error:
        import_one(store, write(tmp_path / "output.jsonl", batch_result("r1", "A")))
    assert "cat output.jsonl requests.jsonl | curate import -" in error.value.hint
