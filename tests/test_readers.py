"""Sources: format, compression and encoding of files, the files of folders and patterns, Hugging Face datasets."""

import gc
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.source_files import raw_texts, read_rows, write

from curate.ingest.readers import FORMATS, byte_stream, expand, open_source
from curate.ingest.readers.byte_stream import prefetch
from curate.ingest.readers.formats import SUFFIXES
from curate.ingest.readers.paths import find_skipped
from curate.ingest.readers.text_arrays import decode_texts, slice_texts
from curate.ingest.repairs import REPAIRS
from curate.ingest.shapes import SHAPES
from schemas.errors import SourceError

ROWS = [
    {"question": "Wie heißt du?", "answer": "Ich heiße Käthe."},
    {"question": "Où?", "answer": "Là-bas, près d'ici."},
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'question,answer\nWie heißt du?,Ich heiße Käthe.\nOù?,"Là-bas, près d\'ici."\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, zstandard.compress])
def test_a_compressed_file_is_decompressed_and_hashed_as_stored(tmp_path, name, pack):
    content = {"a.jsonl": JSONL, "a.csv": CSV, "a.json": json.dumps(ROWS)}[name].encode()
    suffix = {gzip.compress: ".gz", zstandard.compress: ".zst"}.get(pack, "")
    path = write(tmp_path / (name + suffix), pack(content))
    source = open_source(path)
    assert [row for batch in source.batches() for row in batch.table.to_dicts()] == ROWS
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.bytes == path.stat().st_size


def test_several_compressed_parts_in_one_file_are_all_read(tmp_path):
    parts = [line.encode() + b"\n" for line in JSONL.splitlines()]
    assert read_rows(write(tmp_path / "a.jsonl.gz", b"".join(map(gzip.compress, parts)))) == ROWS
    assert read_rows(write(tmp_path / "a.jsonl.zst", b"".join(map(zstandard.compress, parts)))) == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("missing", [1, 40])
def test_a_truncated_compressed_file_is_an_error(tmp_path, pack, missing):
    lines = "".join(hashlib.sha256(str(number).encode()).hexdigest() + "\n" for number in range(100))
    path = write(tmp_path / "a.csv.x", pack(lines.encode())[:-missing])
    with pytest.raises(SourceError, match="damaged or truncated"):
        read_rows(path, format="csv")


def test_zstandard_may_start_with_a_frame_of_other_data(tmp_path):
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    packed = skipped + zstandard.compress(b'{"a": "1"}\n') + skipped + zstandard.compress(b'{"a": "2"}\n')
    assert read_rows(write(tmp_path / "a.jsonl.zst", packed)) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_read_error_contains_the_path():
    with pytest.raises(SourceError, match=r"/proc/self/mem cannot be read completely: Input/output error"):
        read_rows(Path("/proc/self/mem"))


def test_an_empty_path_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "a.jsonl", "{}").parent)
    with pytest.raises(SourceError, match="file name is empty"):
        expand([""])


@pytest.mark.parametrize("pattern", ["***", "**.csv", "data/x**/*.csv"])
def test_two_stars_next_to_other_characters_are_an_invalid_pattern(tmp_path, pattern):
    with pytest.raises(SourceError, match="is not a valid pattern") as error:
        expand([str(tmp_path / pattern)])
    assert error.value.hint == "** matches folders and must be a path component of its own: 'data/**/*.csv'"


def test_a_name_that_is_too_long_is_an_error(curate):
    name = "x" * 300 + ".csv"
    with pytest.raises(SourceError, match=rf"{name} cannot be accessed: File name too long\."):
        expand([name])
    ran = curate("import", name)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"Error: {name} cannot be accessed")


def test_a_closed_standard_input_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python sets it for `<&-`
    with pytest.raises(SourceError, match="Standard input is closed"):
        read_rows(Path("-"))


def test_a_link_without_a_target_is_an_error(tmp_path):
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(SourceError, match="is a link to itself or to a missing file"):
        expand([str(tmp_path / "self")])


def test_line_ends_without_newlines_are_an_error_even_if_a_cell_contains_a_newline(tmp_path):
    with pytest.raises(SourceError, match="end in carriage returns without newlines"):
        read_rows(write(tmp_path / "a.csv", 'question,answer\r"multi\nline",b\rc,d\r'))


def test_a_decompressed_file_may_keep_the_suffix_of_the_compression(tmp_path):
    assert read_rows(write(tmp_path / "a.jsonl.gz", JSONL)) == ROWS


