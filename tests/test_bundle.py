"""An export: every format reads back to the same ids, a bundle gives the version back, and what is damaged is found."""

import json
import shutil
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest
from support.stores import add, chat, questions, say
from typer.testing import CliRunner

from curate.cli.app import app
from curate.cli.views.versions import show_export, show_restore
from curate.versions import bundle as exporting
from curate.versions.bundle import export_version
from curate.versions.freeze import freeze
from curate.versions.restore import read_bundle, restore
from schemas.atomic import staging_path
from schemas.conversation import Conversation, Turn
from schemas.errors import ExportError, VersionError
from schemas.recipe import ImportSection, check_recipe
from schemas.store import reading, writing
from schemas.version import find_version, read_members

TOOLS = '[{"type":"function","function":{"name":"add","parameters":{"type":"object"}}}]'
CALL = '{"name": "add", "arguments": {"a": 1.0, "b": "ü \\"q\\""}, "id": "c1"}'
PARALLEL = '[{"name": "add", "arguments": {}, "id": "c2"}, {"name": "add", "arguments": {"a": 2}, "id": "c3"}]'
OWN_SPELLING = '{"name":"add","arguments":{"a":  1e5}}'

AGENT = Conversation(
    (
        Turn("system", "Use the tools."),
        Turn("human", "Add\n\u2028 two \t\x01 numbers"),
        Turn("gpt", "Sure."),
        Turn("function_call", CALL),
        Turn("observation", "3", tool_call_id="c1"),
        Turn("function_call", PARALLEL, train=False),
        Turn("observation", "4", tool_call_id="c2"),
        Turn("observation", '{"sum": 5}', tool_call_id="c3"),
        Turn("gpt", "Hm.", train=False),
        Turn("function_call", OWN_SPELLING),
        Turn("observation", "7"),
        Turn("gpt", "It is 3."),
    ),
    TOOLS,
)
SILENT = Conversation(
    (Turn("human", "One?"), Turn("gpt", "Wrong.", train=False), Turn("human", "Two?"), Turn("gpt", "Right."))
)
PLAIN = [
    chat("Hello?", "Hi.", "How?", "So."),
    chat("A?", "1.", "B?", "2.", "C?", "3."),
    chat("Who?", 'Me, "you" \\ and 😀.', system="Be kind."),
    *questions(30),
]


@pytest.fixture
def store(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [AGENT, SILENT, *PLAIN])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0.2}}, "the test"))
    return store


def export(store, to, **options):
    with reading(store) as connection:
        return export_version(connection, "support@1", to, **options)


