"""How fast conversations are scored, scorer by scorer and all together, and how much memory a large store takes.

    python tests/bench/bench_score.py alpaca.jsonl [--large million.jsonl] [--peer PYTHON]

The files hold instruction, input and output per line. `--large` scores a store of that file as `curate score` does
and prints the peak memory; more than 2 GiB ends with exit code 1. `--peer` is an interpreter with datatrove, spacy
and nltk: its filters judge 4,000 answers of the first file in the same run. CPU seconds say more than wall time on
a machine that does other things too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import polars as pl

from curate.ingest.pipeline import import_files
from curate.scorers.features import material
from curate.scorers.runner import PART, plan, score_frame, score_store
from schemas.recipe import ImportSection, Recipe
from schemas.store import reading

LIMIT_MB = 2048
ROUNDS = 3
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline import filters

documents = [Document(text=json.loads(line)["output"], id="1", metadata={"language": "en"}) for line in sys.stdin]
for name in ("GopherRepetitionFilter", "GopherQualityFilter", "FineWebQualityFilter", "C4QualityFilter"):
    judge = getattr(filters, name)()
    judge.filter(documents[0])
    start = time.perf_counter()
    kept = sum(judge.filter(document) is True for document in documents)
    seconds = time.perf_counter() - start
    print(f"datatrove {name:24}{len(documents) / seconds:>12,.0f} rows/s, keeps {kept / len(documents):.1%}")
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("alpaca", type=Path)
    parser.add_argument("--large", type=Path)
    parser.add_argument("--peer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        conversations = imported(Path(folder), given.alpaca)
        by_scorer(conversations)
        together(conversations)
        if given.peer:
            peer(given.peer, given.alpaca)
        return large(Path(folder), given.large) if given.large else 0


def imported(folder: Path, file: Path) -> pl.DataFrame:
    store = folder / f"{file.stem}.duckdb"
    import_files(store, [str(file)], ImportSection())
    with reading(store) as connection:
        return connection.sql("SELECT id, conversations, tools FROM conversations").pl()


def by_scorer(conversations: pl.DataFrame) -> None:
    """CPU seconds of each scorer, one part after the other, on one thread of ours."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        spent = defaultdict(float)
        for part in conversations.iter_slices(PART):
            start = time.process_time()
            frame = material(part)
            spent["(material, shared)"] += time.process_time() - start
            for scoring in plan({}):
                start = time.process_time()
                frame = frame.with_columns(scoring.over(frame))
                spent[scoring.name] += time.process_time() - start
        best = {name: min(best.get(name, seconds), seconds) for name, seconds in spent.items()}
    for name, seconds in best.items():
        print(f"{name:24}{seconds:8.3f} CPU s {conversations.height / max(seconds, 1e-9):>14,.0f} rows/CPU s")
    print(f"{'sum':24}{sum(best.values()):8.3f} CPU s")


def together(conversations: pl.DataFrame) -> None:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        score_frame(conversations, plan({}))
        seconds.append(time.perf_counter() - start)
    rate = conversations.height / min(seconds)
    print(f"all {len(plan({}))} scorers, {conversations.height:,} rows: {min(seconds):.2f} s, {rate:,.0f} rows/s")


def peer(python: str, file: Path) -> None:
    with file.open(encoding="utf-8") as lines:
        some = "".join(line for _, line in zip(range(4000), lines, strict=False) if json.loads(line)["output"])
    subprocess.run([python, "-c", PEER], input=some, text=True, check=True)


def large(folder: Path, file: Path) -> int:
    store = folder / "large.duckdb"
    subprocess.run(  # in a process of its own: the import's memory is not the scorers'
        [
            sys.executable,
            "-P",
            "-c",
            "from curate.cli.app import main; main()",
            "import",
            str(file),
            "--store",
            str(store),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    start = time.perf_counter()
    report = score_store(store, Recipe())
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = report.conversations / seconds
    print(f"store of {report.conversations:,}: {seconds:.1f} s, {rate:,.0f} rows/s, peak {peak:,.0f} MB")
    return int(peak > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
