"""A path and the import options → an open file: its mapping, and its import batches, computed in a thread.

A small file is read completely; it starts no threads, and its rows may be converted with those of other files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import polars as pl

from curate.ingest.answer_labels import check_labels
from curate.ingest.column_mapping import find_mapping
from curate.ingest.convert import Conversion, drop_export_columns, join_batches, prefix_errors
from curate.ingest.dataset_info import describe
from curate.ingest.file_hash import Digest
from curate.ingest.import_options import canonical_roles, name_turns, row_options, table_options, turn_keys
from curate.ingest.named_split import find_named_split
from curate.ingest.readers import Batch, Source, open_source, read_small
from curate.ingest.readers.batch import REJECT_COLUMN
from curate.ingest.readers.byte_stream import prefetch
from curate.ingest.readers.json_repairs import conversion_hint
from curate.ingest.readers.limits import Limits
from curate.ingest.repairs import STORED_REPAIRS
from curate.ingest.row_filter import EXCLUDED, filter_batches
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.shape import ColumnMapping
from curate.ingest.sql_transform import transform_batches
from curate.ingest.writer import ImportBatch, rebatch
from schemas.conversation import ID_LENGTH
from schemas.digest import digest
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.text import plural

SMALL_FILE = 1 << 20
"""Size in bytes up to which a file is read completely when it is opened."""

MAX_UNREADABLE = 200_000
"""Rows at the beginning of a file that may be unreadable. Their texts wait in memory until the mapping is known: of a
large file without any readable row that would be the whole file, at 50 to 200 times its size."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is being imported; its first import batch is computed in a thread, unless it is small."""

    source: Source
    digest: Digest | None
    mapping: ColumnMapping
    """from the first rows; that of `conversion` may be extended"""
    conversion: Conversion
    batches: Iterator[ImportBatch]
    corrects_rejects: bool
    """whether its rows are exported rejects, which may be imported again under the same name"""
    whole: Batch | None
    """the rows of a small file that can be imported together with other files"""

    def source_id(self, sha256: str) -> str:
        """The id of the import: equal bytes, read in the same way, have the same id under any name."""
        section = self.conversion.section
        how = {"encoding": section.encoding, "format": section.format, STORED_REPAIRS: list(section.repair)}
        return digest({"sha256": sha256, **self.mapping.stored(), **how, **row_options(section)})[:ID_LENGTH]


def open_small_files(digests: Mapping[str, Digest | None], section: ImportSection) -> dict[str, Source]:
    """The sources of small files of JSON lines that could be read together, by path."""
    sources = [_open_source(path, digest, section) for path, digest in digests.items()]
    return {source.path: source for source in read_small([each for each in sources if _is_jsonl(each)])}


def _is_jsonl(source: Source) -> bool:
    try:
        return source.format == "jsonl"
    except SourceError:  # is raised again when the file is opened
        return False


def _open_source(path: str, digest: Digest | None, section: ImportSection) -> Source:
    return open_source(
        path,
        encoding=section.encoding,
        format=section.format,
        options=table_options(section),
        hashed=digest is None,
        limits=Limits(section.max_record, section.max_ratio, section.max_size, section.max_window),
    )


def open_file(path: str, digest: Digest | None, section: ImportSection, source: Source | None = None) -> OpenFile:
    """Open a file, find its mapping from the first batch that has rows, and start the conversion.

    `source` is the file if it was read by `open_small_files`.
    """
    source = source or _open_source(path, digest, section)
    filtered = filter_batches(path, source.batches(), section.where)
    is_small = digest is not None and digest.size <= SMALL_FILE and source.is_short
    batches, head = transform_batches(path, filtered, section.sql), []
    batches = iter(list(batches)) if is_small else prefetch(batches)
    unreadable = 0
    for batch in batches:
        head.append(batch)
        if batch.table.height:
            break
        unreadable += int((batch.rejects["code"] != EXCLUDED).sum())
        if unreadable > MAX_UNREADABLE:
            raise _no_rows_error(path, head, "first ")
    else:
        raise _no_rows_error(path, head)
    with prefix_errors(path):
        table = drop_export_columns(head[-1].table)
        section, described_by = describe(path, table.columns, section)
        section = name_turns(table, section)
        mapping = find_mapping(table, section)
        if section.system and not SHAPES[mapping.shape].has_questions:
            raise SourceError("Plain text has no system prompt.", "Omit --system, or map questions and answers.")
        if described_by:
            check_labels(table, mapping, section.where)
        mapping = replace(mapping, roles=canonical_roles(section), keys=turn_keys(section))
    rest = list(batches) if is_small else batches
    all_batches = itertools.chain(head, rest)
    conversion = Conversion(path, mapping, section, find_named_split(path), head[-1].table, described_by)
    corrects_rejects = REJECT_COLUMN in head[-1].table.columns
    spans_rows = SHAPES[mapping.shape].spans_rows
    converted = rebatch(conversion.convert_all(iter([join_batches(all_batches)]) if spans_rows else all_batches))
    whole = head[0] if is_small and len(head) == 1 and not rest and not corrects_rejects else None
    import_batches = converted if whole else prefetch(converted)
    return OpenFile(source, digest, mapping, conversion, import_batches, corrects_rejects, whole)


_HINTS = {
    "ragged-row": "Check the delimiter and the quotes: --delimiter, --quote, --escape, --skip-lines.",
    "stray-quote": "Check the quotes: --quote, --escape; with --quote '' quotes are text.",
    "unclosed-quote": "Check the quotes: --quote, --escape; with --quote '' quotes are text.",
    "nul-byte": "Export the file again, as UTF-8.",
    "not-utf8": "Name the encoding with --encoding, or export the file as UTF-8.",
    "too-large": "Check the file; --max-record 64M accepts larger records.",
    "not-an-object": "Write an object with named values for each record.",
}
"""Code of the first reject → what to do if no row can be read."""


def _no_rows_error(path: str, batches: list[Batch], first_of_more: str = "") -> SourceError:
    rejects = pl.concat([batch.rejects for batch in batches]) if batches else pl.DataFrame()
    if rejects.is_empty():
        return SourceError(f"{path} has no rows.", "Import a file with at least one record.")
    first = rejects.row(0, named=True)
    where = f"row {first['row']}" if first["line"] is None else f"line {first['line']}"
    if (rejects["code"] == EXCLUDED).all():
        return SourceError(
            f"{path}: {first['reason'][:-1]} for any of its {plural(rejects.height, 'row')}.", "Change --where."
        )
    known = conversion_hint(path, first["raw"]) if first["code"] == "broken-json" else ""
    return SourceError(
        f"{path}: none of its {first_of_more}{plural(rejects.height, 'row')} can be read. {where}: {first['reason']}",
        known or _HINTS.get(first["code"], "If the file has another format, name it with --format."),
    )