@pytest.mark.parametrize("content", [JSONL, CSV])
def test_a_byte_order_mark_is_not_part_of_the_first_column_name(tmp_path, content):
    assert read_rows(write(tmp_path / "a.txt", b"\xef\xbb\xbf" + content.encode())) == ROWS


@pytest.mark.parametrize(("name", "content", "line"), [("a.jsonl", JSONL, 1), ("a.csv", CSV, 2)])
def test_another_encoding_is_an_error_with_the_option_to_add(tmp_path, name, content, line):
    path = write(tmp_path / name, content.encode("cp1252"))
    with pytest.raises(
        SourceError, match=rf"{name}, line {line}: byte 0xdf is not UTF-8; the text looks like cp1252"
    ) as error:
        read_rows(path)
    assert error.value.hint == "Add --encoding cp1252"
    assert read_rows(path, encoding="cp1252") == ROWS


def test_an_invalid_byte_after_a_megabyte_of_ascii_is_an_error(tmp_path):
    content = '{"a": "plain"}\n' * 100_000 + '{"a": "naïve café"}\n'
    with pytest.raises(SourceError, match="line 100001: byte 0xef is not UTF-8"):
        read_rows(write(tmp_path / "a.jsonl", content.encode("cp1252")))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_an_error_with_the_option_to_add(tmp_path, encoding):
    path = write(tmp_path / "a.csv", CSV.encode(encoding))
    with pytest.raises(SourceError, match="not UTF-8") as error:
        read_rows(path)
    assert error.value.hint == f"Add --encoding {encoding}"
    assert read_rows(path, encoding=encoding) == ROWS


def test_a_given_encoding_is_decoded_strictly(tmp_path):
    path = write(tmp_path / "a.csv", b"q,a\n1,x\n2,\x81\n")
    with pytest.raises(SourceError, match=r"a\.csv, line 3: byte 0x81 is not cp1252"):
        read_rows(path, encoding="cp1252")


def test_utf16_without_a_byte_order_mark_is_an_error_with_a_hint(tmp_path):
    path = write(tmp_path / "a.csv", CSV.encode("utf-16-le"))
    with pytest.raises(SourceError, match=r"a\.csv, line 1: the text is not utf-16: .*BOM") as error:
        read_rows(path, encoding="utf-16")
    assert error.value.hint == "Omit --encoding to detect the encoding."


@pytest.mark.parametrize(("encoding", "half"), [("utf-7", b"+2AA-"), ("unicode_escape", rb"\ud800")])
def test_half_of_a_surrogate_pair_is_an_error_in_encodings_that_can_represent_it(tmp_path, encoding, half):
    path = write(tmp_path / "a.csv", b"q,a\n1,x\n2," + half + b"\n3,y\n")
    with pytest.raises(SourceError, match=rf"a\.csv, line 3: half of a surrogate pair .* {encoding}"):
        read_rows(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["undefined", "idna", "hex", "cp\0"])
def test_a_codec_that_does_not_decode_text_is_not_an_encoding(tmp_path, encoding):
    with pytest.raises(SourceError, match="Unknown encoding"):
        open_source(write(tmp_path / "a.csv", "q,a\n1,ä\n"), encoding=encoding)


def test_an_unknown_encoding_or_format_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="Unknown encoding 'cp12525'"):
        open_source(tmp_path / "a.csv", encoding="cp12525")
    with pytest.raises(SourceError, match="Unknown format 'jsnl'") as error:
        open_source(tmp_path / "a.csv", format="jsnl")
    assert error.value.hint == "Did you mean jsonl?"


def _document() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("word/document.xml", "<x/>")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_document(), "a Word document"),
        (b"PK\x03\x04" + bytes(100), "compressed, and damaged"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"SQLite format 3\0" + bytes(100), "an SQLite database"),
        (b"BZh91AY", "compressed, and damaged"),
        (bytes(range(256)) * 30 + bytes(50), "full of control bytes"),
    ],
)
def test_a_binary_file_is_an_error_with_its_kind(tmp_path, content, kind):
    with pytest.raises(SourceError, match=kind) as error:
        read_rows(write(tmp_path / "a.csv", content))
    assert error.value.hint


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a"])
@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file_is_an_error(tmp_path, name, content):
    with pytest.raises(SourceError, match="is empty"):
        read_rows(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (JSONL, "jsonl"),
        (CSV, "csv"),
        (json.dumps(ROWS), "json"),
        (json.dumps({"data": ROWS}), "json"),
        (CSV.replace(",", "\t"), "csv"),
    ],
)
def test_the_format_of_a_file_without_suffix_is_detected(tmp_path, content, format):
    source = open_source(write(tmp_path / "export", content))
    assert source.format == format
    assert sum(batch.table.height for batch in source.batches()) == 2


