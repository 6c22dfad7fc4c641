"""Workbooks and SQLite databases: rows, sheets, and errors that list the sheets to choose from."""

import json
import shlex
import sqlite3
import zipfile

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


def test_only_sheets_with_known_column_names_are_offered_if_there_are_any(tmp_path):
    notes = {"Read me": [["Made in May"]], "Sums": [["total", 5]]}
    with pytest.raises(
        SourceError, match=r"4 sheets with data\. Without known column names: 'Read me', 'Sums'"
    ) as error:
        read_batches(write_workbook(tmp_path / "a.xlsx", May=PAIRS, **notes, June=[["Title"], *PAIRS]))
    assert [line.rpartition(" ")[2] for line in error.value.hint.splitlines()[1:]] == ["May", "June"]
    with pytest.raises(SourceError, match="2 sheets with data") as error:
        read_batches(write_workbook(tmp_path / "b.xlsx", **notes))
    assert error.value.hint.count("--sheet") == 2


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


def with_formula(path, sheet, cell):
    """The workbook with another XML for the cell 7 of its sheet."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    part = f"xl/worksheets/s{sheet}.xml"
    assert b"<c><v>7</v></c>" in parts[part]
    parts[part] = parts[part].replace(b"<c><v>7</v></c>", cell)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


FORMULA = [["question", "answer"], ["How far?", 7], ["How deep?", "Ten."]]


@pytest.mark.parametrize(
    "cell", [b'<c r="B2"><f>A1&amp;"x"</f></c>', b'<c r="B2" t="str"><f ca="1">A1&amp;"x"</f><v></v></c>']
)
def test_a_formula_without_a_stored_result_is_named(tmp_path, cell):
    path = with_formula(write_workbook(tmp_path / "a.xlsx", Notes=PAIRS, Faq=FORMULA), 2, cell)
    with pytest.raises(SourceError) as error:
        read_batches(path, options=TableOptions(sheet="Faq"))
    assert 'the sheet Faq has 1 formula without a stored result, the first in B2: =A1&"x"' in error.value.what
    assert len(read_rows(path, options=TableOptions(sheet="Notes"))) == 3


def test_a_formula_with_a_stored_result_is_its_result(tmp_path):
    cell = b'<c r="B2" t="str"><f>A1&amp;"x"</f><v>Two miles.</v></c>'
    path = with_formula(write_workbook(tmp_path / "a.xlsx", Faq=FORMULA), 1, cell)
    assert read_rows(path)[0] == {"question": "How far?", "answer": "Two miles."}


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


def write_sheet(path, rows):
    """A workbook whose rows are given as XML, for cells with references or repeat counts."""
    if path.suffix == ".ods":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
            archive.writestr("META-INF/manifest.xml", "<manifest:manifest/>")
            archive.writestr(
                "content.xml", f'<office:body><table:table table:name="T">{rows}</table:table></office:body>'
            )
        return path
    write_workbook(path.with_name("plain.xlsx"), T=[])
    with zipfile.ZipFile(path.with_name("plain.xlsx")) as plain, zipfile.ZipFile(path, "w") as archive:
        for name in plain.namelist():
            text = plain.read(name).decode()
            archive.writestr(name, text.replace("<sheetData>", f"<sheetData>{rows}") if "worksheets" in name else text)
    return path


def xlsx_row(number, **cells):
    texts = (f'<c r="{at}{number}" t="inlineStr"><is><t>{text}</t></is></c>' for at, text in cells.items())
    return f'<row r="{number}">{"".join(texts)}</row>'


def ods_row(*cells, repeated=1):
    return f'<table:table-row table:number-rows-repeated="{repeated}">{"".join(cells)}</table:table-row>'


def ods_cell(text, repeated=1):
    content = f'office:value-type="string"><text:p>{text}</text:p></table:table-cell>' if text else "/>"
    return f'<table:table-cell table:number-columns-repeated="{repeated}" {content}'


XLSX = xlsx_row(1, A="question", B="answer") + xlsx_row(2, A="Why?", B="So.")
ODS = ods_row(ods_cell("question"), ods_cell("answer")) + ods_row(ods_cell("Why?"), ods_cell("So."))


@pytest.mark.parametrize(
    ("name", "rows", "place"),
    [
        ("a.xlsx", XLSX + xlsx_row(1048576, XFD="x"), "row 1,048,576 and column XFD"),
        ("a.xlsx", XLSX + xlsx_row(3, XFD="x") + xlsx_row(1048576, A="x"), "row 1,048,576 and column XFD"),
        ("a.ods", ODS + ods_row(ods_cell("x", 3 * 10**12)), "row 3 and column 3,000,000,000,000"),
        ("a.ods", ODS + ods_row(ods_cell("", 16383), ods_cell("x"), repeated=1048574), "row 1,048,576 and column XFD"),
    ],
)
def test_a_cell_far_away_from_the_table_is_an_error(tmp_path, name, rows, place):
    with pytest.raises(SourceError, match=f"reaches to {place}, too many cells") as error:
        read_batches(write_sheet(tmp_path / name, rows))
    assert "Delete the cells far away" in error.value.hint


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.xlsx", XLSX + '<row r="1048576"><c r="A1048576" s="1"/><c r="XFD1048576" s="1"></c></row>'),
        ("a.xlsx", XLSX),
        ("a.ods", ODS + ods_row(ods_cell("", 16384), repeated=1048574)),
    ],
)
def test_empty_cells_far_away_are_no_error(tmp_path, name, rows):
    assert read_rows(write_sheet(tmp_path / name, rows)) == [{"question": "Why?", "answer": "So."}]
