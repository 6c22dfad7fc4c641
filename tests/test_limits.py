"""Limits of records and of compressed files: a record above the limit is a reject, and little of it is ever read."""

import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.source_files import write

from curate.ingest import open_file
from curate.ingest.pipeline import import_files
from curate.ingest.readers import Batch, open_source
from curate.ingest.readers.limits import EXCERPT, TOO_LARGE, Limits
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection

LIMITS = Limits(record=2_000)
LONG = "a" * 3_000
FIRST, LARGE, LAST = ({"q": "Why?", "a": "So."}, {"q": "Who?", "a": LONG}, {"q": "When?", "a": "Now."})


def read(path: Path, limits: Limits = LIMITS, **options: str) -> tuple[list[dict[str, str]], list[tuple[int, int]]]:
    """The rows, and the row and line of every reject; each must be too large, with little of its text."""
    batches: list[Batch] = list(open_source(path, limits=limits, **options).batches())
    rejects = [reject for batch in batches for reject in batch.rejects.to_dicts()]
    assert {reject["code"] for reject in rejects} <= {TOO_LARGE}
    assert all(len(reject["raw"]) <= EXCERPT + 100 for reject in rejects)
    rows = [{name: row[name] for name in ("q", "a")} for batch in batches for row in batch.table.to_dicts()]
    numbers = [*(number for batch in batches for number in batch.row), *(reject["row"] for reject in rejects)]
    assert sorted(numbers) == list(range(1, len(rows) + len(rejects) + 1))
    return rows, [(reject["row"], reject["line"]) for reject in rejects]


TEXTS = {
    "a.jsonl": "".join(f"{json.dumps(row)}\n" for row in (FIRST, LARGE, LAST)),
    "a.json": json.dumps([FIRST, LARGE, LAST]),
    "b.json": json.dumps([FIRST, LARGE, LAST], indent=0).replace("{\n", "{").replace('",\n"a', '", "a'),
    "c.json": "".join(json.dumps(row) for row in (FIRST, LARGE, LAST)),
    "d.json": json.dumps({"data": [FIRST, LARGE, LAST]}),
    "a.csv": f'q,a\nWhy?,So.\nWho?,"{LONG}"\nWhen?,Now.\n',
    "b.csv": f"q,a\nWhy?,So.\nWho?,{LONG}\nWhen?,Now.\n",
    "c.csv": 'q,a\nWhy?,So.\nWho?,"{}"\nWhen?,Now.\n'.format("a\n" * 1_500),
    "a.tsv": f"q\ta\nWhy?\tSo.\nWho?\t{LONG}\nWhen?\tNow.\n",
}
LINES = {
    "a.jsonl": 2,
    "a.json": 1,
    "b.json": 4,
    "c.json": 1,
    "d.json": 1,
    "a.csv": 3,
    "b.csv": 3,
    "c.csv": 3,
    "a.tsv": 3,
}


@pytest.fixture(params=[None, 64, 700])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int | None]:
    """The bytes that are read at a time: all, or so few that the record continues in later chunks."""
    from curate.ingest.readers import byte_stream

    if request.param:
        monkeypatch.setattr(byte_stream, "CHUNK", request.param)
        monkeypatch.setattr(byte_stream, "HEAD", 48)
    return request.param


@pytest.mark.parametrize("name", TEXTS)
def test_a_record_above_the_limit_is_a_reject_with_its_line(tmp_path: Path, name: str, chunk: int | None) -> None:
    if name == "c.csv" and chunk:
        pytest.skip("a quoted cell of many lines that is longer than a chunk counts as a stray quote")
    assert read(write(tmp_path / name, TEXTS[name])) == ([FIRST, LAST], [(2, LINES[name])])


def test_rows_after_a_record_above_the_limit_keep_their_lines(tmp_path: Path, chunk: int | None) -> None:
    source = open_source(write(tmp_path / "a.jsonl", TEXTS["a.jsonl"] + TEXTS["a.jsonl"]), limits=LIMITS)
    batches = list(source.batches())
    assert [line for batch in batches for line in batch.line] == [1, 3, 4, 6]
    assert [line for batch in batches for line in batch.rejects["line"]] == [2, 5]


