"""`curate sql` and `curate status`: read-only queries as table, JSON or CSV, and the next command."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from support.stores import add, add_run, add_verdict, questions

from curate.rule_columns import FACTS, create_view, matching_query
from curate.sql import run_query
from curate.status import read_status
from schemas.errors import StoreError
from schemas.recipe import load_recipe
from schemas.store import reading, writing

ROWS = [{"prompt": f"Question {n}?", "response": f"Answer {n}."} for n in range(60)]


@pytest.fixture
def filled(tmp_path: Path, curate: Callable[..., Any]) -> Path:
    """A folder with a store of sixty conversations."""
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    assert curate("import", "rows.jsonl").returncode == 0
    return tmp_path


def test_a_query_result_is_a_table_json_or_csv(filled: Path, curate: Callable[..., Any]) -> None:
    query = "SELECT id, conversations[1] AS turn FROM conversations ORDER BY id"
    table = curate("sql", query)
    assert "40 rows are shown" in table.stderr
    assert len(json.loads(curate("sql", query, "--json").stdout)) == 60
    rows = list(csv.DictReader(io.StringIO(curate("sql", query, "--csv", "--limit", "50").stdout)))
    assert len(rows) == 50
    assert json.loads(rows[0]["turn"])["from"] == "human"


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM conversations",
        "SELECT 1; DROP TABLE conversations",
        "COPY conversations TO 'stolen.csv'",
        "ATTACH 'other.duckdb'",
        "EXPLAIN ANALYZE COPY conversations TO 'stolen.csv'",
        "PRAGMA threads = 1",
        "",
    ],
)
def test_a_query_cannot_modify_anything(filled: Path, curate: Callable[..., Any], query: str) -> None:
    files = sorted(filled.iterdir())
    ran = curate("sql", query)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Error: curate sql accepts one read-only statement")
    assert len(ran.stderr.splitlines()) == 2
    assert sorted(filled.iterdir()) == files


def test_an_invalid_query_is_an_error_with_the_message_of_duckdb(filled: Path, curate: Callable[..., Any]) -> None:
    for query, name, hint in (
        ("SELECT nothing FROM conversations c", "nothing", "curate sql 'DESCRIBE conversations' lists the columns."),
        (
            "SELECT o.nothing FROM origins o, sources",
            "nothing",
            "curate sql 'DESCRIBE origins', curate sql 'DESCR",
        ),
        ("SELECT nothing FROM rule_columns", "nothing", "curate sql 'DESCRIBE rule_columns' lists the columns."),
        ("SELECT nothing FROM nowhere", "nowhere", "curate sql --tables lists the tables, "),
        ("SELECT 1 FROM conversations JOIN origins USING (id)", '"id"', "curate sql --tables lists the tables, "),
    ):
        ran = curate("sql", query)
        assert ran.returncode == 1
        assert name in ran.stderr
        assert "bindings: :" not in ran.stderr
        assert f"  → {hint}" in ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("sign", ["\x1b[31m", "\x9b31m", "\x7f", "\u202e", "\u2066"])
def test_control_characters_in_data_have_no_effect_on_the_terminal(
    filled: Path, curate: Callable[..., Any], sign: str
) -> None:
    query = f"SELECT '{sign}evil' AS cell"
    assert sign not in curate("sql", query).stdout
    as_json = curate("sql", query, "--json").stdout
    assert sign not in as_json
    assert json.loads(as_json) == [{"cell": f"{sign}evil"}]
    for command in (["rejects", "--source", sign], ["trace", f"{sign}:1"], ["export", f"{sign}@1", "--to", "x"]):
        ran = curate(*command)
        assert ran.returncode == 1
        assert sign not in ran.stderr


def test_a_terminal_with_another_encoding_shows_escapes(filled: Path, curate: Callable[..., Any]) -> None:
    ran = curate("sql", "SELECT 'ü…' AS cell", PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\\xfc\\u2026" in ran.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["status", "--store", "\udcff.db"],
        ["trace", "\udcff"],
        ["sql", "SELECT '\udcff'"],
        ["select", "--where", "\udcff"],
        ["import", "\udcff.csv"],
        ["score", "--set=train.model=\udcff"],
        ["\udcff"],
    ],
    ids=ascii,
)
def test_arguments_that_are_not_utf_8_are_an_error_before_anything_is_written(
    filled: Path, curate: Callable[..., Any], command: list[str]
) -> None:
    (filled / "\udcff.csv").write_text("question,answer\nWhy?,Because.\n")
    before = sorted(filled.iterdir())
    ran = curate(*command)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.match(r"Error: This argument is not UTF-8: .*\\udcff.*\.\n  → ", ran.stderr)
    assert len(ran.stderr.splitlines()) == 2
    assert sorted(filled.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_output_to_a_full_disk_is_an_error(filled: Path, options: list[str]) -> None:
    command = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", "status", *options]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(command, cwd=filled, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 2)
    assert ran.stderr.startswith("Error: The output cannot be written: the disk is full.")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["import", ""], "A file name is empty."),
        (["status", "--store", ""], "The path of the store is empty."),
        (["status", "--store", "nowhere/x.db"], "The folder nowhere for the store does not exist."),
        (["score", "--why", ""], "The id is empty."),
        (
            [
                "import",
                "rows.jsonl",
                *["--group-by", "prompt", "--order-by", "response", "--role", "prompt", "--text", "prompt"],
            ],
            "rows.jsonl: The columns prompt, response do not fit long",
        ),
        (["select", "--where", "left(prompt, 99999999999) = 'x'"], ""),
        (["select", "--where", " or ".join(f"words = {n}" for n in range(3000))], ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_argument_is_an_error_of_two_short_lines(
    filled: Path, curate: Callable[..., Any], command: list[str], message: str
) -> None:
    if command[0] == "score":
        assert curate("score").returncode == 0
    ran = curate(*command)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"Error: {message}")
    assert len(ran.stderr.splitlines()) == 2
    assert len(ran.stderr) < 1000
    assert "try_cast" not in ran.stderr


def test_two_columns_with_the_same_name_are_both_shown(filled: Path, curate: Callable[..., Any]) -> None:
    query = "SELECT x.i AS id, y.i AS id FROM range(2) x(i), range(5, 6) y(i) ORDER BY ALL"
    assert json.loads(curate("sql", query, "--json").stdout) == [{"id": 0, "id_2": 5}, {"id": 1, "id_2": 5}]
    assert curate("sql", query, "--csv").stdout.splitlines() == ["id,id_2", "0,5", "1,5"]
    table = [line.split() for line in curate("sql", query).stdout.splitlines()]
    assert [row for row in table if row in (["id", "id_2"], ["0", "5"])] == [["id", "id_2"], ["0", "5"]]


@pytest.mark.parametrize("output", [(), ("--json",), ("--csv",)], ids=str)
@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("SELECT TIMESTAMPTZ '2026-03-01 12:00:00+00' AS at", "2026-03-01T12:00:00.000000Z"),
        ("SELECT [{'zone': TIMESTAMPTZ '2026-03-01 12:00:00+00'}] AS at; -- in a list", "2026-03-01 12:00:00+00"),
        ("SELECT imported_at FROM sources", "Z"),
        ("SELECT * FROM migrations ORDER BY number LIMIT 1", "Z"),
        ("FROM verdicts", ""),
        ("SUMMARIZE versions", "frozen_at"),
    ],
)
def test_a_timestamp_with_a_zone_is_shown(
    filled: Path, curate: Callable[..., Any], query: str, shown: str, output: tuple[str, ...]
) -> None:
    ran = curate("sql", query, *output, TZ="UTC", COLUMNS="200")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert shown in ran.stdout


@pytest.mark.parametrize("output", [(), ("--json",), ("--csv",)], ids=str)
@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("SELECT INTERVAL 99999999 YEARS AS span", "99999999 years"),
        ("SELECT [{'INTERVAL': INTERVAL 1 MONTH}] AS span", "1 month"),
        ("SELECT MAP {INTERVAL 1 YEAR: 2} AS span", "1 year"),
    ],
)
def test_an_interval_of_any_length_is_shown(
    filled: Path, curate: Callable[..., Any], query: str, shown: str, output: tuple[str, ...]
) -> None:
    ran = curate("sql", query, *output)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert shown in ran.stdout


@pytest.mark.parametrize("name", ["statements", "connection", "relation", "query", "duckdb"])
def test_a_query_reads_tables_and_not_python_variables(filled: Path, curate: Callable[..., Any], name: str) -> None:
    ran = curate("sql", f"FROM {name}")
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"Error: Catalog Error: Table with name {name} does not exist!")


@pytest.mark.parametrize("output", ["--json", "--csv"])
def test_a_query_that_fails_after_the_first_rows_is_an_error(
    filled: Path, curate: Callable[..., Any], output: str
) -> None:
    late = "SELECT CAST(if(i < 90000, '1', 'one') AS INTEGER) AS n FROM range(100000) t(i)"
    ran = curate("sql", late, output)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: Conversion Error: Could not convert string 'one'")
    assert "Traceback" not in ran.stderr


def test_the_status_shows_contents_and_the_next_command(filled: Path, curate: Callable[..., Any]) -> None:
    shown = curate("status").stdout
    assert "60 conversations from 1 file" in shown
    assert "Next: curate score" in shown
    status = json.loads(curate("status", "--json").stdout)
    assert status["counts"]["kept"] == 60
    assert status["sources"][0]["rows_read"] == 60


@pytest.mark.parametrize(
    ("runs", "next_command"),
    [
        ([], "curate plan desk@2 --model FOLDER"),
        ([("desk@2", "running"), ("desk@2", "failed"), ("desk@1", "done")], "curate plan desk@2 --model FOLDER"),
        ([("desk@2", "done"), ("desk@2", "running"), ("desk@1", "done")], "curate verify r1"),
        ([("desk@2", "done"), ("desk@2", "done"), ("desk@2", "failed")], "curate verify r2"),
    ],
)
def test_the_next_command_verifies_the_latest_finished_run(
    tmp_path: Path, runs: list[tuple[str, str]], next_command: str
) -> None:
    (talk,) = add(tmp_path / "x.duckdb", questions(1))
    add_verdict(tmp_path / "x.duckdb", talk, "keep")
    with writing(tmp_path / "x.duckdb") as connection:
        connection.execute("INSERT INTO scores SELECT id FROM conversations")
        for number in (1, 2):
            connection.execute(
                """INSERT INTO versions (version, name, number, digest, recipe, counts)
                   VALUES ('desk@' || $1, 'desk', $1, 'd', '{}', '{}')""",
                [number],
            )
            connection.execute("INSERT INTO members VALUES ('desk@' || $1, $2, 'train', 1)", [number, talk])
        for number, (version, status) in enumerate(runs, 1):
            add_run(connection, f"r{number}", version, status, f"adapters/r{number}")
        assert read_status(connection)["next"] == next_command


def test_the_status_shows_the_partial_folder_of_an_interrupted_run(tmp_path: Path) -> None:
    adapter = tmp_path / "adapters" / "r1"
    (tmp_path / "adapters" / "r1.partial").mkdir(parents=True)
    with writing(tmp_path / "x.duckdb") as connection:
        add_run(connection, "r1", "desk@1", "interrupted", adapter)
        assert read_status(connection)["runs"][0]["adapter"] == f"{adapter}.partial"


def test_the_next_command_is_select_or_freeze_after_a_change(filled: Path, curate: Callable[..., Any]) -> None:
    def next_after(*arguments: str) -> str:
        ran = curate(*arguments)
        assert ran.returncode == 0, ran.stderr
        return str(json.loads(curate("status", "--json").stdout)["next"])

    short = "--set=select.rules.short=answer_words < 9"
    curate("score")
    assert next_after("select", short) == "curate freeze NAME"
    assert next_after("freeze", "desk", short) == "curate plan desk@1 --model FOLDER"
    assert next_after("select", short, "--set=select.rules.long=answer_words < 99") == "curate freeze desk"
    assert next_after("select", short) == "curate plan desk@1 --model FOLDER"
    with writing(filled / "curate.duckdb") as connection:
        ((one,),) = connection.execute("SELECT min(id) FROM conversations").fetchall()
    add_verdict(filled / "curate.duckdb", one, "drop")
    assert next_after("status") == "curate freeze desk"
    (filled / "more.jsonl").write_text(json.dumps({"prompt": "New?", "response": "Yes."}) + "\n", encoding="utf-8")
    assert next_after("import", "more.jsonl") == "curate score"
    assert next_after("score") == "curate select"


def test_the_status_of_a_missing_store_is_an_error(curate: Callable[..., Any]) -> None:
    ran = curate("status")
    assert ran.returncode == 1
    assert "curate import" in ran.stderr


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS one; -- an end",
        "SELECT 1 AS one -- no end",
        "SELECT one FROM (SELECT 1 AS one); /* ; */ -- ;",
        "/* ; */ SELECT 1 AS one;;",
        "SELECT 1 AS one, -- ;\n;",
    ],
)
def test_a_query_may_end_with_semicolons_and_comments(filled: Path, curate: Callable[..., Any], query: str) -> None:
    assert json.loads(curate("sql", query, "--json").stdout) == [{"one": 1}]


RATED = [
    {
        "prompt": "Why is the sky blue?",
        "response": "Because small particles in the air scatter blue light most.",
        "rating": "4",
        "Rating": "a",
    },
    {
        "prompt": "why is the sky blue",
        "response": "Because small particles in the air scatter blue light most.",
        "rating": "n/a",
        "my col": "x",
    },
    {"prompt": "Say nothing.", "response": "I cannot help with that.", "quality": "poor", "meta": "m"},
]


@pytest.fixture
def rated(tmp_path: Path, curate: Callable[..., Any]) -> Path:
    """A store with scores, a near-duplicate pair, and columns that have the names of others."""
    (tmp_path / "rated.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in RATED), encoding="utf-8")
    for command in (["import", "rated.jsonl"], ["score"], ["dedup", "--set=dedup.similarity=0.5"]):
        assert curate(*command).returncode == 0
    return tmp_path / "curate.duckdb"


def test_the_view_of_rules_has_for_every_name_the_values_that_a_rule_reads(rated: Path) -> None:
    recipe = load_recipe(None, ["dedup.similarity=0.5"])
    with reading(rated) as connection:
        create_view(connection, recipe)
        described = connection.sql("DESCRIBE rule_columns").fetchall()
        names = {name: name for name, *_ in described if name != "meta"}
        names |= {f"meta.{key}": f"meta.{key}" for key in ("rating_2", "Rating", '"my col"', "quality", "meta")}
        names |= {"rating_2": "rating", "meta.rating_2": "meta.rating", '"my col"': '"my col"'}
        names.pop("my col")
        assert {*FACTS, "near_duplicate", "quality", "language", "Rating", "rating_2"} <= names.keys()
        for column, name in names.items():
            values = connection.sql(f"SELECT DISTINCT CAST({column} AS VARCHAR) FROM rule_columns").fetchall()
            for (value,) in values:
                condition = "IS NULL" if value is None else f"= '{value}'"
                rule = matching_query(connection, recipe, f"CAST({name} AS VARCHAR) {condition}")
                seen = f"SELECT id FROM rule_columns WHERE CAST({column} AS VARCHAR) {condition}"
                assert connection.sql(f"({rule}) EXCEPT ({seen})").fetchall() == [], name
                assert connection.sql(f"({seen}) EXCEPT ({rule})").fetchall() == [], name


def test_the_view_of_rules_is_listed_and_has_the_scores_of_the_recipe(rated: Path, curate: Callable[..., Any]) -> None:
    def column(name: str, *options: str) -> list[object]:
        ran = curate("sql", f"SELECT {name} AS value FROM rule_columns ORDER BY id", "--json", *options)
        return [row["value"] for row in json.loads(ran.stdout)]

    assert "rule_columns" in curate("sql", "SHOW TABLES").stdout
    assert sorted(column("near_duplicate")) == [False, False, True]
    assert len(set(column("quality"))) == 2
    strict = "--set=score.quality.penalties.refusal.weight=1.0"
    missing = curate("sql", "SELECT quality FROM rule_columns", strict)
    assert (missing.returncode, "quality" in missing.stderr) == (1, True)
    assert curate("score", strict).returncode == 0
    assert min(column("quality", strict)) < min(column("quality"))


def test_near_duplicates_are_null_in_the_view_until_they_are_computed(filled: Path, curate: Callable[..., Any]) -> None:
    query = "SELECT count(*) AS n, count(near_duplicate) AS known, count(answer) AS answers FROM rule_columns"
    assert json.loads(curate("sql", query, "--json").stdout) == [{"n": 60, "known": 0, "answers": 60}]


@pytest.mark.parametrize(
    "query", ["SHOW TABLES", "/* tables */ SHOW TABLES", "SELECT * FROM (SHOW TABLES)", "SHOW ALL TABLES"]
)
def test_show_tables_lists_the_tables_of_the_store_only(filled: Path, curate: Callable[..., Any], query: str) -> None:
    ran = curate("sql", query, "--json")
    names = {row["name"] for row in json.loads(ran.stdout)}
    assert {"conversations", "current_verdicts", "rule_columns"} <= names
    assert {name for name in names if " " in name} == set()
    assert all(curate("sql", f'SELECT count(*) FROM "{name}"').returncode == 0 for name in sorted(names)[:3])


OUTSIDE = [
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "SELECT * FROM read_duckdb('other.duckdb')",
    "SELECT * FROM sqlite_scan('{file}', 't')",
    "SELECT * FROM query('FROM read_text(''{file}'')')",
    "SELECT * FROM query_table('{file}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{file}'')'))",
    "SELECT getenv('CURATE_SECRET')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM enable_logging(storage = 'file')",
    "SELECT * FROM made_elsewhere",
    "SELECT * FROM macro_made_elsewhere()",
    "SELECT * FROM statements",
]
"""Queries that would read a file, the network, the environment, or a variable of the function that runs them."""


def test_a_query_reads_nothing_but_the_store(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_SECRET", "confidential")
    monkeypatch.setenv("HOME", str(filled))
    monkeypatch.chdir(filled)
    Path("secret.csv").write_text("name\nconfidential\n")
    duckdb.connect("other.duckdb").execute("CREATE TABLE t AS SELECT 'confidential' AS name").close()
    with duckdb.connect("curate.duckdb") as store:
        store.execute("CREATE VIEW made_elsewhere AS FROM read_text('secret.csv')")
        store.execute("CREATE MACRO macro_made_elsewhere() AS TABLE FROM read_text('secret.csv')")
    files = sorted(filled.rglob("*"))
    for query in OUTSIDE:
        with (
            reading(Path("curate.duckdb")) as connection,
            pytest.raises(StoreError) as caught,
        ):
            list(run_query(connection, query.format(file="secret.csv")).rows)
        assert "confidential" not in str(caught.value)
    assert sorted(filled.rglob("*")) == files


def test_files_are_read_with_an_explicit_option(filled: Path, curate: Callable[..., Any]) -> None:
    (filled / "labels.csv").write_text("name\ngood\n")
    ran = curate("sql", "SELECT name FROM 'labels.csv'", "--allow-files", "--json")
    assert json.loads(ran.stdout) == [{"name": "good"}]
    assert "--allow-files" in curate("sql", "SELECT name FROM 'labels.csv'").stderr
    assert curate("sql", "ATTACH 'x.duckdb'", "--allow-files").returncode == 1
    assert curate("sql", "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')", "--allow-files").returncode == 1


def test_a_view_of_a_received_store_reads_no_files(filled: Path, curate: Callable[..., Any]) -> None:
    (filled / "secret.txt").write_text("confidential")
    with duckdb.connect(str(filled / "curate.duckdb")) as store:
        for view in ("current_verdicts", "removed_conversations"):
            columns = "content AS conversation, true AS kept, 'rule' AS by_whom, content AS reason"
            store.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT {columns} FROM read_text('secret.txt')")
    for command in (["status"], ["select", "--where", "turns > 0"], ["freeze", "stolen"]):
        ran = curate(*command)
        assert "confidential" not in ran.stdout + ran.stderr
        assert (command, ran.returncode, len(ran.stderr.splitlines())) == (command, 1, 2)
        assert "secret.txt" in ran.stderr


def test_tables_are_explained_and_no_name_has_a_blank(filled: Path, curate: Callable[..., Any]) -> None:
    explained = json.loads(curate("sql", "--tables", "--json").stdout)
    listed = {row["name"] for row in json.loads(curate("sql", "SHOW TABLES", "--json").stdout)}
    assert {row["table"] for row in explained} == listed
    assert all(row["content"].endswith(".") for row in explained)
    assert [name for name in listed if not name.isidentifier()] == []
    ran = curate("sql")
    assert (ran.returncode, "Give a query, or --tables" in ran.stderr) == (2, True)
