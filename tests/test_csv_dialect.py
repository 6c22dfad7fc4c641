"""CSV dialects: options, what is read without them, and errors that print the option to add."""

import csv
import io
import json
import random
import shlex

import pytest
from support.source_files import one_batch, raw_texts, read_batches, read_rows, write

from curate.ingest.readers import TableOptions, open_source
from schemas.errors import SourceError

PAIRS = [["question", "answer"], ["How far?", "Two miles."], ["How deep?", "Ten feet."], ["How old?", "Forty years."]]


def csv_text(rows, **dialect):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **dialect).writerows(rows)
    return out.getvalue()


def rows_of(path, **options):
    return [list(row) for batch in read_batches(path, options=TableOptions(**options)) for row in batch.table.rows()]


def error_of(path, **options):
    with pytest.raises(SourceError) as error:
        read_batches(path, options=TableOptions(**options))
    return error.value


@pytest.mark.parametrize("delimiter", ["^", "~", "\x01", ":"])
def test_a_delimiter_that_is_not_detected_can_be_given(tmp_path, delimiter):
    path = write(tmp_path / "a.csv", csv_text(PAIRS, delimiter=delimiter))
    assert rows_of(path, delimiter=delimiter) == PAIRS[1:]


def test_a_given_delimiter_is_used_where_another_one_is_detected(tmp_path):
    path = write(tmp_path / "a.csv", "question;note,answer\nHow far; and when?,Two.\nWhy; so?,So.\n")
    assert open_source(path, options=TableOptions(delimiter=",")).delimiter == ","
    assert rows_of(path, delimiter=",") == [["How far; and when?", "Two."], ["Why; so?", "So."]]


def test_another_quote_keeps_double_quotes_in_cells(tmp_path):
    rows = [["question", "answer"], ['A 5" pipe, or more?', 'It\'s "five"'], ["two\nlines", ""]]
    path = write(tmp_path / "a.csv", csv_text(rows, quotechar="'"))
    assert rows_of(path, quote="'") == rows[1:]


def test_without_a_quote_every_quote_is_text(tmp_path):
    path = write(tmp_path / "a.tsv", 'question\tanswer\n"Why" she said?\t"Because.\n5"\t""\n')
    assert rows_of(path, quote="") == [['"Why" she said?', '"Because.'], ['5"', '""']]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("quote", "escape"), [('"', "\\"), ("'", "\\"), ("", "\\"), ('"', "^"), ("'", "")])
def test_a_dialect_is_read_as_the_standard_library_writes_it(tmp_path, small_chunks, seed, quote, escape):
    chance = random.Random(seed)
    pieces = ["a", '"', "'", ",", "\n", "é", "😀", " ", ";", "", escape]
    rows = [["".join(chance.choices(pieces, k=chance.randint(0, 6))) for _ in range(3)] for _ in range(30)]
    quoting = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]) if quote else csv.QUOTE_NONE
    dialect = {"quotechar": quote or None, "escapechar": escape or None, "doublequote": not escape, "quoting": quoting}
    names = [["one", "two", "three"]]
    batches = read_batches(
        write(tmp_path / "a.csv", csv_text(names + rows, **dialect)),
        options=TableOptions(delimiter=",", quote=quote, escape=escape or None),
    )
    assert [list(row) for batch in batches for row in batch.table.rows()] == rows
    assert [line for batch in batches for line in batch.rejects["line"]] == []
    assert sum(len(raw_texts(batch)) for batch in batches) == 30


def test_an_escape_before_another_character_is_text_and_a_bare_n_is_empty(tmp_path):
    path = write(tmp_path / "a.csv", 'q,a,b\n"\\frac{1}{2} \\"x\\"",C:\\new,\\N\n"\\N",\\\\,a\\,b\n')
    assert rows_of(path, escape="\\") == [['\\frac{1}{2} "x"', "C:\\new", ""], ["\\N", "\\", "a,b"]]


def test_quotes_escaped_with_backslashes_are_an_error_with_the_option_to_add(tmp_path):
    path = write(tmp_path / "a.csv", csv_text([*PAIRS, ['Say "no", now', "No"]], escapechar="\\", doublequote=False))
    error = error_of(path)
    assert "escaped with backslashes" in error.what
    (*_, option, value) = shlex.split(error.hint)
    assert rows_of(path, **{option.removeprefix("--"): value})[-1] == ['Say "no", now', "No"]


