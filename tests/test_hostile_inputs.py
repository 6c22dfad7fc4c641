"""Files, recipes, templates, models, stores, bundles and spreadsheets that are made to exhaust a machine.

Each ends within seconds and with less than 2 GiB: with rejects, or with an error in two lines.
"""

import bz2
import gzip
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.training import make_project

SECONDS = 10
MOST_BYTES = 2 << 30
MIB = 1 << 20

ROW = b'{"question": "Why?", "answer": "Because."}\n'
OPEN = b'{"question": "Who?", "answer": "'
EXPANDED = ("--set", "import.max_ratio=1000000")
"""Accepts files that expand far, so that their records are read."""


class Case(NamedTuple):
    """An input: a function that makes it in a folder, and the command that reads it."""

    make: Callable[[Path], object]
    command: tuple[str, ...]
    project: bool = False
    """Whether the folder has a store with a version and a model."""


CASES: dict[str, Case] = {}


def add(name: str, make: Callable[[Path], object], *command: str, project: bool = False) -> None:
    """Register an input."""
    assert name not in CASES
    CASES[name] = Case(make, command, project)


def repeat(before: bytes, unit: bytes, size: int, after: bytes) -> Iterator[bytes]:
    """Bytes that need no memory: `unit` is repeated up to `size`."""
    block = unit * max(1, MIB // len(unit))
    yield before
    for _ in range(size // len(block)):
        yield block
    yield after


def pack(name: str, parts: Iterator[bytes] | list[bytes]) -> Callable[[Path], None]:
    """Writes a gzip file."""

    def make(folder: Path) -> None:
        with gzip.open(folder / name, "wb", compresslevel=1) as file:
            for part in parts:
                file.write(part)

    return make


def write(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Path], None]:
    """Writes a file."""

    def make(folder: Path) -> None:
        made = content() if callable(content) else content
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)

    return make


# --- long records

LONG = 80 * MIB
LONG_RECORDS = {
    "line.jsonl": repeat(ROW + OPEN, b"a", LONG, b'"}\n' + ROW),
    "quoted.csv": repeat(b'question,answer\nWhy?,So.\nWho?,"', b"a", LONG, b'"\nWhen?,Now.\n'),
    "plain.csv": repeat(b"question,answer\nWhy?,So.\nWho?,", b"a", LONG, b"\nWhen?,Now.\n"),
    "unclosed.csv": repeat(b'question,answer\nWhy?,So.\nWho?,"', b"abc def\n", MIB, b"When?,Now.\n"),
    "quotes.csv": repeat(b"question,answer\nWhy?,So.\n", b'"', 6 * MIB, b"\n"),
    "delimiters.csv": repeat(b"question,answer\nWhy?,So.\n", b",", 5 * MIB, b"\n"),
    "array.json": repeat(b"[" + ROW + b"," + OPEN, b"a", LONG, b'"},' + ROW + b"]"),
    "objects.json": repeat(ROW + OPEN, b"a", LONG, b'"}' + ROW),
    "wrapped.json": repeat(b'{"data": [' + ROW + b'], "more": "', b"a", LONG, b'"}'),
    "strings.json": repeat(b'["', b"a", LONG, b'"]'),
    "numbers.json": repeat(b"[", b"1,", 40 * MIB, b"1]"),
    "brackets.json": repeat(b"", b"[", 20 * MIB, b""),
    "escapes.json": repeat(b'[{"question": "', b"\\\\", 40 * MIB, b'"}]'),
    "brackets.jsonl": repeat(ROW + b'{"question": "a", "answer": ', b"[", 40 * MIB, b"\n"),
    "key.jsonl": repeat(ROW + b'{"', b"k", 40 * MIB, b'": 1}\n'),
    "digits.jsonl": repeat(ROW + b'{"question": "a", "answer": ', b"9", 4 * MIB, b"}\n"),
    "note.txt": repeat(b"", b"a", LONG, b""),
    "list.yaml": repeat(b"- question: a\n  answer: ", b"a", LONG, b"\n"),
}
for name, parts in LONG_RECORDS.items():
    add(f"long {name}", pack(f"{name}.gz", parts), "import", f"{name}.gz", *EXPANDED)

# --- deep values

