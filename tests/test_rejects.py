"""Rejects: grouped, listed, exported to a file, corrected there, and closed by importing the file."""

import csv
import errno
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from curate.cli.views.lineage import lineage_lines
from curate.ingest.import_result import ImportResult
from curate.ingest.pipeline import import_files
from curate.ingest.rejects import RejectFilter, export_rejects, group_rejects, list_rejects
from curate.versions.lineage import trace
from schemas.errors import ExportError, SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

TICKETS = '''ticket,question,answer,note
1,Where is it?,Here.,ok
2,When?,,=cmd()
3,"Who, and
why?",,"quoted ""note"""
4,How?,So.,too,many,cells
5,What?,This.,
'''


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "curate.duckdb"


@pytest.fixture
def tickets(tmp_path: Path, store: Path) -> Path:
    """A CSV of five rows: two without an answer, one with too many cells; imported."""
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS, encoding="utf-8")
    result = import_one(store, path)
    assert (result.rows_kept, result.rows_rejected) == (2, 3)
    return path


def import_one(store: Path, path: Path) -> ImportResult:
    (result,) = import_files(store, [str(path)], ImportSection())
    return result


def export(store: Path, path: Path, **criteria: Any) -> Any:
    with reading(store) as connection:
        return export_rejects(connection, RejectFilter(**criteria), path)


def open_rejects(store: Path) -> list[tuple[int, str]]:
    with reading(store) as connection:
        return [(reject["row"], reject["code"]) for reject in list_rejects(connection, RejectFilter(), None)]


def test_rejects_are_grouped_by_file_and_reason(store: Path, tickets: Path) -> None:
    with reading(store) as connection:
        groups = group_rejects(connection, RejectFilter())
    assert (groups[0]["path"], groups[0]["code"], groups[0]["rows"]) == (str(tickets), "empty-answer", 2)
    assert groups[0]["first_lines"] == [3, 4]
    assert groups[0]["raw"] == "2,When?,,=cmd()"


def test_the_line_of_a_reject_is_printed_as_trace_accepts_it(tmp_path: Path, curate: Callable[..., Any]) -> None:
    row = '{"prompt": "Why?", "response": "So."}\n'
    (tmp_path / "long.jsonl").write_text(row * 1199 + '{"prompt": "Why?", "response": ""}\n', encoding="utf-8")
    assert "line 1200" in curate("import", "long.jsonl").stdout
    assert "line 1200" in curate("rejects").stdout
    shown = curate("rejects", "--list").stdout
    assert shown.startswith("long.jsonl, line 1200: empty-answer.")
    assert "empty-answer" in curate("trace", "long.jsonl:1200").stdout


def test_an_export_has_the_source_columns_followed_by_its_own(store: Path, tickets: Path, tmp_path: Path) -> None:
    exported = export(store, tmp_path / "fix.csv")
    with (tmp_path / "fix.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["ticket", "question", "answer", "note", "_curate_raw", "_curate_reject", "_curate_reason"]
    assert rows[0]["note"] == "=cmd()"
    assert (rows[1]["question"], rows[1]["note"]) == ("Who, and\nwhy?", 'quoted "note"')
    assert rows[2]["_curate_raw"] == "4,How?,So.,too,many,cells"
    assert (exported.rows, exported.raw_only, exported.formulas) == (3, 1, 1)


def test_importing_the_corrected_file_closes_its_rejects(store: Path, tickets: Path, tmp_path: Path) -> None:
    fix = tmp_path / "fix.csv"
    export(store, fix, code="empty-answer")
    with fix.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["answer"] = "Now."
    with fix.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerow(rows[0])  # the second row is omitted: its reject stays open
    result = import_one(store, fix)
    assert (result.rows_kept, result.closed) == (1, 1)
    assert [row for row, _ in open_rejects(store)] == [3, 4]
    with reading(store) as connection:
        (closed,) = [r for r in list_rejects(connection, RejectFilter(closed=True), None) if r["closed_by"]]
        metadata = connection.execute("SELECT metadata FROM origins WHERE source = ?", [result.source]).fetchall()
    assert (closed["row"], closed["closed_by"]) == (2, result.source)
    assert json.loads(metadata[0][0]) == {"ticket": "2", "note": "=cmd()"}


def test_a_row_imported_again_without_correction_leaves_one_open_reject(
    store: Path, tickets: Path, tmp_path: Path, curate: Callable[..., Any]
) -> None:
    fix = tmp_path / "fix.csv"
    export(store, fix, code="empty-answer")
    result = import_one(store, fix)
    assert (result.rows_rejected, result.closed) == (2, 0)
    assert open_rejects(store) == [(2, "empty-answer"), (3, "empty-answer"), (4, "ragged-row")]
    with reading(store) as connection:
        (first,), (again,) = trace(connection, "tickets.csv:3"), trace(connection, "fix.csv:2")
    assert "corrected" not in "".join(lineage_lines(first))
    assert import_one(store, tickets).closed == 0
    assert f"its reject in {tickets} is still open" in "".join(lineage_lines(again))
    fix.write_text(fix.read_text(encoding="utf-8").replace("2,When?,,", "2,When?,Now.,"), encoding="utf-8")
    result = import_one(store, fix)
    assert (result.rows_kept, result.rows_rejected, result.closed) == (1, 1, 1)
    assert open_rejects(store) == [(3, "empty-answer"), (4, "ragged-row")]
    shown = curate("status").stdout
    assert "Rejects   2 open, 1 repaired; 3 superseded by a later import of the row" in shown


def test_importing_the_same_file_with_another_mapping_supersedes_its_rejects(store: Path, tmp_path: Path) -> None:
    turns = [{"from": who, "value": str(n)} for n, who in enumerate(["human", "gpt", "human"])]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"conversations": turns}) + '\n{"conversations": 7}\n', encoding="utf-8")
    assert import_one(store, path).rows_rejected == 2
    (repaired,) = import_files(store, [str(path)], ImportSection(repair=("trailing-user",)), on_changed="add")
    assert (repaired.rows_kept, repaired.rows_rejected, repaired.closed) == (1, 1, 2)
    assert [row for row, _ in open_rejects(store)] == [2]


