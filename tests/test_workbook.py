"""Workbooks and SQLite databases: rows, sheets, and errors that list the sheets to choose from."""

import json
import shlex
import sqlite3

import pytest
from support.source_files import one_batch, raw_texts, read_batches, read_rows, write, write_workbook

from curate.ingest.readers import TableOptions, open_source
from schemas.errors import SourceError

PAIRS = [["question", "answer"], ["How far?", "Two miles."], ["How deep?", 10], [None, None], ["Why?", 0.5]]


def test_the_rows_of_a_sheet_have_the_numbers_of_the_sheet(tmp_path):
    batch = one_batch(write_workbook(tmp_path / "a.xlsx", Tickets=PAIRS))
    assert batch.table.rows() == [("How far?", "Two miles."), ("How deep?", "10"), ("Why?", "0.5")]
    assert (batch.row.to_list(), batch.line.to_list()) == ([1, 2, 3], [2, 3, 5])
    assert json.loads(raw_texts(batch)[1]) == {"question": "How deep?", "answer": "10"}


def test_a_workbook_is_recognised_by_its_content(tmp_path):
    source = open_source(write_workbook(tmp_path / "renamed.csv", Tickets=PAIRS))
    assert source.format == "xlsx"
    assert [batch.table.height for batch in source.batches()] == [3]


def test_empty_sheets_are_skipped_and_several_with_data_are_an_error_with_the_commands(tmp_path):
    assert len(read_rows(write_workbook(tmp_path / "a.xlsx", Notes=[], Tickets=PAIRS))) == 3
    path = write_workbook(tmp_path / "b.xlsx", **{"May 2024": PAIRS, "June": PAIRS[:2]})
    with pytest.raises(SourceError, match="2 sheets with data") as error:
        read_batches(path)
    commands = [shlex.split(line) for line in error.value.hint.splitlines()[1:]]
    assert [command[-2:] for command in commands] == [["--sheet", "May 2024"], ["--sheet", "June"]]
    assert len(read_rows(path, options=TableOptions(sheet="June"))) == 1
    with pytest.raises(SourceError, match="no sheet July"):
        read_batches(path, options=TableOptions(sheet="July"))


def test_title_rows_and_a_missing_header_are_errors_as_in_a_csv_file(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", S=[["Export of May"], [None], *PAIRS])
    with pytest.raises(SourceError, match="the table seems to start on line 3") as error:
        read_batches(path)
    assert " --skip-lines 2\n" in error.value.hint
    batch = one_batch(path, options=TableOptions(skip_lines=2))
    assert batch.table.columns == ["question", "answer"]
    assert batch.line.to_list() == [4, 5, 7]
    path = write_workbook(tmp_path / "b.xlsx", S=[["How far is it?", "Two miles."], ["How deep is it?", "Ten."]])
    assert one_batch(path, options=TableOptions(header=False)).table.columns == ["column_1", "column_2"]


def test_a_cell_beyond_the_header_is_a_column_named_by_its_position(tmp_path):
    rows = read_rows(write_workbook(tmp_path / "a.xlsx", S=[["question", "answer"], ["Why?", "So.", "note"]]))
    assert rows == [{"question": "Why?", "answer": "So.", "column_3": "note"}]


def test_a_damaged_workbook_is_an_error(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", S=PAIRS)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(SourceError, match="not a complete workbook"):
        read_batches(path)


def test_an_imported_workbook_adds_up(tmp_path, curate):
    write_workbook(tmp_path / "a.xlsx", S=[*PAIRS, ["Who?", ""]])
    (result,) = json.loads(curate("import", "a.xlsx", "--json").stdout)
    assert (result["rows_read"], result["rows_kept"], result["rejected"]) == (4, 3, {"empty-answer": 1})
    assert result["reject_examples"][0]["line"] == 6


def test_the_only_table_of_a_database_is_read(tmp_path):
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE faq (question TEXT, answer TEXT, votes INTEGER)")
        database.executemany("INSERT INTO faq VALUES (?, ?, ?)", [("Why?", "So.", 3), ("When?", None, 4)])
    assert read_rows(path) == [
        {"question": "Why?", "answer": "So.", "votes": "3"},
        {"question": "When?", "answer": None, "votes": "4"},
    ]
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (a)")
    with pytest.raises(SourceError, match="has 2 tables") as error:
        read_batches(path)
    assert error.value.hint.splitlines()[1].endswith("--sheet faq")
    assert len(read_rows(path, options=TableOptions(sheet="faq"))) == 2
    with sqlite3.connect(tmp_path / "c.sqlite") as database:
        database.executescript("CREATE TABLE t (a); DROP TABLE t")
    with pytest.raises(SourceError, match="has no tables") as error:
        read_batches(tmp_path / "c.sqlite")
    assert "Choose one" not in error.value.hint
    broken = write(tmp_path / "b.sqlite", path.read_bytes()[:3000])
    with pytest.raises(SourceError, match="cannot be read as an SQLite database"):
        read_batches(broken)


def test_a_row_of_a_database_with_a_text_that_is_not_utf_8_is_a_reject(tmp_path):
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("CREATE TABLE faq (question TEXT, answer TEXT, image BLOB)")
        database.execute("INSERT INTO faq VALUES ('Why?', 'So.', x'ff'), ('Who?', CAST(x'c441' AS TEXT), NULL)")
        database.execute("INSERT INTO faq VALUES ('When?', 'Sóon.', NULL)")
    batch = one_batch(tmp_path / "a.sqlite")
    assert batch.table.rows() == [("Why?", "So.", "ff"), ("When?", "Sóon.", None)]
    assert (batch.row.to_list(), batch.line.to_list()) == ([1, 3], [None, None])
    (reject,) = batch.rejects.rows()
    assert reject[:4] == (2, None, "not-utf8", "answer: Byte 0xc4 at position 1 is not UTF-8.")
    assert json.loads(reject[4]) == {"question": "Who?", "answer": r"\xc4A", "image": None}
    assert json.loads(raw_texts(batch)[1])["question"] == "When?"
