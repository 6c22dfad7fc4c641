"""Imports of many files: committed in groups, so that an error does not undo earlier ones; one note per mapping."""

import json

import pytest

from curate.ingest import pipeline
from curate.ingest.pipeline import import_files
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "exports"
    path.mkdir()
    for number in range(6):
        row = {"question": f"Question {number}?", "answer": f"Answer {number}."}
        (path / f"{number}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def run(tmp_path, folder, **options):
    return import_files(tmp_path / "curate.duckdb", [str(folder)], ImportSection(), **options)


def imported(tmp_path):
    with reading(tmp_path / "curate.duckdb") as connection:
        paths = connection.execute("SELECT parse_filename(path) FROM sources ORDER BY path").fetchall()
        ((rows,),) = connection.execute("SELECT count(*) FROM origins").fetchall()
    assert rows == len(paths)
    return [path for (path,) in paths]


def test_files_before_the_group_of_a_failing_one_stay_and_the_same_command_continues(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "GROUP_FILES", 2)
    good = (folder / "3.jsonl").read_text(encoding="utf-8")
    (folder / "3.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"3\.jsonl is empty") as error:
        run(tmp_path, folder)
    assert error.value.hint.endswith("\n2 of 6 files are in the store; the same command continues with the others.")
    assert imported(tmp_path) == ["0.jsonl", "1.jsonl"]
    (folder / "3.jsonl").write_text(good, encoding="utf-8")
    results = run(tmp_path, folder)
    assert [result.imported_before is not None for result in results] == [True] * 2 + [False] * 4
    assert len(imported(tmp_path)) == 6


def test_an_error_in_the_first_group_imports_nothing(tmp_path, folder):
    (folder / "5.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(SourceError) as error:
        run(tmp_path, folder)
    assert "in the store" not in error.value.hint
    assert imported(tmp_path) == []


def test_an_interrupt_keeps_complete_groups(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "GROUP_FILES", 2)
    seen = []

    def interrupt(path, _mapping):
        seen.append(path)
        if len(seen) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, folder, on_mapping=interrupt)
    assert imported(tmp_path) == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]


def test_a_dry_run_of_many_files_writes_nothing(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "GROUP_FILES", 2)
    assert len(run(tmp_path, folder, dry_run=True)) == 6
    assert not (tmp_path / "curate.duckdb").exists()


def test_files_that_are_read_in_the_same_way_have_one_note_and_a_short_table(folder, curate):
    for number in range(6, 60):
        row = {"question": f"Question {number}?", "answer": f"Answer {number}."}
        (folder / f"{number}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "other.csv").write_text("instruction,output\nDo,Done.\n", encoding="utf-8")
    done = curate("import", str(folder))
    notes = [line for line in done.stdout.splitlines() if "question = question" in line or "instruction = " in line]
    first = ", ".join(f"{folder}/{number}.jsonl" for number in (0, 1, 10))
    assert [note.split(": ")[0] for note in notes] == [f"{first} and 57 more", f"{folder}/other.csv"]
    assert "and 11 more files; --json and curate sources list all of them" in done.stdout
    assert "61 rows read = 61 conversations" in done.stdout


def test_all_files_that_cannot_be_read_are_named_with_commands_for_them(folder, curate):
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text("left,right\nSome words here.,More words there.\n", encoding="utf-8")
    (folder / "empty.jsonl").write_text("\n", encoding="utf-8")
    failed = curate("import", str(folder), "--max-rejects", "5%")
    assert failed.returncode == 1
    assert "Error: 3 files cannot be imported:" in failed.stderr
    assert f"\n    {folder}/empty.jsonl is empty." in failed.stderr
    assert [f"{name}.csv: " in failed.stderr for name in ("a", "b")] == [True, True]
    commands = [line.split() for line in failed.stderr.splitlines() if "curate import" in line]
    assert commands
    for command in commands:
        assert command[:4] == ["curate", "import", "--max-rejects", "5%"]
        assert [word for word in command if word.endswith(".csv")] == [f"{folder}/a.csv", f"{folder}/b.csv"]
    assert curate(*commands[0][1:]).returncode == 0


def test_a_long_list_of_files_that_cannot_be_read_is_cut(tmp_path, folder):
    for number in range(30):
        (folder / f"empty{number:02}.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SourceError) as error:
        run(tmp_path, folder)
    assert error.value.what.startswith("At least 10 files cannot be imported:")
    assert len(error.value.what.splitlines()) == 11
    assert error.value.hint == "Omit it, or export it again."


def test_all_changed_files_of_a_group_are_named(tmp_path, folder):
    run(tmp_path, folder)
    for number in (1, 4):
        (folder / f"{number}.jsonl").write_text(
            json.dumps({"question": "New?", "answer": f"{number}."}), encoding="utf-8"
        )
    with pytest.raises(SourceError, match="2 files cannot be imported") as error:
        run(tmp_path, folder)
    assert error.value.what.count("was imported before with other content") == 2
    assert error.value.hint.count("--replace") == 1


def test_a_dry_run_and_a_replacement_of_many_files_are_summarised(folder, curate):
    for number in range(6, 60):
        row = {"question": f"Question {number}?", "answer": f"Answer {number}."}
        (folder / f"{number}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    dry = curate("import", str(folder), "--dry-run").stdout
    assert dry.count("conversation 1 ") == 8
    assert "and 52 more files; --json has the examples of all of them" in dry
    curate("import", str(folder))
    swapped = curate("import", str(folder), "--map", "question=answer", "--map", "answer=question", "--replace").stdout
    assert "Replaced 60 imports of 60 files; removed 60 conversations that disappeared." in swapped
    assert len(swapped.splitlines()) < 65
