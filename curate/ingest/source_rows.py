"""Files whose rows are in the store → their rows of `sources`, with the counts that are asserted, and their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.dataset_info import DESCRIBED_BY
from curate.ingest.import_options import row_options
from curate.ingest.import_result import ImportResult, check_max_rejects, load_results, placeholders
from curate.ingest.named_split import SPLIT_COLUMN
from curate.ingest.open_file import OpenFile
from curate.ingest.repairs import STORED_REPAIRS
from curate.ingest.writer import SourceCounts, registered
from schemas.digest import canonical_json


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file whose rows are in the store."""

    file: OpenFile
    source: str
    sha256: str
    counts: SourceCounts


def finish_sources(connection: DuckDBPyConnection, written: Sequence[WrittenFile]) -> list[ImportResult]:
    """Check that every row is in the store exactly once, write the rows of `sources`, and check the share of rejects.

    Raises `SourceError` for the first file with too many rejects.
    """
    for each in written:
        _check_sum(each)
    with registered(connection, rows=pl.DataFrame([_source_row(each) for each in written], schema=_SCHEMA)):
        connection.execute("INSERT INTO sources BY NAME FROM rows")
    ids = [each.source for each in written]
    _supersede_rejects(connection, ids)
    loaded = load_results(connection, ids)
    results = []
    for each in written:
        notes = each.file.conversion
        result = replace(loaded[each.source], warning_examples=notes.warning_examples, advice=notes.advice)
        check_max_rejects(result, notes.section.max_rejects)
        results.append(result)
    return results


def _check_sum(written: WrittenFile) -> None:
    counts, rows = written.counts, written.file.conversion.rows
    placed = counts.rows_kept + counts.rows_duplicate + counts.rows_rejected + counts.rows_excluded
    if placed != rows:  # a defect of this program
        raise AssertionError(f"{rows} rows were read, but {placed} are in the store: {counts}")


_COUNTS = ("rows_read", "rows_kept", "rows_duplicate", "rows_rejected", "conversations", "rows_excluded")
_TEXTS = ("source", "path", "sha256", "shape", "mapping", "warnings")
_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(_TEXTS, pl.String()),
        **dict.fromkeys(("bytes", *_COUNTS), pl.Int64()),
        "columns": pl.List(pl.String()),
    }
)


def _source_row(written: WrittenFile) -> dict[str, Any]:
    file, counts, conversion = written.file, written.counts, written.file.conversion
    # the columns of rejects, which --sql leaves as they are
    columns = file.source.columns if conversion.section.sql else conversion.columns
    return {
        **{"source": written.source, "path": file.source.path, "sha256": written.sha256, "bytes": file.source.bytes},
        **{"shape": conversion.mapping.shape, "mapping": json.dumps(_mapping(file), ensure_ascii=False)},
        **{"columns": list(columns), "rows_read": conversion.rows, "rows_kept": counts.rows_kept},
        **{"rows_duplicate": counts.rows_duplicate, "rows_rejected": counts.rows_rejected},
        **{"conversations": counts.conversations, "warnings": canonical_json(conversion.warnings)},
        "rows_excluded": counts.rows_excluded,
    }


def _mapping(file: OpenFile) -> dict[str, Any]:
    """How the rows were read, as stored."""
    source, conversion, section = file.source, file.conversion, file.conversion.section
    how = {"encoding": section.encoding, "format": source.format, "delimiter": source.delimiter}
    mapping = {**conversion.mapping.stored(), **how, STORED_REPAIRS: list(section.repair), **row_options(section)}
    if conversion.split and SPLIT_COLUMN not in conversion.columns:
        mapping[SPLIT_COLUMN] = conversion.split
    if conversion.described_by:
        mapping[DESCRIBED_BY] = conversion.described_by
    return mapping


def _supersede_rejects(connection: DuckDBPyConnection, sources: Sequence[str]) -> None:
    """Close the open rejects of earlier imports of the same bytes: the new one contains all of their rows again."""
    connection.execute(
        f"""UPDATE rejects SET closed_by = superseded.by_source FROM (
                SELECT own.source, arg_min(later.source, later.seq) AS by_source
                FROM sources AS own JOIN sources AS later ON later.sha256 = own.sha256 AND later.seq > own.seq
                WHERE later.source IN ({placeholders(sources)}) GROUP BY own.source) AS superseded
            WHERE rejects.source = superseded.source AND closed_by IS NULL""",
        [*sources],
    )
