"""Encodings: a suggestion decodes the whole file; a damaged UTF-8 file is reported as such, and its lines rejected."""

import json
import shlex

import pytest
from support.source_files import read_batches, read_rows, write

from schemas.errors import SourceError

TEXTS = {
    "cp1252": ["Wie heißt du?", "Grüße aus Köln und ganz herzlich", "Où est la bibliothèque près d’ici?"],
    "gb18030": ["如何打开舱门？", "请把杠杆转两圈，然后拉开。", "每个星期五都要检查锚。"],
    "shift_jis": ["ハッチはどうやって開けますか。", "レバーを二回まわしてください。", "錨は毎週金曜日に点検します。"],
    "koi8_r": ["Как открыть люк?", "Поверните рычаг дважды и потяните на себя.", "Якорь проверяют по пятницам."],
}


def csv_of(texts, encoding):
    return b"question,answer\n" + "".join(f"{text},{text}\n" for text in texts * 20).encode(encoding)


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_suggested_encoding_reads_the_file(tmp_path, encoding):
    path = write(tmp_path / "a.csv", csv_of(TEXTS[encoding], encoding))
    with pytest.raises(SourceError, match="is not UTF-8") as error:
        read_batches(path)
    suggested = error.value.hint.removeprefix("Add --encoding ")
    assert [row["question"] for row in read_rows(path, encoding=suggested)] == TEXTS[encoding] * 20


def test_an_encoding_that_fails_later_in_the_file_is_not_suggested(tmp_path):
    head = csv_of(TEXTS["cp1252"][:2], "cp1252")
    path = write(tmp_path / "a.csv", head + b"plain,text\n" * 200_000 + b"\x81\x8d,\x90\n")
    with pytest.raises(SourceError) as error:
        read_batches(path)
    assert "cp1252" not in error.value.hint


def test_a_damaged_utf8_file_is_reported_and_its_other_lines_are_read(tmp_path, curate):
    lines = ["Wie heißt du?,Käthe".encode(), "Où?,Là-bas".encode()] * 3 + ["Straße?,Köln".encode("cp1252")] * 9
    write(tmp_path / "a.csv", b"question,answer\n" + b"\n".join(lines) + b"\n")
    failed = curate("import", "a.csv")
    assert "9 lines of the file are not, and 6 with other than ASCII characters are" in failed.stderr
    (command,) = [line for line in failed.stderr.splitlines() if "--encoding utf-8" in line]
    (result,) = json.loads(curate(*shlex.split(command)[1:], "--json").stdout)
    assert (result["rows_read"], result["rejected"]) == (15, {"not-utf8": 9})
    assert result["reject_examples"][0]["line"] == 8


def test_the_encoding_of_a_compressed_file_is_suggested(tmp_path):
    import gzip

    path = write(tmp_path / "a.csv.gz", gzip.compress(csv_of(TEXTS["cp1252"], "cp1252")))
    with pytest.raises(SourceError) as error:
        read_batches(path)
    assert error.value.hint == "Add --encoding cp1252"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("language", TEXTS)
def test_utf16_without_a_mark_is_recognised_in_any_script(tmp_path, encoding, language):
    rows = [{"question": text, "answer": text} for text in TEXTS[language]]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = write(tmp_path / "a.jsonl", text.encode(encoding))
    with pytest.raises(SourceError) as error:
        read_batches(path)
    assert error.value.hint == f"Add --encoding {encoding}"
    assert read_rows(path, encoding=encoding) == rows


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "question\nWhy, then?\nWhen, then?\n"), ("a.jsonl", "1\n2\n"), ("b.csv", 'question,answer\n"a"b,c\n')],
)
def test_an_encoding_is_not_suggested_where_it_is_not_the_fault(tmp_path, curate, name, content):
    write(tmp_path / name, content)
    failed = curate("import", name)
    assert failed.returncode == 1
    assert "--encoding" not in failed.stderr
