"""Paths such as `answers.text[0]` in mappings and conditions: every shape and format; no value is a reject."""

import json

import polars as pl
import pytest

from curate.ingest.pipeline import import_files
from curate.ingest.shapes.cell_path import path_cells
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.store import reading

SQUAD = [
    {"question": "How deep is A?", "answers": {"text": ["Ten feet.", "10"], "answer_start": [4, 9]}},
    {"question": "How deep is B?", "answers": {"text": [], "answer_start": []}},
    {"question": "How deep is C?", "answers": None},
    {"question": "How deep is D?", "answers": {"text": ["One fathom."], "answer_start": [7]}},
]


def run(tmp_path, path, **options):
    (result,) = import_files(tmp_path / "curate.duckdb", [str(path)], ImportSection(**options), on_changed="add")
    return result


def answers(tmp_path):
    with reading(tmp_path / "curate.duckdb") as connection:
        return [text for (text,) in connection.execute("SELECT conversations[-1].value FROM conversations").fetchall()]


def write(path, rows):
    """The rows in the format of the suffix; nested values of a CSV file are JSON text."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        cells = [
            {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items()} for row in rows
        ]
        pl.DataFrame(cells).write_csv(path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(("path", "found"), [("answers.text[0]", "Ten feet."), ("answers.text[-1]", "10")])
def test_a_path_reads_objects_and_lists_and_a_row_without_the_value_is_rejected(tmp_path, suffix, path, found):
    file = write(tmp_path / f"squad.{suffix}", SQUAD)
    result = run(tmp_path, file, map={"question": "question", "answer": path})
    assert (result.rows_kept, result.rejected) == (2, {"missing-value": 2})
    assert result.reject_examples[0]["reason"] == f"{path} has no value in this row."
    assert answers(tmp_path) == [found, "One fathom."]


def test_a_path_is_used_by_every_shape(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    inner = {
        **{"turns": [turns], "messages": messages, "transcript": "Human: Hi\nAssistant: Hello", "text": "Hello"},
        **{"q": "Hi", "a": "Hello", "id": "1", "who": "user"},
    }
    file = write(tmp_path / "a.jsonl", [{"data": inner}])
    for shape, fields in {
        "sharegpt": {"conversations": "data.turns[0]"},
        "messages": {"messages": "data.messages"},
        "transcript": {"transcript": "data.transcript"},
        "text": {"text": "data.text"},
        "pairs": {"question": "data.q", "answer": "data.a"},
        "alpaca": {"instruction": "data.q", "output": "data.a"},
    }.items():
        assert run(tmp_path, file, shape=shape, map=fields).rows_rejected == 0, shape
    assert set(answers(tmp_path)) == {"Hello"}
    rows = [{"data": {**inner, "who": who, "t": text}} for who, text in [("user", "Hi"), ("agent", "Hello")]]
    long = run(
        tmp_path, write(tmp_path / "b.jsonl", rows), group_by="data.id", role="data.who", text="data.t", shape="long"
    )
    assert (long.rows_duplicate, long.rows_rejected) == (2, 0)


def test_an_optional_field_may_have_no_value(tmp_path):
    rows = [{"question": "Hi", "answer": "Hello", "meta": meta} for meta in ({"system": "Be kind."}, {})]
    result = run(tmp_path, write(tmp_path / "a.jsonl", rows), map={"system": "meta.system"}, shape="pairs")
    assert (result.rows_kept, result.rows_rejected) == (2, 0)


def test_a_column_with_the_name_of_a_path_is_that_column(tmp_path):
    rows = [{"question": "Hi", "a.b[0]": "the column", "a": {"b": ["the path"]}}]
    run(tmp_path, write(tmp_path / "a.jsonl", rows), map={"question": "question", "answer": "a.b[0]"})
    assert answers(tmp_path) == ["the column"]


@pytest.mark.parametrize(
    ("path", "cell"),
    [
        ("a.it's", "two"),
        ('a["a.b"]', "5"),
        ("a.ü[0][0]", "z"),
        ('a["*"]', "star"),
        ("a.x y", "space"),
        ('a["q\\"k"]', "quote"),
        ("a.n", "12345678901234567890123"),
        ("a.list", '["x",1]'),
        ("a.none", None),
        ("a.list.x", None),
        ("a.list[5]", None),
        ("a.list[-3]", None),
    ],
)
def test_any_key_can_be_named(path, cell):
    value = {"it's": "two", "a.b": 5, "ü": [["z"]], "*": "star", "x y": "space", 'q"k': "quote", "none": None}
    value |= {"n": 12345678901234567890123, "list": ["x", 1]}
    table = pl.DataFrame({"a": [json.dumps(value), None, "not JSON"]})
    assert path_cells(table, path).to_list() == [cell, None, None]


@pytest.mark.parametrize("name", ["answers.text[0", "answers.text[x]", "answers..text", "nothing.text", "[0]"])
def test_what_is_neither_a_column_nor_a_path_is_an_error(tmp_path, name):
    file = write(tmp_path / "squad.jsonl", SQUAD)
    with pytest.raises(SourceError, match="is not a known column"):
        run(tmp_path, file, map={"question": "question", "answer": name})


def test_a_condition_reads_the_values_inside_a_column(tmp_path):
    rows = [
        {"question": f"{n}?", "answer": f"{n}.", "meta": {"lang": lang}} for n, lang in enumerate(["en", "de", None])
    ]
    result = run(tmp_path, write(tmp_path / "a.jsonl", rows), where="meta.lang = 'en'")
    assert (result.rows_kept, result.rejected) == (1, {"excluded-by-where": 2})