def test_a_backslash_before_the_last_quote_of_a_cell_is_text(tmp_path):
    path = write(tmp_path / "a.csv", 'path,note\n"C:\\tmp\\","x, y"\n"C:\\a\\","z"\n')
    assert rows_of(path) == [["C:\\tmp\\", "x, y"], ["C:\\a\\", "z"]]


def test_cells_in_single_quotes_are_an_error_with_the_option_to_add(tmp_path):
    path = write(tmp_path / "a.csv", csv_text(PAIRS, quotechar="'", quoting=csv.QUOTE_ALL))
    error = error_of(path)
    assert error.what.endswith("the cells are in single quotes: 'question'.")
    assert shlex.split(error.hint)[-2:] == ["--quote", "'"]
    assert rows_of(path, quote="'") == PAIRS[1:]


@pytest.mark.parametrize(
    "above",
    [
        "Export 2024-05-01\n\n",
        "Export 2024-05-01\n",
        "Export, of May, in 2024\n\n\n",
        "Export,\n",
    ],
)
def test_a_title_above_the_header_is_an_error_with_the_option_to_add(tmp_path, above):
    path = write(tmp_path / "a.csv", above + csv_text(PAIRS))
    lines = above.count("\n")
    error = error_of(path)
    assert f"the table seems to start on line {lines + 1}, with 'question', 'answer'" in error.what
    assert error.hint.splitlines()[1:] == [
        f"    curate import {path} --skip-lines {lines}",
        f"    curate import {path} --header",
    ]
    batch = one_batch(path, options=TableOptions(skip_lines=lines))
    assert [list(row) for row in batch.table.rows()] == PAIRS[1:]
    assert batch.line.to_list() == [lines + 2, lines + 3, lines + 4]
    assert batch.row.to_list() == [1, 2, 3]


def test_the_delimiter_is_detected_below_a_title(tmp_path):
    path = write(tmp_path / "a.csv", "Export\n\n" + csv_text(PAIRS, delimiter=";"))
    assert " --skip-lines 2\n" in error_of(path).hint
    assert rows_of(path, skip_lines=2) == PAIRS[1:]


def test_more_lines_to_skip_than_the_file_has_are_an_error(tmp_path):
    assert "4 lines are to be skipped" in error_of(write(tmp_path / "a.csv", "a,b\n1,2\n3,4\n"), skip_lines=4).what


def test_texts_with_commas_under_a_single_name_are_no_title(tmp_path):
    path = write(tmp_path / "a.csv", 'text\n"Hello, you"\n"Hi, me, and you"\n')
    assert rows_of(path) == [["Hello, you"], ["Hi, me, and you"]]


@pytest.mark.parametrize(
    "row",
    [
        ["How far is it?", "Two miles."],
        ["17", "Two miles"],
        ['[{"from": "human"}]', "x"],
        ["x" * 90, "y"],
        ["en", "Two miles"],
    ],
)
def test_a_first_row_of_data_is_an_error_with_the_options_for_both_meanings(tmp_path, row):
    rows = [row, ["18" if row[0] == "17" else "en", "Ten feet"], ["19" if row[0] == "17" else "de", "Forty"]]
    path = write(tmp_path / "a.csv", csv_text(rows))
    error = error_of(path)
    assert "the first row looks like data" in error.what
    assert "--no-header" in error.hint
    assert "--header" in error.hint
    batch = one_batch(path, options=TableOptions(header=False))
    assert batch.table.columns == ["column_1", "column_2"]
    assert [list(cells) for cells in batch.table.rows()] == rows
    assert (batch.row.to_list(), batch.line.to_list()) == ([1, 2, 3], [1, 2, 3])
    assert one_batch(path, options=TableOptions(header=True)).table.height == 2


def test_both_offered_commands_for_a_first_row_of_data_import_the_file(tmp_path, curate):
    write(tmp_path / "a.csv", csv_text([["Where's it, then?", "Here."], ["When is it?", "Now."]]))
    hint = json.loads(curate("import", "a.csv", "--json").stdout)["error"]["hint"]
    commands = [shlex.split(line)[1:] for line in hint.splitlines()[1:]]
    rows = [json.loads(curate(*command, "--dry-run", "--json").stdout)[0]["rows_kept"] for command in commands]
    assert rows == [2, 1]


