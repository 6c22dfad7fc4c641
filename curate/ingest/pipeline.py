"""Source files → conversations, origins, rejects and counts in the store.

Three stages run in parallel, each in a thread: a reader parses the next batch, Polars converts the previous one to
conversations, DuckDB writes earlier ones. All files of a command are one transaction, so an interrupted command leaves
the store unchanged and can be run again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from duckdb import DuckDBPyConnection

from curate.ingest.column_mapping import find_mapping
from curate.ingest.convert import EXPORT_COLUMNS, Conversion, drop_export_columns, join_batches, prefix_errors
from curate.ingest.file_hash import Digest, FileHasher, stamp
from curate.ingest.readers import Batch, Source, expand, open_source
from curate.ingest.readers.byte_stream import prefetch
from curate.ingest.reimport import ChangedFile, EarlierImport, OnChanged, dry_run_tables, find_earlier, replace_earlier
from curate.ingest.removal import sweep
from curate.ingest.repairs import REPAIRS, STORED_REPAIRS
from curate.ingest.row_filter import EXCLUDED, filter_batches
from curate.ingest.shapes.shape import ColumnMapping
from curate.ingest.writer import (
    ImportBatch,
    SourceCounts,
    configure_bulk_load,
    count_conversations,
    count_source,
    delete_source,
    rebatch,
    rename_source,
    supersede_rejects,
    write_batch,
)
from schemas.conversation import ID_LENGTH
from schemas.digest import canonical_json, digest
from schemas.errors import RecipeError, SourceError
from schemas.migrations import MIGRATIONS
from schemas.recipe import OPTIONS, ImportSection, check_recipe, parse_share
from schemas.store import reading, writing
from schemas.text import plural
from schemas.views import create_views

Progress = Callable[[int, int], None]
"""Called with the number of bytes read so far, and the size of all files."""

OnMapping = Callable[[str, ColumnMapping], None]
"""Called with the path and mapping of each file, before any of its rows is written."""

REJECTS_SQL = """
    SELECT * REPLACE (if(row_number() OVER (PARTITION BY source, code ORDER BY "row") = 1, raw, '') AS raw) FROM rejects
"""
"""The rejects that a dry run may close or report, with the text of only the first per code, which is an example."""

REPAIRS_SQL = 'SELECT source, "row", conversation, duplicate, repairs FROM origins WHERE repairs IS NOT NULL'

CLOSED_SQL = """
    SELECT count(*) FROM rejects JOIN sources USING (source) JOIN sources AS closing ON closing.source = closed_by
    WHERE closed_by = ? AND sources.imported_at <= closing.imported_at
"""
"""Rejects closed by a source, except those of later imports, which repeated rejects of the source itself."""

MAX_WAITING = 4
"""Import batches that may wait for the digest of a file: about 300 MB of text, as long as hashing 500 MB takes."""

PENDING = "pending"
"""Temporary id of a source whose digest is known only after it was read."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of importing one file: rows_read = rows_kept + rows_duplicate + rows_rejected."""

    path: str
    source: str
    sha256: str
    bytes: int
    shape: str
    mapping: dict[str, Any]
    columns: tuple[str, ...]
    rows_read: int
    rows_kept: int
    rows_duplicate: int
    rows_rejected: int
    conversations: int
    rejected: dict[str, int] = field(default_factory=dict)
    """code → rows"""
    warnings: dict[str, int] = field(default_factory=dict)
    """code → conversations"""
    repaired: dict[str, int] = field(default_factory=dict)
    """repair → rows"""
    closed: int = 0
    """rejects of earlier imports that these rows corrected"""
    imported_before: str | None = None
    """path of an identical earlier import; nothing was added"""
    replaced: list[str] = field(default_factory=list)
    """ids of earlier imports of this path that were removed"""
    disappeared: int = 0
    """conversations of those imports that no import has any more"""
    reject_examples: list[dict[str, Any]] = field(default_factory=list)
    """the first reject of every code: row, line, code, reason, raw"""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """the first conversations, in a dry run"""


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
    already. Raises `SourceError` if a file cannot be read, its columns are ambiguous, or
    its share of rejects exceeds `section.max_rejects`; then no file is imported.
    """
    _check_repairs(section.repair)
    files = expand(paths)
    count_bytes = _byte_counter(progress, files)
    with hasher or FileHasher() as digests:
        opened = (_open_file(path, digests.start(path), section) for path in files)
        # Prefetch while the store is opened, but not from a pipe: if the store failed, the thread would wait for it.
        sources = prefetch(opened) if all(Path(path).is_file() for path in files) else opened
        with _dry_run_store(store, on_changed) if dry_run else _bulk_writing(store) as connection:
            return [
                _import_file(
                    connection,
                    source,
                    dry_run=dry_run,
                    on_changed=on_changed,
                    count_bytes=count_bytes,
                    on_mapping=on_mapping,
                )
                for source in sources
            ]


def _byte_counter(progress: Progress, files: Sequence[str]) -> Callable[[int], None]:
    """A function that adds to the number of bytes read and calls `progress` with the sum."""
    total = sum(Path(path).stat().st_size for path in files if Path(path).is_file())
    done = 0

    def count_bytes(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count_bytes


def apply_options(section: ImportSection, options: Mapping[str, Any]) -> ImportSection:
    """The recipe's import section with the given options, which take precedence; `None` and `[]` are not given.

    `map` is a list of `field=column`, `max_rejects` a share such as `5%`. Raises `RecipeError`.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    if "map" in given:
        given["map"] = {**section.map, **dict(_parse_pair(text) for text in given["map"])}
    if "max_rejects" in given:
        given["max_rejects"] = parse_share(given["max_rejects"], "--max-rejects")
    return check_recipe({"import": {**section.model_dump(), **given}}, OPTIONS).import_


