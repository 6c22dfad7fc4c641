"""Preference data in any layout: the printed options import the better answers, and nothing else."""

import json

import pytest
from support.advice import printed_options
from typer.testing import CliRunner

from curate.cli.app import app
from curate.ingest.pipeline import import_files
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

QUESTION, GOOD, BAD = "How deep is the harbour?", 'About "ten" feet; <img onerror> at low tide.', "No idea at all."
USER = {"role": "user", "content": QUESTION}


def said(text):
    return {"role": "assistant", "content": text}


def gpt(text):
    return {"from": "gpt", "value": text}


LAYOUTS = {
    "texts": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "named texts": {"question": QUESTION, "response_chosen": GOOD, "response_rejected": BAD},
    "one word": {"question": QUESTION, "chosenResponse": GOOD, "rejectedResponse": BAD},
    "capitals": {"Instruction": QUESTION, "Better Answer": GOOD, "Worse Answer": BAD},
    "good and bad objects": {"question": QUESTION, "pos_answer": {"answer": GOOD}, "neg_answer": {"answer": BAD}},
    "winner objects": {"query": QUESTION, "winner": {"id": 7, "text": GOOD}, "loser": {"id": 8, "text": BAD}},
    "conversations and turns": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "chosen": gpt(GOOD),
        "rejected": gpt(BAD),
    },
    "messages and turns": {"messages": [USER], "chosen": said(GOOD), "rejected": said(BAD)},
    "prompt list and lists": {"prompt": [USER], "chosen": [said(GOOD)], "rejected": [said(BAD)]},
    "complete lists": {"prompt": QUESTION, "chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]},
    "transcripts": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
    },
}


def write(path, row):
    path.write_text(f"{json.dumps(row)}\n" * 2)
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_printed_options_import_the_better_answer(tmp_path, layout):
    path, store = write(tmp_path / "p.jsonl", LAYOUTS[layout]), tmp_path / "s.duckdb"
    with pytest.raises(SourceError, match="preference data") as error:
        import_files(store, [path], ImportSection())
    options = printed_options(error.value)[-1]
    result = CliRunner().invoke(app, ["import", path, "--store", str(store), *options])
    assert result.exit_code == 0, result.output
    with reading(store) as connection:
        (turns,) = connection.sql("SELECT conversations FROM conversations").fetchall()[0]
    assert [(turn["from"], turn["value"]) for turn in turns] == [("human", QUESTION), ("gpt", GOOD)]


def test_without_questions_no_options_are_offered(tmp_path):
    path = write(tmp_path / "p.jsonl", {"id": "7", "chosen": GOOD, "rejected": BAD})
    with pytest.raises(SourceError) as error:
        import_files(tmp_path / "s.duckdb", [path], ImportSection())
    assert "No column has the questions" in error.value.hint


def test_columns_that_only_count_are_not_preferences(tmp_path):
    path = write(tmp_path / "p.jsonl", {"question": QUESTION, "answer": GOOD, "votes_good": 3, "votes_bad": 1})
    (result,) = import_files(tmp_path / "s.duckdb", [path], ImportSection(), dry_run=True)
    assert result.rows_kept == 1


def test_a_path_reads_a_value_of_an_object(tmp_path):
    path = write(tmp_path / "p.jsonl", {"q": QUESTION, "reply": {"by": {"a.b": 1, "text": GOOD}}, "n": 1})
    section = ImportSection(map={"question": "q", "answer": "reply.by.text"})
    (result,) = import_files(tmp_path / "s.duckdb", [path], section, dry_run=True)
    assert result.examples[0]["conversations"][1]["value"] == GOOD
