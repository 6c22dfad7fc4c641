"""Importing: files come in; conversations, where each came from, the rejects and the sums go into the store.

Three stages overlap, each in a thread of its own: an importer parses the next batch, Polars turns the last one into
conversations, DuckDB takes in those before. All files of one command are one transaction, so a command that is
killed leaves the store as it was, and running it again does the work.
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

from curate.ingest.column_mapping import ColumnMapping, find_mapping
from curate.ingest.convert import Conversion, drop_export_columns, join_batches, prefix_errors
from curate.ingest.file_hash import Digest, FileHasher, stamp
from curate.ingest.readers import Batch, Source, expand, open_source
from curate.ingest.readers.byte_stream import prefetch
from curate.ingest.repairs import REPAIRS, STORED_REPAIRS
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

Progress = Callable[[int, int], None]
"""Told how many bytes of the files have been read, and of how many."""

OnMapping = Callable[[str, ColumnMapping], None]
"""Told of each file how it is read, before any of its rows is written."""

REJECTS_TO_KNOW = """
    SELECT * REPLACE (if(row_number() OVER (PARTITION BY source, code ORDER BY "row") = 1, raw, '') AS raw) FROM rejects
"""
"""The rejects that a dry run may close or name again; their texts only where one is shown as an example."""

REPAIRS_SQL = 'SELECT source, "row", conversation, duplicate, repairs FROM origins WHERE repairs IS NOT NULL'

CLOSED_SQL = """
    SELECT count(*) FROM rejects JOIN sources USING (source) JOIN sources AS closing ON closing.source = closed_by
    WHERE closed_by = ? AND sources.imported_at <= closing.imported_at
"""
"""Rejects that a source closed. Those of later imports, in which its own rejects came back, are not its work."""

MEANWHILE = 4
"""Parcels that may wait for a file's digest, some 300 MB of texts: half a gigabyte is hashed by then."""

PENDING = "pending"
"""The id of a source whose bytes are only known when they have been read, until then."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did with one file: rows_read = rows_kept + rows_duplicate + rows_rejected."""

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
    """code -> rows"""
    warnings: dict[str, int] = field(default_factory=dict)
    """code -> conversations"""
    repaired: dict[str, int] = field(default_factory=dict)
    """repair -> rows"""
    closed: int = 0
    """rejects of earlier imports that these rows brought back"""
    imported_before: str | None = None
    """the path under which the store had this very import already; then nothing was added"""
    reject_examples: list[dict[str, Any]] = field(default_factory=list)
    """the first reject of every code: row, line, code, reason, raw"""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """the first conversations, in a dry run"""

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return asdict(self)


def import_files(
    store: Path,
    paths: Sequence[str],
    section: ImportSection,
    *,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
    on_mapping: OnMapping = lambda *_: None,
    hasher: FileHasher | None = None,
) -> list[ImportResult]:
    """Import files, folders or globs into the store at `store`, which is made if missing; one result per file.

    With `dry_run` nothing is written and no store is made. A file that the store has already, byte for byte and
    under the same mapping, adds nothing. `hasher` may have begun with files already. Raises `SourceError` when a
    file cannot be read, can be read in two ways, or loses more rows than `section.max_rejects` allows; then none of
    the files is imported.
    """
    _check_repairs(section.repair)
    files = expand(paths)
    told = _counting(progress, files)
    with hasher or FileHasher() as file_hasher:
        begun = (_begin(path, file_hasher.start(path), section) for path in files)
        # Early, while the store is made, where all end by themselves: a pipe would be waited for when the store fails.
        readings = prefetch(begun) if all(Path(path).is_file() for path in files) else begun
        with _rehearsal(store) if dry_run else _landing(store) as connection:
            return [
                _import_file(connection, reading, dry_run=dry_run, told=told, found=on_mapping) for reading in readings
            ]


def _counting(progress: Progress, files: Sequence[str]) -> Callable[[int], None]:
    """Takes the bytes that have been read since it was last called, and tells `progress` of all of them."""
    total = sum(Path(path).stat().st_size for path in files if Path(path).is_file())
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return told