def _parse_pair(text: str) -> tuple[str, str]:
    field_name, equals, column = text.partition("=")
    if not equals:
        raise RecipeError(f"--map {text!r} is not field=column.", "For example: --map question=title")
    return field_name.strip(), column


@contextmanager
def _bulk_writing(store: Path) -> Iterator[DuckDBPyConnection]:
    """The store in one transaction, configured for writing many rows."""
    with writing(store) as connection:
        configure_bulk_load(connection)
        yield connection


@contextmanager
def _dry_run_store(store: Path, on_changed: OnChanged) -> Iterator[DuckDBPyConnection]:
    """A temporary store in memory with the ids, sources and rejects of the real one, without its texts."""
    with duckdb.connect(":memory:") as connection:
        for step in MIGRATIONS:
            step(connection)
        create_views(connection)
        if store.exists():
            with reading(store) as real:
                known_ids = real.sql("SELECT id FROM conversations").to_arrow_table()  # noqa: F841  found by its name
                known_sources = real.sql("FROM sources").to_arrow_table()  # noqa: F841
                known_rejects = real.sql(REJECTS_SQL).to_arrow_table()  # noqa: F841
                known_repairs = real.sql(REPAIRS_SQL).to_arrow_table()  # noqa: F841
                dry_run_tables(real, connection, with_origins=on_changed == "replace")
            connection.execute("INSERT INTO conversations SELECT id, [], NULL, NULL FROM known_ids")
            connection.execute("INSERT INTO sources FROM known_sources")
            connection.execute("INSERT INTO rejects FROM known_rejects")
            if on_changed != "replace":  # otherwise all origins were copied
                connection.execute("INSERT INTO origins BY NAME FROM known_repairs")
        yield connection


