"""Small source files and the batches read from them, for the tests of readers."""

from pathlib import Path

import polars as pl

from curate.ingest.readers import Batch, open_source


def read_batches(path: Path, **options) -> list[Batch]:
    return list(open_source(path, **options).batches())


def one_batch(path: Path, **options) -> Batch:
    (batch,) = read_batches(path, **options)
    return batch


def read_rows(path: Path, **options) -> list[dict]:
    return [row for batch in read_batches(path, **options) for row in batch.table.to_dicts()]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def raw_texts(batch: Batch) -> list[str]:
    return batch.raw(pl.Series(range(batch.table.height), dtype=pl.Int64)).to_list()
