"""Answers marked as good or bad, and `curate import --where`: bad rows are never imported unasked."""

import json

import polars as pl
import pytest
from support.advice import printed_options
from typer.testing import CliRunner

from curate.cli.app import app
from curate.ingest.pipeline import import_files
from schemas.errors import RecipeError, SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

GOOD_BAD = [
    ("label", True, False),
    ("label", 1, 0),
    ("label", 1, -1),
    ("Label", "YES", "No"),
    ("kto_tag", "True", "False"),
    ("ktoTag", "true", "false"),
    ("is_correct", "1.0", "0.0"),
    ("feedback", "👍🏽", "👎🏽"),
    ("thumbs", "up", "down"),
    ("note of the desk", "Good", "BAD "),
    ("annotator's 'view'", "thumbs_up", "thumbs_down"),
    ("like", "y", "n"),
    ("is_bad", "false", "true"),
    ("rejected", 0, 1),
    ("vote", "=good'; DROP TABLE rejects; --", "bad"),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def layouts(number):
    """Row `number` in each layout that has one answer."""
    question, answer = f"What does bell {number} mean?", f"It means that dinner {number} is ready."
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    return {
        "pairs": {"prompt": question, "completion": answer},
        "alpaca": {"instruction": question, "input": "", "output": answer},
        "messages": {"messages": [user, assistant]},
        "prompt and completion lists": {"prompt": [user], "completion": [assistant]},
        "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
    }


def curate(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.output


def kept(store):
    with reading(store) as connection:
        rows = connection.sql("SELECT line FROM origins ORDER BY line").fetchall()
        rejects = connection.sql("SELECT line, code, reason FROM rejects ORDER BY line").fetchall()
    return [line for (line,) in rows], rejects


@pytest.mark.parametrize(("column", "good", "bad"), GOOD_BAD)
@pytest.mark.parametrize("layout", layouts(1))
def test_bad_answers_are_imported_only_on_request(tmp_path, layout, column, good, bad):
    values = [bad, good, bad, good, bad]
    rows = [{**layouts(n)[layout], column: value} for n, value in enumerate(values)]
    path = write(tmp_path / "labelled.jsonl", rows)
    with pytest.raises(SourceError) as error:
        import_files(tmp_path / "s.duckdb", [str(path)], ImportSection())
    what = error.value.what
    assert f"The column {column} marks answers as good or bad" in what
    assert "2 rows" in what
    assert "3 rows" in what
    *selecting, everything = printed_options(error.value)
    good_only = selecting[0] if selecting else None
    if good_only:  # a value that is no judgement can only be imported with all others
        code, output = curate("import", path, "--store", tmp_path / "s.duckdb", *good_only)
        assert code == 0, output
        lines, rejects = kept(tmp_path / "s.duckdb")
        assert lines == [2, 4]
        assert [(line, code) for line, code, _ in rejects] == [(n, "excluded-by-where") for n in (1, 3, 5)]
    code, output = curate("import", path, "--store", tmp_path / "all.duckdb", *everything)
    assert code == 0, output
    assert kept(tmp_path / "all.duckdb")[0] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("column", "values"),
    [("label", ["0", "1", "2"]), ("label", ["good", "good", ""]), ("topic", ["yes", "no", "no"]), ("rating", "345")],
)
def test_other_columns_are_metadata(tmp_path, column, values):
    rows = [{"question": f"Why {n}, then?", "answer": "So it is.", column: value} for n, value in enumerate(values)]
    (result,) = import_files(
        tmp_path / "s.duckdb", [str(write(tmp_path / "plain.jsonl", rows))], ImportSection(), dry_run=True
    )
    assert result.rows_kept == 3


def test_a_file_of_bad_answers_offers_no_good_ones(tmp_path):
    path = write(tmp_path / "bad.jsonl", [{"question": "Why?", "answer": "So.", "label": False}])
    with pytest.raises(SourceError, match="marks answers") as error:
        import_files(tmp_path / "s.duckdb", [str(path)], ImportSection())
    assert "No row is marked as good" in error.value.hint


def test_an_unclear_mapping_names_the_labels_too(tmp_path):
    rows = [{"text": "Where is the pump?", "code": "In the hold.", "label": n} for n in (0, 1)]
    with pytest.raises(SourceError) as error:
        import_files(tmp_path / "s.duckdb", [str(write(tmp_path / "x.jsonl", rows))], ImportSection())
    assert """add --where "label = '1'" to import only good ones""" in error.value.hint


# --------------------------------------------------------------------------------------------------------------- where


@pytest.fixture
def desk(tmp_path):
    rows = [
        {"question": f"How far is port {n}?", "answer": f"It is {n} miles.", "score": score, "the team": team}
        for n, (score, team) in enumerate([("4", "a"), ("10", "a"), ("n/a", "b"), (None, "b")])
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "desk.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ("score > 3", [2, 3]),
        ("score >= 10 or meta.score = 'n/a'", [3, 4]),
        ("\"the team\" = 'b'", [4, 5]),
        ("score is null or score = ''", [5]),
        ("question like '%port 1%'", [3]),
        ("not (\"the team\" = 'b')", [2, 3]),
    ],
)
def test_where_keeps_the_rows_for_which_it_is_true(desk, where, lines):
    (result,) = import_files(desk / "s.duckdb", [str(desk / "desk.csv")], ImportSection(where=where))
    found, rejects = kept(desk / "s.duckdb")
    assert found == lines
    assert [line for line, _, _ in rejects] == [n for n in (2, 3, 4, 5) if n not in lines]
    assert {code for _, code, _ in rejects} == {"excluded-by-where"}
    assert all(where in reason for _, _, reason in rejects)
    assert result.rows_read == 4 == result.rows_kept + result.rows_rejected