def test_a_dry_run_closes_as_many_rejects_as_the_import(store: Path, tickets: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "fix.csv", code="empty-answer")
    fixed = (tmp_path / "fix.csv").read_text(encoding="utf-8").replace(",,", ",Yes.,")
    (tmp_path / "fix.csv").write_text(fixed, encoding="utf-8")
    (dry,) = import_files(store, [str(tmp_path / "fix.csv")], ImportSection(), dry_run=True)
    real = import_one(store, tmp_path / "fix.csv")
    assert (dry.closed, real.closed) == (2, 2)
    assert {**asdict(dry), "examples": []} == asdict(real)


def test_a_json_object_is_exported_in_its_original_text(store: Path, tmp_path: Path) -> None:
    odd = '{"prompt": "a",  "response": "", "n": 1.50, "x": {"deep": [1e3]}}'
    lines = [odd, '{"prompt": "b", "resp', '{"prompt": "c", "response": "ok"}']
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    import_one(store, source)
    exported = export(store, tmp_path / "fix.jsonl")
    first, second = (tmp_path / "fix.jsonl").read_text(encoding="utf-8").splitlines()
    assert first.startswith(lines[0][:-1] + ', "_curate_reject": ')
    assert json.loads(second)["_curate_raw"] == lines[1]
    assert (exported.rows, exported.raw_only) == (2, 1)
    (tmp_path / "fix.jsonl").write_text(first.replace('"response": ""', '"response": "yes"'), encoding="utf-8")
    assert import_one(store, tmp_path / "fix.jsonl").closed == 1
    assert [row for row, _ in open_rejects(store)] == [2]


DEEP = "[" * 3_000 + "]" * 3_000


@pytest.mark.parametrize(
    "row",
    [
        '{"question":"q","question":"r","answer":"b"}',
        r'{"question":"\ud800","answer":"b"}',
        f'{{"question":"q","answer":"","n":{"1" * 5_000}}}',
        f'{{"question":"q","answer":"","n":{DEEP}}}',
    ],
    ids=["key twice", "half a pair", "long number", "deep"],
)
@pytest.mark.parametrize("name", ["fix.csv", "fix.jsonl"])
def test_an_object_that_cells_cannot_represent_is_exported_as_raw_text(
    store: Path, tmp_path: Path, row: str, name: str
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"question":"g","answer":"ok"}}\n{row}\n', encoding="utf-8")
    assert import_one(store, tmp_path / "a.jsonl").rows_rejected == 1
    with reading(store) as connection:
        assert [reject["raw"] for reject in list_rejects(connection, RejectFilter(), None)] == [row]
    exported = export(store, tmp_path / name)
    assert (exported.rows, exported.raw_only) == (1, 1)
    with (tmp_path / name).open(encoding="utf-8", newline="") as file:
        (written,) = csv.DictReader(file) if name.endswith("csv") else map(json.loads, file)
    assert not any(written.pop(column, None) for column in ("question", "answer", "n"))
    assert written == {"_curate_raw": row, "_curate_reject": written["_curate_reject"], "_curate_reason": ANY}


