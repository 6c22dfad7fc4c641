"""A Hugging Face dataset → batches: a folder written by `save_to_disk`, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from curate.ingest.readers.arrow import ROWS, read_rows
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.compression import BLOCK, data_suffix
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DATASET_NAME = re.compile(r"(hf:)?[\w.-]+/[\w.-]+(#[\w.-]+)?|hf:[\w.-]+(#[\w.-]+)?")
"""`owner/name` or `hf:name` on the Hugging Face hub, with an optional `#split`."""


def is_dataset(path: str) -> bool:
    """Whether `path` is a folder written by `save_to_disk` or a name on the hub, with an optional `#split`."""
    folder = Path(path.partition("#")[0])
    if folder.is_dir():
        return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    is_name = DATASET_NAME.fullmatch(path) is not None and not folder.exists() and not data_suffix(path)
    return is_name and (path.startswith("hf:") or not folder.parent.exists())


def read_dataset(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The rows of a dataset, in order. A dataset with several splits requires `name#split`.

    Digest and size are those of the Arrow files. Raises `SourceError` if `datasets` is not installed, the dataset or
    split does not exist, or the split is missing.
    """
    name, _, split = stream.path.partition("#")
    dataset = _select_split(name, _load(name), split)
    for file in dataset.cache_files:
        with Path(file["filename"]).open("rb") as content:
            while block := content.read(BLOCK):
                stream.update_digest(block)
    tables = dataset.with_format("arrow").iter(ROWS)
    yield from read_rows(
        (rows for table in tables for rows in table.combine_chunks().to_batches()), stream.path, stream.limits
    )


def _load(name: str) -> Dataset | DatasetDict:
    try:
        import datasets
    except ImportError as error:
        raise SourceError(
            f"Reading the dataset {name} requires the package `datasets`.",
            "pip install datasets, or save the dataset as Parquet and import that file.",
        ) from error
    try:
        return datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name.removeprefix("hf:"))
    except (OSError, ValueError) as error:
        raise SourceError(f"There is no file or dataset {name}: {error}.", "Check the name.") from error


def _select_split(name: str, dataset: Dataset | DatasetDict, split: str) -> Dataset:
    if not isinstance(dataset, dict):
        if split:
            raise SourceError(f"{name} has no splits, so {split} cannot be selected.", f"Use {name}.")
        return dataset
    if split in dataset or (len(dataset) == 1 and not split):
        return dataset[split or next(iter(dataset))]
    splits = ", ".join(dataset)
    raise SourceError(
        f"{name} has no split {split}; it has {splits}." if split else f"{name} has the splits {splits}.",
        f"Choose one: {', '.join(f'{name}#{known}' for known in dataset)}",
    )
