"""How fast conversations become ids and labels: Jinja twice, tokens, labels; and again from the cache.

python tests/bench/bench_rendering.py FILE.jsonl [ROWS]     # Alpaca rows: instruction, input, output
"""

import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import pytest

from schemas.conversation import fold
from train.caching import rendered_version
from train.rendering import Tokenizer, find_template

TINY = Path(__file__).resolve().parents[2] / "data" / "tiny"


def conversations(file: Path, rows: int) -> pl.DataFrame:
    """Alpaca rows as the members of a version."""
    table = pl.read_ndjson(file).head(rows).filter(pl.col("output") != "")
    asked = pl.concat_str("instruction", pl.lit("\n\n"), "input").str.strip_chars_end()
    sides = pl.concat_list(
        pl.struct(pl.lit("human").alias("from"), asked.alias("value")),
        pl.struct(pl.lit("gpt").alias("from"), pl.col("output").alias("value")),
    )
    turns = table.with_row_index("row").select(pl.col("row").cast(pl.Int64), sides.alias("turn"))
    folded = fold(turns.explode("turn").unnest("turn")).unique("id", maintain_order=True)
    return folded.select("id", "conversations", "tools", pl.lit("train").alias("split"))


def main() -> None:
    """Print rows and tokens a second, rendered and read back."""
    members = conversations(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000)
    tokenizer = Tokenizer.load(TINY)
    template = find_template("tokenizer", TINY)
    for what in ("rendered", "from the cache"):
        start = time.perf_counter()
        tokens = rendered_version(members, "bench", template, tokenizer)["input_ids"].list.len().sum()
        took = time.perf_counter() - start
        print(f"{what}: {members.height / took:,.0f} rows/s, {tokens / took:,.0f} tokens/s, {took:.2f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURATE_CACHE", folder)
        main()
