"""Source files → conversations, origins, rejects and counts in the store.

Three stages run in parallel, each in a thread: a reader parses the next batch, Polars converts the previous one to
conversations, DuckDB writes earlier ones. Up to `GROUP_FILES` files are one transaction, so an interrupted command
leaves the store unchanged and can be run again; with more files, those of complete groups are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from duckdb import DuckDBPyConnection

from curate.ingest.corrections import mapping_of_rejects
from curate.ingest.dry_run import drop_texts, dry_run_store
from curate.ingest.file_errors import MAX_ERRORS, join_errors
from curate.ingest.file_groups import FileGroup, group_files, split_files
from curate.ingest.file_hash import Digest, FileHasher, check_unchanged
from curate.ingest.group_import import import_group
from curate.ingest.import_options import check_section
from curate.ingest.import_result import ImportResult, check_max_rejects, find_import
from curate.ingest.open_file import OpenFile, open_file, open_small_files
from curate.ingest.readers import expand
from curate.ingest.readers.byte_stream import prefetch
from curate.ingest.reimport import (
    ChangedFile,
    OnChanged,
    Replacement,
    check_repeated,
    find_earlier,
    finish_replacement,
    replace_earlier,
)
from curate.ingest.shapes.shape import ColumnMapping
from curate.ingest.source_rows import WrittenFile, finish_sources
from curate.ingest.sql_transform import interrupt_selects
from curate.ingest.writer import (
    ImportBatch,
    configure_bulk_load,
    count_conversations,
    count_source,
    delete_source,
    rename_source,
    write_batch,
)
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.store import writing
from schemas.timing import timed

Progress = Callable[[int, int], None]
"""Called with the number of bytes read so far, and the size of all files."""

OnMapping = Callable[[str, ColumnMapping], None]
"""Called with the path and mapping of each file, before any of its rows is written."""

MAX_WAITING = 4
"""Import batches that may wait for the digest of a file: about 300 MB of text, as long as hashing 500 MB takes."""

GROUP_FILES = 500
"""Files that are committed together, or not at all."""

PENDING = "pending"
"""Temporary id of a source whose digest is known only after it was read."""


@timed("importing")
def import_files(
    store: Path,
    paths: Sequence[str],
    section: ImportSection,
    *,
    dry_run: bool = False,
    on_changed: OnChanged = "stop",
    progress: Progress = lambda *_: None,
    on_mapping: OnMapping = lambda *_: None,
    hasher: FileHasher | None = None,
) -> list[ImportResult]:
    """Import files, folders or globs into the store, which is created if missing; one result per file.

    With `dry_run` nothing is written and no store is created. A file that was already imported, with the same bytes
    and mapping, adds nothing. If a path was imported before with other bytes or another mapping, `on_changed` decides:
    `stop` raises `SourceError`, `replace` removes the earlier import, `add` keeps both. `hasher` may have started files
    already. Raises `SourceError` if a file cannot be read, its columns are ambiguous, or its share of rejects exceeds
    `section.max_rejects`; then no file of its group of `GROUP_FILES` is imported, and the message says how many files
    of earlier groups are.
    """
    check_section(section)
    files = expand(paths)
    section = mapping_of_rejects(store, files, section)
    count_bytes = _byte_counter(progress, files)
    with hasher or FileHasher() as digests:
        opened = group_files(_open_files(files, section, digests), GROUP_FILES)
        # Prefetch while the store is opened, but not from a pipe: if the store failed, the thread would wait for it.
        sources = prefetch(opened) if all(Path(path).is_file() for path in files) else opened
        with dry_run_store(store, on_changed) if dry_run else _bulk_writing(store) as connection:
            import_sources = partial(
                _import_sources,
                connection,
                dry_run=dry_run,
                on_changed=on_changed,
                count_bytes=count_bytes,
                on_mapping=on_mapping,
            )
            results = check_repeated(itertools.chain.from_iterable(map(import_sources, sources)))
            try:
                return list(results) if dry_run else _commit_in_groups(connection, results, len(files))
            except KeyboardInterrupt:
                interrupt_selects()
                raise


def _open_files(files: Sequence[str], section: ImportSection, digests: FileHasher) -> Iterator[OpenFile]:
    """The open files in order. After one that cannot be read, the others are only checked, for a complete error."""
    errors: dict[str, SourceError] = {}
    for part in split_files(files, digests.start):
        sources = open_small_files(part, section) if len(part) > 1 else {}
        for path, digest in part.items():
            try:
                file = open_file(path, digest, section, sources.get(path))
            except SourceError as error:
                errors[path] = error
                if len(errors) == MAX_ERRORS:
                    raise join_errors(errors) from None
                continue
            if not errors:
                yield file
    if errors:
        raise join_errors(errors)


def _commit_in_groups(
    connection: DuckDBPyConnection, results: Iterator[ImportResult], files: int
) -> list[ImportResult]:
    """The results of all files, committed after every `GROUP_FILES`: a later error does not undo them."""
    done: list[ImportResult] = []
    try:
        while group := list(itertools.islice(results, GROUP_FILES)):
            done += group
            connection.commit()
            connection.begin()
    except SourceError as error:
        if not done:
            raise
        stored = f"{len(done):,} of {files:,} files are in the store; the same command continues with the others."
        raise SourceError(error.what, f"{error.hint}\n{stored}") from error
    return done


def _byte_counter(progress: Progress, files: Sequence[str]) -> Callable[[int], None]:
    """A function that adds to the number of bytes read and calls `progress` with the sum."""
    total = sum(Path(path).stat().st_size for path in files if Path(path).is_file())
    done = 0

    def count_bytes(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count_bytes


@contextmanager
def _bulk_writing(store: Path) -> Iterator[DuckDBPyConnection]:
    """The store in one transaction, configured for writing many rows."""
    with writing(store) as connection:
        configure_bulk_load(connection)
        yield connection


def _import_sources(
    connection: DuckDBPyConnection,
    source: OpenFile | FileGroup,
    *,
    dry_run: bool,
    on_changed: OnChanged,
    count_bytes: Callable[[int], None],
    on_mapping: OnMapping,
) -> list[ImportResult]:
    """Write a file or a group of files to the store; the result of each."""
    for file in source.files if isinstance(source, FileGroup) else [source]:
        on_mapping(file.source.path, file.mapping)
    if isinstance(source, FileGroup):
        return import_group(connection, source, dry_run=dry_run, on_changed=on_changed, count_bytes=count_bytes)
    return [_import_file(connection, source, dry_run=dry_run, on_changed=on_changed, count_bytes=count_bytes)]


@timed("reading and writing a file")
def _import_file(
    connection: DuckDBPyConnection,
    file: OpenFile,
    *,
    dry_run: bool,
    on_changed: OnChanged,
    count_bytes: Callable[[int], None],
) -> ImportResult:
    """Write the rows of a file to the store, under a temporary id until its digest is known, and check the counts."""
    source, digest = file.source, file.digest
    first = _batches_while_hashing(file.batches, digest) if digest else []
    written_as = file.source_id(digest.sha256.result()) if digest else PENDING
    if earlier := find_import(connection, written_as, source.path):
        check_max_rejects(earlier, file.conversion.section.max_rejects)
        return earlier
    replaced = Replacement()
    if digest and not file.corrects_rejects and (changed := find_earlier(connection, [source.path])[source.path]):
        new = ChangedFile(source.path, written_as, digest.sha256.result(), file.mapping)
        replaced = replace_earlier(connection, changed, new, on_changed)
    conversations_before, bytes_before = count_conversations(connection), 0
    for batch in itertools.chain(first, file.batches):
        write_batch(connection, [written_as], drop_texts(batch) if dry_run else batch)
        count_bytes(source.bytes - bytes_before)
        bytes_before = source.bytes
    if digest:
        check_unchanged(digest, source.path)
    sha256 = digest.sha256.result() if digest else source.sha256
    source_id = file.source_id(sha256)
    if written_as != source_id:
        if earlier := find_import(connection, source_id, source.path):
            delete_source(connection, written_as)
            check_max_rejects(earlier, file.conversion.section.max_rejects)
            return earlier
        rename_source(connection, written_as, source_id)
    counts = count_source(connection, source_id, conversations_before, several=file.conversion.several)
    (result,) = finish_sources(connection, [WrittenFile(file, source_id, sha256, counts)])
    if replaced.removals:
        result = finish_replacement(connection, replaced, result)
    return replace(result, examples=file.conversion.examples) if dry_run else result


def _batches_while_hashing(batches: Iterator[ImportBatch], digest: Digest) -> list[ImportBatch]:
    """At most `MAX_WAITING` batches computed until the digest is known; without it none can be written."""
    waiting: list[ImportBatch] = []
    while len(waiting) < MAX_WAITING and not digest.sha256.done() and (batch := next(batches, None)):
        waiting.append(batch)
    return waiting
