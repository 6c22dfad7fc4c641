"""JSON lines and lists: values as text, broken lines as rejects, and lists larger than a chunk."""

import json

import polars as pl
import pytest
from support.source_files import one_batch, raw_texts, read_batches, read_rows, write

from curate.ingest.readers import open_source
from curate.ingest.readers.batch import UNUSABLE
from schemas.errors import SourceError


def test_every_value_becomes_text_and_null_stays_null(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"t": "é\\n", "i": 12345678901234567890123, "f": 0.5, "b": true, "n": null}\n')
    batch = one_batch(path)
    assert batch.table.rows(named=True) == [
        {"t": "é\n", "i": "12345678901234567890123", "f": "0.5", "b": "true", "n": None}
    ]
    assert batch.row.to_list() == [1]
    assert batch.line.to_list() == [1]


def test_a_nested_value_becomes_json_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"messages": [{"role": "user", "content": "a\\"\\u0000\\n"}], "x": {}}\n')
    cell = one_batch(path).table["messages"][0]
    assert json.loads(cell) == [{"role": "user", "content": 'a"\0\n'}]


def test_a_column_may_change_its_type_from_row_to_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "x"}\n{"a": [1]}\n{"a": {"b": 2}}\n{"a": null}\n{}\n')
    assert one_batch(path).table["a"].to_list() == ["1", "x", "[1]", '{"b":2}', None, None]


def test_a_key_that_first_occurs_later_is_a_later_column(tmp_path, small_chunks):
    rows = [{"a": str(number)} for number in range(50)] + [{"a": "x", "late": "yes"}]
    source = open_source(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    batches = list(source.batches())
    assert len(batches) > 5
    assert source.columns == ("a", "late")
    assert pl.concat([batch.table for batch in batches], how="diagonal").rows()[-1] == ("x", "yes")


@pytest.mark.parametrize(
    ("first", "columns"),
    [
        ('{"z": 1}', "zbac"),
        ('{"c": 1, "z": 2}', "czba"),
        ('{"a": 1, "b": 2', "bac"),
        ('{"z": "\\ud83d"}', "bacz"),
        ('{"\\ud83d": 1}', "bac\ufffd"),
        ('{"a": 1, "a": 2, "c": 3}', "acb"),
        ('[{"z": 1}]', "bac"),
        ("{}", "bac"),
    ],
)
def test_columns_are_in_the_order_of_the_first_valid_records(tmp_path, first, columns):
    path = write(tmp_path / "a.jsonl", f'{first}\n{{"b": "1", "a": "2"}}\n{{"a": "3", "c": null}}\n')
    table = one_batch(path).table.drop(UNUSABLE, strict=False)
    assert table.columns == list(columns)
    assert table.select("a", "b", "c").rows()[-2:] == [("2", "1", None), ("3", None, None)]


def test_a_new_key_is_found_in_a_row_without_a_known_one(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": "1", "b": "2"}\n{"a": "1", "c": "2"}\n')
    assert one_batch(path).table.rows() == [("1", "2", None), ("1", None, "2")]


def test_keys_that_look_like_paths_or_differ_in_case_are_distinct_columns(tmp_path):
    value = {"a": "1", "A": "2", "a.b": "3", "": "4", "x/y": "5", "~": "6", "$": "7", "*": "8", 'q"': "9", "row": "10"}
    batch = one_batch(write(tmp_path / "a.jsonl", json.dumps(value) + "\n"))
    assert batch.table.rows(named=True) == [value]


def test_blank_lines_are_skipped_and_counted_as_lines(tmp_path):
    batch = one_batch(write(tmp_path / "a.jsonl", '\n{"a": "1"}\n  \n\r\n{"a": "2"}\r\n{"a": "3"}'))
    assert batch.row.to_list() == [1, 2, 3]
    assert batch.line.to_list() == [2, 5, 6]
    assert raw_texts(batch) == ['{"a": "1"}', '{"a": "2"}', '{"a": "3"}']


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        ('{"a": "x", ', "broken-json", "Invalid JSON: the text ends too early."),
        ('{"a": "x" "b": 1}', "broken-json", "Invalid JSON: expecting ',' delimiter at character 11."),
        ('{"a": "x', "broken-json", "Invalid JSON: the string that starts at character 7 is not closed."),
        ('{"a": 1}{"a": 2}', "broken-json", "Invalid JSON: more text follows the value, at character 9."),
        ('["a"]', "not-an-object", "Expected an object, found a list."),
        ("null", "not-an-object", "Expected an object, found null."),
        ('{"a": "1", "a": "2"}', "duplicate-key", "A key occurs twice."),
        ('{"a": "tab\there"}', "broken-json", "Invalid JSON: invalid control character at character 11."),
    ],
)
def test_a_line_that_is_not_an_object_is_a_reject_with_line_and_reason(tmp_path, line, code, reason):
    batch = one_batch(write(tmp_path / "a.jsonl", f'{{"a": "1"}}\n\n{line}\n{{"a": "3"}}\n'))
    assert batch.rejects.rows() == [(2, 3, code, reason, line)]
    assert batch.table.rows() == [("1",), ("3",)]
    assert batch.row.to_list() == [1, 3]
    assert batch.line.to_list() == [1, 4]


def test_nan_in_a_nested_value_is_marked_and_in_a_string_is_text(tmp_path):
    batch = one_batch(write(tmp_path / "a.jsonl", '{"a": [NaN]}\n{"a": ["NaN"]}\n{"a": "NaN"}\n'))
    assert batch.table["a"].to_list() == ["[null]", '["NaN"]', "NaN"]
    assert batch.table[UNUSABLE].is_not_null().to_list() == [True, False, False]


@pytest.mark.parametrize("value", ["nan", "[1, -inf]", '{"z":Infinity }', '{"z": [\t-NAN\t]}', "Inf"])
def test_nan_in_any_notation_is_marked_at_any_depth(tmp_path, value):
    rows = ['"Is it [nan, inf]?"', value, f'{{"z": {value}}}']
    batch = one_batch(write(tmp_path / "a.jsonl", "".join(f'{{"q": "b", "m": {row}}}\n' for row in rows)))
    assert batch.row.to_list() == [1, 2, 3]
    marks = [json.loads(mark or "{}") for mark in batch.table[UNUSABLE]]
    assert [list(mark) for mark in marks] == [[], ["m"], ["m"]]
    assert not any("nan" in (cell or "").lower() or "inf" in (cell or "").lower() for cell in batch.table["m"][1:])


@pytest.mark.parametrize("name", ["*", "^a.*$"])
def test_nan_is_marked_in_a_column_whose_name_looks_like_a_pattern(tmp_path, name):
    batch = one_batch(write(tmp_path / "a.jsonl", f'{{"{name}": nan, "a": 1}}\n{{"{name}": "nan", "a": 1}}\n'))
    assert batch.table.drop(UNUSABLE).rows(named=True) == [{name: None, "a": "1"}, {name: "nan", "a": "1"}]
    assert batch.table[UNUSABLE].is_not_null().to_list() == [True, False]


def test_a_list_that_contains_a_known_key_is_not_an_object(tmp_path):
    batch = one_batch(write(tmp_path / "a.jsonl", '{"0": "x"}\n[{"a": 1}]\n'))
    assert batch.rejects["code"].to_list() == ["not-an-object"]


def test_a_line_longer_than_a_chunk_is_one_row(tmp_path, small_chunks):
    texts = ["short", "long " * 1000, "short again"]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"a": text}) + "\n" for text in texts))
    assert [text for batch in read_batches(path) for text in batch.table["a"]] == texts


