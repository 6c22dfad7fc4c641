"""The JSON of every command that has --json: one document, one notation of moments, no JSON inside texts, errors."""

import json
import re
import shlex
import sys

import pytest
from support.documents import commands_with, json_documents
from support.project import demo_project

from curate.cli.app import main

UNREACHABLE = "--url http://127.0.0.1:1"
SUCCEEDS = {
    "doctor": "",
    "import": "support_tickets.csv",
    "rejects": "",
    "rejects --list": "",
    "rejects --rules": "",
    "rejects --export": "rejected.csv --source chats.jsonl --replace",
    "score": "",
    "score --list": "",
    "score --why": "00596e",
    "dedup": "",
    "select": "",
    "sources": "--all",
    "sources remove": "chats.jsonl --dry-run",
    "freeze": "support --dry-run",
    "versions": "",
    "diff": "support@1 support@2",
    "export": "support@1 --to exported --replace",
    "restore": "exported --name again",
    "status": "",
    "show": "support_tickets.csv:2",
    "search": "Puffin",
    "sql": "'SELECT version, counts, frozen_at, mapping FROM versions, sources'",
    "sql --tables": "",
    "trace": "support_tickets.csv:2",
    "preview": "support@1 --limit 1",
    "preview --token": "2 support@1",
    "plan": "support@1 --gpu h100-80g",
    "train --dry-run": "support@1",
    "templates": "chatml",
    "runs --tidy": "--dry-run",
    "review status": "",
    "review export": "more.csv --replace",
    "review import": "set.csv --annotator ann",
}
"""Command -> arguments that succeed in the project below, in this order: restore reads what export wrote. An option in
the name changes the document."""

TRAINED = {"runs": "", "verify": "r1", "status": "", "versions": "", "trace": "data.csv:2", "chat": "r1 --prompt Hello"}
FAILS = {
    **{name: f"{arguments} --store missing/curate.duckdb" for name, arguments in SUCCEEDS.items() if "--" not in name},
    "train": "support@1 --store missing/curate.duckdb",
    "doctor": "--nonsense",
    "templates": "nonsense",
    "runs": "--store missing/curate.duckdb",
    **dict.fromkeys(("verify", "retrain", "chat", "merge", "gguf", "ollama", "serve", "check-serving"), "r99"),
    "check-packing": "nowhere --engine transformers",
    **dict.fromkeys(("review push", "review pull"), f"set {UNREACHABLE}"),
    **dict.fromkeys(("review users add", "review users password"), f"ann {UNREACHABLE}"),
    "review users list": UNREACHABLE,
    "review users remove": f"ann {UNREACHABLE}",
    "review remove": "nothing 0",
    "review backup": "to.db --home nowhere",
    "review restore": "nothing.db --home nowhere",
}
"""Command -> arguments that end with an error."""

OF_USERS = {"raw", "value", "metadata", "text", "turn", "prompt", "answer", "tools", "before", "after", "config"}
"""Keys of texts and cells of the user's files, which are printed as they are."""

MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
ISO_8601 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
CODES = {"recipe", "source", "store", "version", "review", "train", "export", "usage"}


DOCUMENTED = json_documents()


def describe(document):
    """A cell of the guide's table; the rows of SQL and the cells of a shown conversation vary."""
    kind, first = ("list of ", document[0]) if isinstance(document, list) else ("", document)
    return kind + ", ".join(f"`{key}`" for key in first)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The sample with two versions, the second of them smaller, and a spreadsheet for review."""
    folder = tmp_path_factory.mktemp("json") / "project"
    demo_project(folder, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("import support_tickets.csv chats.jsonl", "score", "dedup", "select", "freeze support"):
            assert run(patch, command) == 0
        for command in ("select --where words>=20", "freeze support", "review export set.csv"):
            assert run(patch, command) == 0
    text = (folder / "set.csv").read_text(encoding="utf-8-sig").splitlines()
    (folder / "set.csv").write_text("\n".join(text), encoding="utf-8")
    return folder


def run(patch, command):
    """The exit code of a command line in this process."""
    with patch.context() as context:
        context.setattr(sys, "argv", ["curate", *shlex.split(command)])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code or 0


def texts(value, path=""):
    """Every text of a JSON value with its path of keys, except those of users."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from () if key in OF_USERS else texts(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, f"{path}[]")
    elif isinstance(value, str):
        yield path, value


