"""Opening a store: files that are not stores are rejected, unchanged, and without network access."""

import sqlite3

import duckdb
import pytest

from schemas import store
from schemas.errors import StoreError
from schemas.migrations import MIGRATIONS, field_terms, sequence_numbers
from schemas.store import reading, writing
from schemas.views import VIEWS

OPENERS = {"reading": reading, "writing": writing}


def open_error(opener, path):
    with pytest.raises(StoreError) as caught, OPENERS[opener](path):
        pass
    return caught.value.what


def make_sqlite(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE sources (a int)")
    connection.commit()
    connection.close()


FOREIGN_FILES = {
    "rows.csv": lambda path: path.write_text("question,answer\nWhy?,Because.\n"),
    "rows.json": lambda path: path.write_text('[{"question": "Why?", "answer": "Because."}]'),
    "notes.db": make_sqlite,
    "empty.duckdb": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_a_file_of_another_kind_is_rejected_and_unchanged(tmp_path, name, opener):
    FOREIGN_FILES[name](tmp_path / name)
    before = None if (tmp_path / name).is_dir() else (tmp_path / name).read_bytes()
    assert open_error(opener, tmp_path / name) == f"{tmp_path / name} is not a curate store: it is not a DuckDB file."
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert before is None or (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", [":memory:", "sqlite:x", "md:x", "postgres:x"])
def test_a_store_name_that_duckdb_would_interpret_is_a_file_name(tmp_path, curate, name):
    (tmp_path / "rows.csv").write_text("question,answer\nWhy?,Because.\n")
    ran = curate("import", "rows.csv", "--store", name)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / name).read_bytes()[8:12] == b"DUCK"
    assert "1 conversation from 1 file" in curate("status", "--store", name).stdout


FOREIGN_TABLES = [
    "CREATE TABLE notes (number INTEGER)",
    "CREATE TABLE migrations (a INTEGER)",
    "CREATE TABLE migrations (number VARCHAR)",
    "CREATE VIEW conversations AS SELECT 1 AS id",
    "CREATE VIEW migrations AS SELECT 3 AS number, 'version_tables' AS name",
    "CREATE SCHEMA other; CREATE TABLE other.migrations (number INTEGER)",
    "CREATE TABLE migrations AS SELECT 3 AS number, 'version_tables' AS name",
    "CREATE TABLE sources (a INTEGER); CREATE TABLE conversations (a INTEGER); CREATE TABLE migrations (a INTEGER)",
    "CREATE TABLE sources (a INTEGER); CREATE TABLE conversations (a INTEGER);"
    "CREATE TABLE migrations AS SELECT 3 AS number, 'third' AS name",
]


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("statements", FOREIGN_TABLES)
def test_a_foreign_duckdb_file_is_rejected_and_unchanged_even_with_our_table_names(tmp_path, statements, opener):
    path = tmp_path / "x.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(statements)
    before = path.read_bytes()
    message = open_error(opener, path)
    assert message.startswith(f"{path} is a DuckDB file with other tables (")
    assert message.endswith("), not a curate store.")
    assert path.read_bytes() == before


def test_a_store_of_a_newer_release_is_rejected(tmp_path):
    path = tmp_path / "x.duckdb"
    with writing(path) as connection:
        connection.execute("INSERT INTO migrations (number, name) VALUES (?, 'later')", [len(MIGRATIONS) + 1])
    for opener in OPENERS:
        assert open_error(opener, path).startswith(f"The store {path} was written by a newer release")


OLD_VIEWS = """
    CREATE VIEW standing AS SELECT id AS conversation, true AS kept, 'rule' AS by_whom, '' AS reason FROM conversations;
    CREATE VIEW opinions AS SELECT * FROM reviews;
    CREATE VIEW latest_reviews AS SELECT * FROM reviews;
"""
OLD_ROWS = """
    INSERT INTO conversations VALUES ('c1',
        [{'from': 'human', 'value': 'Hi', 'train': true, 'tool_call_id': NULL}], NULL, NULL);
    INSERT INTO origins VALUES ('s1', 1, 2, 'c1', false, NULL, ['trailing-user'], 'Hi');
    INSERT INTO verdicts (conversation, verdict, reason, by_whom) VALUES ('c1', 'drop', 'rude', 'ann');
    INSERT INTO reviews (conversation, dataset, reviewer, response, answers, status, answered_at)
        VALUES ('c1', 'desk', 'ann', 'r', '{}', 'submitted', '2026-01-02');
"""


def test_a_store_of_an_earlier_release_is_migrated_and_keeps_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "curate.duckdb"
    with monkeypatch.context() as earlier:
        earlier.setattr(store, "MIGRATIONS", MIGRATIONS[: MIGRATIONS.index(field_terms)])
        earlier.setattr(store, "create_views", lambda _: None)
        with writing(path) as connection:
            connection.execute(OLD_VIEWS)
            connection.execute(OLD_ROWS)
    with reading(path) as connection:
        assert connection.sql("SELECT repairs FROM origins").fetchall() == [(["trailing-user"],)]
        verdicts = connection.sql("SELECT conversation, kept, by_whom, reason FROM current_verdicts").fetchall()
        assert verdicts == [("c1", False, "ann", "rude")]
        assert connection.sql("SELECT conversation, reviewer FROM current_answers").fetchall() == [("c1", "ann")]
        views = connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        assert {view for (view,) in views} == set(VIEWS)


def test_the_rows_of_an_earlier_release_keep_their_order_and_new_rows_are_later(tmp_path, monkeypatch):
    path = tmp_path / "curate.duckdb"
    with monkeypatch.context() as earlier:
        earlier.setattr(store, "MIGRATIONS", MIGRATIONS[: MIGRATIONS.index(sequence_numbers)])
        earlier.setattr(store, "create_views", lambda _: None)
        with writing(path) as connection:
            connection.execute("""
                INSERT INTO conversations VALUES ('c1', [], NULL, NULL);
                INSERT INTO verdicts (conversation, verdict, reason, by_whom, decided_at) VALUES
                    ('c1', 'drop', 'second', 'ann', '2026-01-03'), ('c1', 'keep', 'first', 'ann', '2026-01-01');
                INSERT INTO selections VALUES ('s1', '{}', '{}', '2026-01-02');
            """)
    with writing(path) as connection:
        numbers = "SELECT reason, seq FROM verdicts UNION ALL SELECT selection, seq FROM selections ORDER BY seq"
        assert connection.sql(numbers).fetchall() == [("first", 1), ("s1", 2), ("second", 3)]
        assert connection.sql("SELECT reason FROM current_verdicts").fetchall() == [("second",)]
        connection.execute(
            """INSERT INTO verdicts (conversation, verdict, reason, by_whom, decided_at)
               VALUES ('c1', 'keep', 'third', 'ann', '2020-01-01')"""
        )
        assert connection.sql("SELECT reason FROM current_verdicts").fetchall() == [("third",)]


def test_a_damaged_page_is_an_error_of_each_command_that_reads_it(tmp_path, curate):
    rows = "".join(f'{{"question": "Question {n}?", "answer": "Answer {n * 7919}."}}\n' for n in range(3000))
    (tmp_path / "rows.jsonl").write_text(rows)
    assert curate("import", "rows.jsonl").returncode == 0
    whole = (tmp_path / "curate.duckdb").read_bytes()
    first_page, page = 3 * 4096, 262144
    for start in range(first_page, len(whole), page):
        whole = whole[:start] + bytes([whole[start] ^ 255]) + whole[start + 1 :]  # the checksum of each page
    (tmp_path / "curate.duckdb").write_bytes(whole)
    for command in (["status"], ["score"], ["select"], ["freeze", "v"], ["sql", "FROM sources"], ["sources"]):
        ran = curate(*command)
        assert (command, ran.returncode, len(ran.stderr.splitlines())) == (command, 1, 2)
        assert "curate.duckdb is damaged: Corrupt database file" in ran.stderr
    assert "Traceback" in curate("--debug", "status").stderr


def test_a_truncated_store_is_an_error(tmp_path, curate):
    (tmp_path / "rows.csv").write_text("question,answer\nWhy?,Because.\n")
    assert curate("import", "rows.csv").returncode == 0
    whole = (tmp_path / "curate.duckdb").read_bytes()
    for size in (4096, 3 * 4096, len(whole) // 2):
        (tmp_path / "curate.duckdb").write_bytes(whole[:size])
        ran = curate("status")
        assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 2), ran.stderr


def test_a_store_without_a_table_is_an_error(tmp_path, curate):
    (tmp_path / "rows.csv").write_text("question,answer\nWhy?,Because.\n")
    assert curate("import", "rows.csv").returncode == 0
    with duckdb.connect(str(tmp_path / "curate.duckdb")) as connection:
        connection.execute("DROP TABLE scores; ALTER TABLE sources DROP COLUMN rows_read")
    for command in ("status", "score"):
        ran = curate(command)
        assert (command, ran.returncode, len(ran.stderr.splitlines())) == (command, 1, 2)
        assert "are not those of this release" in ran.stderr