def test_rows_and_lines_are_counted_across_chunks(tmp_path, small_chunks):
    lines = [json.dumps({"a": str(number)}) if number % 7 else "{broken" for number in range(100)]
    batches = read_batches(write(tmp_path / "a.jsonl", "\n".join(lines)))
    rows = [row for batch in batches for row in (*batch.row, *batch.rejects["row"])]
    assert sorted(rows) == list(range(1, 101))
    assert all((batch.row == batch.line).all() for batch in batches)
    assert [row for batch in batches for row in batch.rejects["row"]] == list(range(1, 101, 7))


def test_a_line_with_invalid_utf8_is_a_reject(tmp_path):
    content = '{"a": "Grüße"}\n{"a": "Ähre"}\n'.encode() + b'{"a": "Stra\xdfe"}\n'
    batch = one_batch(write(tmp_path / "a.jsonl", content))
    assert batch.table["a"].to_list() == ["Grüße", "Ähre"]
    assert batch.rejects.rows() == [(3, 3, "not-utf8", "Byte 0xdf at position 12 is not UTF-8.", r'{"a": "Stra\xdfe"}')]


def test_an_object_with_ids_as_keys_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({str(number): number for number in range(6000)}))
    with pytest.raises(SourceError, match="more than 5,000 distinct keys"):
        read_batches(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_with_the_line_of_each_element(tmp_path, indent):
    rows = [{"a": "x]},{["}, {"a": '"\\'}, {"a": None}]
    text = json.dumps(rows, indent=indent)
    batch = one_batch(write(tmp_path / "a.json", text))
    assert batch.table["a"].to_list() == ["x]},{[", '"\\', None]
    assert batch.line.to_list() == ([2, 5, 8] if indent else [1, 1, 1])
    assert [json.loads(one) for one in raw_texts(batch)] == rows


def test_a_list_may_be_larger_than_a_chunk(tmp_path, small_chunks):
    rows = [{"a": "x" * number, "b": [number, {"c": "}"}]} for number in range(60)]
    batches = read_batches(write(tmp_path / "a.json", json.dumps(rows, indent=1)))
    assert len(batches) > 5
    assert [json.loads(one) for batch in batches for one in raw_texts(batch)] == rows
    assert [row for batch in batches for row in batch.row] == list(range(1, 61))


def test_a_list_may_be_wrapped_in_an_object(tmp_path):
    path = write(tmp_path / "a.json", '{"count": 2, "data": [{"a": "1"}, {"a": "2"}], "more": {"a": [1]}}')
    assert one_batch(path).table["a"].to_list() == ["1", "2"]


def test_an_object_with_two_lists_is_an_error(tmp_path):
    path = write(tmp_path / "a.json", '{"train": [{"a": "1"}], "test": [{"a": "2"}]}')
    with pytest.raises(SourceError, match="more lists or objects follow"):
        read_batches(path)


def test_objects_without_list_brackets_are_read(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"a": "1"}, indent=2) + "\n" + json.dumps({"a": "2"}, indent=2))
    assert one_batch(path).line.to_list() == [1, 4]


