"""A bundle → the version in the store, if the digest recomputed from its conversations is the stated one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from duckdb import DuckDBPyConnection
from pydantic import AwareDatetime, BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from curate.ingest.readers import REJECTS
from curate.ingest.writer import (
    CORRECTIONS,
    ImportBatch,
    SourceCounts,
    configure_bulk_load,
    count_conversations,
    count_source,
    write_batch,
)
from curate.versions.bundle import BUNDLE_FORMAT, VERSION_FILE
from curate.versions.bundle_reader import find_differences, read_records
from curate.versions.formats import FORMATS
from curate.versions.formats.format import ExportFormat
from curate.versions.freeze import LAST_NUMBER, NAME, check_name, write_members, write_version
from curate.versions.split import count_splits
from schemas.conversation import ID_LENGTH
from schemas.digest import canonical_json, digest, file_digest
from schemas.errors import VersionError
from schemas.text import plural
from schemas.timing import timed
from schemas.version import SPLITS, Version, find_version, version_digest

SHAPE = "bundle"
"""The value of `sources.shape` for a restored data file."""

MOST_DIFFERENCES = 3
"""Differing ids that an error message lists."""

FETCH_HINT = "Fetch the bundle again."
UNCHANGED_HINT = "Nothing was written. Fetch the original bundle again."


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of `version.json`: the version, the format, and the data files with their splits and counts."""

    folder: Path
    version: Version
    format: ExportFormat
    files: dict[str, _StatedFile]


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """The restored version, whether it is new to the store, and how many conversations are."""

    version: Version
    new: bool
    conversations: int

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "version": self.version.label,
            "digest": self.version.digest,
            "counts": self.version.counts,
            "new": self.new,
            "new_conversations": self.conversations,
        }


@dataclass(slots=True)
class _Progress:
    """The members and differences in the files that were read."""

    members: list[pl.DataFrame] = field(default_factory=list)
    wrong_ids: list[str] = field(default_factory=list)
    wrong_files: list[str] = field(default_factory=list)
    new_conversations: int = 0


@timed("restoring")
def restore(connection: DuckDBPyConnection, bundle: Bundle, *, name: str | None = None) -> RestoreResult:
    """Write the version of the bundle into the store, optionally under another `name`.

    If the store already has the version, its members, recipe and counts are written again. Raises `VersionError` if the
    recomputed digest differs from the stated one (with the first differing ids), or if the store has another version
    with this label.
    """
    version = bundle.version if name is None else replace(bundle.version, name=check_name(name))
    exists = _check_label(connection, version)
    configure_bulk_load(connection)
    progress = _Progress()
    for file, stated in bundle.files.items():
        _read_file(connection, bundle, file, stated, progress)
    members = pl.concat(progress.members)
    if version_digest(members, version.recipe) != version.digest:
        raise _digest_error(bundle, progress)
    counts = count_splits(members)
    if counts != version.counts:
        raise _counts_error(bundle, counts)
    if exists:
        version = _rewrite(connection, version, members)
    else:
        write_version(connection, version, members)
    return RestoreResult(version, not exists, progress.new_conversations)


