"""`curate import` compared with DuckDB's readers into a table, and with Hugging Face datasets with the same checks.

    python tests/bench/bench_import.py                  one million generated rows
    python tests/bench/bench_import.py rows.jsonl       a JSONL file with instruction, input, output
    python tests/bench/bench_import.py --large          also five million rows, for the memory
    python tests/bench/bench_import.py --rows 200000    the short form

Every command runs in its own process and is measured from start to end, including imports, with the file in the page
cache. `curate` and its peers run alternately, so that other load affects both; the best of three runs counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import polars as pl

CURATE = "from curate.__main__ import main; main()"

AS_INSTALLED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The modules of an installed package are compiled; a development environment may disable that."""

BARE_JSON = """
import duckdb, sys
duckdb.connect(sys.argv[2]).execute(f"CREATE TABLE rows AS SELECT * FROM read_json('{sys.argv[1]}')").close()
"""
BARE_CSV = BARE_JSON.replace("read_json", "read_csv")

DATASETS = """
import hashlib, sys
import datasets

TOKENS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<start_of_turn>", "</s>", "[INST]")
datasets.disable_progress_bars()

def check(batch):
    out = {"id": [], "conversations": [], "reason": []}
    for instruction, extra, output in zip(batch["instruction"], batch["input"], batch["output"]):
        question = f"{instruction}\\n\\n{extra}" if extra.strip() else instruction
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": output}]
        reason = next((f"empty {turn['from']}" for turn in turns if not turn["value"].strip()), None)
        if any(token in turn["value"] for turn in turns for token in TOKENS):
            reason = reason or "control token"
        text = "".join(f"{turn['from']}:{len(turn['value'].encode())}:{turn['value']};" for turn in turns)
        out["id"].append(hashlib.sha256(text.encode()).hexdigest()[:32])
        out["conversations"].append(turns)
        out["reason"].append(reason)
    return out

rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
rows = rows.map(check, batched=True)
seen = set()
new = [not (id in seen or seen.add(id)) and reason is None for id, reason in zip(rows["id"], rows["reason"])]
print(sum(new))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """Duration, CPU time and peak memory of a process."""

    seconds: float
    cpu: float
    """seconds on all cores; less affected by other load than the duration"""
    megabytes: float
    output: bytes = b""
    """standard output and errors"""


def main() -> None:
    """Generate the files, run all commands, print the table."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        scratch = Path(folder)
        path = options.file or write_rows(scratch / "rows.jsonl", options.rows)
        print(f"{platform.machine()}, {os.cpu_count()} cores, {describe_versions()}")
        print(f"{path.name}: {path.stat().st_size / 1e6:,.0f} MB\n")
        for line in _measure(path, scratch, options):
            print(line, flush=True)


