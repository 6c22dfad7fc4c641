"""Small files and what reading them gives, for the tests of importers."""

from pathlib import Path

import polars as pl

from curate.ingest.readers import Batch, open_source


def read(path: Path, **options) -> list[Batch]:
    return list(open_source(path, **options).batches())


def only(path: Path, **options) -> Batch:
    (batch,) = read(path, **options)
    return batch


def rows(path: Path, **options) -> list[dict]:
    return [row for batch in read(path, **options) for row in batch.table.to_dicts()]


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def raw(batch: Batch) -> list[str]:
    return batch.raw(pl.Series(range(batch.table.height), dtype=pl.Int64)).to_list()
