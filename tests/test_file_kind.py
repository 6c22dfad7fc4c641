"""Files that are not tables: one sentence on their kind, and commands that work; archives, text, YAML, JSON tables."""

import bz2
import io
import json
import lzma
import re
import shlex
import zipfile

import pyarrow as pa
import pytest
from support.source_files import one_batch, raw_texts, read_batches, read_rows, write

from curate.ingest.pipeline import import_files
from curate.ingest.readers import expand, open_source
from curate.ingest.readers.paths import find_skipped
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection

ROWS = [{"question": "How far?", "answer": "Two miles."}, {"question": "How deep?", "answer": "Ten feet."}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page"),
        ("<html>\n<table></table></html>", "an HTML page"),
        ("<?xml version='1.0'?><rows/>", "an XML document"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a pointer of Git LFS"),
        ("-- MySQL dump 10.13\n\nDROP TABLE IF EXISTS `faq`;\nCREATE TABLE `faq` (a int);\n", "an SQL dump"),
        ("PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nCREATE TABLE faq(a);", "an SQL dump"),
        ("INSERT INTO faq VALUES ('a, b', 'c');\n", "an SQL dump"),
        (r"{\rtf1\ansi Hello, you}", "an RTF document"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\0" * 8 + b"DUCK" + b"\0" * 40, "a DuckDB database"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "export"])
def test_a_file_that_is_no_table_is_an_error_with_its_kind(tmp_path, name, content, kind):
    with pytest.raises(SourceError, match=kind) as error:
        read_batches(write(tmp_path / name, content))
    assert "--encoding" not in error.value.hint
    assert error.value.hint


def test_markup_in_a_text_file_and_a_cell_is_text(tmp_path):
    assert read_rows(write(tmp_path / "a.md", "<table>one</table>\n")) == [{"text": "<table>one</table>\n"}]
    assert len(read_rows(write(tmp_path / "a.csv", "html,answer\n<html>,So.\n"))) == 1


@pytest.mark.parametrize(("suffix", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_more_compressions_are_read(tmp_path, suffix, pack):
    path = write(tmp_path / f"a.jsonl{suffix}", pack(LINES.encode()))
    assert read_rows(path) == ROWS
    with pytest.raises(SourceError, match="damaged or truncated"):
        read_batches(write(tmp_path / f"b.jsonl{suffix}", pack(LINES.encode())[:-9]))


def make_zip(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_an_archive_with_one_data_file_is_read(tmp_path):
    path = make_zip(tmp_path / "a.zip", **{"data/": "", "data/a.csv": "question;answer\nWhy?;So.\n", "README.md": "x"})
    source = open_source(path)
    assert source.format == "csv"
    assert [batch.table.rows() for batch in source.batches()] == [[("Why?", "So.")]]


@pytest.mark.parametrize(
    ("field", "value", "reason"), [(0, 1, "'a.jsonl' is encrypted"), (2, 9, "compression method is not supported")]
)
def test_an_archive_that_needs_a_password_or_another_program_is_an_error(tmp_path, curate, field, value, reason):
    """Bytes 6 and 8 of the local header, 8 and 10 of the central one, hold flags and compression method."""
    packed = bytearray(make_zip(tmp_path / "a.zip", **{"a.jsonl": LINES}).read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.index(signature) + flags + field] = value
    (tmp_path / "a.zip").write_bytes(packed)
    failed = curate("import", "a.zip")
    assert failed.stderr.startswith("Error: a.zip cannot be extracted: ")
    assert reason in failed.stderr
    assert "Extract the archive" in failed.stderr


def test_an_archive_with_several_files_is_an_error_with_commands_that_work(tmp_path, curate):
    make_zip(tmp_path / "two files.zip", **{"a.jsonl": LINES, "b.jsonl": LINES})
    failed = curate("import", "two files.zip")
    assert "is a zip archive of 2 files: a.jsonl, b.jsonl" in failed.stderr
    assert "python3 -m zipfile -e 'two files.zip' 'two files'" in failed.stderr
    zipfile.main(["-e", str(tmp_path / "two files.zip"), str(tmp_path / "two files")])
    assert json.loads(curate("import", "two files", "--json").stdout)[0]["rows_read"] == 2


@pytest.mark.parametrize(
    "value",
    [
        {"question": {"0": "How far?", "1": "How deep?"}, "answer": {"0": "Two miles.", "1": "Ten feet."}},
        {"columns": ["question", "answer"], "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
        {"question": ["How far?", "How deep?"], "answer": ["Two miles.", "Ten feet."]},
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "export"])
@pytest.mark.parametrize("indent", [None, 1])
def test_columns_instead_of_rows_are_read(tmp_path, name, indent, value):
    path = write(tmp_path / name, json.dumps(value, indent=indent))
    batch = one_batch(path)
    assert batch.table.rows(named=True) == ROWS
    assert json.loads(raw_texts(batch)[1]) == ROWS[1]


def test_the_texts_of_numbers_in_columns_stay_as_they_are(tmp_path):
    path = write(
        tmp_path / "a.json", '{"question": {"0": "Why?"}, "score": {"0": 1.5}, "id": {"0": 12345678901234567890}}'
    )
    assert read_rows(path) == [{"question": "Why?", "score": "1.5", "id": "12345678901234567890"}]


def test_rows_under_names_are_read_with_their_names_and_lines(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"t-1": ROWS[0], "t-2": ROWS[1]}, indent=1))
    batch = one_batch(path)
    assert batch.table.rows(named=True) == [{"key": "t-1", **ROWS[0]}, {"key": "t-2", **ROWS[1]}]
    assert batch.line.to_list() == [2, 6]


@pytest.mark.parametrize(
    "row",
    [
        {"question": {"text": "Why?"}, "answer": {"text": "So."}},
        {"prompt": {"role": "user", "content": "Hi"}, "chosen": {"role": "assistant", "content": "Ho"}},
        {"question": "Why?", "tags": ["a", "b"]},
        {"id": "1", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ],
)
def test_a_single_row_with_nested_values_is_a_row(tmp_path, row):
    assert len(read_rows(write(tmp_path / "a.json", json.dumps(row)))) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "export"])
def test_objects_without_line_ends_between_them_are_read(tmp_path, name):
    assert read_rows(write(tmp_path / name, LINES.replace("\n", ""))) == ROWS


@pytest.mark.parametrize(("role", "text", "key"), [("from", "value", "conversations"), ("role", "content", "messages")])
@pytest.mark.parametrize("lines", [True, False])
def test_a_list_of_lists_of_turns_is_read(tmp_path, lines, role, text, key):
    turns = [[{role: "user", text: "Hi"}, {role: "assistant", text: str(n)}] for n in range(3)]
    content = "\n".join(map(json.dumps, turns)) if lines else json.dumps(turns)
    batch = one_batch(write(tmp_path / ("a.jsonl" if lines else "a.json"), content))
    assert batch.table.columns == [key]
    assert [json.loads(cell) for cell in batch.table[key]] == turns
    assert [json.loads(one) for one in raw_texts(batch)] == turns


def test_yaml_is_read_with_lines_and_its_scalars_as_they_are_written(tmp_path):
    text = (
        "- question: Is it on?\n  answer: yes\n  at: 12:30\n  n: 1.10\n- question: |\n    two\n    lines\n  answer: ~\n"
    )
    batch = one_batch(write(tmp_path / "a.yaml", text))
    assert batch.table.rows(named=True) == [
        {"question": "Is it on?", "answer": "yes", "at": "12:30", "n": "1.10"},
        {"question": "two\nlines\n", "answer": None, "at": None, "n": None},
    ]
    assert batch.line.to_list() == [1, 5]


def test_yaml_documents_lists_under_a_key_and_anchors_are_read(tmp_path):
    documents = "system: &s Be kind.\nquestion: Why?\n---\nquestion: When?\n"
    assert [row["question"] for row in read_rows(write(tmp_path / "a.yml", documents))] == ["Why?", "When?"]
    under = "version: 1\ndata:\n- {system: &s Be kind., question: Why?}\n- {system: *s, question: When?}\n"
    assert [row["system"] for row in read_rows(write(tmp_path / "b.yaml", under))] == ["Be kind.", "Be kind."]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\n", "is not a YAML list"),
        ("- a: [1\n", r"not valid YAML: .*, line 2"),
        ("- &a [*a]\n", "aliases multiply"),
        (
            "- &a0 " + "x" * 99 + "".join(f"\n- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)),
            "multiply",
        ),
    ],
)
def test_yaml_that_is_no_list_or_expands_without_end_is_an_error(tmp_path, text, what):
    with pytest.raises(SourceError, match=what):
        read_batches(write(tmp_path / "a.yaml", text))


def test_a_text_file_is_one_row_and_a_folder_of_them_is_read(tmp_path, curate):
    write(tmp_path / "docs" / "a.md", "# The hatch\n\nIt opens, with the lever.\n")
    write(tmp_path / "docs" / "b.txt", "It needs oil.\n")
    write(tmp_path / "docs" / "README.md", "About these files.\n")
    results = json.loads(curate("import", "docs", "--json").stdout)
    assert [(result["shape"], result["rows_kept"]) for result in results] == [("text", 1), ("text", 1)]


@pytest.mark.parametrize(
    ("content", "format"),
    [
        ("question,answer\nWhy?,So.\nWhen?,Now.\n", "csv"),
        (LINES, "jsonl"),
        ("It was cold, and dark.\nNobody spoke, or moved.\n", "text"),
        ("Just one line", "text"),
        ("{Stage directions.}\nEnter Ann.\n", "text"),
    ],
)
def test_a_text_file_may_hold_a_table(tmp_path, content, format):
    assert open_source(write(tmp_path / "a.txt", content)).format == format


def test_notes_next_to_data_are_skipped_and_reported(tmp_path):
    for name in ("a.csv", "notes.txt", "config.yaml", "README.md"):
        write(tmp_path / "data" / name, "question,answer\nWhy?,So.\n")
    folder = str(tmp_path / "data")
    assert expand([folder]) == [f"{folder}/a.csv"]
    assert find_skipped([folder]) == [f"{folder}/{name}" for name in ("README.md", "config.yaml", "notes.txt")]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_are_read(tmp_path, form):
    table = pa.Table.from_pylist(ROWS)
    out = io.BytesIO()
    new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with new(out, table.schema) as writer:
        writer.write_table(table)
    path = write(tmp_path / "a.arrow", out.getvalue())
    assert read_rows(path) == ROWS
    with pytest.raises(SourceError, match="not a complete Arrow file"):
        read_batches(write(tmp_path / "b.arrow", out.getvalue()[:150]))


def test_a_review_spreadsheet_is_an_error_with_its_command(tmp_path):
    path = write(tmp_path / "a.csv", "set,conversation,source,line,text,quality\nfirst,abc,a.csv,1,Hi,5\n")
    with pytest.raises(SourceError, match="is a review spreadsheet") as error:
        read_batches(path)
    assert f"curate review import {path}" in error.value.hint


def test_an_exported_version_is_an_error_with_its_command(tmp_path):
    write(tmp_path / "support" / "version.json", '{"bundle": 1, "name": "support"}')
    write(tmp_path / "support" / "train.jsonl", LINES)
    with pytest.raises(SourceError, match="is a version that curate export wrote") as error:
        expand([str(tmp_path / "support")])
    assert f"curate restore {tmp_path / 'support'}" in error.value.hint


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Why is it?|So.\nWhat is it?|That.\nWhen is it?|Now.\n", "--delimiter '|' --no-header"),
        ("1. Why?\tSo.\n2. What?\tThat.\n\n3. When?\tNow.\n", "--delimiter tab --no-header"),
        ("Questions\n\nquestion,answer\nWhy?,So.\nWhat?,That.\nWhen?,Now.\n", "--delimiter , --skip-lines 2"),
    ],
)
def test_a_text_file_that_seems_to_have_a_table_asks_with_commands_that_work(tmp_path, text, options):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(SourceError, match="seems to have a table") as error:
        import_files(tmp_path / "x.duckdb", [str(path)], ImportSection())
    rows, whole = (shlex.split(line)[3:] for line in error.value.hint.splitlines()[1:])
    assert " ".join(map(shlex.quote, rows)).startswith(options)
    assert whole == ["--format", "text"]
    given = (
        {"delimiter": rows[1], "skip_lines": 2} if "--skip-lines" in rows else {"delimiter": rows[1], "header": False}
    )
    mapping = dict(rows[at + 1].split("=") for at, word in enumerate(rows) if word == "--map")
    (table,) = import_files(tmp_path / "y.duckdb", [str(path)], ImportSection(**given, map=mapping))
    (plain,) = import_files(tmp_path / "z.duckdb", [str(path)], ImportSection(format="text"))
    assert (table.shape, table.rows_kept, plain.shape) == ("pairs", 3, "text")


@pytest.mark.parametrize(
    "text",
    ["First; then.\nSecond; more.\nThird line.\nA last one; yes.\n", "Question, answer, and prose.\nIt is; so.\n"],
)
def test_prose_with_marks_stays_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    (result,) = import_files(tmp_path / "x.duckdb", [str(tmp_path / "a.txt")], ImportSection())
    assert result.shape == "text"


def zip_of(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "it seems to be an empty zip archive"),
        ({"guide.pdf": b"%PDF-1.4"}, "one file, guide.pdf, which seems to be a PDF document"),
        ({"a.pdf": b"%PDF-1.4", "b.pdf": b"%PDF-1.4"}, "2 files: a.pdf, b.pdf"),
        ({"photo.csv": b"\x89PNG\r\n"}, "one file, photo.csv, which seems to be an image"),
    ],
)
def test_an_archive_without_a_table_names_its_content(tmp_path, files, words):
    with pytest.raises(SourceError, match=re.escape(words)):
        read_batches(zip_of(tmp_path / "a.zip", **files))


def test_the_only_table_of_an_archive_is_read(tmp_path):
    assert len(read_rows(zip_of(tmp_path / "a.zip", **{"a.jsonl": LINES, "README": "x"}))) == len(LINES.splitlines())