def restored(store, bundle, **options):
    stated = read_bundle(bundle)
    with writing(store) as connection:
        return restore(connection, stated, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def members(store, label="support@1"):
    with reading(store) as connection:
        return read_members(connection, find_version(connection, label))


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
@pytest.mark.parametrize("format", ["sharegpt", "messages"])
def test_a_version_rebuilt_from_its_bundle_alone_has_the_same_digest(store, tmp_path, format, parquet):
    export(store, tmp_path / "bundle", format=format, parquet=parquet)
    other = tmp_path / "other.duckdb"
    result = restored(other, tmp_path / "bundle")
    assert members(other).equals(members(store))
    assert (result.new, result.conversations) == (True, len(PLAIN) + 2)
    with reading(store) as first, reading(other) as second:
        assert find_version(first, "support@1") == find_version(second, "support@1")


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


def test_sharegpt_keeps_every_mark_of_a_conversation(store, tmp_path):
    export(store, tmp_path / "all.jsonl", split="all")
    record = next(record for record in lines(tmp_path / "all.jsonl") if record["id"] == AGENT.id)
    assert record["tools"] == TOOLS
    assert record["conversations"][3] == {"from": "function_call", "value": CALL}
    assert record["conversations"][4] == {"from": "observation", "value": "3", "tool_call_id": "c1"}
    assert record["conversations"][8] == {"from": "gpt", "value": "Hm.", "train": False}
    assert record["split"] in {"train", "held_out"}


def test_messages_have_tool_calls_as_openai_writes_them(store, tmp_path):
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


def test_tools_in_a_spelling_of_their_own_stay_text_in_messages(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [chat("a", "b", tools='[ {"name": "add",\n "x": 1e5} ]'), chat("c", "d", tools='[{"name":"add"}]')])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    export(store, tmp_path / "out.jsonl", format="messages")
    assert all(isinstance(record["tools"], str) for record in lines(tmp_path / "out.jsonl"))


def test_alpaca_refuses_what_does_not_fit_with_counts(store, tmp_path):
    with pytest.raises(
        ExportError, match=r"2 of the 35 .*1: a turn is marked as not learned; 1: it has tools"
    ) as refused:
        export(store, tmp_path / "bundle", format="alpaca")
    assert "--skip-unfit" in refused.value.hint
    assert not (tmp_path / "bundle").exists()


def test_alpaca_leaves_out_and_lists_what_does_not_fit_when_asked(store, tmp_path):
    result = export(store, tmp_path / "bundle", format="alpaca", skip_unfit=True)
    assert sum(file.conversations for file in result.files.values()) + result.left_out.height == 35
    listed = pl.read_csv(tmp_path / "bundle" / "left_out.csv")
    assert set(listed["id"]) == {AGENT.id, SILENT.id}
    records = {record["id"]: record for name in result.files for record in lines(tmp_path / "bundle" / name)}
    assert records[PLAIN[0].id]["history"] == [["Hello?", "Hi."]]
    assert (records[PLAIN[0].id]["instruction"], records[PLAIN[0].id]["output"]) == ("How?", "So.")
    assert records[PLAIN[2].id]["system"] == "Be kind."
    with pytest.raises(VersionError, match="33 of 35"):
        read_bundle(tmp_path / "bundle")


def test_marks_that_no_format_can_say_are_refused(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [Conversation((Turn("human", "a", train=False), Turn("gpt", "b"))), *questions(3)])
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    with pytest.raises(ExportError, match="1: a turn that is not the assistant's is marked as not learned"):
        export(store, tmp_path / "bundle")


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
def test_exporting_twice_gives_the_same_bytes(store, tmp_path, parquet):
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
    show_export(exported)
    exported_text = capsys.readouterr().out
    show_restore(restored(tmp_path / "again.duckdb", tmp_path / "out"))
    for shown in (exported_text, card, capsys.readouterr().out):
        assert "1 conversation" in shown
        assert "1 conversations" not in shown


def test_the_card_names_counts_sources_and_how_to_verify(store, tmp_path):
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


def test_the_proof_states_the_bytes_of_every_file(store, tmp_path):
    from hashlib import sha256

    export(store, tmp_path / "bundle")
    proof = json.loads((tmp_path / "bundle" / "version.json").read_text(encoding="utf-8"))
    for name, stated in proof["files"].items():
        assert stated["sha256"] == sha256((tmp_path / "bundle" / name).read_bytes()).hexdigest()
    assert (proof["version"], proof["counts"]["train"]) == ("support@1", proof["files"]["train.jsonl"]["conversations"])
    assert proof["made_with"]["python"]


def test_side_files_hold_scores_and_origins(store, tmp_path):
    export(store, tmp_path / "bundle", with_scores=True, with_origins=True)
    origins = pq.read_table(tmp_path / "bundle" / "origins.parquet").to_pylist()
    assert {origin["conversation"] for origin in origins} == {talk.id for talk in [AGENT, SILENT, *PLAIN]}
    assert {origin["path"] for origin in origins} == {"data.csv"}
    assert pq.read_table(tmp_path / "bundle" / "scores.parquet").column_names == ["conversation"]


def test_what_is_there_is_refused_and_replaced_only_by_force(store, tmp_path):
    export(store, tmp_path / "bundle")
    with pytest.raises(ExportError, match="there already"):
        export(store, tmp_path / "bundle")
    export(store, tmp_path / "bundle", parquet=True, force=True)
    assert (tmp_path / "bundle" / "train.parquet").exists()
    assert not (tmp_path / "bundle" / "train.jsonl").exists()
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"thesis\.tex, which no export wrote"):
        export(store, tmp_path / "bundle", force=True)