def is_json(text):
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def check(name, document):
    assert name == "sql" or describe(document) == DOCUMENTED[name]
    for path, text in texts(document):
        assert not MOMENT.match(text) or ISO_8601.fullmatch(text), (path, text)
        assert not is_json(text), (path, text)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_every_command_with_json_is_listed_here():
    assert FAILS.keys() == commands_with("--json")


@pytest.mark.parametrize("name", SUCCEEDS)
def test_the_result_is_one_json_document_with_iso_8601_and_no_json_in_texts(name, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    code = run(monkeypatch, f"{name} {SUCCEEDS[name]} --json")
    printed = capsys.readouterr()
    document = json.loads(printed.out, parse_constant=refuse)
    assert (code, "error" in document) == (0, False), printed
    check(name, document)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_result_for_a_run_is_one_json_document(name, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    code = run(monkeypatch, f"{name} {TRAINED[name]} --json")
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert code == 0
    check(name, document)


@pytest.mark.parametrize("name", FAILS)
def test_an_error_is_the_json_document_on_stdout_and_two_lines_on_stderr(name, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setenv("ARGILLA_API_KEY", "key")
    code = run(monkeypatch, f"{name} {FAILS[name]} --json")
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert list(error) == ["code", "message", "hint"]
    assert error["code"] in CODES
    assert (code, error["code"] == "usage") in ((1, False), (2, True))
    assert all(error.values())
    if code == 1:
        assert printed.err.endswith(f"Error: {error['message']}\n  → {error['hint']}\n")
    assert "Traceback" not in printed.err


def test_wrong_usage_is_a_json_error_with_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = run(monkeypatch, "rejects --limit none --json")
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert (code, error["code"]) == (2, "usage")
    assert error["message"].startswith("Invalid value for '--limit': ")
    assert error["message"] in printed.err


def test_an_unexpected_exception_is_a_json_error_and_keeps_its_traceback(curate, tmp_path):
    (tmp_path / "curate.duckdb").mkdir()
    broken = tmp_path / "hidden"
    broken.mkdir()
    (broken / "polars.py").write_text("raise ZeroDivisionError('planted')")
    ran = curate("status", "--json", PYTHONPATH=str(broken))
    error = json.loads(ran.stdout)["error"]
    assert (ran.returncode, error["code"]) == (1, "internal")
    assert error["message"] == "ZeroDivisionError: planted"
    assert "Traceback" in ran.stderr


def test_numbers_that_are_not_finite_are_null_and_json_columns_are_values(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    run(monkeypatch, """sql "SELECT 'nan'::DOUBLE AS n, ['inf'::DOUBLE] AS i, '[1]'::JSON AS j, '[1]' AS t" --json""")
    assert json.loads(capsys.readouterr().out) == [{"n": None, "i": [None], "j": [1], "t": "[1]"}]


def test_moments_are_the_same_in_every_time_zone(curate, project):
    query = "SELECT TIMESTAMPTZ '2026-11-21 13:25:00.5+01:00' AS at, TIMESTAMP '2026-11-21 13:25:00' AS without_zone"
    for zone in ("UTC", "Asia/Kolkata"):
        ran = curate("sql", query, "--json", cwd=project, TZ=zone)
        assert json.loads(ran.stdout) == [{"at": "2026-11-21T12:25:00.500000Z", "without_zone": "2026-11-21T13:25:00"}]


def test_people_see_the_offset_of_their_time_zone(curate, project):
    versions = [curate("versions", cwd=project, TZ=zone).stdout for zone in ("UTC", "Asia/Kolkata")]
    assert re.search(r"\d\d:\d\dZ ", versions[0])
    assert "+05:30" in versions[1]