def _measure(path: Path, scratch: Path, options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    yield "| command | seconds | CPU s | peak MB | comparison |"
    yield "| --- | --- | --- | --- | --- |"
    ours, bare = _alternate([lambda: _import(path, scratch), lambda: _bare(BARE_JSON, path, scratch)], options.repeats)
    yield format_line("curate import, JSONL", ours, "")
    yield format_line("DuckDB read_json into a table", bare, f"curate: {ours.seconds / bare.seconds:.2f} x the time")
    broken, unbroken = _alternate(
        [lambda: _import(_broken(path, scratch), scratch), lambda: _import(path, scratch)], options.repeats
    )
    yield format_line(
        "curate import, a broken line in the middle",
        broken,
        f"{broken.seconds / unbroken.seconds:.2f} x the unbroken file",
    )
    as_csv = _as_csv(path, scratch)
    ours_csv, bare_csv = _alternate(
        [lambda: _import(as_csv, scratch), lambda: _bare(BARE_CSV, as_csv, scratch)], options.repeats
    )
    yield format_line("curate import, CSV", ours_csv, "")
    yield format_line(
        "DuckDB read_csv into a table", bare_csv, f"curate: {ours_csv.seconds / bare_csv.seconds:.2f} x the time"
    )
    peer = run([sys.executable, "-c", DATASETS, str(path), str(scratch / "cache")])
    yield format_line("datasets: load_dataset, map", peer, f"curate: {peer.seconds / ours.seconds:.1f} x as fast")
    if options.large:
        large = write_rows(scratch / "large.jsonl", 5 * options.rows)
        many = _import(large, scratch)
        yield format_line(
            "curate import, five times the rows", many, f"{many.megabytes / ours.megabytes:.2f} x the memory"
        )


def run(command: list[str]) -> Run:
    """Run a command. Raises `CalledProcessError` if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=AS_INSTALLED)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        printed = output.read()
    if status:
        raise subprocess.CalledProcessError(status, command, printed)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def _import(path: Path, scratch: Path) -> Run:
    store = scratch / "store.duckdb"
    store.unlink(missing_ok=True)
    return run([sys.executable, "-P", "-c", CURATE, "import", str(path), "--store", str(store)])


def _bare(script: str, path: Path, scratch: Path) -> Run:
    table = scratch / "bare.duckdb"
    table.unlink(missing_ok=True)
    return run([sys.executable, "-c", script, str(path), str(table)])


def _alternate(runs: list[Callable[[], Run]], repeats: int) -> list[Run]:
    """The fastest of several runs of each, alternately."""
    rounds = [[each() for each in runs] for _ in range(repeats)]
    return [min(times, key=lambda time: time.seconds) for times in zip(*rounds, strict=True)]


# ------------------------------------------------------------------------------------------------------------- files

SYLLABLES = ["ta", "ri", "mo", "ke", "lun", "sa", "per", "vi", "dor", "na", "eli", "gro", "un", "chi", "bel", "or"]


def write_rows(path: Path, count: int) -> Path:
    """Write `count` Alpaca rows of about 470 bytes; 5 % are duplicates, one in 10,000 has no answer."""
    draw = random.Random(7)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(5_000)]
    phrases = [" ".join(draw.choices(words, k=12)) for _ in range(20_000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = draw.random()
            original = draw.randrange(number) if number and kind < 0.05 else number
            own = random.Random(original)
            row = {
                "instruction": f"{own.choice(phrases).capitalize()}, number {original}?",
                "input": own.choice(phrases) if original % 3 == 0 else "",
                "output": "" if original % 10_000 == 0 else ". ".join(own.choices(phrases, k=own.randint(1, 6))),
                "id": number,
                "source": "bench",
            }
            file.write(json.dumps(row) + "\n")
    return path


def _broken(path: Path, scratch: Path) -> Path:
    """A copy of the file with half of its middle line removed."""
    broken = scratch / "broken.jsonl"
    if not broken.exists():
        shutil.copy(path, broken)
        with broken.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.readline()
            start = file.tell()
            line = file.readline()
            file.seek(start + len(line) // 2)
            file.write(b" " * (len(line) - len(line) // 2 - 1))
    return broken


def _as_csv(path: Path, scratch: Path) -> Path:
    as_csv = scratch / "rows.csv"
    columns = ["instruction", "input", "output", "id"]
    rows = pl.scan_ndjson(path).select(columns)
    rows.sink_csv(as_csv, quote_style="necessary")
    with as_csv.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == columns
    return as_csv


# ------------------------------------------------------------------------------------------------------------ output


def format_line(command: str, measured: Run, comparison: str) -> str:
    """A row of the table."""
    return f"| {command} | {measured.seconds:.2f} | {measured.cpu:.1f} | {measured.megabytes:,.0f} | {comparison} |"


def describe_versions() -> str:
    """Python, DuckDB, Polars and datasets with their versions."""
    names = ("duckdb", "polars", "datasets")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="a JSONL file; by default, rows are generated")
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of generated rows")
    parser.add_argument("--repeats", type=int, default=3, help="runs per command; the fastest counts")
    parser.add_argument("--large", action="store_true", help="also five times as many rows")
    parser.add_argument("--folder", type=Path, help="where to write; by default, a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