@pytest.mark.parametrize(
    "broken",
    ['"' + LONG, LONG, "[" * 3_000, '{"q": ' * 3_000, "1," * 3_000, '{"q": "' + '\\"' * 3_000, "{" + '"' * 3_001],
    ids=["open string", "letters", "brackets", "objects", "numbers", "escapes", "quotes"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_long_broken_record_does_not_grow(
    tmp_path: Path, name: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.ingest.readers import byte_stream

    monkeypatch.setattr(byte_stream, "CHUNK", 64)
    filled: list[int] = []
    fill = byte_stream.ByteStream._fill

    def measured(stream: byte_stream.ByteStream, rest: byte_stream.Bytes, size: int) -> tuple[byte_stream.Bytes, bool]:
        data, last = fill(stream, rest, size)
        filled.append(len(data))
        return data, last

    monkeypatch.setattr(byte_stream.ByteStream, "_fill", measured)
    monkeypatch.setattr(byte_stream, "HEAD", 48)
    frame = "{}{}{}" if name == "a.jsonl" else "[{}{}{}"
    separator = "\n" if name == "a.jsonl" else ","
    path = write(tmp_path / name, frame.format(json.dumps(FIRST), separator, broken * 20))
    rows = [
        row
        for batch in open_source(path, limits=LIMITS, format=path.suffix[1:]).batches()
        for row in batch.table.rows()
    ]
    assert len(rows) >= 1
    assert max(filled) < 4 * LIMITS.record


def test_files_that_are_not_read_by_lines_have_the_same_limit(tmp_path: Path) -> None:
    rows = {name: [row[name] for row in (FIRST, LARGE, LAST)] for name in ("q", "a")}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    repeated = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(rows["a"]))
    pq.write_table(pa.table({"q": rows["q"], "a": repeated}), tmp_path / "b.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.table(rows).schema) as file:
        file.write(pa.table(rows))
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("CREATE TABLE t (q, a)")
        database.executemany("INSERT INTO t VALUES (?, ?)", zip(rows["q"], rows["a"], strict=True))
    for name in ("a.parquet", "b.parquet", "a.arrow", "a.sqlite"):
        assert read(tmp_path / name) == ([FIRST, LAST], [(2, None)]), name


def test_a_text_file_is_one_record(tmp_path: Path) -> None:
    (batch,) = open_source(write(tmp_path / "a.txt", LONG), limits=LIMITS).batches()
    assert batch.rejects.select("row", "line", "code").rows() == [(1, 1, TOO_LARGE)]
    assert len(batch.rejects["raw"][0]) == EXCERPT
    with pytest.raises(SourceError, match=r"a\.yaml has more than 2,000 bytes, the maximum of a YAML file"):
        read(write(tmp_path / "a.yaml", f"- q: {LONG}\n"))


def test_a_limit_is_given_as_a_size() -> None:
    sizes = {"64M": 64 << 20, "1 GiB": 1 << 30, "2kb": 2_048, "500": 500, 7: 7}
    assert [ImportSection(max_record=size).max_record for size in sizes] == list(sizes.values())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_record"):
        ImportSection(max_record="much")  # type: ignore[arg-type]


COMPRESSORS = {
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstandard.compress,
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.xz": lzma.compress,
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_file_that_expands_beyond_the_ratio_or_size_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.ingest.readers import limits

    monkeypatch.setattr(limits, "UNSUSPICIOUS", 1 << 20)
    path = write(tmp_path / name, COMPRESSORS[name](b'{"q": "Why?", "a": "So."}\n' * 100_000))
    with pytest.raises(SourceError, match="expands to more than 10 times its size"):
        read(path, LIMITS._replace(ratio=10))
    with pytest.raises(SourceError, match="expands to more than 1,000,000 bytes"):
        read(path, LIMITS._replace(size=1_000_000))
    assert len(read(path, LIMITS._replace(ratio=100_000))[0]) == 100_000


def test_a_window_above_the_limit_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = json.dumps(FIRST).encode() + b"\n"
    path = write(tmp_path / "a.jsonl.zst", packed.compress(data * 1_000_000) + packed.flush())
    xz = write(tmp_path / "a.jsonl.xz", COMPRESSORS["a.jsonl.xz"](data))
    for each in (path, xz):
        with pytest.raises(SourceError, match=r"needs a window of more than 1,048,576 bytes") as error:
            read(each, LIMITS._replace(window=1 << 20))
        assert "--set import.max_window=16777216" in error.value.hint


def test_a_value_that_a_parquet_file_repeats_is_counted_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.ingest.readers import limits

    monkeypatch.setattr(limits, "UNSUSPICIOUS", 1 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["a" * 1_500]))
    pq.write_table(pa.table({"a": repeated}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="expands to more than 500 times its size"):
        list(open_source(tmp_path / "a.parquet", limits=LIMITS).batches())


def test_a_workbook_that_expands_beyond_the_limits_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
        archive.writestr("xl/worksheets/sheet1.xml", b" " * (300 << 20))
    with pytest.raises(SourceError, match=r"a\.xlsx expands to more than 500 times its size"):
        read(tmp_path / "a.xlsx")


def test_the_command_rejects_records_above_its_option(tmp_path: Path, curate) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "a.jsonl", TEXTS["a.jsonl"].replace('"q"', '"question"').replace('"a"', '"answer"'))
    ran = curate("import", "a.jsonl", "--max-record", "2K", "--json")
    assert json.loads(ran.stdout)[0]["rows_rejected"] == 1, ran.stdout
    (reject,) = json.loads(curate("rejects", "--list", "--json").stdout)
    assert (reject["line"], reject["code"]) == (2, TOO_LARGE)


def test_a_file_whose_beginning_cannot_be_read_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(open_file, "MAX_UNREADABLE", 1_000)
    monkeypatch.setattr(open_file, "SMALL_FILE", 0)
    path = tmp_path / "q.csv"
    path.write_text("question,answer\n" + '"a\nb' * 20_000)
    with pytest.raises(SourceError, match=r"q\.csv: none of its first 20,001 rows can be read\. line 2: ") as error:
        import_files(tmp_path / "curate.duckdb", [str(path)], ImportSection())
    assert "--quote" in error.value.hint