@timed("reading the statement")
def read_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`. Raises `VersionError` if it is not a bundle, or does not contain the complete version."""
    statement = _read_statement(folder)
    export_format = FORMATS.get(statement.format)
    total = sum(statement.counts.values())
    exported = sum(file.conversations for file in statement.files.values())
    if export_format is None or not export_format.restorable or exported != total:
        raise VersionError(
            f"{folder} is an export as {statement.format} with {exported:,} of {plural(total, 'conversation')}, "
            "from which the complete version cannot be restored.",
            "Restore from a bundle with both splits that was exported with --format sharegpt or messages.",
        )
    counts = {**dict.fromkeys(SPLITS, 0), **{str(split): count for split, count in statement.counts.items()}}
    version = Version(
        check_name(statement.name),
        statement.number,
        statement.digest,
        statement.parent,
        statement.recipe,
        counts,
        statement.frozen_at,
    )
    return Bundle(folder, version, export_format, statement.files)


class _StatedFile(BaseModel):
    """A data file in `version.json`."""

    split: Literal["train", "held_out"]
    conversations: NonNegativeInt
    sha256: str


class _Statement(BaseModel):
    """The keys of `version.json` that are read."""

    bundle: PositiveInt
    name: str
    number: Annotated[int, Field(ge=1, le=LAST_NUMBER)]
    digest: str
    parent: Annotated[str, Field(pattern=f"^{NAME.pattern}@[0-9]+$")] | None
    recipe: dict[str, Any]
    counts: dict[Literal["train", "held_out"], NonNegativeInt]
    frozen_at: AwareDatetime
    format: str
    files: Annotated[dict[str, _StatedFile], Field(min_length=1)]

    @field_validator("frozen_at")
    @classmethod
    def _in_utc(cls, frozen_at: datetime) -> datetime:
        try:
            return frozen_at.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("in UTC it is outside the years 1 to 9999") from error


def _read_statement(folder: Path) -> _Statement:
    path = folder / VERSION_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VersionError(
            f"{folder} has no {VERSION_FILE}, so it is not a bundle.", "curate export NAME@n --to FOLDER writes one."
        ) from error
    except (ValueError, RecursionError) as error:
        raise VersionError(f"{path} is not valid JSON: {error}.", FETCH_HINT) from error
    except OSError as error:
        raise VersionError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if isinstance(values, dict) and isinstance(values.get("bundle"), int) and values["bundle"] > BUNDLE_FORMAT:
        raise VersionError(f"{folder} was exported by a newer release.", "pip install --upgrade curate-sft")
    try:
        return _Statement.model_validate_json(json.dumps(values), strict=True)  # strict accepts dates only in JSON
    except ValidationError as error:
        raise VersionError(f"{path} {_describe(error)}.", FETCH_HINT) from error


def _describe(error: ValidationError) -> str:
    """The missing keys, or else the first invalid key and its problem."""
    problems = error.errors(include_url=False)
    missing = [".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "missing"]
    if missing:
        return f"lacks {', '.join(missing)}"
    key = ".".join(map(str, problems[0]["loc"]))
    return f"has an invalid value for {key}: {problems[0]['msg']}" if key else "is not a JSON object"


def _check_label(connection: DuckDBPyConnection, version: Version) -> bool:
    """Whether the store has this version. Raises `VersionError` if it has another one with the same label."""
    digests = connection.execute("SELECT digest FROM versions WHERE version = ?", [version.label]).fetchall()
    if digests and digests[0][0] != version.digest:
        raise VersionError(
            f"The store has another {version.label}, with the digest {digests[0][0][:12]}; "
            f"the bundle's digest is {version.digest[:12]}.",
            "Restore it under another name: --name other; or into another store: --store other.duckdb.",
        )
    return bool(digests)


def _rewrite(connection: DuckDBPyConnection, version: Version, members: pl.DataFrame) -> Version:
    """Write what the digest covers of an existing version again. The parent and the date in the store are kept."""
    connection.execute("DELETE FROM members WHERE version = ?", [version.label])
    connection.execute(
        "UPDATE versions SET recipe = ?, counts = ? WHERE version = ?",
        [canonical_json(version.recipe), json.dumps(version.counts), version.label],
    )
    write_members(connection, version.label, members)
    return find_version(connection, version.label)


def _counts_error(bundle: Bundle, counts: dict[str, int]) -> VersionError:
    stated, actual = (
        ", ".join(f"{count:,} {split}" for split, count in counts_.items())
        for counts_ in (bundle.version.counts, counts)
    )
    return VersionError(
        f"{bundle.folder / VERSION_FILE} was changed: it states {stated}, but the files contain {actual}.",
        UNCHANGED_HINT,
    )


def _read_file(
    connection: DuckDBPyConnection, bundle: Bundle, name: str, stated: _StatedFile, progress: _Progress
) -> None:
    """Import one data file as a source, and collect its members and differences from the statement."""
    path = bundle.folder / name
    if Path(name).name != name or not os.path.isfile(path):  # noqa: PTH113  Path raises for a name that is too long
        raise VersionError(f"{bundle.folder} has no file {name}, which is listed in its {VERSION_FILE}.", FETCH_HINT)
    sha256 = file_digest(path)
    source = digest({"sha256": sha256, "shape": SHAPE, "format": bundle.format.name})[:ID_LENGTH]
    known = bool(connection.execute("SELECT 1 FROM sources WHERE source = ?", [source]).fetchall())
    before, rows = count_conversations(connection), 0
    for records in read_records(path, bundle.format):
        for record in records.filter(pl.col("id").is_null()).head(1).to_dicts():
            line = record["line"] or record["row"]
            raise VersionError(f"{path} line {line} cannot be read: {record['problem']}", FETCH_HINT)
        rows += records.height
        progress.members.append(
            records.select(pl.col("id").alias("conversation"), pl.lit(stated.split).alias("split"), "per_epoch")
        )
        differences = find_differences(records.filter(pl.col("stated_id").is_not_null()))
        progress.wrong_ids += [
            f"{name} line {record['line'] or record['row']}: the id is {record['id']}, not {record['stated_id']}"
            for record in differences.head(MOST_DIFFERENCES).to_dicts()
        ]
        write_batch(connection, [source], _import_batch(records, known=known))
    progress.new_conversations += count_conversations(connection) - before
    if rows != stated.conversations:
        progress.wrong_files.append(f"{name} has {plural(rows, 'conversation')} instead of {stated.conversations:,}")
    elif sha256 != stated.sha256:
        progress.wrong_files.append(f"{name} is not the exported file")
    if not known:
        _write_source(connection, source, path, bundle, count_source(connection, source, before))


def _import_batch(records: pl.DataFrame, *, known: bool) -> ImportBatch:
    """The records as rows of an import, without origins if the store already has this source."""
    origins = records.select(
        "row",
        "line",
        pl.col("row").alias("key"),
        pl.lit(None, pl.String).alias("metadata"),
        pl.lit(None, pl.List(pl.String)).alias("repairs"),
        pl.lit(None, pl.String).alias("raw"),
    )
    return ImportBatch(
        conversations=records.select(pl.col("row").alias("key"), "id", "conversations", "tools"),
        origins=origins.head(0) if known else origins,
        rejects=pl.DataFrame(schema=REJECTS),
        corrections=pl.DataFrame(schema=CORRECTIONS),
    )


def _write_source(
    connection: DuckDBPyConnection, source: str, path: Path, bundle: Bundle, counts: SourceCounts
) -> None:
    """Insert the row of `sources`, so that the row counts of a restored file add up as for an import."""
    mapping = {
        "shape": SHAPE,
        "format": bundle.format.name,
        "version": bundle.version.label,
        "digest": bundle.version.digest,
    }
    values = {
        "source": source,
        "path": str(path),
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "shape": SHAPE,
        "mapping": canonical_json(mapping),
        "columns": list(bundle.format.columns),
        "rows_read": counts.rows_kept + counts.rows_duplicate,
        **asdict(counts),
        "warnings": "{}",
    }
    connection.execute(
        f"INSERT INTO sources ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", list(values.values())
    )


def _digest_error(bundle: Bundle, progress: _Progress) -> VersionError:
    """The error for a wrong digest, with the differing ids or files if there are any."""
    differences = progress.wrong_ids[:MOST_DIFFERENCES] or progress.wrong_files
    why = "; ".join(differences) or (
        f"all ids and files are as exported, so {VERSION_FILE} itself was changed (digest, recipe or splits)"
    )
    return VersionError(
        f"The conversations in {bundle.folder} are not those of {bundle.version.label}: {why}.", UNCHANGED_HINT
    )
