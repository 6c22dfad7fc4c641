"""Lineage: from a line of a file to every version and run, and back."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl
import pytest
from support.stores import add, add_run, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.cli.views.lineage import lineage_lines
from curate.versions.freeze import freeze
from curate.versions.lineage import Lineage, RejectedRow, trace
from schemas.errors import VersionError
from schemas.recipe import check_recipe
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [chat("Hello?", "Hi."), *questions(20)], source="desk/data.csv", metadata={"ticket": 7})
    return store


def trace_store(store, query):
    with reading(store) as connection:
        return trace(connection, query)


def text(lineages):
    return "\n".join(line for lineage in lineages for line in lineage_lines(lineage))


def reject(store, row, line, closed_by=None):
    with writing(store) as connection:
        connection.execute(
            "INSERT INTO rejects VALUES ('id of desk/data.csv', ?, ?, 'empty-answer', 'Turn 2 is empty.', 'q,', ?)",
            [row, line, closed_by],
        )


def test_a_line_leads_to_its_conversation_and_the_conversation_to_its_line(store):
    (by_line,) = trace_store(store, "data.csv:2")
    (by_id,) = trace_store(store, chat("Hello?", "Hi.").id)
    assert by_line == by_id
    (origin,) = by_id.origins
    assert (origin["path"], origin["row"], origin["line"], origin["metadata"]) == ("desk/data.csv", 1, 2, {"ticket": 7})
    assert "desk/data.csv line 2 (row 1)" in text([by_id])


@pytest.mark.parametrize("command", [["trace", "desk/data.csv:2"], ["status"], ["export", "none@1", "--to", "out"]])
def test_the_store_can_be_read_on_a_platform_without_file_locks(store, command):
    code = "import sys; sys.modules['fcntl'] = None; from curate.cli.app import main; main()"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, *command, "--store", str(store)], capture_output=True, text=True, check=False
    )
    assert "fcntl" not in ran.stderr
    assert ran.returncode == (1 if command[0] == "export" else 0)  # the store has no version


@pytest.mark.parametrize("path", ["{folder}/desk/data.csv", "./desk/data.csv", "../{name}/desk/data.csv"])
def test_every_path_to_an_imported_file_is_accepted(store, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    path = path.format(folder=tmp_path, name=tmp_path.name)
    assert trace_store(store, f"{path}:2") == trace_store(store, "desk/data.csv:2")
    with pytest.raises(VersionError, match=r"desk/data\.csv has no row 99"):
        trace_store(store, f"{path}#99")
    with pytest.raises(VersionError, match=r"Nothing was imported from /elsewhere/desk/data\.csv"):
        trace_store(store, "/elsewhere/desk/data.csv:2")


def test_a_row_number_leads_to_its_conversation(store):
    assert trace_store(store, "desk/data.csv#1") == trace_store(store, "data.csv:2")


def test_a_line_inside_a_record_leads_to_the_record(store):
    with writing(store) as connection:
        connection.execute("UPDATE origins SET line = line * 3")
    assert trace_store(store, "data.csv:8") == trace_store(store, "data.csv:6")


def test_a_rejected_line_has_its_reason_and_the_file_with_the_corrected_row(store):
    add(store, [chat("Late?", "Yes.")], source="fix.csv")
    reject(store, 90, 91, closed_by="id of fix.csv")
    (row,) = trace_store(store, "data.csv:91")
    assert row == RejectedRow("desk/data.csv", 90, 91, "empty-answer", "Turn 2 is empty.", "q,", "fix.csv")
    assert "was rejected: empty-answer" in text([row])


def test_the_beginning_of_an_id_is_enough_and_an_ambiguous_one_is_an_error_with_the_candidates(store):
    one = chat("Hello?", "Hi.").id
    assert trace_store(store, one[:10].upper())[0].id == one
    with writing(store) as connection:
        copy = "INSERT INTO conversations SELECT ?, conversations, tools, parent FROM conversations LIMIT 1"
        connection.execute(copy, [one[:6] + "0" * 26])
    with pytest.raises(VersionError, match=one) as error:
        trace_store(store, one[:6])
    assert error.value.hint == "Give more digits."


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("abc", "neither an id nor a place"),
        ("ffffffffffff", "No conversation id begins"),
        ("other.csv:3", "Nothing was imported from other.csv"),
        ("data.csv:1", "No record of data.csv starts on line 1"),
        ("data.csv:23", "data.csv has no record on line 23: its last one starts on line 22"),
        ("data.csv#0", "data.csv has no row 0"),
        ("data.csv#99999", "data.csv has no row 99999"),
        ("data.csv", "neither an id nor a place"),
    ],
)
def test_a_missing_id_or_place_is_an_error(store, query, message):
    with pytest.raises(VersionError, match=message):
        trace_store(store, query)


def test_an_error_lists_ten_imported_files_and_counts_the_others(store):
    for number in range(10, 23):
        add(store, questions(1), source=f"{number}.csv")
    with pytest.raises(VersionError, match="Nothing was imported from nope") as error:
        trace_store(store, "nope.csv:5")
    assert error.value.hint == f"Imported files: {', '.join(f'{n}.csv' for n in range(10, 20))} and 4 more."


def test_a_line_with_many_records_is_an_error_that_suggests_a_row(store):
    add(store, questions(30), source="one-line.json")
    with writing(store) as connection:
        connection.execute("UPDATE origins SET line = 1 WHERE source = 'id of one-line.json'")
    with pytest.raises(VersionError, match="30 records start on line 1") as error:
        trace_store(store, "one-line.json:1")
    assert "one-line.json#1" in error.value.hint


def test_edits_scores_verdicts_reviews_and_clusters_are_listed(store):
    talk, other = questions(2)
    (edited,) = add(store, [chat("What is question 0?", "Better.")], parent=talk.id)
    add_verdict(store, talk.id, "edit", by_whom="ada", reason="wrong", edited_to=edited)
    with writing(store) as connection:
        connection.execute("ALTER TABLE scores ADD COLUMN quality DOUBLE")
        connection.execute("INSERT INTO scores VALUES (?, 0.75)", [talk.id])
        for one in (talk, other):
            connection.execute(
                "INSERT INTO clusters (conversation, method, cluster) VALUES (?, 'minhash', ?)", [one.id, talk.id]
            )
        connection.execute(
            """INSERT INTO reviews (conversation, dataset, reviewer, response, answers, status, answered_at)
               VALUES (?, 'desk', 'ada', 'r1', '{"good": "no"}', 'submitted', ?)""",
            [talk.id, datetime(2026, 1, 1, tzinfo=UTC)],
        )
    (old,), (new,) = trace_store(store, talk.id), trace_store(store, edited)
    assert (old.edits, new.parent, new.origins) == ([edited], talk.id, [])
    assert old.scores == {"quality": 0.75}
    assert (old.current_verdict["kept"], new.current_verdict["kept"]) == (False, True)
    unlike = {"nearest": None, "similarity": None, "selected": False}
    assert old.clusters == [{"method": "minhash", "cluster": talk.id, "size": 2, **unlike}]
    shown = text([old])
    assert "ada: edit to" in shown
    assert f"minhash: one of 2 in cluster {talk.id}" in shown
    assert 'ada in desk: {"good": "no"}' in shown


def test_versions_and_the_ledger_row_of_each_run_are_listed(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        for run, adapter in (("r1", tmp_path / "one"), ("r2", tmp_path / "gone")):
            add_run(connection, run, "support@1", "done", adapter)
    one = chat("Hello?", "Hi.").id
    (tmp_path / "one").mkdir()
    ledger = {
        "conversation": [one],
        "outcome": ["truncated"],
        "reason": ["too long"],
        "tokens": [12],
        "cut": [3],
        "epoch_count": [2],
    }
    pl.DataFrame(ledger).write_parquet(tmp_path / "one" / "ledger.parquet")
    (lineage,) = trace_store(store, one)
    assert [(v["version"], v["split"]) for v in lineage.versions] == [("support@1", "train")]
    assert lineage.runs[0]["ledger"]["outcome"] == "truncated"
    assert "ledger.parquet does not exist" in lineage.runs[1]["note"]
    assert (
        "r1 on support@1 (train), done: outcome truncated, reason too long, tokens 12, cut 3, trained on 2 times"
        in text([lineage])
    )


def test_an_interrupted_run_is_listed_without_a_ledger(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        add_run(connection, "r1", "support@1", "running", tmp_path / "adapters/r1")
    shown = text(trace_store(store, chat("Hello?", "Hi.").id))
    assert "r1 on support@1 (train), interrupted: a run writes its ledger when it ends" in shown


def test_every_window_of_a_divided_conversation_is_listed(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        add_run(connection, "r1", "support@1", "done", tmp_path)
    one = chat("Hello?", "Hi.").id
    ledger = {"conversation": [one, one], "window": [1, 2], "outcome": ["split", "dropped"], "tokens": [12, 99]}
    pl.DataFrame(ledger | {"epoch_count": [0, None]}).write_parquet(tmp_path / "ledger.parquet")
    (lineage,) = trace_store(store, one)
    assert [window["outcome"] for window in lineage.runs[0]["windows"]] == ["split", "dropped"]
    assert (
        "done: window 1, outcome split, tokens 12, not trained on: the run had too few steps; "
        "window 2, outcome dropped, tokens 99" in text([lineage])
    )


def test_an_unreadable_ledger_is_noted_and_not_fatal(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({}, "the test"))
        add_run(connection, "r1", "support@1", "done", tmp_path)
    (tmp_path / "ledger.parquet").write_text("not Parquet")
    assert "cannot be read" in trace_store(store, chat("Hello?", "Hi.").id)[0].runs[0]["note"]


def test_a_line_inside_a_multi_line_cell_leads_to_its_imported_row(tmp_path):
    from curate.ingest.pipeline import import_files
    from schemas.import_recipe import ImportSection

    store, file = tmp_path / "x.duckdb", tmp_path / "data.csv"
    file.write_text('question,answer,ticket\n"One\nlong\nquestion?",Yes.,a1\nTwo?,,a2\n', encoding="utf-8")
    section = ImportSection(shape="pairs", map={"question": "question", "answer": "answer"})
    import_files(store, [str(file)], section)
    (inside,) = trace_store(store, "data.csv:4")
    assert isinstance(inside, Lineage)
    assert (inside.origins[0]["line"], inside.origins[0]["metadata"]) == (2, {"ticket": "a1"})
    shown = CliRunner().invoke(app, ["trace", "data.csv:4", "--store", str(store)])
    assert "No record of data.csv starts on line 4; the last one before it starts on line 2." in shown.stderr
    (rejected,) = trace_store(store, "data.csv:5")
    assert isinstance(rejected, RejectedRow)
    assert (rejected.row, rejected.line, rejected.raw) == (2, 5, "Two?,,a2")
    assert CliRunner().invoke(app, ["trace", "data.csv:5", "--store", str(store)]).stderr == ""
    after_end = CliRunner().invoke(app, ["trace", "data.csv:6", "--store", str(store), "--json"])
    assert (after_end.exit_code, after_end.stdout) == (1, "")


def test_a_line_inside_the_last_record_leads_to_it_and_the_line_after_it_is_an_error(tmp_path):
    from curate.ingest.pipeline import import_files
    from schemas.import_recipe import ImportSection

    store, file = tmp_path / "x.duckdb", tmp_path / "data.csv"
    file.write_text('question,answer,note\nOne?,"Yes,\nyes.","a\nb"\n', encoding="utf-8")
    section = ImportSection(shape="pairs", map={"question": "question", "answer": "answer"})
    import_files(store, [str(file)], section)
    assert trace_store(store, "data.csv:4") == trace_store(store, "data.csv:2")
    with pytest.raises(VersionError, match="no record on line 5"):
        trace_store(store, "data.csv:5")


def test_a_line_after_the_end_of_a_json_array_is_an_error_while_the_file_exists(tmp_path):
    from curate.ingest.pipeline import import_files
    from schemas.import_recipe import ImportSection

    store, file = tmp_path / "x.duckdb", tmp_path / "data.json"
    rows = [{"question": f"What is {n}?", "answer": "[1]"} for n in range(2)]
    file.write_text(json.dumps(rows, indent=1) + "\n\n", encoding="utf-8")  # the last record is on lines 6 to 9
    section = ImportSection(shape="pairs", map={"question": "question", "answer": "answer"})
    import_files(store, [str(file)], section)
    assert trace_store(store, "data.json:9") == trace_store(store, "data.json:6") == trace_store(store, "data.json#2")
    for line in (10, 999):
        with pytest.raises(VersionError, match=f"no record on line {line}: its last one starts on line 6"):
            trace_store(store, f"data.json:{line}")
    file.write_text("[]", encoding="utf-8")
    assert trace_store(store, "data.json:999") == trace_store(store, "data.json#2")


def test_the_command_prints_control_characters_as_visible_symbols(store):
    add(store, [chat("a\x1b[2Jb\nruns", "c")], source="evil.csv")
    run = CliRunner()
    output = run.invoke(app, ["trace", "evil.csv:2", "--store", str(store)])
    assert output.exit_code == 0, output.output
    assert "human: a␛[2Jb\n    runs" in output.stdout
    (one,) = json.loads(run.invoke(app, ["trace", "evil.csv:2", "--store", str(store), "--json"]).stdout)
    assert one["conversations"][0]["value"] == "a\x1b[2Jb\nruns"