def test_what_lies_beside_an_export_is_not_touched(store, tmp_path):
    kept = [tmp_path / name / "mine" for name in (".bundle.partial", ".bundle.replaced")]
    for file in kept:
        file.parent.mkdir()
        file.write_text("precious")
    export(store, tmp_path / "bundle")
    export(store, tmp_path / "bundle", force=True)
    assert [file.read_text() for file in kept] == ["precious", "precious"]


@pytest.mark.parametrize("name", ["bundle", "all.jsonl"])
def test_of_two_exports_at_once_one_is_done_and_the_other_says_why_not(store, tmp_path, curate, name):
    code = (
        "import sys; from curate.versions import bundle as exporting; from curate.cli.app import main\n"
        "write = exporting._write_files\n"
        "def slowly(*given):\n"
        "    print('writing', flush=True); sys.stdin.readline(); return write(*given)\n"
        "exporting._write_files = slowly; main()"
    )
    to = ["export", "support@1", "--to", name, "--split", "all", "--store", str(store)]
    slow = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *to], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert slow.stdout.readline() == "writing\n"
    assert curate(*to).returncode == 0
    _, said = slow.communicate("\n")
    assert slow.returncode == 1
    assert said.startswith(f"Error: {tmp_path / name} is there already.")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["x.duckdb", name])


def test_what_killed_writers_left_goes_at_the_next_writing_and_nothing_else(store, tmp_path, curate):
    to = ["export", "support@1", "--to", "bundle", "--force", "--store", str(store)]
    code = "import os, signal; from curate.versions import bundle as exporting; from curate.cli.app import main\n"
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    own = [".bundle.16635.partial", ".curate.toml.20251121", "x.curate-unfinished"]
    (tmp_path / own[0]).mkdir()
    for name in own[1:]:
        (tmp_path / name).write_text("precious")
    for place, left in (("_write_files = lambda *given: ", 1), ("_remove = lambda old: old.exists() and ", 2)):
        assert curate(*to).returncode == 0
        command = ["-c", f"{code}exporting.{place}{kill}; main()", *to]
        killed = subprocess.run([sys.executable, "-P", *command], cwd=tmp_path, check=False)
        assert killed.returncode == -9
        assert len(list(tmp_path.iterdir())) == len([*own, "bundle", "x.duckdb"]) + left
    with staging_path(tmp_path / "bundle") as held:
        held.write_text("somebody is at it")
        assert curate(*to).returncode == 0
        assert curate("init").returncode == 0
        assert held.read_text() == "somebody is at it"
    there = [path.name for path in tmp_path.iterdir()]
    assert sorted(there) == sorted([*own, "bundle", "curate.toml", "x.duckdb"])


def test_a_dated_copy_of_a_store_that_was_moved_away_stays(store, tmp_path, curate):
    (tmp_path / "x.duckdb").rename(tmp_path / ".x.duckdb.20251121")
    (tmp_path / "chat.csv").write_text("question,answer\nWhy?,Because.\n")
    assert curate("import", "chat.csv", "--store", "x.duckdb").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.duckdb.20251121", "chat.csv", "x.duckdb"]


@pytest.mark.parametrize("to", ["n" * 300, f"{'n' * 300}.jsonl", f"{'n' * 300}/bundle"], ids=["folder", "file", "in"])
def test_a_name_that_is_too_long_is_refused(store, tmp_path, to):
    with pytest.raises(ExportError, match="cannot be written: File name too long") as refused:
        export(store, tmp_path / to, split="all")
    assert refused.value.hint == "Give a shorter name."
    assert [path.name for path in tmp_path.iterdir()] == ["x.duckdb"]


