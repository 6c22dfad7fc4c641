"""CSV: exact cells, line numbers of records that span lines, and errors that reject only their record."""

import csv
import io
import random

import pytest
from support.source_files import one_batch, raw_texts, read_batches, write

from curate.ingest.readers import csv_scanner, open_source
from schemas.errors import SourceError


def test_line_numbers_count_newlines_in_cells(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n1,"one\ntwo\n"\n2,three\n'))
    assert batch.table.rows(named=True) == [{"q": "1", "a": "one\ntwo\n"}, {"q": "2", "a": "three"}]
    assert batch.row.to_list() == [1, 2]
    assert batch.line.to_list() == [2, 5]
    assert raw_texts(batch) == ['1,"one\ntwo\n"', "2,three"]


def test_every_cell_is_text_and_an_empty_cell_is_the_empty_string(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a,b\n007,,"x ""y"""\nNA,"", z \n'))
    assert batch.table.rows() == [("007", "", 'x "y"'), ("NA", "", " z ")]


def test_windows_line_ends_are_kept_only_within_cells(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\r\n1,"x\r\ny"\r\n2,"z"\r\n\r\n3,w'))
    assert batch.table.rows() == [("1", "x\r\ny"), ("2", "z"), ("3", "w")]
    assert batch.line.to_list() == [2, 4, 6]


def test_with_windows_line_ends_an_unclosed_quote_rejects_only_its_record(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'text\r\nt1\r\n"t2 open\r\nt3\r\nt4\r\nt5\r\n'))
    assert batch.table["text"].to_list() == ["t1", "t3", "t4", "t5"]
    assert batch.rejects.select("row", "line", "code", "raw").rows() == [(2, 3, "unclosed-quote", '"t2 open')]


def test_with_windows_line_ends_an_unclosed_quote_in_the_last_record_is_a_reject(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'question,answer\r\nq1,a1\r\n"abc\r\n'))
    assert batch.table.rows() == [("q1", "a1")]
    assert batch.rejects.select("row", "line", "code", "raw").rows() == [(2, 3, "unclosed-quote", '"abc')]


def test_a_carriage_return_within_a_cell_is_kept(tmp_path):
    assert one_batch(write(tmp_path / "a.csv", 'q,a\n1,"x\ry"\n')).table["a"].to_list() == ["x\ry"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected(tmp_path, delimiter):
    lines = [["question", "the answer"], ["Why, then; or not?", "a|b"], ["Who?", "c\td"]]
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(lines)
    batch = one_batch(write(tmp_path / "a.csv", out.getvalue()))
    assert batch.table.columns == lines[0]
    assert [list(row) for row in batch.table.rows()] == lines[1:]


def test_a_tab_is_preferred_as_the_delimiter_of_a_tsv(tmp_path):
    batch = one_batch(write(tmp_path / "a.tsv", "a, b, c\td\n1, 2\t3\n"))
    assert batch.table.rows(named=True) == [{"a, b, c": "1, 2", "d": "3"}]


def test_one_column_needs_no_delimiter(tmp_path):
    assert one_batch(write(tmp_path / "a.csv", 'text\nHello\n"Hi, you"\n')).table["text"].to_list() == [
        "Hello",
        "Hi, you",
    ]


def test_a_ragged_row_is_rejected_with_its_line_number(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n"x\ny",1\n2\n3,4,five,six\n5,6\n'))
    assert batch.table.rows() == [("x\ny", "1"), ("5", "6")]
    assert batch.row.to_list() == [1, 4]
    assert batch.rejects.rows() == [
        (2, 4, "ragged-row", "The record has 1 cell, the header 2; missing: 'a'.", "2"),
        (3, 5, "ragged-row", "The record has 4 cells, the header 2; surplus: 'five', 'six'.", "3,4,five,six"),
    ]


def test_a_reason_lists_at_most_five_missing_or_surplus_cells_and_counts_the_rest(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", "a,b,c,d,e,f,g,h\n1\n1,2\n1,2,3,4,5,6,7,8,9\n" + "1," * 15 + "\n"))
    assert batch.rejects["reason"].to_list() == [
        "The record has 1 cell, the header 8; missing: 'b', 'c', 'd', 'e', 'f' and 2 more.",
        "The record has 2 cells, the header 8; missing: 'c', 'd', 'e', 'f', 'g', 'h'.",
        "The record has 9 cells, the header 8; surplus: '9'.",
        "The record has 16 cells, the header 8; surplus: '1', '1', '1', '1', '1' and 3 more.",
    ]


def test_a_quote_in_an_unquoted_cell_is_text(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n5" nails,say "hi"\n"x\ny","z"\n2,""\n'))
    assert batch.table.rows() == [('5" nails', 'say "hi"'), ("x\ny", "z"), ("2", "")]
    assert batch.rejects.is_empty()
    assert batch.line.to_list() == [2, 3, 5]


def test_an_unclosed_quote_rejects_only_its_line(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n1,one\n2,"two\n3,three\n4,"four"\n5,"f\nive"\n6,"",\n'))
    assert batch.table.rows() == [("1", "one"), ("3", "three"), ("4", "four"), ("5", "f\nive")]
    assert batch.rejects.select("row", "line", "code", "raw").rows() == [
        (2, 3, "unclosed-quote", '2,"two'),
        (6, 8, "ragged-row", '6,"",'),
    ]
    assert batch.line.to_list() == [2, 4, 5, 6]


def test_an_unclosed_quote_without_a_later_quote_rejects_only_its_line(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n1,"one\n' + "".join(f"{row},x\n" for row in range(2, 50))))
    assert batch.table.height == 48
    assert batch.rejects.select("row", "line", "code").rows() == [(1, 2, "unclosed-quote")]


def test_an_unclosed_quote_in_the_last_line_is_a_reject(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n1,one\n2,"two\n'))
    assert batch.rejects.select("row", "line", "code").rows() == [(2, 3, "unclosed-quote")]


def test_two_unclosed_quotes_reject_two_lines(tmp_path):
    lines = [f"{row},x" for row in range(1, 61)]
    lines[9], lines[49] = '10,"x', '50,"y'
    batch = one_batch(write(tmp_path / "a.csv", "q,a\n" + "\n".join(lines)))
    assert batch.rejects.select("row", "line", "code").rows() == [
        (10, 11, "unclosed-quote"),
        (50, 51, "unclosed-quote"),
    ]
    assert batch.table.height == 58


def test_an_unclosed_quote_that_a_later_cell_seems_to_close_rejects_one_line(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n1,"one\n2,","\n3,three\n4,four\n5,five\n'))
    assert batch.rejects.select("row", "line", "code").rows() == [(1, 2, "unclosed-quote")]
    assert batch.table.rows() == [("2", ","), ("3", "three"), ("4", "four"), ("5", "five")]


def test_quotes_that_are_not_doubled_reject_only_their_record(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", 'q,a\n1,"he said "no"\nand, left"\n2,two\n3,"th""ree"\n'))
    assert batch.rejects.select("row", "line", "code", "raw").rows() == [
        (1, 2, "stray-quote", '1,"he said "no"\nand, left"')
    ]
    assert batch.table.rows() == [("2", "two"), ("3", 'th"ree')]
    assert batch.line.to_list() == [4, 5]


@pytest.mark.parametrize("few", [1, 4, 256])
def test_all_rows_between_many_faults_are_read_with_their_lines(tmp_path, monkeypatch, few):
    """After a fault the scan continues in steps; a step may end within a record, and a record may span steps."""
    monkeypatch.setattr(csv_scanner, "FIRST_STEP", few)
    blocks = [
        f'{n},"he said "no" to me"\n' + f'{n},fine\n{n},"on\ntwo\n\nlines"\n' * (n % 7) + f"{n}\n" * (n % 3)
        for n in range(200)
    ]
    batch = one_batch(write(tmp_path / "a.csv", "q,a\n" + "".join(blocks)))
    expected = [cells for n in range(200) for cells in [(str(n), "fine"), (str(n), "on\ntwo\n\nlines")] * (n % 7)]
    assert batch.table.rows() == expected
    lines = [text.split("\n")[0] for text in raw_texts(batch)]
    file = ["q,a", *"".join(blocks).split("\n")]
    assert [file[line - 1] for line in batch.line] == lines
    assert (batch.rejects["code"] == "ragged-row").to_list() == [
        ragged for n in range(200) for ragged in [False] + [True] * (n % 3)
    ]


def test_an_unclosed_quote_is_rejected_when_its_cell_exceeds_a_chunk(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(csv_scanner, "CHUNK", 100)
    batches = read_batches(write(tmp_path / "a.csv", 'q,a\n1,"one\n' + "".join(f"{row},x\n" for row in range(2, 200))))
    assert sum(batch.table.height for batch in batches) == 198
    assert [code for batch in batches for code in batch.rejects["code"]] == ["unclosed-quote"]


def test_rows_and_lines_are_counted_across_chunks(tmp_path, small_chunks):
    rows = [[str(number), "x\n" * (number % 4)] for number in range(80)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([["q", "a"], *rows])
    batches = read_batches(write(tmp_path / "a.csv", out.getvalue()))
    assert len(batches) > 10
    assert [list(row) for batch in batches for row in batch.table.rows()] == rows
    assert [row for batch in batches for row in batch.row] == list(range(1, 81))
    lines = out.getvalue().split("\n")
    assert all(
        lines[line - 1].startswith(f"{row - 1},")
        for batch in batches
        for row, line in zip(batch.row, batch.line, strict=True)
    )


def test_a_file_with_only_a_header_has_columns_and_no_rows(tmp_path):
    source = open_source(write(tmp_path / "a.csv", "question,answer\n"))
    assert [batch.table.height for batch in source.batches()] == [0]
    assert source.columns == ("question", "answer")


def test_a_header_may_have_newlines_duplicates_and_empty_names(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", '"the\nquestion",a,a,,"say ""x""",row\n1,2,3,4,5,6\n'))
    assert batch.table.columns == ["the\nquestion", "a", "a_2", "column_4", 'say "x"', "row"]
    assert batch.line.to_list() == [3]
    assert batch.row.to_list() == [1]


def test_a_header_with_an_unclosed_quote_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="quotes of the header are unbalanced"):
        read_batches(write(tmp_path / "a.csv", 'q,"a\n1,2\n3,4\n5,6\n'))


def test_a_header_in_another_encoding_is_an_error_even_if_the_rows_are_ascii(tmp_path):
    path = write(tmp_path / "a.csv", '\n"question\nde vous",réponse\n1,2\n'.encode("cp1252"))
    with pytest.raises(SourceError, match=r"a\.csv, line 3: byte 0xe9 is not UTF-8; .* like cp1252") as error:
        read_batches(path)
    assert error.value.hint == "Add --encoding cp1252"
    assert one_batch(path, encoding="cp1252").table.columns == ["question\nde vous", "réponse"]


def test_blank_lines_are_skipped_and_counted_as_lines(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", "\n\nq,a\n\n1,2\n\n\n3,4\n"))
    assert batch.row.to_list() == [1, 2]
    assert batch.line.to_list() == [5, 8]


def test_a_row_with_a_nul_byte_is_a_reject(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", b"q,a\n1,o\0ne\n2,two\n"))
    assert batch.rejects.select("row", "code").rows() == [(1, "nul-byte")]
    assert batch.table.rows() == [("2", "two")]


def test_a_row_with_invalid_utf8_is_a_reject(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", "q,a\n1,Grüße\n2,Ähre\n".encode() + b"3,Stra\xdfe\n"))
    assert batch.table["a"].to_list() == ["Grüße", "Ähre"]
    assert batch.rejects.select("row", "line", "code", "raw").rows() == [(3, 4, "not-utf8", r"3,Stra\xdfe")]


def test_hostile_cells_are_read_unchanged(tmp_path):
    cells = [
        "=cmd|' /C calc'!A0",
        "<script>",
        "\x1b[31m",
        "'; DROP TABLE x; --",
        "\u202e",
        "#not a comment",
        "\\N",
        "null",
    ]
    out = io.StringIO()
    csv.writer(out).writerows([["c"], *([cell] for cell in cells)])
    assert one_batch(write(tmp_path / "a.csv", out.getvalue())).table["c"].to_list() == cells


def test_a_row_may_have_many_thousand_columns(tmp_path):
    names = [f"c{number}" for number in range(20_000)]
    batch = one_batch(write(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(names).upper() + "\n"))
    assert batch.table.row(0) == tuple(name.upper() for name in names)


@pytest.mark.parametrize("seed", range(40))
def test_well_formed_csv_is_read_as_the_standard_library_reads_it(tmp_path, small_chunks, seed):
    chance = random.Random(seed)
    pieces = ["a", '"', ",", "\n", "\r\n", "é", "😀", " ", '""', ";", "", "'", "\\"]
    width = chance.randint(2, 4)
    rows = [["".join(chance.choices(pieces, k=chance.randint(0, 6))) for _ in range(width)] for _ in range(20)]
    out = io.StringIO()
    quoting = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, lineterminator=chance.choice(["\n", "\r\n"]), quoting=quoting)
    writer.writerows([[f"c{number}" for number in range(width)], *rows])
    batches = read_batches(write(tmp_path / "a.csv", out.getvalue()))
    assert [list(row) for batch in batches for row in batch.table.rows()] == rows
    records = [next(csv.reader(io.StringIO(one, newline=""))) for batch in batches for one in raw_texts(batch)]
    assert records == rows


def test_line_ends_without_newlines_are_an_error(tmp_path):
    with pytest.raises(SourceError, match="carriage returns without newlines"):
        read_batches(write(tmp_path / "a.csv", "q,a\r1,2\r3,4\r"))
