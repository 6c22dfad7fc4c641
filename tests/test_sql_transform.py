"""`import --sql`: the result of a SELECT is imported; its rows keep their lines, all others are excluded by number."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from curate.ingest import sql_transform
from curate.ingest.pipeline import import_files
from curate.ingest.removal import remove_source
from curate.versions.lineage import ExcludedRow, trace
from schemas.errors import RecipeError, SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Harbours",
            "paragraphs": [
                {
                    "context": "Harbour A is ten feet deep.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "How deep is A?",
                            "answers": [{"text": "ten feet", "answer_start": 13}],
                        },
                        {"question": "How deep is B?", "answers": []},
                    ],
                }
            ],
        },
        {"title": "Empty", "paragraphs": []},
        {
            "title": "Sails",
            "paragraphs": [
                {
                    "context": "Sails are washed in May.",
                    "qas": [{"question": "When?", "answers": [{"text": "in May", "answer_start": 17}]}],
                }
            ],
        },
    ],
}
UNNEST = """
    SELECT row_number, title, qa->>'$.question' AS question, context, qa->>'$.answers[0].text' AS answer FROM (
        SELECT row_number, title, p->>'$.context' AS context, unnest(p->'$.qas[*]') AS qa FROM (
            SELECT row_number, title, unnest(paragraphs->'$[*]') AS p FROM rows))
