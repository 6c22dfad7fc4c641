"""Every command with --dry-run reports what the command itself does, and leaves every file and table as it is."""

import json
import shlex
import shutil
import sys

import duckdb
import polars as pl
import pytest
from support.documents import commands_with
from support.project import demo_project

from curate.cli.app import main

COMMANDS = {
    "import": "chats.jsonl --replace --repair trailing-user",
    "rejects": "--source chats.jsonl --export rejected.csv",
    "score": "--again",
    "dedup": "--set dedup.similarity=0.7",
    "select": "--where words>=30",
    "sources remove": "chats.jsonl",
    "freeze": "other",
    "export": "support@1 --to elsewhere",
    "restore": "exported --name again",
    "train": "support@1",
    "runs": "--tidy",
    "review export": "new.csv --sample 4",
    "review remove": "desk --where 'words > 0'",
    "review import": "desk.csv --annotator ann --partial",
}
NEEDS_SERVER = {"review push", "review pull", "review users remove"}

SAME_DOCUMENT = ("rejects", "export", "restore", "freeze", "review export", "review import")
"""Commands whose document is the same with and without --dry-run."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The sample, frozen, exported, and with three answered rows of a spreadsheet."""
    folder = tmp_path_factory.mktemp("dry") / "project"
    demo_project(folder, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("import support_tickets.csv chats.jsonl", "score", "dedup", "select", "freeze support"):
            run(patch, command)
        run(patch, "export support --to exported")
        run(patch, "review export desk.csv --sample 3")
    sheet = pl.read_csv(folder / "desk.csv", infer_schema=False)
    sheet.with_columns(decision=pl.lit("drop"), quality=pl.lit("2")).write_csv(folder / "desk.csv")
    return folder


def run(patch, command):
    with patch.context() as context:
        context.setattr(sys, "argv", ["curate", *shlex.split(command)])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code, command


def state(folder):
    """The bytes of all files, and the rows of all tables of the store."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "curate.duckdb"]
    with duckdb.connect(folder / "curate.duckdb", read_only=True) as connection:
        tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        rows = {name: sorted(map(repr, connection.execute(f'FROM "{name}"').fetchall())) for name in tables}
    return {path.relative_to(folder): path.read_bytes() for path in paths}, rows


def test_every_command_with_a_dry_run_is_listed_here():
    assert commands_with("--dry-run") == COMMANDS.keys() | NEEDS_SERVER


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_changes_no_file_and_no_table(name, project, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(folder)
    before = state(folder)
    run(monkeypatch, f"{name} {COMMANDS[name]} --dry-run --json")
    dry = json.loads(capsys.readouterr().out)
    assert state(folder) == before
    if name not in ("train", "runs"):
        run(monkeypatch, f"{name} {COMMANDS[name]} --json")
        real = json.loads(capsys.readouterr().out)
        assert state(folder) != before
        assert name not in SAME_DOCUMENT or dry == real


def test_a_dry_run_of_restore_creates_no_store(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, f"restore {project / 'exported'} --store new.duckdb --dry-run")
    assert "support@1 would be restored: 381 conversations" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_score_counts_the_missing_values(project, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(folder)
    run(monkeypatch, "score --dry-run")
    assert "0 missing values of 414 conversations would be computed." in capsys.readouterr().out
    run(monkeypatch, "score --again --only words --dry-run --json")
    assert json.loads(capsys.readouterr().out) == {"conversations": 414, "computed": {"words": 414}, "summaries": []}
