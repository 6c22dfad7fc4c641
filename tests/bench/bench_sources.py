"""`curate search`, `sources remove`, `import --sql` and folders, compared with plain DuckDB on the same store.

    python tests/bench/bench_sources.py                  one million generated rows in two files
    python tests/bench/bench_sources.py --rows 200000    the short form
    python tests/bench/bench_sources.py --folders        only the folders of 5,000 files

Every command runs in its own process and is measured from start to end, including imports, with the files in the page
cache. The best of three runs counts; a removal runs once per copy of the store.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench_import import CURATE, Run, describe_versions, format_line, run, write_rows

SEARCH = """
import duckdb, sys
query = '''SELECT count(*) FROM conversations WHERE len(list_filter(conversations, lambda t:
           contains(lower(t.value), lower(?)))) > 0'''
print(duckdb.connect(sys.argv[1], read_only=True).execute(query, [sys.argv[2]]).fetchall())
"""
DELETE = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
ids = "SELECT conversation FROM origins JOIN sources USING (source) WHERE path = ?"
connection.execute(f"DELETE FROM conversations WHERE id IN ({ids})", [sys.argv[2]])
connection.execute("DELETE FROM origins WHERE source IN (SELECT source FROM sources WHERE path = ?)", [sys.argv[2]])
connection.close()
"""
TEXT = "number 77777"
"""In the question of one row, and of its duplicates."""


def main() -> None:
    """Generate the files, run all commands, print the table."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"{platform.machine()}, {describe_versions()}, {options.rows:,} rows\n")
        for line in _measure(Path(folder), options):
            print(line, flush=True)


def _measure(scratch: Path, options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    yield "| command | seconds | CPU s | peak MB | comparison |"
    yield "| --- | --- | --- | --- | --- |"
    if not options.folders:
        yield from _measure_large(scratch, options)
    yield from _measure_folders(scratch, options.repeats)


def _measure_large(scratch: Path, options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table on two large files."""
    first, second = _two_files(scratch, options.rows)
    store = scratch / "store.duckdb"
    _curate("import", str(first), str(second), store=store)
    searches = {
        "words": [TEXT],
        "regular expression": ["--regex", r"number 7777\d\?"],
        "role": [TEXT, "--role", "human"],
    }
    bare = _best(options.repeats, lambda: run([sys.executable, "-c", SEARCH, str(store), TEXT]))
    for name, arguments in searches.items():
        found = _best(options.repeats, partial(_curate, "search", *arguments, store=store))
        yield format_line(f"curate search, {name}", found, f"{found.seconds / bare.seconds:.2f} x the bare query")
    yield format_line("DuckDB: contains in any turn", bare, "")
    deleted = _on_copy(store, lambda copy: run([sys.executable, "-c", DELETE, str(copy), str(second)]))
    removed = _on_copy(store, lambda copy: _curate("sources", "remove", str(second), store=copy))
    yield format_line("curate sources remove, half of the rows", removed, f"{removed.seconds / deleted.seconds:.1f} x")
    yield format_line("DuckDB: DELETE of the same rows", deleted, "")
    plain = _best(options.repeats, lambda: _import(scratch, str(first)))
    passed = _best(options.repeats, lambda: _import(scratch, str(first), "--sql", "SELECT * FROM rows"))
    yield format_line("curate import, half of the rows", plain, "")
    yield format_line("the same, --sql 'SELECT * FROM rows'", passed, f"{passed.seconds / plain.seconds:.2f} x without")


def _measure_folders(scratch: Path, repeats: int) -> Iterator[str]:
    """The lines of the table on folders of many small files."""
    for rows, suffixes in ((1, (".jsonl",)), (20, (".jsonl",)), (20, (".jsonl", ".csv"))):
        folder = _many_files(scratch / f"{rows}{''.join(suffixes)}", rows, suffixes)
        many = _best(repeats, partial(_import, scratch, str(folder)))
        formats = " and ".join(suffix.removeprefix(".") for suffix in suffixes)
        name = f"curate import, 5,000 files, {formats}, {rows} {'row' if rows == 1 else 'rows'} each"
        yield format_line(name, many, f"{many.cpu / 5:.1f} ms of CPU per file")


def _two_files(scratch: Path, rows: int) -> tuple[Path, Path]:
    """Two files of half of the rows each, which have nearly no row in common."""
    both = write_rows(scratch / "both.jsonl", rows)
    paths = (scratch / "first.jsonl", scratch / "second.jsonl")
    with both.open("rb") as source:
        for path in paths:
            with path.open("wb") as target:
                target.writelines(line for _, line in zip(range(rows // 2), source, strict=False))
    both.unlink()
    return paths


def _many_files(folder: Path, rows: int, suffixes: tuple[str, ...]) -> Path:
    """5,000 files of `rows` rows, with the suffixes in turn."""
    folder.mkdir()
    for number in range(5_000):
        table = [
            {"question": f"Which is question {row} of {number}?", "answer": f"It is answer {row} of {number} of many."}
            for row in range(rows)
        ]
        suffix = suffixes[number % len(suffixes)]
        with (folder / f"{number:04}{suffix}").open("w", encoding="utf-8", newline="") as file:
            if suffix == ".csv":
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
            else:
                file.writelines(f"{json.dumps(row)}\n" for row in table)
    return folder


def _curate(*arguments: str, store: Path) -> Run:
    return run([sys.executable, "-P", "-c", CURATE, *arguments, "--store", str(store)])


def _import(scratch: Path, *arguments: str) -> Run:
    store = scratch / "new.duckdb"
    store.unlink(missing_ok=True)
    return _curate("import", *arguments, store=store)


def _on_copy(store: Path, change: Callable[[Path], Run]) -> Run:
    copy = store.with_name("copy.duckdb")
    shutil.copy(store, copy)
    return change(copy)


def _best(repeats: int, measure: Callable[[], Run]) -> Run:
    return min((measure() for _ in range(repeats)), key=lambda each: each.seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of generated rows")
    parser.add_argument("--repeats", type=int, default=3, help="runs per command; the fastest counts")
    parser.add_argument("--folders", action="store_true", help="measure only the folders of many files")
    parser.add_argument("--folder", type=Path, help="where to write; by default, a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