@pytest.mark.parametrize("content", [JSONL.encode(), CSV.encode(), gzip.compress(JSONL.encode())])
def test_standard_input_is_read_once(content):
    program = """
from curate.ingest.readers import open_source
source = open_source("-")
print([batch.table.height for batch in source.batches()], source.bytes)
"""
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True)
    assert done.stdout.decode().strip() == f"[2] {len(content)}"


def test_folders_and_patterns_expand_to_their_files_in_order(tmp_path):
    for name in ["b.csv", "a.jsonl.gz", "deep/er/c.parquet", ".hidden/d.csv", "notes.md", "dataset_info.json"]:
        write(tmp_path / name, "x")
    names = [str(Path(path).relative_to(tmp_path)) for path in expand([str(tmp_path)])]
    assert names == ["a.jsonl.gz", "b.csv", "deep/er/c.parquet"]
    assert expand([str(tmp_path / "*.csv"), str(tmp_path / "b.csv"), "-"]) == [str(tmp_path / "b.csv"), "-"]
    assert expand([str(tmp_path / "**/*.parquet")]) == [str(tmp_path / "deep/er/c.parquet")]


def test_patterns_skip_files_that_describe_data_and_explicit_names_do_not(tmp_path):
    data, info = (str(write(tmp_path / name, "x")) for name in ("alpaca.json", "dataset_info.json"))
    pattern = str(tmp_path / "*.json")
    assert (expand([pattern]), find_skipped([pattern])) == ([data], [info])
    assert (expand([info]), find_skipped([info])) == ([info], [])
    assert (expand([pattern, info]), find_skipped([pattern, info])) == ([data, info], [])
    with pytest.raises(SourceError, match=r"matches only .*dataset_info\.json, which by its name describes") as error:
        expand([str(tmp_path / "dataset*.json")])
    assert error.value.hint == "If it is data, give its name without a pattern."


