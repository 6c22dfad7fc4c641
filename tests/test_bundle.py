"""Export: every format reads back to the same ids, files are complete or missing, misfits are listed."""

import json
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest
from support.bundles import (
    AGENT,
    CALL,
    OWN_SPELLING,
    PLAIN,
    SILENT,
    TOOLS,
    add_support,
    export,
    lines,
    restore_store,
)
from support.stores import add, add_verdict, chat, questions

from curate.cli.views.versions import show_export, show_restore
from curate.versions import bundle
from curate.versions.bundle_reader import find_differences, read_records
from curate.versions.formats import FORMATS
from curate.versions.freeze import freeze
from curate.versions.restore import read_bundle
from schemas.atomic import staging_path
from schemas.conversation import Conversation, Turn
from schemas.errors import ExportError, VersionError
from schemas.import_recipe import ImportSection
from schemas.recipe import check_recipe
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path):
    return add_support(tmp_path / "x.duckdb")


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
@pytest.mark.parametrize("format", ["sharegpt", "messages", "alpaca"])
def test_importing_an_export_gives_the_same_ids(store, tmp_path, format, parquet):
    from curate.ingest.pipeline import import_files

    export(store, tmp_path / "bundle", format=format, parquet=parquet, skip_unfit=format == "alpaca")
    other = tmp_path / "other.duckdb"
    suffix = "parquet" if parquet else "jsonl"
    files = [str(tmp_path / "bundle" / f"{split}.{suffix}") for split in ("train", "held_out")]
    results = import_files(other, files, ImportSection())
    assert [result.rows_rejected for result in results] == [0, 0]
    expected = {talk.id for talk in PLAIN} | (set() if format == "alpaca" else {AGENT.id, SILENT.id})
    with reading(other) as connection:
        assert {one for (one,) in connection.sql("SELECT id FROM conversations").fetchall()} == expected


def test_sharegpt_keeps_every_flag_of_a_conversation(store, tmp_path):
    export(store, tmp_path / "all.jsonl", split="all")
    record = next(record for record in lines(tmp_path / "all.jsonl") if record["id"] == AGENT.id)
    assert record["tools"] == TOOLS
    assert record["conversations"][3] == {"from": "function_call", "value": CALL}
    assert record["conversations"][4] == {"from": "observation", "value": "3", "tool_call_id": "c1"}
    assert record["conversations"][8] == {"from": "gpt", "value": "Hm.", "train": False}
    assert record["split"] in {"train", "held_out"}


