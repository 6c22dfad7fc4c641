"""Values that cannot be stored are replaced in columns that are not mapped; in others they reject the row."""

import json

import pytest

from curate.ingest.pipeline import import_files
from curate.ingest.readers.unusable_values import recover_object
from schemas.import_recipe import ImportSection
from schemas.store import reading


def run(tmp_path, content, name="a.jsonl", **options):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    (result,) = import_files(tmp_path / "curate.duckdb", [str(path)], ImportSection(**options), on_changed="add")
    return result


def ask(tmp_path, query):
    with reading(tmp_path / "curate.duckdb") as connection:
        return connection.execute(query).fetchall()


def metadata(tmp_path):
    return [json.loads(text or "{}") for (text,) in ask(tmp_path, 'SELECT metadata FROM origins ORDER BY "row"')]


def row(value, key="note"):
    return f'{{"question": "How deep?", "answer": "Ten feet.", "{key}": {value}}}\n'


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("NaN", None),
        ("-Infinity", None),
        ("[nan, -inf, 1]", "[null,null,1]"),
        ('{"a": [1, NaN], "b": "x"}', '{"a":[1,null],"b":"x"}'),
        (r'"half \ud83d only"', "half \ufffd only"),
        (r'"whole \ud83d\ude00"', "whole \U0001f600"),
        (r'{"\udc00": 1}', '{"\ufffd":1}'),
        ("9" * 5000, "9" * 5000),
        ("[" * 400 + "]" * 400, "[" * 400 + "]" * 400),
    ],
)
def test_a_value_of_another_column_never_costs_the_row(tmp_path, value, stored):
    result = run(tmp_path, row('"fine"') + row(value).replace("Ten", "Nine"))
    assert (result.rows_kept, result.rows_rejected) == (2, 0)
    assert metadata(tmp_path)[1].get("note") == stored
    assert list(result.columns) == ["question", "answer", "note"]


def test_the_warning_counts_conversations_and_is_listed_with_the_rules(tmp_path, curate):
    text = row(4.5) + "".join(row("NaN").replace("Ten", str(n)) for n in range(2))
    assert run(tmp_path, text).warnings == {"unusable-metadata": 2}
    done = curate("import", str(tmp_path / "a.jsonl"), "--add", "--dry-run", "--store", "other.duckdb")
    assert "Warning unusable-metadata: 2 conversations, first in line 2." in done.stdout
    assert "unusable-metadata" in curate("rejects", "--rules").stdout


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("answer", r'"half \ud83d only"', "A string contains half of a surrogate pair"),
        ("answer", "NaN", "NaN is not a JSON value"),
        ("context", r'"half \ud83d only"', "A string contains half of a surrogate pair"),
    ],
)
def test_a_value_of_a_mapped_column_rejects_the_row_with_its_original_text(tmp_path, key, value, reason):
    fields = {"question": '"Hi?"', "answer": '"Ho."', "context": '"Here."', key: value}
    broken = "{" + ", ".join(f'"{name}": {cell}' for name, cell in fields.items()) + "}"
    result = run(tmp_path, '{"question": "Hi", "answer": "Ho", "context": "There."}\n' + broken + "\n")
    assert (result.rows_kept, result.rejected, result.warnings) == (1, {"broken-json": 1}, {})
    assert ask(tmp_path, "SELECT raw FROM rejects") == [(broken,)]
    assert reason in result.reject_examples[0]["reason"]


def test_turns_with_an_unusable_value_are_rejected_in_long_format_too(tmp_path):
    lines = [("1", '"Hi"', "1"), ("1", '"Ho"', "NaN"), ("2", '"Hi"', "1"), ("2", r'"\ud800"', "1")]
    roles = ("user", "agent")
    text = "".join(
        f'{{"id": "{group}", "who": "{roles[at % 2]}", "text": {words}, "score": {score}}}\n'
        for at, (group, words, score) in enumerate(lines)
    )
    result = run(tmp_path, text, shape="long", group_by="id", role="who", text="text")
    assert (result.rows_kept, result.rejected, result.warnings) == (2, {"broken-json": 2}, {"unusable-metadata": 1})


def test_conditions_see_the_row_with_null(tmp_path):
    text = row("NaN", key="first") + row('"x"', key="second").replace("Ten", "Two")
    result = run(tmp_path, text, where="first IS NULL")
    assert (result.rows_kept, result.warnings) == (2, {"unusable-metadata": 1})
    assert metadata(tmp_path)[1] == {"first": None, "second": "x"}


def test_json_arrays_are_recovered_as_lines_are(tmp_path):
    result = run(tmp_path, "[" + row("NaN").strip() + ",\n" + row(1).strip().replace("Ten", "Two") + "]", "a.json")
    assert (result.rows_kept, result.warnings) == (2, {"unusable-metadata": 1})


def test_a_select_refuses_rows_with_values_that_it_may_have_used(tmp_path):
    result = run(tmp_path, row("NaN") + row(1).replace("Ten", "Two"), sql="SELECT * FROM rows")
    assert (result.rows_kept, result.rejected) == (1, {"broken-json": 1})


@pytest.mark.parametrize(
    "text", ["[NaN]", '{"a": NaN, "a": 1}', '{"a": NaN', "NaN", '{"a": 1}', '{"a": NaN} {"b": 1}', "[" * 2000]
)
def test_other_defects_are_not_recovered(text):
    assert recover_object(text) is None