def test_the_files_of_linked_folders_are_read_once(tmp_path):
    for name in ["data/own/a.csv", "data/.hidden/d.csv", "elsewhere/deep/b.csv"]:
        write(tmp_path / name, "x")
    links = {"1 up": "..", "2 own": "own", "3 far": "../elsewhere", "4 deep": "../elsewhere/deep", "5 self": "."}
    for name, target in links.items():
        (tmp_path / "data" / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to("../data")
    names = [str(Path(path).relative_to(tmp_path)) for path in expand([str(tmp_path / "data")])]
    assert names == ["data/1 up/elsewhere/deep/b.csv", "data/own/a.csv"]
    (tmp_path / "data" / "1 up").unlink()
    names = [str(Path(path).relative_to(tmp_path)) for path in expand([str(tmp_path / "data")])]
    assert names == ["data/3 far/deep/b.csv", "data/own/a.csv"]


def test_a_path_without_a_file_is_an_error(tmp_path):
    write(tmp_path / "tickets.csv", CSV)
    with pytest.raises(SourceError, match="no file or folder") as error:
        expand([str(tmp_path / "tickts.csv")])
    assert error.value.hint == f"Did you mean {tmp_path / 'tickets.csv'}?"
    with pytest.raises(SourceError, match="No file matches"):
        expand([str(tmp_path / "*.parquet")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="contains no data files"):
        expand([str(tmp_path / "empty")])
    with pytest.raises(SourceError, match="There is no file"):
        read_rows(tmp_path / "gone.csv")


def test_parquet_values_become_text_and_nested_ones_json(tmp_path):
    frame = pl.DataFrame(
        {
            "messages": [[{"role": "user", "content": 'a"\n'}], None],
            "score": [0.5, float("nan")],
            "day": [date(2026, 11, 21), None],
            "good": [True, False],
            "A": ["x", "é"],
            "a": ["1.50", ""],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    (batch,) = open_source(tmp_path / "a.parquet").batches()
    assert batch.table.rows(named=True) == [
        {
            "messages": '[{"role":"user","content":"a\\"\\n"}]',
            "score": "0.5",
            "day": "2026-11-21",
            "good": "true",
            "A": "x",
            "a": "1.50",
        },
        {"messages": None, "score": None, "day": None, "good": "false", "A": "é", "a": ""},
    ]
    assert batch.row.to_list() == [1, 2]
    assert batch.line.to_list() == [None, None]
    assert json.loads(batch.raw(pl.Series([1]))[0])["A"] == "é"


def test_times_of_a_parquet_file_are_the_same_in_every_time_zone(tmp_path):
    at = pa.array([datetime(2026, 1, 1, 12, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    path = parquet(tmp_path / "a.parquet", ["at", "more"], at, pa.array([[at[0]]]))
    code = """
import sys
import polars as pl
from curate.ingest.readers import open_source
(batch,) = open_source(sys.argv[1]).batches()
print(batch.table.row(0), batch.raw(pl.Series([0]))[0])
"""
    zones = [os.environ | {"TZ": zone} for zone in ("Asia/Tokyo", "America/New_York")]
    texts = {subprocess.check_output([sys.executable, "-c", code, path], env=zone, text=True) for zone in zones}
    (text,) = texts
    assert text.count("2026-01-01 12:00:00+00") == 4


def parquet(path: Path, names: list[str], *columns: pa.Array) -> Path:
    pq.write_table(pa.table([*columns], names=names), path)
    return path


def test_keys_that_only_fill_up_an_arrow_struct_are_omitted(tmp_path):
    tools = [
        [{"name": "depth", "properties": {"harbour": {"type": "string"}}}],
        [{"name": "heat", "properties": {"place": {"type": "string"}, "note": {"type": None}}}, None],
        [{"name": 'a "place":null b', "properties": None}],
    ]
    keys = pa.array([[("a", None)], [], None], pa.map_(pa.string(), pa.string()))
    path = parquet(tmp_path / "a.parquet", ["q", "tools", "keys"], pa.array(["x", None, "z"]), pa.array(tools), keys)
    (batch,) = open_source(path).batches()
    assert batch.table["tools"].to_list() == [
        '[{"name":"depth","properties":{"harbour":{"type":"string"}}}]',
        '[{"name":"heat","properties":{"place":{"type":"string"},"note":{}}},null]',
        r'[{"name":"a \"place\":null b"}]',
    ]
    assert batch.table["keys"].to_list() == ['{"a":null}', "{}", None]
    raw = json.loads(batch.raw(pl.Series([1]))[0])
    assert raw == {"q": None, "tools": json.loads(batch.table["tools"][1]), "keys": {}}


def test_duplicate_parquet_column_names_are_made_unique(tmp_path):
    path = parquet(tmp_path / "a.parquet", ["id", "q", "id", ""], *(pa.array([text]) for text in "xyz0"))
    (batch,) = open_source(path).batches()
    expected = {"id": "x", "q": "y", "id_2": "z", "column_4": "0"}
    assert batch.table.rows(named=True) == [expected]
    assert json.loads(raw_texts(batch)[0]) == expected


def test_parquet_numbers_that_duckdb_does_not_support_are_read(tmp_path):
    half = pa.array(np.array([0.5, float("nan")], np.float16))
    wide = pa.array([Decimal("1" * 50 + ".50"), None], pa.decimal256(60, 2))
    (batch,) = open_source(parquet(tmp_path / "a.parquet", ["half", "wide"], half, wide)).batches()
    assert batch.table.rows() == [("0.5", "1" * 50 + ".50"), (None, None)]
    assert json.loads(raw_texts(batch)[0]) == {"half": 0.5, "wide": "1" * 50 + ".50"}


def test_a_parquet_column_of_an_unsupported_type_is_an_error(tmp_path):
    halves = pa.array([[np.float16(0.5)]], pa.list_(pa.float16()))
    path = parquet(tmp_path / "a.parquet", ["q", "v"], pa.array(["x"]), halves)
    with pytest.raises(SourceError, match=r"a\.parquet: the column v has the type list<.*halffloat>") as error:
        read_rows(path)
    assert error.value.hint == "Write it with another type, or omit it."


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_text_that_is_not_utf8_is_an_error_with_its_column(tmp_path, nested):
    texts = pa.array([b"x", b"\xff"]).view(pa.string())
    column = pa.StructArray.from_arrays([texts], names=["text"]) if nested else texts
    path = parquet(tmp_path / "a.parquet", ["q", "v"], pa.array(["x", "y"]), column)
    with pytest.raises(SourceError, match=r"a\.parquet, rows 1 to 2: the column v is damaged: .*UTF8"):
        read_rows(path)


def test_a_parquet_file_is_detected_by_its_content_and_hashed(tmp_path):
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    source = open_source(write(tmp_path / "export.gz", gzip.compress(content)))
    assert [row for batch in source.batches() for row in batch.table.to_dicts()] == ROWS
    assert source.sha256 == hashlib.sha256((tmp_path / "export.gz").read_bytes()).hexdigest()
    assert read_rows(tmp_path / "a.parquet", encoding="cp1252") == ROWS


def test_a_truncated_parquet_file_is_an_error(tmp_path):
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="not a complete Parquet file"):
        read_rows(write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-20]))


def test_a_saved_dataset_is_read_by_its_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([{**row, "turns": [{"from": "human"}]} for row in ROWS])
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "two")
    assert read_rows(tmp_path / "one") == [{**row, "turns": '[{"from":"human"}]'} for row in ROWS]
    with pytest.raises(SourceError, match="has the splits train, test"):
        read_rows(tmp_path / "two")
    (path,) = expand([f"{tmp_path / 'two'}#test"])
    assert len(read_rows(path)) == 1


def test_an_unknown_split_of_a_dataset_is_an_error(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "single")
    assert read_rows(tmp_path / "single") == read_rows(expand([f"{tmp_path / 'single'}#train"])[0]) == ROWS
    for name, message in {"single": "single has no split test; it has train", "plain": "plain has no splits"}.items():
        (path,) = expand([f"{tmp_path / name}#test"])
        with pytest.raises(SourceError, match=message):
            read_rows(path)


def test_the_guide_lists_every_format_suffix_shape_and_repair():
    guide = (Path(__file__).parents[1] / "curate" / "ingest" / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*FORMATS, *SUFFIXES, *SHAPES, *REPAIRS) if f"`{name}`" not in guide] == []


def test_every_format_can_be_named(tmp_path):
    assert set(FORMATS) == {
        *("jsonl", "json", "csv", "tsv", "parquet", "arrow", "xlsx", "sqlite", "yaml", "text", "hub"),
    }
    assert read_rows(write(tmp_path / "a.dat", JSONL), format="jsonl") == ROWS


def test_the_command_lists_the_skipped_files_of_a_folder(tmp_path, curate):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.csv").write_text("question,answer\nWhy?,So.\n", encoding="utf-8")
    for name in ("LICENSE", "dataset_info.json", ".hidden"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "data" / "gone.csv").symlink_to("nowhere")
    os.mkfifo(tmp_path / "data" / "pipe.csv")
    ran = curate("import", "data")
    assert ran.stderr.splitlines()[:2] == [
        "Skipped 2 files (not data by name): data/LICENSE, data/dataset_info.json",
        "Skipped 2 names (no such file): data/gone.csv, data/pipe.csv",
    ]
    (tmp_path / "data" / "pairs.json").write_text('[{"question": "Why?", "answer": "So."}]', encoding="utf-8")
    ran = curate("import", "data/*.json")
    assert ran.stderr.splitlines()[0] == "Skipped 1 file (not data by name): data/dataset_info.json"


def test_closing_a_prefetch_does_not_wait_for_the_next_item():
    """The generators of a failed import are finalised while locks are held; waiting there blocked the next import."""
    requested, go_on = threading.Event(), threading.Event()

    def items():
        yield 1
        requested.set()
        go_on.wait()
        yield 2

    items_ahead = prefetch(items())
    assert next(items_ahead) == 1
    requested.wait()
    closing = threading.Thread(target=items_ahead.close)
    closing.start()
    closing.join(10)
    waited = closing.is_alive()
    go_on.set()
    assert not waited


def test_a_prefetch_in_a_garbage_cycle_does_not_leave_a_dead_thread_to_the_next_one():
    """Threads are kept for the next file; one whose executor was collected with its generator never runs again."""
    results = []
    for _ in range(5):
        cycle = {"items": prefetch(iter([1, 2, 3]))}
        cycle["itself"] = cycle
        next(cycle["items"])
        del cycle
        gc.collect()
        reading = threading.Thread(target=lambda: results.append(list(prefetch(iter([1, 2])))), daemon=True)
        reading.start()
        reading.join(10)
    assert results == [[1, 2]] * 5


def test_texts_of_a_chunk_stay_while_the_memory_of_others_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_stream, "HEAD", 1 << 8)
    monkeypatch.setattr(byte_stream, "CHUNK", 1 << 10)
    lines = [f"{row:0100d}\n" for row in range(500)]
    stream = byte_stream.ByteStream(str(write(tmp_path / "rows.txt", "".join(lines))))
    kept, read = [], []
    for number, chunk in enumerate(stream.chunks(byte_stream.split_lines)):
        texts = decode_texts(slice_texts(chunk.data, np.concatenate([[0], chunk.newlines[:-1] + 1])))
        read += texts.to_list()
        kept += [(texts, texts.to_list())] if number % 2 else []
    assert read == lines
    assert all(texts.to_list() == before for texts, before in kept)
