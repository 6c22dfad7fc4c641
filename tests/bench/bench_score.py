"""Scoring speed, per scorer and for all scorers, and peak memory for a large store.

    python tests/bench/bench_score.py alpaca.jsonl [--large million.jsonl] [--peer PYTHON]

Each line of the files has instruction, input and output. `--large` scores a store of that file as `curate score` does
and prints the peak memory; more than 2 GiB is exit code 1. `--peer` is an interpreter with datatrove, spacy and nltk,
whose filters are run on 4,000 answers of the first file. CPU seconds are more reliable than wall time on a machine
that is also used otherwise.
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
from curate.scorers.features import compute_features
from curate.scorers.plan import plan_scorers
from curate.scorers.runner import PART_ROWS, score_frame, score_store
from schemas.import_recipe import ImportSection
from schemas.recipe import Recipe
from schemas.store import reading

LIMIT_MB = 2048
ROUNDS = 3
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline import filters

documents = [Document(text=json.loads(line)["output"], id="1", metadata={"language": "en"}) for line in sys.stdin]
for name in ("GopherRepetitionFilter", "GopherQualityFilter", "FineWebQualityFilter", "C4QualityFilter"):
    quality_filter = getattr(filters, name)()
    quality_filter.filter(documents[0])
    start = time.perf_counter()
    kept = sum(quality_filter.filter(document) is True for document in documents)
    seconds = time.perf_counter() - start
    print(f"datatrove {name:24}{len(documents) / seconds:>12,.0f} rows/s, keeps {kept / len(documents):.1%}")
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("alpaca", type=Path)
    parser.add_argument("--large", type=Path)
    parser.add_argument("--peer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        conversations = import_file(Path(folder), options.alpaca)
        time_each_scorer(conversations)
        time_all_scorers(conversations)
        if options.peer:
            run_peer(options.peer, options.alpaca)
        return score_large_store(Path(folder), options.large) if options.large else 0


def import_file(folder: Path, file: Path) -> pl.DataFrame:
    store = folder / f"{file.stem}.duckdb"
    import_files(store, [str(file)], ImportSection())
    with reading(store) as connection:
        return connection.sql("SELECT id, conversations, tools FROM conversations").pl()


def time_each_scorer(conversations: pl.DataFrame) -> None:
    """Print the CPU seconds of each scorer, in one thread."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        spent = defaultdict(float)
        for part in conversations.iter_slices(PART_ROWS):
            start = time.process_time()
            frame = compute_features(part)
            spent["(features, shared)"] += time.process_time() - start
            for scorer in plan_scorers({}):
                start = time.process_time()
                frame = frame.with_columns(scorer.run(frame))
                spent[scorer.name] += time.process_time() - start
        best = {name: min(best.get(name, seconds), seconds) for name, seconds in spent.items()}
    for name, seconds in best.items():
        print(f"{name:24}{seconds:8.3f} CPU s {conversations.height / max(seconds, 1e-9):>14,.0f} rows/CPU s")
    print(f"{'sum':24}{sum(best.values()):8.3f} CPU s")


def time_all_scorers(conversations: pl.DataFrame) -> None:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        score_frame(conversations, plan_scorers({}))
        seconds.append(time.perf_counter() - start)
    rate = conversations.height / min(seconds)
    print(
        f"all {len(plan_scorers({}))} scorers, {conversations.height:,} rows: {min(seconds):.2f} s, {rate:,.0f} rows/s"
    )


def run_peer(python: str, file: Path) -> None:
    with file.open(encoding="utf-8") as lines:
        answers = "".join(line for _, line in zip(range(4000), lines, strict=False) if json.loads(line)["output"])
    subprocess.run([python, "-c", PEER], input=answers, text=True, check=True)


def score_large_store(folder: Path, file: Path) -> int:
    store = folder / "large.duckdb"
    subprocess.run(  # in another process, so that the peak memory is that of scoring
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