"""


@pytest.fixture
def store(tmp_path):
    return tmp_path / "curate.duckdb"


@pytest.fixture
def pairs(tmp_path):
    """Six rows, the third broken; half of the others in English."""
    rows = [{"question": f"{n}?", "answer": f"{n}.", "lang": "de" if n % 2 else "en", "n": n} for n in range(1, 7)]
    lines = [json.dumps(row) for row in rows]
    lines[2] = '{"question": "cut'
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(store, path, sql, **options):
    (result,) = import_files(store, [str(path)], ImportSection(sql=sql, **options), on_changed="add")
    parts = result.rows_kept + result.rows_duplicate + result.rows_rejected + result.rows_excluded
    assert parts == result.rows_read
    return result


def ask(store, query):
    with reading(store) as connection:
        return connection.execute(query).fetchall()


def answers(store):
    query = (
        """SELECT "row", conversations[-1].value FROM origins JOIN conversations ON id = conversation ORDER BY ALL"""
    )
    return ask(store, query)


def test_a_select_of_all_rows_gives_the_same_conversations_at_the_same_places(tmp_path, store, pairs):
    plain = tmp_path / "plain.duckdb"
    (result,) = import_files(plain, [str(pairs)], ImportSection())
    selected = run(store, pairs, "SELECT * FROM rows")
    assert (selected.rows_read, selected.rows_kept, selected.rejected) == (6, 5, {"broken-json": 1})
    query = 'SELECT "row", line, conversation, metadata FROM origins ORDER BY "row"'
    assert ask(store, query) == ask(plain, query)
    assert selected.source != result.source


def test_excluded_rows_are_counted_and_traced_by_their_lines(store, pairs, curate):
    result = run(store, pairs, "SELECT * FROM rows WHERE lang = 'en'")
    assert (result.rows_kept, result.rows_rejected, result.rows_excluded) == (3, 1, 2)
    assert ask(store, 'SELECT "row", line FROM excluded_rows ORDER BY ALL') == [(1, 1), (5, 5)]
    with reading(store) as connection:
        (found,) = trace(connection, "pairs.jsonl:5")
    assert isinstance(found, ExcludedRow)
    traced = curate("trace", f"{pairs}:5", "--store", str(store))
    assert "was excluded: the SELECT of --sql does not return it" in traced.stdout
    assert "WHERE lang = 'en'" in traced.stdout
    shown = json.loads(curate("show", f"{pairs}:5", "--json", "--store", str(store)).stdout)
    assert shown == [{"excluded": {"path": str(pairs), "row": 5, "line": 5, "sql": found.sql}}]


def test_a_nested_export_becomes_a_frozen_version_in_three_commands(tmp_path, curate):
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD), encoding="utf-8")
    imported = curate("import", "squad.json", "--sql", UNNEST)
    assert "3 rows read = 2 conversations + 0 duplicates + 0 rejected + 1 excluded" in imported.stdout
    assert curate("score").returncode == 0
    assert curate("freeze", "harbours", "--held-out", "0").returncode == 0
    members = ask(tmp_path / "curate.duckdb", "SELECT conversation FROM members WHERE version = 'harbours@1'")
    assert len(members) == 2


def test_the_recipe_of_the_guide_reads_the_nested_export(tmp_path, curate):
    guide = (Path(__file__).parents[1] / "curate" / "ingest" / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```toml\n(\[import\]\nsql = .*?)```", guide, flags=re.DOTALL)
    (tmp_path / "curate.toml").write_text(recipe, encoding="utf-8")
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD), encoding="utf-8")
    (result,) = json.loads(curate("import", "squad.json", "--json").stdout)
    assert (result["conversations"], result["rows_excluded"], result["partly_rejected"]) == (2, 1, {"empty-answer": 1})


def test_a_row_with_several_results_counts_once_and_names_the_rejected_ones(tmp_path, store):
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD), encoding="utf-8")
    result = run(store, tmp_path / "squad.json", UNNEST)
    assert (result.rows_read, result.rows_kept, result.conversations, result.rows_excluded) == (3, 2, 2, 1)
    assert result.partly_rejected == {"empty-answer": 1}
    ((row, reason, raw),) = ask(store, 'SELECT "row", reason, raw FROM rejects')
    assert (row, reason, json.loads(raw)["title"]) == (1, "Conversation 2 of 2: Turn 2 (gpt) is empty.", "Harbours")
    assert ask(store, "SELECT metadata->>'title' FROM origins ORDER BY ALL") == [("Harbours",), ("Sails",)]


def test_several_rows_in_one_result_are_all_kept(tmp_path, store):
    path = tmp_path / "lines.csv"
    path.write_text("ticket,who,text\n1,q,One\n2,q,Hi\n1,a,Two\n2,a,Ho\n1,a,three\n3,q,Alone\n", encoding="utf-8")
    sql = """SELECT list(row_number) AS row_number,
                 string_agg(text, ' ' ORDER BY row_number) FILTER (who = 'q') AS question,
                 string_agg(text, ' ' ORDER BY row_number) FILTER (who = 'a') AS answer
             FROM rows GROUP BY ticket HAVING count(*) > 1"""
    result = run(store, path, sql)
    assert (result.rows_read, result.rows_kept, result.conversations, result.rows_excluded) == (6, 5, 2, 1)
    assert answers(store) == [(1, "Two three"), (2, "Ho"), (3, "Two three"), (4, "Ho"), (5, "Two three")]


def test_rejected_results_reject_all_their_rows(tmp_path, store):
    path = tmp_path / "lines.csv"
    path.write_text("ticket,text\n1,One\n1,Two\n2,Three\n", encoding="utf-8")
    sql = "SELECT list(row_number) AS row_number, first(text) AS question, '' AS answer FROM rows GROUP BY ticket"
    result = run(store, path, sql)
    assert (result.rows_kept, result.rejected) == (0, {"empty-answer": 3})


def test_the_turns_of_long_format_may_come_from_a_select(tmp_path, store):
    path = tmp_path / "tickets.csv"
    path.write_text("ticket,question,answer\n1,Hi,Hello\n1,How?,So.\n2,Alone,\n", encoding="utf-8")
    sql = """SELECT row_number, ticket, who, text FROM (
                 SELECT row_number, ticket, 'user' AS who, question AS text, 1 AS part FROM rows
                 UNION ALL SELECT row_number, ticket, 'agent', answer, 2 FROM rows WHERE answer IS NOT NULL)
             ORDER BY row_number, part"""
    result = run(store, path, sql, shape="long", group_by="ticket", role="who", text="text")
    assert (result.rows_read, result.rows_kept, result.conversations) == (3, 2, 1)
    assert result.rejected == {"empty-answer": 1}


def test_a_sample_with_a_seed_is_repeatable(tmp_path, store, pairs):
    sql = "SELECT * FROM rows USING SAMPLE reservoir(2 ROWS) REPEATABLE (42)"
    first = run(store, pairs, sql)
    again = run(tmp_path / "again.duckdb", pairs, sql)
    assert first.rows_kept == 2
    assert ask(store, "FROM excluded_rows ORDER BY ALL") == ask(
        tmp_path / "again.duckdb", "FROM excluded_rows ORDER BY ALL"
    )
    assert again.source == first.source


def test_many_rows_are_converted_in_parts_and_keep_their_texts(tmp_path, store, monkeypatch):
    monkeypatch.setattr(sql_transform, "BATCH_ROWS", 2)
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + "".join(f"{n}?,{'' if n == 6 else n}\n" for n in range(8)), encoding="utf-8")
    result = run(store, path, "SELECT * FROM rows WHERE question <> '1?' ORDER BY row_number DESC")
    assert (result.rows_read, result.rows_kept, result.rows_rejected, result.rows_excluded) == (8, 6, 1, 1)
    assert ask(store, 'SELECT "row", line, raw FROM rejects') == [(7, 8, "6?,")]
    assert answers(store) == [(n + 1, str(n)) for n in range(8) if n not in (1, 6)]


def test_cells_are_text_and_results_of_any_type_become_text(tmp_path, store):
    path = tmp_path / "a.jsonl"
    row = {"question": "Hi", "n": 1.5, "list": ["x"], "object": {"a": "b"}, "row_number": "own"}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    run(
        store,
        path,
        """SELECT row_number, question, object->'$.a' AS answer, typeof(n) || typeof(list) AS types, n::DOUBLE * 2 AS m,
               1 = 1 AS yes, 'nan'::DOUBLE AS nan, {'k': [1]} AS struct, DATE '2026-11-30' AS day, row_number_2 AS own
           FROM rows""",
    )
    ((text,),) = ask(store, "SELECT metadata FROM origins")
    assert json.loads(text) == {
        **{"types": "VARCHARVARCHAR", "m": "3.0", "yes": "true", "nan": None, "struct": '{"k":[1]}'},
        **{"day": "2026-11-30", "own": "own"},
    }
    assert answers(store) == [(1, "b")]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM rows", "SELECT"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("SELEC * FROM rows", "syntax error"),
        ("SELECT * FROM other", "reads other"),
        ("SELECT * FROM '/etc/passwd'", "reads /etc/passwd"),
        ("SELECT * FROM main.rows", "reads rows"),
        ("SELECT * FROM information_schema.tables", "reads tables"),
        ("FROM rows, (WITH sqlite_master AS (SELECT 1) SELECT 1), sqlite_master x", "sqlite_master, a table of DuckDB"),
        ("WITH a AS (FROM PG_Tables), PG_Tables AS (SELECT 1) FROM rows, a", "pg_tables, a table of DuckDB"),
        ("WITH duckdb_views AS (FROM duckdb_views) FROM rows, duckdb_views", "duckdb_views, a table of DuckDB"),
        ("SELECT * FROM rows, duckdb_settings()", "calls duckdb_settings"),
        ("SELECT * FROM rows WHERE question IN (SELECT content FROM read_text('/etc/passwd'))", "calls read_text"),
        ("WITH a AS (FROM read_csv('x')) SELECT * FROM a", "calls read_csv"),
        ("SELECT * FROM rows UNION ALL FROM query('FROM rows')", "calls query"),
        ("DESCRIBE rows", "show_ref"),
        ("SELECT * FROM rows WHERE random() < 0.5", "calls random"),
        ("SELECT * FROM rows USING SAMPLE 10 ROWS", "without a seed"),
        ("SELECT * FROM rows TABLESAMPLE 10%", "without a seed"),
    ],
)
def test_only_one_repeatable_select_over_rows_is_accepted(store, pairs, sql, message):
    with pytest.raises(RecipeError, match=message):
        run(store, pairs, sql)
    assert not store.exists()


@pytest.mark.parametrize(
    "call",
    [
        *("current_setting('threads')", "current_query()", "getvariable('a')", "write_log('a')", "version()"),
        *("pg_catalog.version()", "CURRENT_DATABASE()", "current_schemas(true)", "current_catalog", "current_schema"),
        *("age(DATE '2020-01-01')", "ago(INTERVAL 1 DAY)", "current_date", "CURRENT_TIMESTAMP", "localtime"),
        *("current_date()", "get_current_timestamp()", "transaction_timestamp()", "current_localtimestamp()"),
        *("txid_current()", "RANDOM()", "'a'.uuid()", "nextval('a')", "json_serialize_plan('SELECT 1')"),
        *("pg_get_viewdef(1)", "get_block_size('memory')", "pg_postmaster_start_time()", "sum(random()) OVER ()"),
    ],
)
def test_functions_that_read_the_clock_or_the_database_are_not_accepted(store, pairs, call):
    with pytest.raises(RecipeError, match="another import of the file can have another result") as error:
        run(store, pairs, f"SELECT row_number, question, {call} AS answer FROM rows")
    assert error.value.hint.startswith("For example")


def test_functions_of_their_arguments_alone_are_accepted(store, pairs):
    values = [
        *("upper(answer)", "strftime(DATE '2020-01-01', '%Y')", "age(DATE '2020-01-02', DATE '2020-01-01')::TEXT"),
        *("date_trunc('month', DATE '2020-01-02')", "split_part(answer, '.', 1)", "nullif(answer, '')"),
        *("if(true, answer, '')", "array_to_string([answer], '')", "json(to_json(answer))", "md5(answer)"),
        *("lag(answer, 1, 'a') OVER ()", "string_agg(answer) OVER ()", "TIMESTAMP '2020-01-01' AT TIME ZONE 'UTC'"),
        *(
            "list_sum([1])",
            "regexp_replace(answer, '[0-9]', 'a')",
            "rows.answer.upper()",
            "coalesce(answer, '') || 'a'",
        ),
        *("[a + 1 FOR a IN range(2) IF a > 0]", "quantile_cont(1, 0.5) OVER ()", "sum(1) OVER ()"),
    ]
    columns = ", ".join(f"{value} AS value_{number}" for number, value in enumerate(values))
    assert run(store, pairs, f"SELECT row_number, question, answer, {columns} FROM rows").rows_kept == 5


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT question, answer FROM rows", "no column row_number"),
        ("SELECT 99 AS row_number, * EXCLUDE (row_number) FROM rows", "99, which is not a number of a row"),
        ("SELECT NULL::BIGINT AS row_number, question, answer FROM rows", "which is not a number of a row"),
        ("FROM rows, (WITH a AS (SELECT 1) SELECT 1), a", "cannot be run"),
        *(
            (
                f"SELECT * REPLACE ({value} AS row_number) FROM rows",
                "row_number must be an integer or a list of integers",
            )
            for value in (
                *("{'a': row_number}", "[[row_number]]", "map([1], [row_number])", "array_value(row_number)"),
                *("[{'a': row_number}]", "row_number + 0.5", "row_number::DOUBLE", "'1'", "[row_number + 0.5]", "true"),
            )
        ),
        ("SELECT * FROM rows WHERE qestion = 'a'", "qestion"),
        ("SELECT row_number, question::INTEGER AS question, answer FROM rows", "cannot be run"),
        ("SELECT * FROM rows WHERE false", "returns no rows"),
        ("SELECT row_number, getenv('HOME') AS question, answer FROM rows", "cannot be run"),
    ],
)
def test_a_select_that_cannot_be_used_is_an_error_with_the_file(store, pairs, sql, message):
    with pytest.raises(SourceError, match=message) as error:
        run(store, pairs, sql)
    assert str(pairs) in error.value.what
    assert ask(store, "FROM sources") == []


def test_the_select_of_the_recipe_is_stored_and_listed(tmp_path, pairs, curate):
    (tmp_path / "curate.toml").write_text('[import]\nsql = "SELECT * FROM rows WHERE n = 2"\n', encoding="utf-8")
    (result,) = json.loads(curate("import", str(pairs), "--json").stdout)
    assert (result["rows_kept"], result["rows_excluded"]) == (1, 4)
    assert result["mapping"]["sql"] == "SELECT * FROM rows WHERE n = 2"
    listed = curate("sources")
    assert "excluded" in listed.stdout
    assert "WHERE n = 2" in listed.stdout


def test_a_removed_import_keeps_the_places_of_its_excluded_rows(store, pairs):
    result = run(store, pairs, "SELECT * FROM rows WHERE lang = 'en'")
    remove_source(store, result.source)
    assert ask(store, "SELECT rows_read, rows_excluded FROM removed_sources") == [(6, 2)]
    assert ask(store, "SELECT code, count(*) FROM removed_rows GROUP BY code ORDER BY ALL") == [
        ("broken-json", 1),
        ("excluded-by-sql", 2),
        (None, 3),
    ]
    assert ask(store, "FROM excluded_rows") == []


def test_exported_rejects_are_corrected_through_the_same_select(tmp_path, curate):
    path = tmp_path / "a.csv"
    path.write_text("q,a,lang\nHi,Hello,en\nHow?,,en\nWas?,Das.,de\n", encoding="utf-8")
    sql = "SELECT row_number, upper(q) AS question, a AS answer FROM rows WHERE lang = 'en'"
    assert curate("import", str(path), "--sql", sql).returncode == 0
    exported = json.loads(curate("rejects", "--export", "fix.csv", "--json").stdout)
    fixed = tmp_path / "fix.csv"
    assert fixed.read_text(encoding="utf-8").splitlines()[1].startswith("How?,,en")
    fixed.write_text(fixed.read_text(encoding="utf-8").replace("How?,,en", "How?,So.,en"), encoding="utf-8")
    (result,) = json.loads(curate("import", "fix.csv", *shlex.split(exported["options"]), "--json").stdout)
    assert (result["rows_kept"], result["closed"]) == (1, 1)


def test_a_dry_run_and_standard_input_count_excluded_rows(tmp_path, pairs, curate):
    sql = "SELECT * FROM rows WHERE lang = 'en'"
    dry = json.loads(curate("import", str(pairs), "--sql", sql, "--dry-run", "--json").stdout)
    text = pairs.read_text(encoding="utf-8")
    piped = json.loads(curate("import", "-", "--sql", sql, "--json", input=text).stdout)
    assert dry[0]["rows_excluded"] == piped[0]["rows_excluded"] == 2
    assert ask(tmp_path / "curate.duckdb", "SELECT DISTINCT source FROM excluded_rows") == [(piped[0]["source"],)]


@pytest.mark.parametrize("end", [";", " -- a; b", "; -- a", ";; /* a */ ;\n", " WHERE answer <> '; é;' ; -- a"])
def test_the_end_of_the_select_may_have_comments(store, pairs, end):
    assert run(store, pairs, f"SELECT * FROM rows{end}").rows_kept == 5


@pytest.mark.parametrize("value", ["row_number::HUGEINT", "row_number::UTINYINT", "[row_number::SMALLINT]"])
def test_row_numbers_may_be_integers_of_any_size(store, pairs, value):
    assert run(store, pairs, f"SELECT * REPLACE ({value} AS row_number) FROM rows").rows_kept == 5


def test_common_table_expressions_may_have_any_other_name(store, pairs):
    sql = "WITH tables AS (FROM rows), rows AS (FROM tables WHERE lang = 'en') FROM rows WHERE n IN (SELECT '2')"
    assert run(store, pairs, sql).rows_kept == 1


def test_where_applies_before_the_select(store, pairs):
    result = run(store, pairs, "SELECT * FROM rows WHERE n <> '4'", where="lang = 'en'")
    assert (result.rows_kept, result.rows_excluded) == (2, 1)
    assert result.rejected == {"excluded-by-where": 2, "broken-json": 1}


@pytest.mark.parametrize("value", [2**127 - 1, 2**128 - 1])
def test_integers_of_128_bits_are_text_with_all_digits(store, pairs, value):
    kind = "HUGEINT" if value < 2**127 else "UHUGEINT"
    assert run(store, pairs, f"SELECT * REPLACE ('{value}'::{kind} AS answer) FROM rows").rows_kept > 0
    assert ask(store, "SELECT DISTINCT conversations[2].value FROM conversations") == [(str(value),)]


def test_a_list_of_such_integers_is_named_with_the_cast(store, pairs):
    with pytest.raises(SourceError, match=r"column answer with the type HUGEINT\[\]") as error:
        run(store, pairs, "SELECT * REPLACE ([1::HUGEINT] AS answer) FROM rows")
    assert error.value.hint == "Cast it, for example: answer::VARCHAR[]"


def test_ctrl_c_stops_the_select(tmp_path, pairs):
    endless = "SELECT * FROM rows WHERE (SELECT sum(hash(x)) FROM range(100000000000) t(x)) > 0"
    command = [sys.executable, "-P", "-m", "curate", "import", str(pairs), "--sql", endless]
    store = {"CURATE_STORE": str(tmp_path / "x.duckdb")}
    process = subprocess.Popen(command, env={**os.environ, **store}, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(5):  # a signal before Python can handle it is lost
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
                break
        assert "Interrupted" in process.communicate(timeout=1)[1]
        assert process.returncode == 130
    finally:
        process.kill()