def apply_options(section: ImportSection, options: Mapping[str, Any]) -> ImportSection:
    """The recipe's part on importing under the options that were given; `None` and `[]` are not given.

    `map` is a list of `field=column`, `max_rejects` a share such as `5%`. Raises `RecipeError`.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    if "map" in given:
        given["map"] = {**section.map, **dict(_pair(text) for text in given["map"])}
    if "max_rejects" in given:
        given["max_rejects"] = parse_share(given["max_rejects"], "--max-rejects")
    return check_recipe({"import": {**section.model_dump(), **given}}, OPTIONS).import_


def _pair(text: str) -> tuple[str, str]:
    field_name, equals, column = text.partition("=")
    if not equals:
        raise RecipeError(f"--map {text!r} is not field=column.", "For example: --map question=title")
    return field_name.strip(), column


@contextmanager
def _landing(store: Path) -> Iterator[DuckDBPyConnection]:
    """The store, set up for many rows, in one transaction."""
    with writing(store) as connection:
        configure_bulk_load(connection)
        yield connection


@contextmanager
def _rehearsal(store: Path) -> Iterator[DuckDBPyConnection]:
    """A store in memory that knows what the real one knows, but for its texts, and is thrown away."""
    with duckdb.connect(":memory:") as connection:
        for step in MIGRATIONS:
            step(connection)
        if store.exists():
            with reading(store) as real:
                known_ids = real.sql("SELECT id FROM conversations").to_arrow_table()  # noqa: F841  read by its name
                known_sources = real.sql("FROM sources").to_arrow_table()  # noqa: F841
                known_rejects = real.sql(REJECTS_TO_KNOW).to_arrow_table()  # noqa: F841
                known_repairs = real.sql(REPAIRS_SQL).to_arrow_table()  # noqa: F841
            connection.execute("INSERT INTO conversations SELECT id, [], NULL, NULL FROM known_ids")
            connection.execute("INSERT INTO sources FROM known_sources")
            connection.execute("INSERT INTO rejects FROM known_rejects")
            connection.execute("INSERT INTO origins BY NAME FROM known_repairs")
        yield connection


def _check_repairs(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in REPAIRS]
    if unknown:
        known = ", ".join(sorted(REPAIRS))
        raise RecipeError(f"There is no repair called {', '.join(unknown)}.", f"These are there: {known}.")


@dataclass(frozen=True, slots=True)
class _Reading:
    """A file that is being read: its first rows are, or soon will be, a parcel."""

    source: Source
    digest: Digest | None
    mapping: ColumnMapping
    """as the first rows ask for it; that of `conversion` may grow"""
    conversion: Conversion
    parcels: Iterator[ImportBatch]

    def id_of(self, sha256: str) -> str:
        """The id of the import, once the bytes are known."""
        return _source_id(sha256, self.mapping, self.conversion.section)


def _begin(path: str, digest: Digest | None, section: ImportSection) -> _Reading:
    """Open a file, find its mapping on the first batch that has rows, and begin with the conversion."""
    source = open_source(path, encoding=section.encoding, format=section.format, hashed=digest is None)
    batches, head = prefetch(source.batches()), []
    for batch in batches:
        head.append(batch)
        if batch.table.height:
            break
    else:
        raise _nothing_read(path, head)
    with prefix_errors(path):
        mapping = find_mapping(drop_export_columns(head[-1].table), section)
    whole = itertools.chain(head, batches)
    conversion = Conversion(path, mapping, section)
    parcels = conversion.parcels(iter([join_batches(whole)]) if mapping.shape == "long" else whole)
    return _Reading(source, digest, mapping, conversion, prefetch(rebatch(parcels)))


def _import_file(
    connection: DuckDBPyConnection, reading: _Reading, *, dry_run: bool, told: Callable[[int], None], found: OnMapping
) -> ImportResult:
    """Take what is read of a file into the store and prove its sums."""
    source, digest = reading.source, reading.digest
    found(source.path, reading.mapping)
    first = _meanwhile(reading.parcels, digest) if digest else []
    landed_as = reading.id_of(digest.sha256.result()) if digest else PENDING
    if before := _imported_before(connection, landed_as, source.path):
        return before
    had = count_conversations(connection)
    for parcel in _told(source, itertools.chain(first, reading.parcels), told):
        write_batch(connection, landed_as, _without_texts(parcel) if dry_run else parcel)
    if digest and not _is_as_it_was(digest, source.path):
        raise SourceError(f"{source.path} was changed while it was read.", "Run the command again when it is written.")
    sha256 = digest.sha256.result() if digest else source.sha256
    source_id = reading.id_of(sha256)
    if before := _settled(connection, landed_as, source_id, source.path):
        return before
    sums = count_source(connection, source_id, had)
    result = _concluded(connection, source_id, source, reading.conversion, sums, sha256=sha256)
    return replace(result, examples=reading.conversion.examples) if dry_run else result


def _is_as_it_was(digest: Digest, path: str) -> bool:
    """Whether the file is there, and has not changed since its first byte was read."""
    try:
        return digest.stamp == stamp(path)
    except OSError:
        return False


def _meanwhile(parcels: Iterator[ImportBatch], digest: Digest) -> list[ImportBatch]:
    """A few parcels that are made while the digest is; none that lands before the digest is known."""
    made: list[ImportBatch] = []
    while len(made) < MEANWHILE and not digest.sha256.done() and (parcel := next(parcels, None)):
        made.append(parcel)
    return made


def _concluded(
    connection: DuckDBPyConnection,
    source_id: str,
    source: Source,
    conversion: Conversion,
    sums: SourceCounts,
    *,
    sha256: str,
) -> ImportResult:
    """What came of a file whose rows have landed: proved, written down, and refused where too many were."""
    _prove(conversion.rows, sums)
    supersede_rejects(connection, source_id, sha256)
    _record(connection, source_id, source, conversion, sums, sha256=sha256)
    result = _result(connection, source_id)
    _check_losses(result, conversion.section.max_rejects)
    return result


def _told(source: Source, parcels: Iterator[ImportBatch], told: Callable[[int], None]) -> Iterator[ImportBatch]:
    """The parcels; behind each, `told` hears how many more bytes have been read."""
    before = 0
    for parcel in parcels:
        yield parcel
        told(source.bytes - before)
        before = source.bytes


def _settled(connection: DuckDBPyConnection, landed_as: str, source_id: str, path: str) -> ImportResult | None:
    """Give what landed under a preliminary id its own; unless the store has that import, then take it out again."""
    if landed_as == source_id:
        return None
    before = _imported_before(connection, source_id, path)
    if before:
        delete_source(connection, landed_as)
    else:
        rename_source(connection, landed_as, source_id)
    return before


def _without_texts(parcel: ImportBatch) -> ImportBatch:
    """The parcel as a dry run lands it: what is counted stays, what would only fill the memory goes."""
    no_turns = pl.lit([], parcel.conversations.schema["conversations"]).alias("conversations")
    return replace(
        parcel,
        conversations=parcel.conversations.with_columns(no_turns),
        origins=parcel.origins.with_columns(metadata=pl.lit(None, pl.String), raw=pl.lit(None, pl.String)),
    )


def _nothing_read(path: str, batches: list[Batch]) -> SourceError:
    rejects = pl.concat([batch.rejects for batch in batches]) if batches else pl.DataFrame()
    if rejects.is_empty():
        return SourceError(f"{path} has no rows.", "Give a file with at least one record.")
    first = rejects.row(0, named=True)
    where = f"row {first['row']}" if first["line"] is None else f"line {first['line']}"
    return SourceError(
        f"{path}: none of its {plural(rejects.height, 'row')} can be read. {where}: {first['reason']}",
        "If its format or encoding is another one, say so: --format, --encoding.",
    )


def _source_id(sha256: str, mapping: ColumnMapping, section: ImportSection) -> str:
    """The id of an import: the same bytes, read in the same way, have the same id under any name."""
    how = {"encoding": section.encoding, "format": section.format, STORED_REPAIRS: list(section.repair)}
    return digest({"sha256": sha256, **mapping.as_json(), **how})[:ID_LENGTH]


def _imported_before(connection: DuckDBPyConnection, source_id: str, path: str) -> ImportResult | None:
    """What was imported under this id before, if anything."""
    known = connection.execute("SELECT path FROM sources WHERE source = ?", [source_id]).fetchall()
    return replace(_result(connection, source_id), path=path, imported_before=known[0][0]) if known else None


def _prove(rows_read: int, sums: SourceCounts) -> None:
    """Every row that was read is in the store exactly once; anything else is a defect of this program."""
    placed = sums.rows_kept + sums.rows_duplicate + sums.rows_rejected
    if placed != rows_read:
        raise AssertionError(f"{rows_read} rows were read and {placed} have a place in the store: {sums}")


def _record(
    connection: DuckDBPyConnection,
    source_id: str,
    source: Source,
    conversion: Conversion,
    sums: SourceCounts,
    *,
    sha256: str,
) -> None:
    """Write the row of `sources`."""
    section = conversion.section
    how = {"encoding": section.encoding, "format": source.format, "delimiter": source.delimiter}
    mapping = {**conversion.mapping.as_json(), **how, STORED_REPAIRS: list(section.repair)}
    connection.execute(
        """INSERT INTO sources (source, path, sha256, bytes, shape, mapping, columns, rows_read, rows_kept,
                                rows_duplicate, rows_rejected, conversations, warnings)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            *(source_id, source.path, sha256, source.bytes, conversion.mapping.shape),
            *(json.dumps(mapping, ensure_ascii=False), list(conversion.columns), conversion.rows),
            *(
                sums.rows_kept,
                sums.rows_duplicate,
                sums.rows_rejected,
                sums.conversations,
                canonical_json(conversion.warnings),
            ),
        ],
    )


def _result(connection: DuckDBPyConnection, source_id: str) -> ImportResult:
    """What the store knows of a source."""
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


def _check_losses(result: ImportResult, allowed: float) -> None:
    lost = result.rows_rejected / max(result.rows_read, 1)
    if lost > allowed:
        reasons = ", ".join(f"{count:,} {code}" for code, count in result.rejected.items())
        raise SourceError(
            f"{result.path}: {result.rows_rejected:,} of {plural(result.rows_read, 'row')} ({lost:.1%}) would be "
            f"rejected, more than the {allowed:.1%} that are allowed: {reasons}. Nothing was imported.",
            "curate import --dry-run shows an example of each; --max-rejects allows more.",
        )