def test_messages_have_openai_tool_calls(store, tmp_path):
    export(store, tmp_path / "all.jsonl", split="all", format="messages")
    record = next(record for record in lines(tmp_path / "all.jsonl") if record["id"] == AGENT.id)
    assert record["tools"] == json.loads(TOOLS)
    roles = " ".join(message["role"] for message in record["messages"])
    assert roles == "system user assistant tool assistant tool tool assistant function_call tool assistant"
    announced, parallel, silent = (record["messages"][n] for n in (2, 4, 7))
    assert announced["content"] == "Sure."
    (call,) = announced["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == ("c1", "function", "add")
    assert call["function"]["arguments"] == '{"a": 1.0, "b": "ü \\"q\\""}'
    assert (parallel["content"], len(parallel["tool_calls"]), parallel["weight"]) == (None, 2, 0)
    assert (silent["content"], silent["weight"]) == ("Hm.", 0)
    assert record["messages"][8] == {"role": "function_call", "content": OWN_SPELLING}


def test_tools_with_unusual_spelling_stay_text_in_messages(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [chat("a", "b", tools='[ {"name": "add",\n "x": 1e5} ]'), chat("c", "d", tools='[{"name":"add"}]')])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    export(store, tmp_path / "out.jsonl", format="messages")
    assert all(isinstance(record["tools"], str) for record in lines(tmp_path / "out.jsonl"))


def test_conversations_that_do_not_fit_alpaca_are_an_error_with_counts(store, tmp_path):
    with pytest.raises(
        ExportError, match=r"2 of the 35 .*1: a turn is excluded from the loss; 1: it has tools"
    ) as error:
        export(store, tmp_path / "bundle", format="alpaca")
    assert "--skip-unfit" in error.value.hint
    assert not (tmp_path / "bundle").exists()


def test_skip_unfit_leaves_out_and_lists_conversations(store, tmp_path):
    result = export(store, tmp_path / "bundle", format="alpaca", skip_unfit=True)
    assert sum(file.conversations for file in result.files.values()) + result.left_out.height == 35
    left_out = pl.read_csv(tmp_path / "bundle" / "left_out.csv")
    assert set(left_out["id"]) == {AGENT.id, SILENT.id}
    records = {record["id"]: record for name in result.files for record in lines(tmp_path / "bundle" / name)}
    assert records[PLAIN[0].id]["history"] == [["Hello?", "Hi."]]
    assert (records[PLAIN[0].id]["instruction"], records[PLAIN[0].id]["output"]) == ("How?", "So.")
    assert records[PLAIN[2].id]["system"] == "Be kind."
    with pytest.raises(VersionError, match="33 of 35"):
        read_bundle(tmp_path / "bundle")


def test_flags_that_no_format_can_represent_are_an_error(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [Conversation((Turn("human", "a", train=False), Turn("gpt", "b"))), *questions(3)])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    with pytest.raises(ExportError, match="1: a turn of another role than assistant is excluded from the loss"):
        export(store, tmp_path / "bundle")


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
def test_two_exports_have_the_same_bytes(store, tmp_path, parquet):
    for name in ("a", "b"):
        export(store, tmp_path / name, parquet=parquet, with_origins=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_count_of_one_is_singular(tmp_path, capsys):
    add(tmp_path / "one.duckdb", questions(1))
    with writing(tmp_path / "one.duckdb") as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    exported = export(tmp_path / "one.duckdb", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    show_export(exported, dry_run=False)
    exported_text = capsys.readouterr().out
    show_restore(restore_store(tmp_path / "again.duckdb", tmp_path / "out"), dry_run=False)
    for text in (exported_text, card, capsys.readouterr().out):
        assert "1 conversation" in text
        assert "1 conversations" not in text


def test_the_dataset_card_has_counts_sources_and_the_digest(store, tmp_path):
    with writing(store) as connection:
        connection.execute("UPDATE sources SET path = 'secret/a|b.csv'")
        connection.execute("INSERT INTO rejects SELECT source, 99, 99, 'empty-answer', 'No.', 'x', NULL FROM sources")
        connection.execute("ALTER TABLE scores ADD COLUMN quality DOUBLE")
        connection.execute("INSERT INTO scores SELECT id, 0.5 FROM conversations")
    result = export(store, tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\npretty_name: support\nlicense: unknown")
    assert "- split: held_out\n        path: held_out.jsonl" in card
    assert "a\\|b.csv" in card
    assert "secret" not in card
    assert "| empty-answer | 1 | 0 |" in card
    assert "| quality | 35 | 0.5 | 0.5 | 0.5 | 0.5 |" in card
    assert result.version.digest in card


def test_control_characters_of_a_file_name_are_visible_in_the_dataset_card(tmp_path):
    name = "a\x1b[31m\x9b\u202e.csv"
    path = tmp_path / "c.duckdb"
    add(path, questions(3), source=name)
    with writing(path) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    export(path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| a␛[31m\ufffd\ufffd.csv |" in card
    assert all(character.isprintable() or character == "\n" for character in card)


def test_version_json_has_the_sha256_of_every_file(store, tmp_path):
    from hashlib import sha256

    export(store, tmp_path / "bundle")
    statement = json.loads((tmp_path / "bundle" / "version.json").read_text(encoding="utf-8"))
    for name, stated in statement["files"].items():
        assert stated["sha256"] == sha256((tmp_path / "bundle" / name).read_bytes()).hexdigest()
    assert (statement["version"], statement["counts"]["train"]) == (
        "support@1",
        statement["files"]["train.jsonl"]["conversations"],
    )
    assert statement["made_with"]["python"]


def test_side_files_hold_scores_and_origins(store, tmp_path):
    export(store, tmp_path / "bundle", with_scores=True, with_origins=True)
    origins = pq.read_table(tmp_path / "bundle" / "origins.parquet").to_pylist()
    assert {origin["conversation"] for origin in origins} == {talk.id for talk in [AGENT, SILENT, *PLAIN]}
    assert {origin["path"] for origin in origins} == {"data.csv"}
    assert pq.read_table(tmp_path / "bundle" / "scores.parquet").column_names == ["conversation"]


def test_an_existing_export_is_replaced_only_with_force(store, tmp_path):
    export(store, tmp_path / "bundle")
    with pytest.raises(ExportError, match="already exists"):
        export(store, tmp_path / "bundle")
    export(store, tmp_path / "bundle", parquet=True, replace=True)
    assert (tmp_path / "bundle" / "train.parquet").exists()
    assert not (tmp_path / "bundle" / "train.jsonl").exists()
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"thesis\.tex, which is not part of an export"):
        export(store, tmp_path / "bundle", replace=True)


def test_neighbouring_files_of_an_export_are_not_changed(store, tmp_path):
    kept = [tmp_path / name / "mine" for name in (".bundle.partial", ".bundle.replaced")]
    for file in kept:
        file.parent.mkdir()
        file.write_text("precious")
    export(store, tmp_path / "bundle")
    export(store, tmp_path / "bundle", replace=True)
    assert [file.read_text() for file in kept] == ["precious", "precious"]


@pytest.mark.parametrize("name", ["bundle", "all.jsonl"])
def test_the_second_of_two_simultaneous_exports_is_an_error(store, tmp_path, curate, name):
    code = (
        "import sys; from curate.versions import bundle; from curate.cli.app import main\n"
        "write = bundle._write_files\n"
        "def slowly(*arguments):\n"
        "    print('writing', flush=True); sys.stdin.readline(); return write(*arguments)\n"
        "bundle._write_files = slowly; main()"
    )
    to = ["export", "support@1", "--to", name, "--split", "all", "--store", str(store)]
    slow = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *to], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert slow.stdout.readline() == "writing\n"
    assert curate(*to).returncode == 0
    _, stderr = slow.communicate("\n")
    assert slow.returncode == 1
    assert stderr.startswith(f"Error: {tmp_path / name} already exists.")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["x.duckdb", name])


def test_the_next_export_removes_only_the_files_of_killed_exports(store, tmp_path, curate):
    to = ["export", "support@1", "--to", "bundle", "--replace", "--store", str(store)]
    code = "import os, signal; from curate.versions import bundle; from curate.cli.app import main\n"
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    own = [".bundle.16635.partial", ".curate.toml.20251121", "x.curate-unfinished"]
    (tmp_path / own[0]).mkdir()
    for name in own[1:]:
        (tmp_path / name).write_text("precious")
    for replacement, left in (
        ("_write_files = lambda *arguments: ", 1),
        ("_remove = lambda old: old.exists() and ", 2),
    ):
        assert curate(*to).returncode == 0
        command = ["-c", f"{code}bundle.{replacement}{kill}; main()", *to]
        killed = subprocess.run([sys.executable, "-P", *command], cwd=tmp_path, check=False)
        assert killed.returncode == -9
        assert len(list(tmp_path.iterdir())) == len([*own, "bundle", "x.duckdb"]) + left
    with staging_path(tmp_path / "bundle") as in_use:
        in_use.write_text("in use")
        assert curate(*to).returncode == 0
        assert curate("init").returncode == 0
        assert in_use.read_text() == "in use"
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == sorted([*own, "bundle", "curate.toml", "x.duckdb"])


def test_a_renamed_store_is_not_removed(store, tmp_path, curate):
    (tmp_path / "x.duckdb").rename(tmp_path / ".x.duckdb.20251121")
    (tmp_path / "chat.csv").write_text("question,answer\nWhy?,Because.\n")
    assert curate("import", "chat.csv", "--store", "x.duckdb").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.duckdb.20251121", "chat.csv", "x.duckdb"]


@pytest.mark.parametrize("to", ["n" * 300, f"{'n' * 300}.jsonl", f"{'n' * 300}/bundle"], ids=["folder", "file", "in"])
def test_a_name_that_is_too_long_is_an_error(store, tmp_path, to):
    with pytest.raises(ExportError, match="cannot be written: File name too long") as error:
        export(store, tmp_path / to, split="all")
    assert error.value.hint == "Give a shorter name."
    assert [path.name for path in tmp_path.iterdir()] == ["x.duckdb"]


def test_a_link_to_an_empty_folder_stays_a_link(store, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundle").symlink_to("disk")
    export(store, tmp_path / "bundle")
    assert (tmp_path / "bundle").is_symlink()
    assert (tmp_path / "disk" / "version.json").is_file()


def test_the_option_parquet_contradicts_the_suffix_jsonl(store, tmp_path):
    with pytest.raises(ExportError, match=r"--parquet contradicts the suffix of out\.jsonl") as error:
        export(store, tmp_path / "out.jsonl", split="all", parquet=True)
    assert error.value.hint == f"Use --to {tmp_path / 'out.parquet'}, or omit --parquet."
    assert not (tmp_path / "out.jsonl").exists()
    assert pl.read_parquet(export(store, tmp_path / "all.parquet", split="all", parquet=True).to).height == 35


def test_one_file_of_two_splits_needs_the_option_split(store, tmp_path):
    with pytest.raises(ExportError, match="two splits"):
        export(store, tmp_path / "out.jsonl")
    result = export(store, tmp_path / "out.jsonl", split="held_out")
    assert len(lines(tmp_path / "out.jsonl")) == result.version.counts["held_out"]
    with pytest.raises(ExportError, match="Unknown split test"):
        export(store, tmp_path / "other.jsonl", split="test")


def test_a_full_disk_leaves_no_files(store, tmp_path):
    """A limit on the size of files simulates the full disk."""
    code = (
        "import resource, sys; from pathlib import Path; from schemas.store import reading\n"
        "from curate.versions.bundle import export_version\n"
        "from schemas.errors import ExportError\n"
        "with reading(Path(sys.argv[1])) as connection:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    try: export_version(connection, 'support', Path(sys.argv[2]))\n"
        "    except ExportError as error: print(error.what, error.hint)\n"
    )
    arguments = [sys.executable, "-c", code, str(store), str(tmp_path / "bundle")]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "cannot be written: File too large. Free some space and run this again." in output.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x.duckdb"]


def test_a_conversation_that_was_changed_in_the_store_is_not_exported(store, tmp_path):
    with writing(store) as connection:
        connection.execute("UPDATE conversations SET tools = '[{}]' WHERE id = ?", [PLAIN[0].id])
    with pytest.raises(ExportError, match=f"{PLAIN[0].id}: it reads back as"):
        export(store, tmp_path / "bundle")


def test_an_unreadable_written_line_is_an_error(store, tmp_path, monkeypatch):
    write = bundle._write_files

    def write_damaged(connection, version, export_format, to, plan):
        files = write(connection, version, export_format, to, plan)
        train = to / "train.jsonl"
        train.write_text("{ half a line\n" + train.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
        return files

    monkeypatch.setattr(bundle, "_write_files", write_damaged)
    with pytest.raises(ExportError, match="sharegpt cannot represent the conversation in line 1: ") as error:
        export(store, tmp_path / "bundle")
    assert "None" not in error.value.what
    assert not (tmp_path / "bundle").exists()


def test_an_edit_is_counted_for_the_source_of_its_original(tmp_path):
    store = tmp_path / "x.duckdb"
    ids = add(store, questions(2))
    (edited,) = add(store, [chat("What is question 0?", "Better.")], parent=ids[0])
    add_verdict(store, ids[0], "edit", by_whom="ada", edited_to=edited)
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    export(store, tmp_path / "bundle")
    assert "| data.csv | pairs | 2 | 2 | 0 | 0 | 2 |" in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.xlsx"])
def test_a_format_that_is_not_written_is_named_with_one_that_is(store, tmp_path, name):
    with pytest.raises(ExportError, match=r"Versions are not written as \.") as refused:
        export(store, tmp_path / name)
    assert "a.jsonl" in refused.value.hint
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["sharegpt", "messages"])
@pytest.mark.parametrize(
    "tools", ['[{"name": "f", "input_schema": {}}]', '[{"type": "search"}]', '[{"name": "f", "a": null}]']
)
def test_tools_that_an_import_would_write_differently_are_read_back_unchanged(tmp_path, name, tools):
    talk = Conversation((Turn("human", "Hi"), Turn("gpt", "Hello")), tools)
    row = {
        "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    }[name]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": talk.id, **row, "tools": tools}) + "\n")
    (records,) = read_records(path, FORMATS[name])
    assert find_differences(records).is_empty()
    assert records.select("id", "tools").rows() == [(talk.id, tools)]