def _check_repairs(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in REPAIRS]
    if unknown:
        raise RecipeError(f"Unknown repair: {', '.join(unknown)}.", f"Known repairs: {', '.join(sorted(REPAIRS))}.")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is being imported; its first import batch is computed in a thread."""

    source: Source
    digest: Digest | None
    mapping: ColumnMapping
    """from the first rows; that of `conversion` may be extended"""
    conversion: Conversion
    batches: Iterator[ImportBatch]
    corrects_rejects: bool
    """whether its rows are exported rejects, which may be imported again under the same name"""

    def source_id(self, sha256: str) -> str:
        """The id of the import: equal bytes, read in the same way, have the same id under any name."""
        section = self.conversion.section
        how = {"encoding": section.encoding, "format": section.format, STORED_REPAIRS: list(section.repair)}
        return digest({"sha256": sha256, **asdict(self.mapping), **how, **_row_options(section)})[:ID_LENGTH]


def _row_options(section: ImportSection) -> dict[str, Any]:
    """The options that choose rows, if they are set: ids of imports without them do not depend on them."""
    options = {"where": section.where}
    return {name: value for name, value in options.items() if value is not None}


def _open_file(path: str, digest: Digest | None, section: ImportSection) -> OpenFile:
    """Open a file, find its mapping from the first batch that has rows, and start the conversion."""
    source = open_source(path, encoding=section.encoding, format=section.format, hashed=digest is None)
    batches, head = prefetch(filter_batches(path, source.batches(), section.where)), []
    for batch in batches:
        head.append(batch)
        if batch.table.height:
            break
    else:
        raise _no_rows_error(path, head)
    with prefix_errors(path):
        mapping = find_mapping(drop_export_columns(head[-1].table), section)
    all_batches = itertools.chain(head, batches)
    conversion = Conversion(path, mapping, section)
    corrects_rejects = EXPORT_COLUMNS[0] in head[-1].table.columns
    converted = conversion.convert_all(iter([join_batches(all_batches)]) if mapping.shape == "long" else all_batches)
    return OpenFile(source, digest, mapping, conversion, prefetch(rebatch(converted)), corrects_rejects)


def _import_file(
    connection: DuckDBPyConnection,
    file: OpenFile,
    *,
    dry_run: bool,
    on_changed: OnChanged,
    count_bytes: Callable[[int], None],
    on_mapping: OnMapping,
) -> ImportResult:
    """Write the rows of a file to the store, under a temporary id until its digest is known, and check the counts."""
    source, digest = file.source, file.digest
    on_mapping(source.path, file.mapping)
    first = _batches_while_hashing(file.batches, digest) if digest else []
    written_as = file.source_id(digest.sha256.result()) if digest else PENDING
    if earlier := _earlier_import(connection, written_as, source.path):
        return earlier
    changed: list[EarlierImport] = []
    removals: list[int] = []
    if digest and not file.corrects_rejects and (changed := find_earlier(connection, source.path)):
        new = ChangedFile(source.path, written_as, digest.sha256.result(), file.mapping)
        removals = replace_earlier(connection, changed, new, on_changed)
    conversations_before, bytes_before = count_conversations(connection), 0
    for batch in itertools.chain(first, file.batches):
        write_batch(connection, written_as, _drop_texts(batch) if dry_run else batch)
        count_bytes(source.bytes - bytes_before)
        bytes_before = source.bytes
    if digest and not _is_unchanged(digest, source.path):
        raise SourceError(
            f"{source.path} was changed during the import.", "Run the command again when the file is complete."
        )
    sha256 = digest.sha256.result() if digest else source.sha256
    source_id = file.source_id(sha256)
    if written_as != source_id:
        if earlier := _earlier_import(connection, source_id, source.path):
            delete_source(connection, written_as)
            return earlier
        rename_source(connection, written_as, source_id)
    counts = count_source(connection, source_id, conversations_before)
    result = _finish(connection, source_id, file, counts, sha256)
    if removals:
        replaced = [earlier.source for earlier in changed]
        result = replace(result, replaced=replaced, disappeared=sweep(connection, removals))
    return replace(result, examples=file.conversion.examples) if dry_run else result


def _is_unchanged(digest: Digest, path: str) -> bool:
    """Whether the file exists and has not changed since it was opened."""
    try:
        return digest.stamp == stamp(path)
    except OSError:
        return False


def _batches_while_hashing(batches: Iterator[ImportBatch], digest: Digest) -> list[ImportBatch]:
    """At most `MAX_WAITING` batches computed until the digest is known; without it none can be written."""
    waiting: list[ImportBatch] = []
    while len(waiting) < MAX_WAITING and not digest.sha256.done() and (batch := next(batches, None)):
        waiting.append(batch)
    return waiting


def _drop_texts(batch: ImportBatch) -> ImportBatch:
    """The batch as written by a dry run, without the texts, which would only use memory."""
    no_turns = pl.lit([], batch.conversations.schema["conversations"]).alias("conversations")
    return replace(
        batch,
        conversations=batch.conversations.with_columns(no_turns),
        origins=batch.origins.with_columns(metadata=pl.lit(None, pl.String), raw=pl.lit(None, pl.String)),
    )


def _no_rows_error(path: str, batches: list[Batch]) -> SourceError:
    rejects = pl.concat([batch.rejects for batch in batches]) if batches else pl.DataFrame()
    if rejects.is_empty():
        return SourceError(f"{path} has no rows.", "Import a file with at least one record.")
    first = rejects.row(0, named=True)
    where = f"row {first['row']}" if first["line"] is None else f"line {first['line']}"
    if (rejects["code"] == EXCLUDED).all():
        return SourceError(
            f"{path}: {first['reason'][:-1]} for any of its {plural(rejects.height, 'row')}.", "Change --where."
        )
    return SourceError(
        f"{path}: none of its {plural(rejects.height, 'row')} can be read. {where}: {first['reason']}",
        "If the file has another format or encoding, add --format or --encoding.",
    )


def _earlier_import(connection: DuckDBPyConnection, source_id: str, path: str) -> ImportResult | None:
    """The result of an earlier import with this id, if there is one."""
    known = connection.execute("SELECT path FROM sources WHERE source = ?", [source_id]).fetchall()
    return replace(_load_result(connection, source_id), path=path, imported_before=known[0][0]) if known else None


def _finish(
    connection: DuckDBPyConnection, source_id: str, file: OpenFile, counts: SourceCounts, sha256: str
) -> ImportResult:
    """Check that every row is in the store exactly once, write the row of `sources`, and check the share of rejects."""
    source, conversion = file.source, file.conversion
    placed = counts.rows_kept + counts.rows_duplicate + counts.rows_rejected
    if placed != conversion.rows:  # a defect of this program
        raise AssertionError(f"{conversion.rows} rows were read, but {placed} are in the store: {counts}")
    supersede_rejects(connection, source_id, sha256)
    section = conversion.section
    how = {"encoding": section.encoding, "format": source.format, "delimiter": source.delimiter}
    mapping = {**asdict(conversion.mapping), **how, STORED_REPAIRS: list(section.repair), **_row_options(section)}
    connection.execute(
        """INSERT INTO sources (source, path, sha256, bytes, shape, mapping, columns, rows_read, rows_kept,
                                rows_duplicate, rows_rejected, conversations, warnings)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            *(source_id, source.path, sha256, source.bytes, conversion.mapping.shape),
            *(json.dumps(mapping, ensure_ascii=False), list(conversion.columns), conversion.rows),
            *(counts.rows_kept, counts.rows_duplicate, counts.rows_rejected, counts.conversations),
            canonical_json(conversion.warnings),
        ],
    )
    result = _load_result(connection, source_id)
    _check_max_rejects(result, section.max_rejects)
    return result