DEEP = 200_000
add(
    "deep.jsonl",
    write("a.jsonl", ROW + b'{"question": "a", "answer": ' + b"[" * DEEP + b"]" * DEEP + b"}\n"),
    "import",
    "a.jsonl",
)
add("deep.json", write("a.json", b'[{"question": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}]"), "import", "a.json")
add("deep.yaml", write("a.yaml", "- " + "[" * DEEP + "]" * DEEP), "import", "a.yaml")
add(
    "deep cell",
    write("a.jsonl", json.dumps({"question": "a", "answer": "b", "tools": "[" * DEEP + "]" * DEEP}) + "\n"),
    "import", "a.jsonl", "--shape", "messages",
)  # fmt: skip
add(
    "deep tree",
    write("a.jsonl", '{"prompt": ' + '{"text": "a", "role": "prompter", "replies": [' * 900 + "]}" * 900 + "}\n"),
    "import", "a.jsonl",
)  # fmt: skip
add(
    "aliases.yaml",
    write(
        "a.yaml",
        "a0: &a0 [x, x]\n"
        + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
        + "rows: [{question: *a59}]\n",
    ),
    "import", "a.yaml",
)  # fmt: skip
add("itself.yaml", write("a.yaml", "- &a {question: x, answer: *a}\n"), "import", "a.yaml")
add(
    "keys.jsonl",
    write("a.jsonl", lambda: json.dumps({f"k{n}": n for n in range(50_000)}).encode()),
    "import",
    "a.jsonl",
)
add("columns.csv", write("a.csv", lambda: b",".join(b"c%d" % n for n in range(100_000)) + b"\n"), "import", "a.csv")
add("zeros.csv", write("a.csv", bytes(MIB)), "import", "a.csv")
add("zero device", lambda _: None, "import", "/dev/zero")
add("random.jsonl", write("a.jsonl", lambda: os.urandom(MIB)), "import", "a.jsonl")
add("surrogates.jsonl", write("a.jsonl", ROW + b'{"question": "\\ud800", "answer": "\\udfff"}\n'), "import", "a.jsonl")

# --- compressed files

add("ratio.gz", pack("a.jsonl.gz", repeat(OPEN, b"a", 300 * MIB, b'"}\n')), "import", "a.jsonl.gz")
add("ratio.zst", write("a.jsonl.zst", lambda: 20 * zstandard.compress(b"a" * (64 * MIB))), "import", "a.jsonl.zst")
add(
    "one frame.zst",
    write("a.jsonl.zst", lambda: zstandard.compress(b"a" * (300 * MIB))),
    "import",
    "a.jsonl.zst",
    *EXPANDED,
)
add("ratio.bz2", write("a.jsonl.bz2", lambda: 20 * bz2.compress(b"a" * (20 * MIB), 9)), "import", "a.jsonl.bz2")
add("ratio.xz", write("a.jsonl.xz", lambda: 20 * lzma.compress(b"a" * (20 * MIB), preset=0)), "import", "a.jsonl.xz")
add("frames.zst", write("a.jsonl.zst", lambda: 50_000 * zstandard.compress(b"")), "import", "a.jsonl.zst")


def make_window(folder: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (folder / "a.jsonl.zst").write_bytes(packed.compress(ROW) + packed.flush())


def make_zip(name: str, member: str, size: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            if name.endswith("xlsx"):
                archive.writestr("[Content_Types].xml", "<Types/>")
                archive.writestr("xl/workbook.xml", "<workbook/>")
            with archive.open(member, "w", force_zip64=True) as file:
                for part in repeat(b"", b"a", size, b""):
                    file.write(part)

    return make


def make_lying_zip(folder: Path) -> None:
    make_zip("a.xlsx", "xl/worksheets/sheet1.xml", 300 * MIB)(folder)
    data = (folder / "a.xlsx").read_bytes()
    size = (300 * MIB).to_bytes(4, "little")
    (folder / "a.xlsx").write_bytes(data.replace(size, (1000).to_bytes(4, "little")))


add("window.zst", make_window, "import", "a.jsonl.zst")
add("bomb.zip", make_zip("a.zip", "a.jsonl", 400 * MIB), "import", "a.zip")
add("sheet.xlsx", make_zip("a.xlsx", "xl/worksheets/sheet1.xml", 600 * MIB), "import", "a.xlsx")
add("lying.xlsx", make_lying_zip, "import", "a.xlsx")

# --- tables


def make_repeated(length: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        numbers = pa.array([0] * 50_000, pa.int32())
        texts = pa.DictionaryArray.from_arrays(numbers, pa.array(["a" * length]))
        pq.write_table(pa.table({"question": ["Why?"] * 50_000, "answer": texts}), folder / "a.parquet")

    return make


def make_long_cell(folder: Path) -> None:
    table = pa.table({"question": ["Why?", "Who?"], "answer": ["So.", "a" * (100 * MIB)]})
    pq.write_table(table, folder / "a.parquet", compression="zstd")


def make_truncated(folder: Path) -> None:
    make_repeated(10)(folder)
    (folder / "a.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-50])


def make_view(query: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with sqlite3.connect(folder / "a.sqlite") as database:
            database.execute(f"CREATE VIEW v AS {query}")

    return make


add("repeated 20 MB.parquet", make_repeated(20 * MIB), "import", "a.parquet", *EXPANDED)
add("repeated 100 KB.parquet", make_repeated(100_000), "import", "a.parquet")
add("cell.parquet", make_long_cell, "import", "a.parquet")
add("truncated.parquet", make_truncated, "import", "a.parquet")
add("cell.sqlite", make_view("SELECT 'a' question, printf('%.*c', 100000000, 'x') answer"), "import", "a.sqlite")
add("blob.sqlite", make_view("SELECT 'a' question, zeroblob(1000000000) answer"), "import", "a.sqlite")

# --- recipes

IMPORT = ("import", "rows.jsonl", "--recipe", "r.toml")


def recipe(text: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "rows.jsonl").write_bytes(ROW)
        write("r.toml", text)(folder)

    return make


add("deep recipe", recipe("a = " + "[" * DEEP + "]" * DEEP), *IMPORT)
add("dotted recipe", recipe("a" + ".a" * 20_000 + " = 1"), *IMPORT)
add("large recipe", recipe("# " + "a" * (40 * MIB)), *IMPORT)
add("large value", recipe('[import]\nsystem = "' + "a" * (8 * MIB) + '"'), *IMPORT)
add("pattern", recipe('[import.substitute]\na = ["(a{1000}){1000}", ""]'), *IMPORT)
add("slow pattern", recipe('[import.substitute]\na = ["(a|a)*(a|a)*b", ""]'), *IMPORT)
add("rows without end", recipe('[import]\nsql = "SELECT r.row_number, r.* FROM rows r, range(100000000000)"'), *IMPORT)
add(
    "text without end",
    recipe("[import]\nsql = \"SELECT row_number, question, repeat('a', 10000000000) answer FROM rows\""),
    *IMPORT,
)
add("deep rule", lambda _: None, "select", "--where", "(" * 20_000 + "turns > 1" + ")" * 20_000, project=True)
for key, value in {
    "max_length": 10**30, "epochs": "1e999", "learning_rate": "nan", "rank": 10**18, "batch": -1, "steps": 2**63,
}.items():  # fmt: skip
    add(
        f"train.{key}",
        lambda _: None,
        "plan",
        "support@1",
        "--set",
        "train.model=tiny",
        "--set",
        f"train.{key}={value}",
        project=True,
    )

# --- templates

TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(1000000000) %}{% endfor %}",
    "text": "{{ 'a' * 10 ** 10 }}",
    "doubling": "{% set n = namespace(x='aa') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "power": "{{ 3 ** 99999999 }}",
    "nested": "{% if true %}" * 5_000,
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "large": "a" * (4 * MIB),
}
COMMANDS = ("preview", "plan")
for number, (name, text) in enumerate(TEMPLATES.items()):
    command = COMMANDS[number % len(COMMANDS)]
    add(
        f"template {name}", write("t.jinja", text),
        command, "support@1", "--template", "t.jinja", "--model", "tiny", project=True,
    )  # fmt: skip

# --- models

PLAN = ("plan", "support@1", "--model", "tiny")


def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        path.write_bytes(how(path.read_bytes() if path.exists() else b""))

    return make


def link_weights(folder: Path) -> None:
    shutil.move(folder / "tiny" / "model.safetensors", folder / "outside.safetensors")
    (folder / "tiny" / "model.safetensors").symlink_to(folder / "outside.safetensors")


add("truncated weights", change("tiny/model.safetensors", lambda data: data[: len(data) // 2]), *PLAN, project=True)
add("empty weights", change("tiny/model.safetensors", lambda _: b""), *PLAN, project=True)
add("huge header", change("tiny/model.safetensors", lambda data: b"\xff" * 8 + data[8:]), *PLAN, project=True)
add("linked weights", link_weights, *PLAN, project=True)
add("deep config", change("tiny/config.json", lambda _: b"[" * DEEP), *PLAN, project=True)
add(
    "layers",
    change("tiny/config.json", lambda data: data.replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 999999999')),
    *PLAN,
    project=True,
)
add("deep tokenizer", change("tiny/tokenizer.json", lambda _: b"[" * DEEP), *PLAN, project=True)
add(
    "broken tokenizer",
    change("tiny/tokenizer_config.json", lambda _: b'{"bos_token": 5, "added_tokens_decoder": {"x": 3}}'),
    *PLAN,
    project=True,
)
add(
    "tokens",
    change("tiny/tokenizer_config.json", lambda _: b'{"added_tokens_decoder": [1], "chat_template": [1]}'),
    *PLAN,
    project=True,
)

# --- stores, bundles, spreadsheets


def damage(folder: Path) -> None:
    data = bytearray((folder / "curate.duckdb").read_bytes())
    for start in range(3 * 4096, len(data), 262_144):
        data[start + 100] ^= 255
    (folder / "curate.duckdb").write_bytes(data)


def make_foreign_store(query: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with duckdb.connect(str(folder / "curate.duckdb")) as store:
            store.execute(query)

    return make


def make_bundle(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "bundle").mkdir()
        (folder / "bundle" / "version.json").write_text(text)

    return make


add("damaged store", damage, "status", project=True)
add("damaged store, freeze", damage, "freeze", "again", project=True)
add("truncated store", change("curate.duckdb", lambda data: data[: len(data) // 2]), "score", project=True)
add(
    "view on files",
    make_foreign_store("CREATE OR REPLACE VIEW current_verdicts AS FROM read_text('/etc/passwd')"),
    "status",
    project=True,
)
add(
    "view without end",
    make_foreign_store(
        "CREATE OR REPLACE VIEW current_verdicts AS SELECT repeat('a', 100000000000) AS conversation, true AS kept"
    ),
    "freeze",
    "again",
    project=True,
)
add("deep bundle", make_bundle("[" * DEEP), "restore", "bundle")
add("bundle of numbers", make_bundle('{"bundle": 1e999, "version": [], "files": 7}'), "restore", "bundle")
add(
    "bundle outside",
    make_bundle('{"bundle": 1, "version": "a@1", "files": {"../../etc/passwd": {}}}'),
    "restore",
    "bundle",
)
add("adapter", make_bundle("{}"), "verify", "bundle", project=True)
add(
    "deep manifest",
    lambda folder: (make_bundle("")(folder), (folder / "bundle" / "manifest.json").write_text("[" * DEEP)),
    "verify",
    "bundle",
    project=True,
)
add(
    "spreadsheet",
    write("a.csv", lambda: b"set,conversation\n" + b"a," + b"b" * (50 * MIB)),
    "review",
    "import",
    "a.csv",
    project=True,
)
add(
    "spreadsheet of rows",
    write("a.csv", b"set,conversation\n" + b"a,b\n" * 200_000),
    "review",
    "import",
    "a.csv",
    project=True,
)
add(
    "spreadsheet of zeros",
    write("a.csv", b"set,conversation\n" + bytes(MIB)),
    "review",
    "import",
    "a.csv",
    project=True,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Name of each input → exit code, seconds, peak memory and output of its command."""
    root = tmp_path_factory.mktemp("hostile")
    make_project(root / "project")
    runs = []
    for number, (make, command, needs_project) in enumerate(CASES.values()):
        folder = root / str(number)
        if needs_project:
            shutil.copytree(root / "project", folder)
        else:
            folder.mkdir()
        make(folder)
        runs.append((str(folder), command))
    runner = Path(__file__).parent / "support" / "fork_runner.py"
    ran = subprocess.run(
        [sys.executable, str(runner), str(SECONDS)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "CURATE_LOCK_TIMEOUT": "0"},
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(CASES, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_ends_with_rejects_or_an_error_of_two_lines(
    results: dict[str, dict[str, Any]], name: str
) -> None:
    result = results[name]
    assert result["code"] in (0, 1), result
    assert "Traceback" not in result["stderr"], result
    assert result["bytes"] < MOST_BYTES, result
    refused = "would refuse" in result["stdout"]  # the result of a plan
    if result["code"] == 1 and not refused:
        error = result["stderr"][result["stderr"].index("Error: ") :].splitlines()
        assert any(line.startswith("  → ") for line in error), result