def test_a_nested_value_is_exported_in_its_original_text(store: Path, tmp_path: Path) -> None:
    nested = '[{"role": "user", "role": "boss", "n": 1e3}]'
    good = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}'
    (tmp_path / "a.jsonl").write_text(f'{good}\n{{"messages": {nested}, "n": 1.50}}\n', encoding="utf-8")
    import_one(store, tmp_path / "a.jsonl")
    export(store, tmp_path / "fix.csv")
    with (tmp_path / "fix.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["messages"], row["n"]) == (nested, "1.50")


def test_an_excerpt_is_shown_if_another_cell_cannot_be_parsed_by_python(store: Path, tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "Hi"}, {"role": "%s", "content": "Ho", "n": %s}]'
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [turns % ("assistant", 1), ""], [turns % ("boss", "1" * 5_000), DEEP]
        csv.writer(file).writerows([["messages", "tools"], *rows])
    assert import_one(store, tmp_path / "a.csv").rejected == {"unknown-role": 1}
    with reading(store) as connection:
        (reject,) = list_rejects(connection, RejectFilter(), None)
    assert '""role"": ""boss""' in reject["excerpt"]


def test_sources_with_different_mappings_are_exported_by_the_suggested_commands(
    store: Path, tickets: Path, tmp_path: Path, curate: Callable[..., Any]
) -> None:
    turns = [{"role": who, "content": text} for who, text in (("user", "When?"), ("assistant", ""))]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    import_one(store, tmp_path / "chats.jsonl")
    failed = curate("rejects", "--export", "fix.csv")
    assert failed.returncode == 1
    assert not (tmp_path / "fix.csv").exists()
    commands = [line.strip() for line in failed.stderr.splitlines() if line.strip().startswith("curate rejects")]
    assert len(commands) == 2
    for command in commands:
        shown = curate(*shlex.split(command)[1:]).stdout
        back = next(line.strip(" →") for line in shown.splitlines() if line.startswith("  → curate import"))
        imported = curate(*shlex.split(back)[1:])
        assert imported.returncode == 0, imported.stderr
    assert len(open_rejects(store)) == 4


@pytest.mark.parametrize(
    ("name", "wrong", "hint"),
    [
        (f"{'n' * 300}.csv", "File name too long", "Give a shorter name."),
        (f"{'n' * 300}/fix.csv", "File name too long", "Give a shorter name."),
        ("no folder/fix.csv", "No such file or directory", "mkdir -p '{}/no folder'"),
        ("tickets.csv/fix.csv", "Not a directory", "Check the folder and its rights."),
    ],
    ids=["name", "folder", "missing", "file"],
)
def test_an_export_to_an_invalid_path_is_an_error_with_a_hint(
    store: Path, tickets: Path, tmp_path: Path, *, name: str, wrong: str, hint: str
) -> None:
    with pytest.raises(ExportError, match=f"cannot be written: {wrong}") as refused:
        export(store, tmp_path / name)
    assert refused.value.hint == hint.format(tmp_path)


