"""Time and memory of `curate dedup`, which is exact, compared with rensa, which estimates by MinHash.

    python tests/bench/bench_dedup.py rows.jsonl          a JSONL file with instruction, input, output

The peer is used as in its documentation: five-word shingles made in Python, 112 permutations in 14 bands; a text is
kept if no kept text in its buckets has an estimated similarity of 0.8. Both read the conversations from the same store,
from which `curate import` has removed exact copies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import duckdb
from bench_import import CURATE, run

PEER = """
import re, sys
import duckdb
from rensa import RMinHash, RMinHashLSH

texts = duckdb.connect(sys.argv[1], read_only=True).sql(
    "SELECT lower(array_to_string([t.value FOR t IN conversations], ' ')) FROM conversations"
).fetchall()
lsh, kept, dropped = RMinHashLSH(threshold=0.8, num_perm=112, num_bands=14), {}, 0
for number, (text,) in enumerate(texts):
    words = re.findall(r"\\w+", text)
    signature = RMinHash(num_perm=112, seed=7)
    signature.update([" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))])
    if any(signature.jaccard(kept[other]) >= 0.8 for other in lsh.query(signature)):
        dropped += 1
    else:
        kept[number] = signature
        lsh.insert(number, signature)
print(dropped)
"""


def main() -> None:
    """Import the file, find near-duplicates with both tools, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Path(folder) / "store.duckdb"
        ours = [sys.executable, "-P", "-c", CURATE]
        run([*ours, "import", str(options.file), "--store", str(store)])
        print(f"Python {sys.version.split()[0]}, polars {version('polars')}, rensa {version('rensa')}\n")
        print("| tool | seconds | CPU s | peak MB | comparison |\n| --- | --- | --- | --- | --- |")
        mine = run([*ours, "dedup", "--store", str(store), "--json"])
        print(f"| curate dedup | {mine.seconds:.1f} | {mine.cpu:.1f} | {mine.megabytes:,.0f} | |", flush=True)
        peer = run([sys.executable, "-c", PEER, str(store)])
        times = f"curate is {peer.seconds / mine.seconds:.1f} x as fast"
        print(f"| rensa, shingles in Python | {peer.seconds:.1f} | {peer.cpu:.1f} | {peer.megabytes:,.0f} | {times} |")
        print(f"\nNear-duplicates: curate {_count_dropped(store):,}, rensa {int(peer.output.split()[-1]):,}")


def _count_dropped(store: Path) -> int:
    query = "SELECT count(*) FROM clusters WHERE nearest IS NOT NULL"
    ((number,),) = duckdb.connect(str(store), read_only=True).sql(query).fetchall()
    return int(number)


if __name__ == "__main__":
    main()