@pytest.mark.parametrize("header", ["question,answer", "0,1", "1,2", "Ticket No.,Reply", ",text", "How far,2024"])
def test_a_header_is_recognised(tmp_path, header):
    assert one_batch(write(tmp_path / "a.csv", f"{header}\nWhy?,So.\nWhen?,Now.\n")).table.height == 2


def test_a_column_that_the_user_names_is_in_the_header(tmp_path):
    path = write(tmp_path / "a.csv", "What is your name?,And why?\nAnn,So.\nBob,Because.\n")
    assert rows_of(path, named=("What is your name?",)) == [["Ann", "So."], ["Bob", "Because."]]


def test_the_printed_command_imports_a_file_without_a_header(tmp_path, curate):
    write(tmp_path / "a.csv", "How far is it?,Two miles.\nHow deep is it?,Ten feet.\nHow old is it?,Forty years.\n")
    failed = curate("import", "a.csv", "--max-rejects", "50%")
    command = next(line for line in failed.stderr.splitlines() if "--no-header" in line)
    assert shlex.split(command)[:5] == ["curate", "import", "--max-rejects", "50%", "a.csv"]
    (result,) = json.loads(curate(*shlex.split(command)[1:], "--json").stdout)
    assert (result["rows_read"], result["conversations"]) == (3, 3)
    assert result["mapping"]["header"] is False