def test_an_export_to_a_full_disk_is_an_error_with_a_hint(
    store: Path, tickets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates the error of a full disk."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExportError, match="cannot be written: No space left") as refused:
        export(store, tmp_path / "fix.csv")
    assert refused.value.hint == "Free some space and run this again."
    assert not (tmp_path / "fix.csv").exists()


def test_an_export_does_not_overwrite_a_file(store: Path, tickets: Path, tmp_path: Path) -> None:
    export(store, tmp_path / "fix.csv")
    with pytest.raises(ExportError, match="already exists"):
        export(store, tmp_path / "fix.csv")
    with pytest.raises(ExportError, match=r"\.csv"):
        export(store, tmp_path / "fix.xlsx")


def test_unknown_sources_and_codes_are_errors_that_list_the_known_ones(store: Path, tickets: Path) -> None:
    with reading(store) as connection:
        with pytest.raises(SourceError) as error:
            group_rejects(connection, RejectFilter(source="other.csv"))
        assert str(tickets) in error.value.hint
        with pytest.raises(SourceError) as error:
            group_rejects(connection, RejectFilter(code="too-purple"))
        assert "empty-answer" in error.value.hint
        assert group_rejects(connection, RejectFilter(source="tickets.csv", code="empty-answer"))[0]["rows"] == 2


def test_the_command_shows_groups_rows_rules_and_the_import_command(
    store: Path, tickets: Path, curate: Callable[..., Any]
) -> None:
    assert "empty-answer" in curate("rejects").stdout
    assert len(json.loads(curate("rejects", "--list", "--json").stdout)) == 3
    assert "first 1" in curate("rejects", "--list", "--limit", "1").stderr
    assert "trailing-user" in curate("rejects", "--rules").stdout
    assert "requirement" in curate("rejects", "--rules").stdout
    shown = curate("rejects", "--code", "empty-answer", "--export", "fix.csv").stdout
    assert "curate import fix.csv" in shown
    assert "1 cell with a leading =" in shown
    assert curate("rejects", "--export", "fix.csv").returncode == 1
    command = next(line.strip(" →") for line in shown.splitlines() if line.startswith("  → curate import"))
    assert curate(*command.split()[1:]).returncode == 0


@pytest.mark.parametrize(
    ("row", "code", "excerpt"),
    [
        ('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}], "id": "x"}',
         "empty-answer", "human: Hi · gpt: (empty)"),
        ('{"messages": [{"role": "user", "content": "Hi"}, {"role": "boss", "content": "No"}]}',
         "unknown-role", 'turn 1: {"role": "user", "content": "Hi"} · turn 2: {"role": "boss", "content": "No"}'),
        ('{"id": "' + "x" * 200 + '", "messages": [{"role" "user"}]}', "broken-json", '"messages": [{"role" "user"}]}'),
        ('{"messages": [{"role": "character 99999999999999999999999", "content": "Hi"}]}', "unknown-role",
         'turn 1: {"role": "character 99999999999999999999999", "content": "Hi"}'),
        ('{"messages": 7, "id": "1"}', "broken-json|not-a-list", '{"messages": 7, "id": "1"}'),
    ],
    ids=["turn", "element", "character", "quoted", "whole"],
)  # fmt: skip
def test_the_excerpt_contains_the_place_of_the_error(store: Path, tmp_path: Path, row, code, excerpt) -> None:
    good = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "id": "0"}
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps(good)}\n{row}\n", encoding="utf-8")
    assert import_one(store, path).rows_rejected == 1
    with reading(store) as connection:
        (group,), (single,) = group_rejects(connection, RejectFilter()), list_rejects(connection, RejectFilter(), None)
    assert group["code"] in code.split("|")
    assert group["excerpt"] == single["excerpt"]
    assert group["excerpt"].endswith(excerpt)
    assert len(group["excerpt"]) < 120


def test_the_excerpt_of_a_row_in_long_format_is_the_row(store: Path, tmp_path: Path) -> None:
    head = "ticket,at,who,said\n7,1,user,"
    (tmp_path / "mon.csv").write_text(f"{head}monday question\n7,2,gpt,monday answer\n7,3,user,\n7,4,gpt,ok\n")
    (tmp_path / "tue.csv").write_text(f"{head}\n7,2,gpt,tuesday answer\n")
    options = {"shape": "long", "group_by": "ticket", "order_by": "at", "role": "who", "text": "said"}
    import_files(
        store, [str(tmp_path / name) for name in ("mon.csv", "tue.csv")], ImportSection.model_validate(options)
    )
    with reading(store) as connection:
        listed = list_rejects(connection, RejectFilter(), None)
        groups = group_rejects(connection, RejectFilter())
        first = list_rejects(connection, RejectFilter(), 3)
    assert len(listed) == 6
    assert [row["excerpt"] for row in listed] == [row["raw"] for row in listed]
    assert [row["excerpt"] for row in first + groups] == [row["raw"] for row in first + groups]


def test_the_command_shows_full_codes_and_excerpts_in_a_narrow_terminal(tickets: Path, curate) -> None:
    shown = curate("rejects", COLUMNS="70").stdout
    assert "tickets.csv  empty-answer  2     line 3, 4" in shown
    assert "tickets.csv, line 3: empty-answer. Turn 2 (gpt) is empty.\n    human: When? · gpt: (empty)" in shown
    listed = curate("rejects", "--list", "--code", "ragged-row").stdout
    assert listed.splitlines()[1] == "    4,How?,So.,too,many,cells"
