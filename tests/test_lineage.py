"""Tracing: from a line of a file to every version and training, and back."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl
import pytest
from support.stores import add, chat, questions, say
from typer.testing import CliRunner

from curate.cli.app import app
from curate.versions.freeze import freeze
from curate.versions.lineage import Journey, Refused, trace
from schemas.errors import VersionError
from schemas.recipe import check_recipe
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path):
    store = tmp_path / "x.duckdb"
    add(store, [chat("Hello?", "Hi."), *questions(20)], source="desk/data.csv", metadata={"ticket": 7})
    return store


def traced(store, what):
    with reading(store) as connection:
        return trace(connection, what)


def text(found):
    return "\n".join(line for one in found for line in one.lines())


def reject(store, row, line, closed_by=None):
    with writing(store) as connection:
        connection.execute(
            "INSERT INTO rejects VALUES ('id of desk/data.csv', ?, ?, 'empty-answer', 'Turn 2 is empty.', 'q,', ?)",
            [row, line, closed_by],
        )


def test_a_line_leads_to_its_conversation_and_the_conversation_to_its_line(store):
    (by_line,) = traced(store, "data.csv:2")
    (by_id,) = traced(store, chat("Hello?", "Hi.").id)
    assert by_line == by_id
    (origin,) = by_id.origins
    assert (origin["path"], origin["row"], origin["line"], origin["metadata"]) == ("desk/data.csv", 1, 2, {"ticket": 7})
    assert "desk/data.csv line 2 (row 1)" in text([by_id])


@pytest.mark.parametrize("asked", [["trace", "desk/data.csv:2"], ["status"], ["export", "none@1", "--to", "out"]])
def test_where_there_are_no_locks_the_store_can_be_asked_all_the_same(store, asked):
    code = "import sys; sys.modules['fcntl'] = None; from curate.cli.app import main; main()"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, *asked, "--store", str(store)], capture_output=True, text=True, check=False
    )
    assert "fcntl" not in ran.stderr
    assert ran.returncode == (1 if asked[0] == "export" else 0)  # there is no version yet


@pytest.mark.parametrize("way", ["{folder}/desk/data.csv", "./desk/data.csv", "../{name}/desk/data.csv"])
def test_every_way_to_the_file_that_was_imported_is_taken(store, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    named = way.format(folder=tmp_path, name=tmp_path.name)
    assert traced(store, f"{named}:2") == traced(store, "desk/data.csv:2")
    with pytest.raises(VersionError, match=r"desk/data\.csv has no row 99"):
        traced(store, f"{named}#99")
    with pytest.raises(VersionError, match=r"Nothing was imported from /elsewhere/desk/data\.csv"):
        traced(store, "/elsewhere/desk/data.csv:2")


def test_a_row_number_leads_there_too(store):
    assert traced(store, "desk/data.csv#1") == traced(store, "data.csv:2")


def test_a_line_inside_a_record_leads_to_the_record(store):
    with writing(store) as connection:
        connection.execute("UPDATE origins SET line = line * 3")
    assert traced(store, "data.csv:8") == traced(store, "data.csv:6")


def test_a_rejected_line_is_found_with_its_reason_and_the_file_that_mended_it(store):
    add(store, [chat("Late?", "Yes.")], source="fix.csv")
    reject(store, 90, 91, closed_by="id of fix.csv")
    (found,) = traced(store, "data.csv:91")
    assert found == Refused("desk/data.csv", 90, 91, "empty-answer", "Turn 2 is empty.", "q,", "fix.csv")
    assert "was rejected: empty-answer" in text([found])


def test_the_beginning_of_an_id_is_enough_and_an_ambiguous_one_lists_the_candidates(store):
    one = chat("Hello?", "Hi.").id
    assert traced(store, one[:10].upper())[0].id == one
    with writing(store) as connection:
        copy = "INSERT INTO conversations SELECT ?, conversations, tools, parent FROM conversations LIMIT 1"
        connection.execute(copy, [one[:6] + "0" * 26])
    with pytest.raises(VersionError, match=one) as several:
        traced(store, one[:6])
    assert several.value.hint == "Give more digits."


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("abc", "neither an id nor a place"),
        ("ffffffffffff", "No conversation's id begins"),
        ("other.csv:3", "Nothing was imported from other.csv"),
        ("data.csv:1", "No record of data.csv starts on line 1"),
        ("data.csv:23", "data.csv has no record on line 23: its last one starts on line 22"),
        ("data.csv#0", "data.csv has no row 0"),
        ("data.csv#99999", "data.csv has no row 99999"),
        ("data.csv", "neither an id nor a place"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(store, what, said):
    with pytest.raises(VersionError, match=said):
        traced(store, what)


def test_of_many_imported_files_the_first_are_named_and_the_others_counted(store):
    for number in range(10, 23):
        add(store, questions(1), source=f"{number}.csv")
    with pytest.raises(VersionError, match="Nothing was imported from nope") as error:
        traced(store, "nope.csv:5")
    assert error.value.hint == f"Imported were {', '.join(f'{n}.csv' for n in range(10, 20))} and 4 more."


def test_a_line_with_very_many_records_asks_for_a_row(store):
    add(store, questions(30), source="one-line.json")
    with writing(store) as connection:
        connection.execute("UPDATE origins SET line = 1 WHERE source = 'id of one-line.json'")
    with pytest.raises(VersionError, match="30 records start on line 1") as many:
        traced(store, "one-line.json:1")
    assert "one-line.json#1" in many.value.hint


def test_edits_scores_verdicts_reviews_and_clusters_are_told(store):
    talk, other = questions(2)
    (edited,) = add(store, [chat("What is question 0?", "Better.")], parent=talk.id)
    say(store, talk.id, "edit", by_whom="ada", reason="wrong", edited_to=edited)
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
    (old,), (new,) = traced(store, talk.id), traced(store, edited)
    assert (old.edits, new.parent, new.origins) == ([edited], talk.id, [])
    assert old.scores == {"quality": 0.75}
    assert (old.standing["kept"], new.standing["kept"]) == (False, True)
    assert old.clusters == [{"method": "minhash", "cluster": talk.id, "nearest": None, "similarity": None, "size": 2}]
    shown = text([old])
    assert "ada: edit to" in shown
    assert f"minhash: one of 2 around {talk.id}" in shown
    assert 'ada in desk: {"good": "no"}' in shown


def test_versions_and_the_fate_in_each_training_are_told(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        for run, adapter in (("r1", tmp_path / "one"), ("r2", tmp_path / "gone")):
            connection.execute(
                "INSERT INTO runs VALUES (?, 'support@1', 'd', ?, NULL, 'done', '{}', '{}', now(), now())",
                [run, str(adapter)],
            )
    one = chat("Hello?", "Hi.").id
    (tmp_path / "one").mkdir()
    ledger = {
        "conversation": [one],
        "fate": ["truncated"],
        "reason": ["too long"],
        "tokens": [12],
        "cut": [3],
        "seen": [2],
    }
    pl.DataFrame(ledger).write_parquet(tmp_path / "one" / "ledger.parquet")
    (found,) = traced(store, one)
    assert [(v["version"], v["split"]) for v in found.versions] == [("support@1", "train")]
    assert found.runs[0]["ledger"]["fate"] == "truncated"
    assert "ledger.parquet is not there" in found.runs[1]["note"]
    assert "r1 on support@1 (train), done: fate truncated, reason too long, tokens 12, cut 3, seen 2 times" in text(
        [found]
    )


def test_of_a_run_that_was_cut_off_it_is_said_that_it_has_no_ledger_yet(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        connection.execute(
            "INSERT INTO runs VALUES ('r1', 'support@1', 'd', ?, NULL, 'running', '{}', '{}', now(), NULL)",
            [str(tmp_path / "adapters/r1")],
        )
    shown = text(traced(store, chat("Hello?", "Hi.").id))
    assert "r1 on support@1 (train), interrupted: a run writes its ledger when it ends" in shown


def test_every_window_of_a_conversation_that_was_split_is_told(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({"freeze": {"held_out": 0}}, "the test"))
        connection.execute(
            "INSERT INTO runs VALUES ('r1', 'support@1', 'd', ?, NULL, 'done', '{}', '{}', now(), now())",
            [str(tmp_path)],
        )
    one = chat("Hello?", "Hi.").id
    ledger = {"conversation": [one, one], "window": [1, 2], "fate": ["split", "dropped"], "tokens": [12, 99]}
    pl.DataFrame(ledger | {"seen": [0, None]}).write_parquet(tmp_path / "ledger.parquet")
    (found,) = traced(store, one)
    assert [window["fate"] for window in found.runs[0]["windows"]] == ["split", "dropped"]
    assert "done: window 1, fate split, tokens 12, not reached by its steps; window 2, fate dropped, tokens 99" in text(
        [found]
    )


def test_a_ledger_that_is_no_parquet_is_noted_not_fatal(store, tmp_path):
    with writing(store) as connection:
        freeze(connection, "support", check_recipe({}, "the test"))
        connection.execute(
            "INSERT INTO runs VALUES ('r1', 'support@1', 'd', ?, NULL, 'done', '{}', '{}', now(), now())",
            [str(tmp_path)],
        )
    (tmp_path / "ledger.parquet").write_text("no parquet")
    assert "cannot be read" in traced(store, chat("Hello?", "Hi.").id)[0].runs[0]["note"]


def test_a_real_import_is_traced_from_a_line_inside_a_multi_line_cell(tmp_path):
    from curate.ingest.pipeline import import_files
    from schemas.recipe import ImportSection

    store, file = tmp_path / "x.duckdb", tmp_path / "data.csv"
    file.write_text('question,answer,ticket\n"One\nlong\nquestion?",Yes.,a1\nTwo?,,a2\n', encoding="utf-8")
    import_files(store, [str(file)], ImportSection())
    (inside,) = traced(store, "data.csv:4")
    assert isinstance(inside, Journey)
    assert (inside.origins[0]["line"], inside.origins[0]["metadata"]) == (2, {"ticket": "a1"})
    shown = CliRunner().invoke(app, ["trace", "data.csv:4", "--store", str(store)])
    assert "No record of data.csv starts on line 4; the last one before it starts on line 2." in shown.stderr
    (refused,) = traced(store, "data.csv:5")
    assert isinstance(refused, Refused)
    assert (refused.row, refused.line, refused.raw) == (2, 5, "Two?,,a2")
    assert CliRunner().invoke(app, ["trace", "data.csv:5", "--store", str(store)]).stderr == ""
    behind = CliRunner().invoke(app, ["trace", "data.csv:6", "--store", str(store), "--json"])
    assert (behind.exit_code, behind.stdout) == (1, "")


def test_a_line_inside_the_last_record_leads_to_it_and_the_line_behind_it_to_nothing(tmp_path):
    from curate.ingest.pipeline import import_files
    from schemas.recipe import ImportSection

    store, file = tmp_path / "x.duckdb", tmp_path / "data.csv"
    file.write_text('question,answer,note\nOne?,"Yes,\nyes.","a\nb"\n', encoding="utf-8")
    import_files(store, [str(file)], ImportSection())
    assert traced(store, "data.csv:4") == traced(store, "data.csv:2")
    with pytest.raises(VersionError, match="no record on line 5"):
        traced(store, "data.csv:5")


def test_a_line_behind_the_end_of_an_array_of_json_leads_to_nothing_while_the_file_is_there(tmp_path):
    from curate.ingest.pipeline import import_files
    from schemas.recipe import ImportSection

    store, file = tmp_path / "x.duckdb", tmp_path / "data.json"
    rows = [{"question": f"What is {n}?", "answer": "[1]"} for n in range(2)]
    file.write_text(json.dumps(rows, indent=1) + "\n\n", encoding="utf-8")  # the last record is on lines 6 to 9
    import_files(store, [str(file)], ImportSection())
    assert traced(store, "data.json:9") == traced(store, "data.json:6") == traced(store, "data.json#2")
    for line in (10, 999):
        with pytest.raises(VersionError, match=f"no record on line {line}: its last one starts on line 6"):
            traced(store, f"data.json:{line}")
    file.write_text("[]", encoding="utf-8")
    assert traced(store, "data.json:999") == traced(store, "data.json#2")


def test_the_command_shows_control_characters_and_does_not_obey_them(store):
    add(store, [chat("a\x1b[2Jb\nruns", "c")], source="evil.csv")
    run = CliRunner()
    seen = run.invoke(app, ["trace", "evil.csv:2", "--store", str(store)])
    assert seen.exit_code == 0, seen.output
    assert "human: a␛[2Jb\n    runs" in seen.stdout
    (one,) = json.loads(run.invoke(app, ["trace", "evil.csv:2", "--store", str(store), "--json"]).stdout)
    assert one["conversations"][0]["value"] == "a\x1b[2Jb\nruns"
