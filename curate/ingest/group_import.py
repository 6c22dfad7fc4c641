"""A group of small files → its rows in the store: a few statements for all files, with the result of each.

The result is that of importing one file after the other: of equal conversations the first is kept, equal files are
imported once, and a file whose path was imported before replaces the earlier import at its place in the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from duckdb import DuckDBPyConnection

from curate.ingest.convert import first_distinct
from curate.ingest.dry_run import drop_texts
from curate.ingest.file_errors import MAX_ERRORS, join_errors
from curate.ingest.file_groups import FileGroup
from curate.ingest.file_hash import check_unchanged
from curate.ingest.import_result import ImportResult, check_max_rejects, load_results, placeholders
from curate.ingest.reimport import (
    ChangedFile,
    EarlierImport,
    OnChanged,
    Replacement,
    changed_error,
    find_earlier,
    finish_replacement,
    replace_earlier,
)
from curate.ingest.source_rows import WrittenFile, finish_sources
from curate.ingest.writer import SourceCounts, write_batch
from schemas.errors import SourceError


@dataclass(frozen=True, slots=True)
class _Planned:
    """A group in the light of the store."""

    group: FileGroup
    sha256: list[str]
    ids: list[str]
    """of the import of each file"""
    known: dict[str, ImportResult]
    """the imports with these ids that are in the store"""
    earlier: dict[str, list[EarlierImport]]
    """other imports by path"""

    def new(self, on_changed: OnChanged) -> list[int]:
        """The numbers of the files whose rows neither the store nor an earlier file of the group has.

        An import that an earlier file of the group replaces is no longer in the store.
        """
        stored, numbers = set(self.known), []
        for number, source in enumerate(self.ids):
            if source in stored:
                continue
            numbers.append(number)
            if on_changed == "replace":
                stored.difference_update(each.source for each in self.changed(number))
            stored.add(source)
        return numbers

    def changed(self, number: int) -> list[EarlierImport]:
        """The earlier imports of the path of a new file."""
        return self.earlier.get(self.group.files[number].source.path, [])


def import_group(
    connection: DuckDBPyConnection,
    group: FileGroup,
    *,
    dry_run: bool,
    on_changed: OnChanged,
    count_bytes: Callable[[int], None],
) -> list[ImportResult]:
    """Write the rows of a group to the store; the results of its files in order. Raises `SourceError`."""
    planned = _plan(connection, group)
    if on_changed == "stop":
        _check_changed(planned)
    new: dict[int, ImportResult] = {}
    for numbers in _parts(planned, on_changed):
        replaced = _write_part(connection, planned, numbers, dry_run=dry_run, on_changed=on_changed)
        count_bytes(sum(group.files[number].source.bytes for number in numbers))
        new |= zip(numbers, _finish_part(connection, planned, numbers, replaced, dry_run=dry_run), strict=True)
    sources = [source for number, source in enumerate(planned.ids) if number not in new]
    repeated = planned.known | load_results(connection, sources)
    return [new.get(number) or _repeated(planned, number, repeated) for number in range(len(group.files))]


def _plan(connection: DuckDBPyConnection, group: FileGroup) -> _Planned:
    digests = [file.digest.sha256.result() for file in group.files if file.digest is not None]
    ids = [file.source_id(sha256) for file, sha256 in zip(group.files, digests, strict=True)]
    earlier = find_earlier(connection, [file.source.path for file in group.files])
    return _Planned(group, digests, ids, load_results(connection, ids), earlier)


def _changed_file(planned: _Planned, number: int) -> ChangedFile:
    file = planned.group.files[number]
    return ChangedFile(file.source.path, planned.ids[number], planned.sha256[number], file.mapping)


def _check_changed(planned: _Planned) -> None:
    """Raise `SourceError` if new files have paths that were imported before."""
    errors: dict[str, SourceError] = {}
    for number in planned.new("stop"):
        if (changed := planned.changed(number)) and len(errors) < MAX_ERRORS:
            errors[planned.group.files[number].source.path] = changed_error(changed[-1], _changed_file(planned, number))
    if errors:
        raise join_errors(errors)


def _parts(planned: _Planned, on_changed: OnChanged) -> Iterator[list[int]]:
    """The numbers of the new files, in parts that are written together: one that replaces another import is alone."""
    part: list[int] = []
    for number in planned.new(on_changed):
        if on_changed == "replace" and planned.changed(number):
            yield from ([part] if part else [])
            yield [number]
            part = []
        else:
            part.append(number)
    if part:
        yield part


def _write_part(
    connection: DuckDBPyConnection, planned: _Planned, numbers: list[int], *, dry_run: bool, on_changed: OnChanged
) -> Replacement:
    """Write the rows of some files; the replacement of the earlier imports of one of them."""
    first = numbers[0]
    changed = planned.changed(first) if on_changed == "replace" else []
    replaced = replace_earlier(connection, changed, _changed_file(planned, first), on_changed)
    batch = planned.group.select(numbers)
    write_batch(connection, planned.ids, drop_texts(batch) if dry_run else batch)
    return replaced


def _finish_part(
    connection: DuckDBPyConnection, planned: _Planned, numbers: list[int], replaced: Replacement, *, dry_run: bool
) -> list[ImportResult]:
    """Check the written files, add them to the imports, and return their results."""
    group, counts = planned.group, _count_sources(connection, [planned.ids[number] for number in numbers])
    written = []
    for number in numbers:
        file, source = group.files[number], planned.ids[number]
        if file.digest is not None:
            check_unchanged(file.digest, file.source.path)
        written.append(WrittenFile(file, source, planned.sha256[number], counts[source]))
    results = finish_sources(connection, written)
    if replaced.removals:
        results = [finish_replacement(connection, replaced, results[0])]
    if dry_run:
        examples = (first_distinct(group.select([number]).conversations) for number in numbers)
        return [replace(result, examples=some) for result, some in zip(results, examples, strict=True)]
    return results


def _count_sources(connection: DuckDBPyConnection, sources: list[str]) -> dict[str, SourceCounts]:
    """The counts of several new sources, from the tables. A row counts as kept if it has a new conversation."""
    ids = placeholders(sources)
    rows = connection.execute(
        f"""
        WITH own AS (SELECT source, "row", conversation, duplicate FROM origins WHERE source IN ({ids})),
        accepted AS (SELECT source, "row", bool_or(NOT duplicate) AS new FROM own GROUP BY source, "row"),
        kept AS (SELECT source, count(*) FILTER (new) AS kept, count(*) FILTER (NOT new) AS duplicate FROM accepted
                 GROUP BY source),
        added AS (SELECT source, count(DISTINCT conversation) AS added FROM own WHERE NOT duplicate GROUP BY source),
        own_rejects AS (SELECT source, "row" FROM rejects WHERE source IN ({ids})),
        rejected AS (SELECT source, count(*) AS rejected FROM own_rejects
                     ANTI JOIN accepted USING (source, "row") GROUP BY source),
        excluded AS (SELECT source, count(*) AS excluded FROM excluded_rows WHERE source IN ({ids}) GROUP BY source)
        SELECT source, coalesce(kept, 0), coalesce(duplicate, 0), coalesce(rejected, 0), coalesce(added, 0),
               coalesce(excluded, 0)
        FROM (SELECT unnest(?) AS source) LEFT JOIN kept USING (source) LEFT JOIN added USING (source)
        LEFT JOIN rejected USING (source) LEFT JOIN excluded USING (source)""",
        [*sources, *sources, *sources, sources],
    ).fetchall()
    return {source: SourceCounts(*counts) for source, *counts in rows}


def _repeated(planned: _Planned, number: int, repeated: dict[str, ImportResult]) -> ImportResult:
    """The result of a file that is in the store already: that of the earlier import."""
    file, earlier = planned.group.files[number], repeated[planned.ids[number]]
    result = replace(earlier, path=file.source.path, imported_before=earlier.path)
    check_max_rejects(result, file.conversion.section.max_rejects)
    return result