def test_an_object_with_one_conversation_is_one_row(tmp_path):
    record = {"id": 1, "messages": [{"role": "user", "content": "Hi"}]}
    assert one_batch(write(tmp_path / "a.json", json.dumps(record))).table.columns == ["id", "messages"]
    assert one_batch(write(tmp_path / "a.json", json.dumps(record, indent=1))).table.columns == ["id", "messages"]


def test_json_lines_may_have_the_suffix_json(tmp_path):
    source = open_source(write(tmp_path / "a.json", '{"a": "1"}\n{"a": "2"}\n'))
    assert [batch.table.height for batch in source.batches()] == [2]
    assert source.format == "jsonl"


def test_indented_objects_may_have_the_suffix_jsonl(tmp_path):
    assert one_batch(write(tmp_path / "a.jsonl", json.dumps({"a": "1"}, indent=2) * 2)).table["a"].to_list() == [
        "1",
        "1",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        '{"a": "2" "b": 1}',
        '{"a": "2"',
        '{"a": "2}',
        '{"a": "2", "b": [1}',
        '{"a": 2}}',
        '{"a": "2"]',
        '{a: "2"}',
    ],
)
@pytest.mark.parametrize("between", [", ", ",\n  "])
def test_elements_after_a_broken_one_are_read(tmp_path, broken, between):
    elements = ['{"a": "0"}', '{"a": "1"}', broken, '{"a": "3"}', '{"a": "4"}']
    batch = one_batch(write(tmp_path / "a.json", f"[{between.join(elements)}]"))
    assert set(batch.table["a"]) >= {"0", "1", "3", "4"}
    assert batch.rejects["code"].to_list() == ["broken-json"]
    assert sorted([*batch.row, *batch.rejects["row"]]) == list(range(1, batch.table.height + 2))


def test_a_trailing_comma_is_accepted(tmp_path):
    assert one_batch(write(tmp_path / "a.json", '[{"a": "1",}, {"a": "2"},]')).table["a"].to_list() == ["1", "2"]


def test_a_truncated_list_ends_with_a_reject(tmp_path):
    within = one_batch(write(tmp_path / "a.json", '[{"a": "1"}, {"a": "2", "b": "and th'))
    assert within.table["a"].to_list() == ["1"]
    assert within.rejects.select("row", "code").rows() == [(2, "broken-json")]
    first, last = read_batches(write(tmp_path / "b.json", '[{"a": "1"},\n{"a": "2"}'))
    assert first.table.height == 2
    assert last.rejects.select("row", "line", "code").rows() == [(3, 2, "not-closed")]


def test_elements_that_are_not_objects_are_rejects(tmp_path):
    batch = one_batch(write(tmp_path / "a.json", '[{"a": "1"}, ["x"], {"a": "2"}]'))
    assert batch.rejects.select("row", "code").rows() == [(2, "not-an-object")]


def test_an_empty_list_has_no_rows(tmp_path):
    assert (
        sum(batch.table.height + batch.rejects.height for batch in read_batches(write(tmp_path / "a.json", "[ ]\n")))
        == 0
    )


def test_quotes_after_backslashes_are_escaped_by_an_odd_number_of_them(tmp_path):
    texts = ["\\" * number + '"{[' * (number % 3) for number in range(40)]
    path = write(tmp_path / "a.json", json.dumps([{"a": text, "b": text[::-1]} for text in texts]))
    assert [(row["a"], row["b"]) for row in read_rows(path)] == [(text, text[::-1]) for text in texts]


def test_keys_may_be_followed_by_white_space(tmp_path):
    lines = ['{"a":"1","b":"2"}', '{"a":"1","b" : "\\":"}', '{"a":"1", "c"\t\t: 3,"b":"x"}', '{"a" :"1","a" :"2"}']
    batches = read_batches(write(tmp_path / "a.jsonl", "\n".join(lines)))
    table = pl.concat([batch.table for batch in batches], how="diagonal")
    assert table.rows() == [("1", "2", None), ("1", '":', None), ("1", "x", "3")]
    assert [code for batch in batches for code in batch.rejects["code"]] == ["duplicate-key"]