def _load_result(connection: DuckDBPyConnection, source_id: str) -> ImportResult:
    """The result of an import, from the store."""
    row = (
        connection.sql("FROM sources WHERE source = ?", params=[source_id]).pl().drop("imported_at").row(0, named=True)
    )
    rejects = connection.sql(
        """SELECT "row", line, code, reason, raw, count(*) OVER (PARTITION BY code) AS count FROM rejects
           WHERE source = ? QUALIFY row_number() OVER (PARTITION BY code ORDER BY "row") = 1
           ORDER BY count DESC, code""",
        params=[source_id],
    ).pl()
    repaired = connection.execute(
        """SELECT repair, count(*) FROM (
               SELECT unnest(repairs) AS repair FROM origins WHERE source = ? AND repairs IS NOT NULL
           ) GROUP BY repair ORDER BY repair""",
        [source_id],
    ).fetchall()
    ((closed,),) = connection.execute(CLOSED_SQL, [source_id]).fetchall()
    return ImportResult(
        **{**row, "mapping": json.loads(row["mapping"]), "warnings": json.loads(row["warnings"])},
        rejected=dict(rejects.select("code", "count").iter_rows()),
        repaired=dict(repaired),
        closed=closed,
        reject_examples=rejects.drop("count").to_dicts(),
    )


def _check_max_rejects(result: ImportResult, allowed: float) -> None:
    rejected = {code: count for code, count in result.rejected.items() if code != EXCLUDED}  # by the user's request
    count = sum(rejected.values())
    share = count / max(result.rows_read, 1)
    if share > allowed:
        reasons = ", ".join(f"{count:,} {code}" for code, count in rejected.items())
        raise SourceError(
            f"{result.path}: {count:,} of {plural(result.rows_read, 'row')} ({share:.1%}) would be "
            f"rejected, more than the allowed {allowed:.1%}: {reasons}. Nothing was imported.",
            "Show an example of each with curate import --dry-run, or allow more with --max-rejects.",
        )