def test_where_is_part_of_the_source_id_only_if_it_is_set(desk):
    def source(**options):
        return import_files(desk / "s.duckdb", [str(desk / "desk.csv")], ImportSection(**options), dry_run=True)[0]

    assert source().source == source(where=None).source
    assert source(where="score > 3").source not in (source().source, source(where="score > 4").source)
    assert source(where="score > 3").mapping["where"] == "score > 3"
    assert "where" not in source().mapping


def test_excluded_rows_do_not_count_as_rejected_share(desk):
    section = ImportSection(where="score > 3", max_rejects=0)
    assert import_files(desk / "s.duckdb", [str(desk / "desk.csv")], section)[0].rows_rejected == 2


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("scor > 3", "scor, which is not a column, did you mean score"),
        ("question", "cannot be evaluated"),
        ("score > 99", "is not true for any of its 4 rows"),
    ],
)
def test_a_condition_that_cannot_be_used_is_an_error(desk, where, message):
    with pytest.raises(SourceError, match=message):
        import_files(desk / "s.duckdb", [str(desk / "desk.csv")], ImportSection(where=where))


@pytest.mark.parametrize("where", ["1; DROP TABLE rejects", "score in (select 1)", "read_text('x') = 'y'", " "])
def test_only_a_plain_condition_is_accepted(desk, where):
    with pytest.raises(RecipeError):
        import_files(desk / "s.duckdb", [str(desk / "desk.csv")], ImportSection(where=where))


def test_where_in_the_recipe_and_excluded_rows_can_be_exported(desk, monkeypatch):
    monkeypatch.chdir(desk)
    (desk / "curate.toml").write_text('[import]\nwhere = "\\"the team\\" = \'a\'"\n')
    assert curate("import", "desk.csv", "--store", "s.duckdb")[0] == 0
    assert curate("rejects", "--code", "excluded-by-where", "--export", "out.csv", "--store", "s.duckdb")[0] == 0
    assert pl.read_csv("out.csv", infer_schema=False)["the team"].to_list() == ["b", "b"]
    assert "excluded-by-where" in curate("rejects", "--rules", "--json")[1]


def test_where_holds_for_all_batches_and_keeps_original_texts(tmp_path):
    rows = [{"question": f"What is {n} in words?", "answer": f"Number {n}.", "n": n} for n in range(70_000)]
    path = write(tmp_path / "many.jsonl", rows)
    (result,) = import_files(tmp_path / "s.duckdb", [str(path)], ImportSection(where="n % 7 = 0"))
    assert (result.rows_kept, result.rejected) == (10_000, {"excluded-by-where": 60_000})
    with reading(tmp_path / "s.duckdb") as connection:
        assert connection.sql("SELECT count(*) FROM rejects WHERE (raw ->> 'n')::INT <> line - 1").fetchall() == [(0,)]
        assert connection.sql("SELECT count(*) FROM origins WHERE (metadata ->> 'n')::INT <> line - 1").fetchall() == [
            (0,)
        ]