def test_a_link_to_an_empty_folder_stays_a_link(store, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundle").symlink_to("disk")
    export(store, tmp_path / "bundle")
    assert (tmp_path / "bundle").is_symlink()
    assert (tmp_path / "disk" / "version.json").is_file()


def test_parquet_is_not_written_into_a_file_that_is_called_json_lines(store, tmp_path):
    with pytest.raises(ExportError, match=r"--parquet asks for Parquet, and out\.jsonl would be JSON Lines") as wrong:
        export(store, tmp_path / "out.jsonl", split="all", parquet=True)
    assert wrong.value.hint == f"Say --to {tmp_path / 'out.parquet'}, or leave --parquet out."
    assert not (tmp_path / "out.jsonl").exists()
    assert pl.read_parquet(export(store, tmp_path / "all.parquet", split="all", parquet=True).to).height == 35


def test_one_file_needs_to_know_its_side(store, tmp_path):
    with pytest.raises(ExportError, match="two sides"):
        export(store, tmp_path / "out.jsonl")
    result = export(store, tmp_path / "out.jsonl", split="held_out")
    assert len(lines(tmp_path / "out.jsonl")) == result.version.counts["held_out"]
    with pytest.raises(ExportError, match="no split test"):
        export(store, tmp_path / "other.jsonl", split="test")


def test_a_full_disk_leaves_nothing_behind(store, tmp_path):
    """A limit on the size of files stands for the disk; the folder before the failure stays as it was."""
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
    seen = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "cannot be written: File too large. Free some space and run this again." in seen.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x.duckdb"]


def test_words_changed_in_the_store_are_noticed_before_they_are_handed_on(store, tmp_path):
    with writing(store) as connection:
        connection.execute("UPDATE conversations SET tools = '[{}]' WHERE id = ?", [PLAIN[0].id])
    with pytest.raises(ExportError, match=f"{PLAIN[0].id} as it is: it reads back as"):
        export(store, tmp_path / "bundle")


def test_a_written_line_that_cannot_be_read_fails_the_proof(store, tmp_path, monkeypatch):
    write = exporting._write_files

    def spoilt(connection, version, exporter, place, plan):
        written = write(connection, version, exporter, place, plan)
        train = place / "train.jsonl"
        train.write_text("{ half a line\n" + train.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
        return written

    monkeypatch.setattr(exporting, "_write_files", spoilt)
    with pytest.raises(ExportError, match="sharegpt cannot hold the conversation in line 1 as it is: ") as refused:
        export(store, tmp_path / "bundle")
    assert "None" not in refused.value.what
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_whose_words_were_changed_names_the_first_ids(store, tmp_path):
    export(store, tmp_path / "bundle")
    train = tmp_path / "bundle" / "train.jsonl"
    train.write_text(train.read_text(encoding="utf-8").replace("Answer 1", "Answer 7", 1), encoding="utf-8")
    with pytest.raises(VersionError, match=r"train\.jsonl line \d+: [0-9a-f]{32} is really [0-9a-f]{32}"):
        restored(tmp_path / "other.duckdb", tmp_path / "bundle")
    with reading(tmp_path / "other.duckdb") as connection:
        assert connection.sql("SELECT count(*) FROM conversations").fetchall() == [(0,)]


def test_a_bundle_that_lost_a_line_or_changed_its_recipe_is_refused(store, tmp_path):
    export(store, tmp_path / "bundle")
    short = shutil.copytree(tmp_path / "bundle", tmp_path / "short")
    text = (short / "train.jsonl").read_text(encoding="utf-8")
    (short / "train.jsonl").write_text(text.split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(VersionError, match=r"train\.jsonl has \d+ conversations instead of \d+"):
        restored(tmp_path / "other.duckdb", short)
    proof = tmp_path / "bundle" / "version.json"
    proof.write_text(proof.read_text(encoding="utf-8").replace('"salt": ""', '"salt": "b"'), encoding="utf-8")
    with pytest.raises(VersionError, match=r"version\.json itself was changed"):
        restored(tmp_path / "other.duckdb", tmp_path / "bundle")


def restate(folder, changes):
    """Let version.json state something else."""
    proof = json.loads((folder / "version.json").read_text(encoding="utf-8"))
    (folder / "version.json").write_text(json.dumps(proof | changes), encoding="utf-8")


def test_counts_that_no_digest_covers_are_counted_and_not_believed(store, tmp_path):
    exported = export(store, tmp_path / "bundle")
    counts = exported.version.counts
    restate(tmp_path / "bundle", {"counts": {"train": counts["train"] + 1, "held_out": counts["held_out"] - 1}})
    for where in (store, tmp_path / "other.duckdb"):
        with pytest.raises(VersionError, match=r"version\.json was changed: it states .* and the files hold"):
            restored(where, tmp_path / "bundle")
    with reading(store) as connection:
        assert find_version(connection, "support@1") == exported.version


def test_a_version_that_is_there_keeps_its_parent_and_its_date(store, tmp_path):
    exported = export(store, tmp_path / "bundle")
    restate(tmp_path / "bundle", {"parent": "evil@7", "frozen_at": "1999-01-01T00:00:00+00:00"})
    assert restored(store, tmp_path / "bundle").version == exported.version
    with reading(store) as connection:
        assert find_version(connection, "support@1") == exported.version
    export(store, tmp_path / "again")


@pytest.mark.parametrize(
    "change",
    [
        {"number": -5},
        {"number": 0},
        {"number": "x"},
        {"number": 1e99},
        {"number": 2**31},
        {"parent": 5},
        {"parent": "a b"},
        {"name": 5},
        {"counts": []},
        {"counts": {"train": "a"}},
        {"counts": {"test": 35}},
        {"frozen_at": "nope"},
        {"frozen_at": 5},
        {"frozen_at": "1999-01-01T00:00:00"},
        {"frozen_at": "0001-01-01T00:00:00+14:00"},
        {"frozen_at": "9999-12-31T23:59:59-14:00"},
        {"files": []},
        {"files": {}},
        {"files": {"x": {}}},
        {"files": {"train.jsonl": {"split": "test", "conversations": 35, "sha256": ""}}},
        {"format": []},
        {"bundle": "x"},
        {"recipe": None},
        {"digest": 7},
    ],
    ids=str,
)
def test_a_statement_of_the_wrong_kind_is_named(store, tmp_path, change):
    export(store, tmp_path / "bundle")
    restate(tmp_path / "bundle", change)
    with pytest.raises(VersionError, match=rf"version\.json .*\b{next(iter(change))}") as refused:
        read_bundle(tmp_path / "bundle")
    assert refused.value.hint == "Fetch the bundle again."


@pytest.mark.parametrize("name", ["x" * 300, "../train.jsonl", "train\0.jsonl"], ids=ascii)
def test_a_stated_file_that_cannot_be_there_is_named(store, tmp_path, name):
    export(store, tmp_path / "bundle")
    files = json.loads((tmp_path / "bundle" / "version.json").read_text(encoding="utf-8"))["files"]
    restate(tmp_path / "bundle", {"files": {name: files["train.jsonl"], "held_out.jsonl": files["held_out.jsonl"]}})
    with pytest.raises(VersionError, match=f"bundle has no file {name},"):
        restored(tmp_path / "other.duckdb", tmp_path / "bundle")


@pytest.mark.parametrize("year", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"])
def test_the_first_and_the_last_date_that_there_is_are_kept(store, tmp_path, year):
    export(store, tmp_path / "bundle")
    restate(tmp_path / "bundle", {"frozen_at": year})
    restored(tmp_path / "other.duckdb", tmp_path / "bundle")
    with reading(tmp_path / "other.duckdb") as connection:
        assert find_version(connection, "support@1").frozen_at.isoformat() == year


def test_freezing_after_the_largest_version_number_is_an_error(store, tmp_path):
    export(store, tmp_path / "bundle")
    restate(tmp_path / "bundle", {"number": 2**31 - 1})
    other = tmp_path / "other.duckdb"
    restored(other, tmp_path / "bundle")
    add(other, questions(1, start=900))
    recipe = check_recipe({}, "the test")
    with (
        writing(other) as connection,
        pytest.raises(VersionError, match="support@2147483647 has the largest possible number"),
    ):
        freeze(connection, "support", recipe)
    with writing(other) as connection:
        assert freeze(connection, "guest", recipe).version.label == "guest@1"


def test_sums_hold_for_what_a_bundle_brought(store, tmp_path):
    export(store, tmp_path / "bundle")
    other = tmp_path / "other.duckdb"
    add(other, PLAIN[:10])
    assert restored(other, tmp_path / "bundle").conversations == 25
    with reading(other) as connection:
        sums = "SELECT sum(rows_read), sum(rows_kept), sum(rows_duplicate), sum(conversations) FROM sources"
        assert connection.sql(f"{sums} WHERE shape = 'bundle'").fetchall() == [(35, 25, 10, 25)]
        assert connection.sql("SELECT count(*), count(*) FILTER (duplicate) FROM origins").fetchall() == [(45, 10)]


def test_restoring_twice_adds_nothing_and_mends_a_damaged_store(store, tmp_path):
    export(store, tmp_path / "bundle")
    with writing(store) as connection:
        connection.execute("DELETE FROM conversations WHERE id = ?", [PLAIN[3].id])
        connection.execute("DELETE FROM members WHERE conversation = ?", [PLAIN[4].id])
    result = restored(store, tmp_path / "bundle")
    assert (result.new, result.conversations) == (False, 1)
    assert members(store).height == 35
    with reading(store) as connection:
        before = connection.sql("SELECT count(*) FROM origins").fetchall()
    assert restored(store, tmp_path / "bundle").conversations == 0
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM origins").fetchall() == before


def test_another_version_of_the_same_label_is_not_overwritten(store, tmp_path):
    export(store, tmp_path / "bundle")
    other = tmp_path / "other.duckdb"
    add(other, questions(5, start=900))
    with writing(other) as connection:
        freeze(connection, "support", check_recipe({}, "the test"))
    with pytest.raises(VersionError, match="another support@1"):
        restored(other, tmp_path / "bundle")
    assert restored(other, tmp_path / "bundle", name="guest").version.label == "guest@1"
    assert members(other, "guest@1").height == 35


def test_a_folder_that_is_no_bundle_is_named(tmp_path):
    with pytest.raises(VersionError, match=r"has no version\.json"):
        read_bundle(tmp_path)
    (tmp_path / "version.json").write_text("{}")
    with pytest.raises(VersionError, match="lacks bundle"):
        read_bundle(tmp_path)


def test_an_edit_is_counted_under_the_source_of_what_it_was_edited_from(tmp_path):
    store = tmp_path / "x.duckdb"
    ids = add(store, questions(2))
    (edited,) = add(store, [chat("What is question 0?", "Better.")], parent=ids[0])
    say(store, ids[0], "edit", by_whom="ada", edited_to=edited)
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
    export(store, tmp_path / "bundle")
    assert "| data.csv | pairs | 2 | 2 | 0 | 0 | 2 |" in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")


def test_the_commands_export_and_restore(store, tmp_path):
    run, bundle = CliRunner(), str(tmp_path / "bundle")
    seen = run.invoke(app, ["export", "support@1", "--to", bundle, "--store", str(store), "--json"])
    assert seen.exit_code == 0, seen.output
    assert json.loads(seen.stdout)["left_out"] == {}
    again = run.invoke(app, ["restore", bundle, "--store", str(tmp_path / "other.duckdb")])
    assert "support@1 restored: 35 conversations" in again.stdout
