"""The registry of source formats: how each is read and recognised. A new format is a reader and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from curate.ingest.readers.arrow_file import FILE, STREAM, read_arrow
from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.csv import OPTIONS, find_csv_delimiter, find_tsv_delimiter, read_csv, read_tsv
from curate.ingest.readers.hf_datasets import is_dataset, read_dataset
from curate.ingest.readers.json_array import read_json
from curate.ingest.readers.jsonl import read_jsonl
from curate.ingest.readers.table_options import TableOptions
from curate.ingest.readers.text_file import read_text

Read = Callable[[ByteStream, TableOptions], Iterator[Batch]]


@dataclass(frozen=True, slots=True)
class Format:
    """A source format: a function that reads the records in order, and the marks that identify the format."""

    read: Read
    options: tuple[str, ...] = ()
    """The fields of `TableOptions` that the reader uses."""
    suffixes: tuple[str, ...] = ()
    """File suffixes, without that of a compression."""
    suffix_decides: bool = True
    """Whether a suffix identifies the format; otherwise the content is inspected too."""
    magic: tuple[bytes, ...] = ()
    """The first bytes of binary files, which are not decoded as text."""
    is_primary: bool = True
    """Whether folders with files of other formats are searched for this one too."""
    matches_path: Callable[[str], bool] | None = None
    """For sources that are not a single file: whether a path names one."""
    find_delimiter: Callable[[ByteStream, TableOptions], str] | None = None
    """For delimited text: the delimiter of a file."""


def _on_demand(module: str, function: str) -> Read:
    """A reader whose module is imported when a file has its format: yaml, sqlite3 and pyarrow.parquet take 0.03 s."""

    def read(stream: ByteStream, options: TableOptions) -> Iterator[Batch]:
        found = getattr(import_module(f"curate.ingest.readers.{module}"), function)
        return cast(Read, found)(stream, options)

    return read


FORMATS = {
    "jsonl": Format(read_jsonl, suffixes=(".jsonl", ".ndjson"), suffix_decides=False),
    "json": Format(read_json, suffixes=(".json",), suffix_decides=False),
    "csv": Format(read_csv, OPTIONS, (".csv",), find_delimiter=find_csv_delimiter),
    "tsv": Format(read_tsv, OPTIONS, (".tsv", ".tab"), find_delimiter=find_tsv_delimiter),
    "parquet": Format(_on_demand("parquet", "read_parquet"), suffixes=(".parquet", ".pq"), magic=(b"PAR1",)),
    "arrow": Format(read_arrow, suffixes=(".arrow", ".feather"), magic=(FILE, STREAM)),
    "xlsx": Format(
        _on_demand("workbook", "read_workbook"),
        ("sheet", "skip_lines", "header"),
        (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods"),
    ),
    "sqlite": Format(
        _on_demand("sqlite_table", "read_sqlite"),
        ("sheet",),
        (".sqlite", ".sqlite3", ".db"),
        magic=(b"SQLite format 3\0",),
    ),
    "yaml": Format(_on_demand("yaml_list", "read_yaml"), suffixes=(".yaml", ".yml"), is_primary=False),
    "text": Format(read_text, suffixes=(".txt", ".md"), is_primary=False),
    "hub": Format(read_dataset, matches_path=is_dataset),
}

SUFFIXES = {suffix: name for name, format in FORMATS.items() for suffix in format.suffixes}
"""File suffix → format."""


def match_path(path: str) -> str | None:
    """The format whose sources are named by paths such as `path`; None for the path of a file."""
    named = (name for name, format in FORMATS.items() if format.matches_path and format.matches_path(path))
    return next(named, None)
