"""LlamaFactory's dataset_info.json next to a file: its columns and tags are used, its preference data is not."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.cli.app import app
from curate.ingest.import_result import ImportResult
from curate.ingest.pipeline import import_files
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

ROWS = [{"frage": "Wie tief?", "antwort": "4 m.", "note": "x"}]
MINE = {"file_name": "data.json", "columns": {"prompt": "frage", "response": "antwort"}}
OWN_TAGS = {
    "file_name": "data.json",
    "formatting": "sharegpt",
    "columns": {"messages": "talk"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "visitor x", "assistant_tag": "keeper"},
}


def write(folder: Path, rows: list[dict[str, object]], **entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder / "data.json"


def run(tmp_path: Path, path: Path, **section: object) -> ImportResult:
    (result,) = import_files(tmp_path / "s.duckdb", [str(path)], ImportSection(**section))
    return result


def turns(tmp_path: Path) -> list[list[tuple[str, str]]]:
    with reading(tmp_path / "s.duckdb") as store:
        rows = store.sql("SELECT conversations FROM conversations").fetchall()
    return [[(turn["from"], turn["value"]) for turn in talk] for (talk,) in rows]


def test_the_columns_of_the_entry_are_the_mapping(tmp_path):
    result = run(tmp_path, write(tmp_path / "a", ROWS, mine=MINE, other={"file_name": "b.json"}))
    assert (result.shape, result.mapping["fields"]) == ("alpaca", {"instruction": "frage", "output": "antwort"})
    assert result.mapping["described_by"] == "dataset_info.json, mine"
    assert turns(tmp_path) == [[("human", "Wie tief?"), ("gpt", "4 m.")]]


def test_the_entry_is_printed(tmp_path):
    path = write(tmp_path / "a", ROWS, mine=MINE)
    printed = CliRunner().invoke(app, ["import", str(path), "--dry-run", "--store", str(tmp_path / "s.duckdb")]).stdout
    assert "as described by dataset_info.json, mine" in printed


def test_the_entry_may_name_the_folder_of_the_file(tmp_path):
    path = write(tmp_path / "a", ROWS)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {**MINE, "file_name": "a"}}))
    assert run(tmp_path, path).mapping["described_by"] == "dataset_info.json, mine"


def test_the_tags_of_the_entry_are_keys_and_roles(tmp_path):
    talk = [{"who": "visitor x", "says": "How deep?"}, {"who": "keeper", "says": "4 m."}]
    result = run(tmp_path, write(tmp_path / "a", [{"talk": talk}], mine=OWN_TAGS))
    assert turns(tmp_path) == [[("human", "How deep?"), ("gpt", "4 m.")]]
    assert result.mapping["keys"] == {"role": "who", "text": "says"}
    assert result.mapping["roles"] == {"visitor x": "human", "keeper": "gpt"}


def test_a_single_column_is_raw_text(tmp_path):
    path = write(tmp_path / "a", [{"body": "Once."}], mine={"file_name": "data.json", "columns": {"prompt": "body"}})
    assert run(tmp_path, path).shape == "text"


def test_an_import_that_needs_no_entry_has_the_same_id_with_it(tmp_path):
    rows = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "tools": "[]"}]
    columns = {"messages": "conversations", "tools": "tools"}
    entry = {"file_name": "data.json", "formatting": "sharegpt", "columns": columns}
    with_entry = run(tmp_path, write(tmp_path / "a", rows, mine=entry))
    without = run(tmp_path, write(tmp_path / "b", rows))
    assert without.imported_before == with_entry.path


def test_own_options_take_precedence(tmp_path):
    path = write(tmp_path / "a", ROWS, mine=MINE)
    result = run(tmp_path, path, map={"question": "frage", "answer": "note"})
    assert result.mapping["fields"] == {"question": "frage", "answer": "note"}
    assert "described_by" not in result.mapping


def test_a_file_of_this_name_from_hugging_face_is_ignored(tmp_path):
    path = write(tmp_path / "a", [{"question": "Hi", "answer": "Ho"}], features={"question": {"dtype": "string"}})
    assert run(tmp_path, path).shape == "pairs"


ASK = [{"from": "human", "value": "Hi"}]


@pytest.mark.parametrize(
    ("row", "entry", "what"),
    [
        (
            {"ask": "Hi", "good": "Ho", "bad": "Hm"},
            {"ranking": True, "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}},
            "preference data",
        ),
        (
            {"talk": ASK, "good": {"from": "gpt", "value": "Ho"}, "bad": {"from": "gpt", "value": "Hm"}},
            {"ranking": True, "formatting": "sharegpt", "columns": {"messages": "talk", "chosen": "good"}},
            "preference data",
        ),
        (
            {"instruction": "Hi", "output": "Ho", "my verdict": True},
            {"columns": {"kto_tag": "my verdict"}},
            "the column my verdict marks answers as good or bad",
        ),
    ],
)
def test_rated_answers_are_an_error_with_a_command_that_works(tmp_path, row, entry, what):
    path = write(tmp_path / "a", [row], mine={"file_name": "data.json", **entry})
    with pytest.raises(SourceError, match=what) as error:
        run(tmp_path, path)
    _, _, options = error.value.hint.partition("curate import ")
    command = ["import", *shlex.split(options), "--store", str(tmp_path / "s.duckdb")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert turns(tmp_path) == [[("human", "Hi"), ("gpt", "Ho")]]


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ({"a": {**MINE, "columns": {"prompt": "ask"}}}, "the file has no column ask; its columns are frage, antwort"),
        ({"a": MINE, "b": {**MINE, "columns": {"prompt": "frage", "response": "note"}}}, "several entries .*: a and b"),
    ],
)
def test_an_entry_that_does_not_fit_is_an_error(tmp_path, entries, what):
    with pytest.raises(SourceError, match=what):
        run(tmp_path, write(tmp_path / "a", ROWS, **entries))