@pytest.mark.parametrize("line", ["sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_a_delimiter_hint_for_excel_sets_the_delimiter(tmp_path, line):
    batch = one_batch(write(tmp_path / "a.csv", f"{line}question;answer, or not\r\nq;a\r\n"))
    assert (batch.table.columns, batch.line.to_list()) == (["question", "answer, or not"], [3])


def test_a_column_name_may_start_like_a_delimiter_hint(tmp_path):
    (batch,) = read_batches(write(tmp_path / "a.csv", "sep=;answer\nq;a\n"))
    assert batch.table.columns == ["sep=", "answer"]


def test_a_delimiter_at_the_end_of_every_record_is_no_cell(tmp_path):
    path = write(tmp_path / "a.csv", "question,answer\nHow far?,Two.,\nWhy?,So.,\nWhen?,Now.\nWho?,Ann,Bob\n")
    batch = one_batch(write(tmp_path / "b.csv", path.read_text().replace("Now.\n", "Now.,\n").replace(",Bob", ",")))
    assert batch.table.columns == ["question", "answer"]
    assert batch.table.height == 4
    path = write(tmp_path / "c.csv", "question,answer\n" + "How far?,Two.,\n" * 40 + "When?,Now.\nWho?,Ann,Bob\n")
    batch = one_batch(path)
    assert batch.table.height == 41
    assert batch.rejects["reason"].to_list() == ["The record has 3 cells, the header 2; surplus: 'Bob'."]


def test_a_delimiter_at_the_end_of_only_the_header_is_no_column(tmp_path):
    assert read_rows(write(tmp_path / "a.csv", "question,answer,\nWhy?,So.\nWhen?,Now.\n")) == [
        {"question": "Why?", "answer": "So."},
        {"question": "When?", "answer": "Now."},
    ]


def test_row_names_without_a_column_name_as_r_writes_them_are_a_column(tmp_path):
    path = write(tmp_path / "a.csv", '"question","answer"\n"1","Why?","So."\n"2","When?","Now."\n')
    assert one_batch(path).table.rows(named=True)[1] == {"column_1": "2", "question": "When?", "answer": "Now."}


@pytest.mark.parametrize("footer", ["number of rows;2;\nexported by;desk tool;\n", "number of rows;2\n", "Total: 2\n"])
def test_a_footer_after_the_last_blank_line_is_rejected(tmp_path, footer):
    path = write(tmp_path / "a.csv", f"question;answer;no\nHow far?;Two.;0\nWhy?;So.;1\nWhen?;Now.;2\n\n{footer}\n")
    batch = one_batch(path)
    assert batch.table.height == 3
    assert set(batch.rejects["code"]) <= {"footer-row", "ragged-row"}
    assert batch.rejects["line"].to_list() == list(range(6, 6 + footer.count("\n")))


@pytest.mark.parametrize("footer", ["Total: 3 rows,,\n", '"Exported by Ann, today",,\n-- end --,,\n', "(3 rows),,"])
def test_a_footer_without_a_blank_line_is_rejected_by_its_words(tmp_path, footer):
    rows = "How far?,Two.,0\nTotal eclipse?,,1\nWhen?,Now.,\n"
    batch = one_batch(write(tmp_path / "a.csv", f"question,answer,no\n{rows}{footer}"))
    assert batch.table.height == 3
    assert batch.rejects["code"].to_list() == ["footer-row"] * len(footer.splitlines())


@pytest.mark.parametrize("last", ["Total eclipse?,,1\n", "What is new?,,\n", "Total eclipse?,In 2081.,\n"])
def test_the_last_row_of_a_table_is_no_footer_with_two_cells_or_other_words(tmp_path, last):
    batch = one_batch(write(tmp_path / "a.csv", f"question,answer,no\nHow far?,Two.,0\nWhen?,Now.,2\n{last}"))
    assert (batch.table.height, batch.rejects.height) == (3, 0)


def test_a_footer_in_a_later_chunk_is_rejected(tmp_path, small_chunks):
    path = write(tmp_path / "a.csv", "question,answer\n" + "How far is it?,Two miles.\n" * 60 + "\nrows,60\nby,desk\n")
    batches = read_batches(path)
    assert len(batches) > 3
    assert [code for batch in batches for code in batch.rejects["code"]] == ["footer-row", "footer-row"]


@pytest.mark.parametrize("end", ["\nWhy?,So.,3\n", "\n\nWhy?,So.,3\nWhen?,Now.,4\n"])
def test_rows_after_a_blank_line_that_are_like_the_others_are_read(tmp_path, end):
    batch = one_batch(write(tmp_path / "a.csv", f"question,answer,no\nHow far?,Two.,1\nHow deep?,Ten.,2\n{end}"))
    assert batch.rejects.is_empty()


def test_rows_that_are_all_separated_by_blank_lines_are_read(tmp_path):
    text = "question,answer\n\nHow far?,Two.\n\nHow deep?,Ten.\n\nHow many?,7\n"
    assert one_batch(write(tmp_path / "a.csv", text)).table.height == 3


def test_a_repeated_header_is_rejected(tmp_path):
    batch = one_batch(write(tmp_path / "a.csv", csv_text([*PAIRS, *PAIRS])))
    assert batch.table.height == 6
    assert batch.rejects.select("row", "line", "code").rows() == [(4, 5, "repeated-header")]


def test_a_header_with_too_many_columns_is_an_error_that_states_the_limit(tmp_path):
    names = ",".join(f"c{at}" for at in range(200_002))
    error = error_of(write(tmp_path / "a.csv", f"{names}\n{names}\n"))
    assert "does not end within the first 1,048,576 bytes" in error.what
    assert "50,000 columns" in error.what
    error = error_of(write(tmp_path / "b.csv", "," * 60_000 + "\n" + "," * 60_000 + "\n"))
    assert error.what.endswith("has 60,001 columns; the limit is 50,000.")


def test_an_option_that_does_not_apply_to_the_format_is_an_error(tmp_path):
    error = error_of(write(tmp_path / "a.jsonl", '{"question": "Why?", "answer": "So."}\n'), delimiter=";")
    assert "is read as jsonl, for which --delimiter has no meaning" in error.what


@pytest.mark.parametrize("option", ["--delimiter=||", "--escape=é", "--quote=ab", "--delimiter="])
def test_a_sign_that_is_not_one_ascii_character_is_an_error(tmp_path, curate, option):
    write(tmp_path / "a.csv", csv_text(PAIRS))
    assert "is not one ASCII character" in curate("import", "a.csv", option).stderr


def test_options_change_the_id_of_an_import_and_their_defaults_do_not(tmp_path, curate):
    write(tmp_path / "a.csv", csv_text(PAIRS))
    ids = [
        json.loads(curate("import", "a.csv", "--json", "--dry-run", *options).stdout)[0]["source"]
        for options in ([], ["--skip-lines", "0"], ["--delimiter", ","], ["--header"])
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
