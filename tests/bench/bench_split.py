"""Leaks of random splits with planted variants of questions, and time and size of the groups of a file.

    PYTHONPATH=tests python tests/bench/bench_split.py [FILE ...]      files that curate import reads

2,000 questions are planted with a variant by each change: case, marks, white space, markup, Unicode form, and one typo
in questions of at least 8 words. A variant on the other side in any of 1,000 splits is exit code 1. For each file, the
groups are counted with equal questions only (lower case, NFC, white space) and with all links.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from support.stores import add, chat
from support.variants import plant_variants

from curate.ingest.pipeline import import_files
from curate.versions.placement import _split_by_share
from curate.versions.split import PROMPTS_SQL, group_members
from schemas.recipe import Recipe
from schemas.store import reading

QUESTIONS, SPLITS, HELD_OUT = 2_000, 1_000, 0.05


def main() -> int:
    """Print the leaks and the table; 1 if there are leaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        leaks = _count_leaks(Path(folder) / "planted.duckdb")
        if options.files:
            print("\n| file | conversations | CPU s | equal questions, largest | all links, largest |")
            print("| --- | --- | --- | --- | --- |")
        for number, file in enumerate(options.files):
            store = Path(folder) / f"{number}.duckdb"
            import_files(store, [str(file)], Recipe().import_)
            print(_measure(store, file.name), flush=True)
    return int(leaks > 0)


def _count_leaks(store: Path) -> int:
    families = plant_variants(seed=7, count=QUESTIONS)
    talks = [chat(question, f"A{number}.") for number, question in enumerate(itertools.chain.from_iterable(families))]
    ids = add(store, talks)
    family = [number for number, questions in enumerate(families) for _ in questions]
    with reading(store) as connection:
        members = group_members(connection).join(
            pl.DataFrame({"conversation": ids, "family": family}), on="conversation"
        )
    leaks = 0
    for salt in range(SPLITS):
        placed = members.with_columns(split=_split_by_share(HELD_OUT, str(salt)))
        leaks += placed.group_by("family").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1).height
    groups, largest = members["group"].n_unique(), members["group"].value_counts()["count"].max()
    print(
        f"{QUESTIONS:,} questions with {len(ids) - QUESTIONS:,} variants: {groups:,} groups, the largest of {largest}"
    )
    print(f"variants on the other side in {SPLITS:,} splits: {leaks:,}")
    return leaks


def _measure(store: Path, name: str) -> str:
    with reading(store) as connection:
        equal = connection.sql(PROMPTS_SQL).pl()["prompt"].value_counts()["count"]
        start = time.process_time()
        linked = group_members(connection)
        seconds = time.process_time() - start
    sizes = linked["group"].value_counts()["count"]
    before, after = (f"{len(counts):,}, {counts.max():,}" for counts in (equal, sizes))
    return f"| {name} | {linked.height:,} | {seconds:.1f} | {before} | {after} |"


if __name__ == "__main__":
    sys.exit(main())
