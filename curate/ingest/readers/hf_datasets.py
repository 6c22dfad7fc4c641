"""Hugging Face datasets to batches: a folder that `save_to_disk` wrote, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from curate.ingest.readers.arrow import read_rows
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from schemas.errors import SourceError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ROWS = 50_000
"""Rows of a batch."""

BLOCK = 1 << 20
"""Bytes hashed at a time."""


def read_dataset(stream: ByteStream) -> Iterator[Batch]:
    """The rows of a dataset, in order; `name#split` where it has several splits.

    Digest and size are those of the Arrow files that hold the rows. Raises `SourceError` where `datasets` is not
    installed, where there is no such dataset, and where it has several splits and none is named.
    """
    name, _, split = stream.path.partition("#")
    dataset = _one_split(name, _load(name), split)
    for file in dataset.cache_files:
        with Path(file["filename"]).open("rb") as content:
            while block := content.read(BLOCK):
                stream.seen(block)
    tables = dataset.with_format("arrow").iter(ROWS)
    yield from read_rows((rows for table in tables for rows in table.combine_chunks().to_batches()), stream.path)


def _load(name: str) -> Dataset | DatasetDict:
    try:
        import datasets
    except ImportError as error:
        what = f"Reading the dataset {name} needs the package `datasets`."
        raise SourceError(what, "pip install datasets, or write it as Parquet and give that file.") from error
    try:
        return datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name.removeprefix("hf:"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"There is no file {name}, and no dataset of that name: {error}.", "Check the name."
        ) from error


def _one_split(name: str, dataset: Dataset | DatasetDict, split: str) -> Dataset:
    if not isinstance(dataset, dict):
        if split:
            raise SourceError(f"{name} has no splits, so none is called {split}.", f"Give it as {name}.")
        return dataset
    if split in dataset or (len(dataset) == 1 and not split):
        return dataset[split or next(iter(dataset))]
    known = ", ".join(f"{name}#{one}" for one in dataset)
    missing = f"{name} has no split {split}; it has {', '.join(dataset)}."
    raise SourceError(missing if split else f"{name} has the splits {', '.join(dataset)}.", f"Name one: {known}")
