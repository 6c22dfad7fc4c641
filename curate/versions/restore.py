"""Restoring: an exported bundle comes in, the version that it is goes into a store, and its digest proves it.

Nothing is believed: every id is computed again from the words, and the version is written only when the digest
that follows from them is the one that the bundle states.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
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
from curate.versions.bundle import BUNDLE, PROOF
from curate.versions.bundle_reader import differing, reread
from curate.versions.formats import EXPORTERS
from curate.versions.formats.format import Exporter
from curate.versions.freeze import LAST_NUMBER, NAME, check_name, write_members, write_version
from curate.versions.split import count_splits
from schemas.conversation import ID_LENGTH
from schemas.digest import canonical_json, digest, file_digest
from schemas.errors import VersionError
from schemas.text import plural
from schemas.version import SPLITS, Version, find_version, version_digest

SHAPE = "bundle"
"""What `sources` says of a file that came in this way."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `version.json` states: the version, the format, and the data files with their sides and counts."""

    folder: Path
    version: Version
    exporter: Exporter
    files: dict[str, _StatedFile]


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did: the version, whether the store had it, how many conversations were new to the store."""

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
class _Seen:
    """What reading the files has found so far."""

    members: list[pl.DataFrame] = field(default_factory=list)
    differing_ids: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    new: int = 0


def restore(connection: DuckDBPyConnection, bundle: Bundle, *, name: str | None = None) -> RestoreResult:
    """The version of the bundle, written into the store, under another `name` if one is given.

    Raises `VersionError` when its words do not give its digest (with the first ids that differ), or when the store
    has another version of this label.
    """
    version = bundle.version if name is None else replace(bundle.version, name=check_name(name))
    there = _there(connection, version)
    configure_bulk_load(connection)
    seen = _Seen()
    for file, stated in bundle.files.items():
        _read_file(connection, bundle, file, stated, seen)
    members = pl.concat(seen.members)
    if version_digest(members, version.recipe) != version.digest:
        raise _not_proved(bundle, seen)
    counts = count_splits(members)
    if counts != version.counts:
        raise _miscounted(bundle, counts)
    if there:
        version = _make_whole(connection, version, members)
    else:
        write_version(connection, version, members)
    return RestoreResult(version, not there, seen.new)


def read_bundle(folder: Path) -> Bundle:
    """What the bundle in `folder` states. Raises `VersionError` when it is none, or cannot hold a version whole."""
    proof = _read_proof(folder)
    exporter = EXPORTERS.get(proof.format)
    total = sum(proof.counts.values())
    held = sum(stated.conversations for stated in proof.files.values())
    if exporter is None or not exporter.restorable or held != total:
        raise VersionError(
            f"{folder} is an export as {proof.format} with {held:,} of {plural(total, 'conversation')}, "
            "which cannot give back the whole version.",
            "Restore from a bundle with both sides that was exported with --format sharegpt or messages.",
        )
    counts = {**dict.fromkeys(SPLITS, 0), **{str(split): number for split, number in proof.counts.items()}}
    name = check_name(proof.name)
    version = Version(name, proof.number, proof.digest, proof.parent, proof.recipe, counts, proof.frozen_at)
    return Bundle(folder, version, exporter, proof.files)


class _StatedFile(BaseModel):
    """What `version.json` says of a data file."""

    split: Literal["train", "held_out"]
    conversations: NonNegativeInt
    sha256: str


class _Proof(BaseModel):
    """What is read of `version.json`."""

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
            raise ValueError("in UTC it is not in the years 1 to 9999") from error


def _read_proof(folder: Path) -> _Proof:
    hint = "Fetch the bundle again."
    try:
        proof = json.loads((folder / PROOF).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VersionError(
            f"{folder} has no {PROOF}, so it is no exported bundle.", "curate export NAME@n --to FOLDER writes one."
        ) from error
    except (ValueError, RecursionError) as error:
        raise VersionError(f"{folder / PROOF} is no JSON: {error}.", hint) from error
    except OSError as error:
        raise VersionError(f"{folder / PROOF} cannot be read: {error.strerror}.", "Check its rights.") from error
    if isinstance(proof, dict) and isinstance(proof.get("bundle"), int) and proof["bundle"] > BUNDLE:
        raise VersionError(f"{folder} was exported by a newer release.", "pip install --upgrade curate-sft")
    try:
        return _Proof.model_validate_json(json.dumps(proof), strict=True)  # dates are texts in JSON alone
    except ValidationError as error:
        raise VersionError(f"{folder / PROOF} {_what_is_wrong(error)}.", hint) from error


def _what_is_wrong(error: ValidationError) -> str:
    """`lacks bundle, name` where keys are missing, else the first that is wrong, and how."""
    problems = error.errors(include_url=False)
    missing = [".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "missing"]
    if missing:
        return f"lacks {', '.join(missing)}"
    where = ".".join(map(str, problems[0]["loc"]))
    return f"is not as an export writes it, {where}: {problems[0]['msg']}" if where else "holds no object"


def _there(connection: DuckDBPyConnection, version: Version) -> bool:
    """Whether the store has this very version. Raises `VersionError` when it has another one of the same label."""
    found = connection.execute("SELECT digest FROM versions WHERE version = ?", [version.label]).fetchall()
    if found and found[0][0] != version.digest:
        raise VersionError(
            f"The store has another {version.label}, with the digest {found[0][0][:12]}; "
            f"the bundle's is {version.digest[:12]}.",
            "Restore it under another name: --name other; or into a store of its own: --store other.duckdb.",
        )
    return bool(found)


def _make_whole(connection: DuckDBPyConnection, version: Version, members: pl.DataFrame) -> Version:
    """Write again what the digest proves of a version that is there; its parent and date stay what the store says."""
    connection.execute("DELETE FROM members WHERE version = ?", [version.label])
    connection.execute(
        "UPDATE versions SET recipe = ?, counts = ? WHERE version = ?",
        [canonical_json(version.recipe), json.dumps(version.counts), version.label],
    )
    write_members(connection, version.label, members)
    return find_version(connection, version.label)


def _miscounted(bundle: Bundle, counts: dict[str, int]) -> VersionError:
    stated, found = (
        ", ".join(f"{number:,} {split}" for split, number in one.items()) for one in (bundle.version.counts, counts)
    )
    return VersionError(
        f"{bundle.folder / PROOF} was changed: it states {stated}, and the files hold {found}.",
        "Nothing was written. Fetch the bundle again from where it was exported.",
    )


def _read_file(connection: DuckDBPyConnection, bundle: Bundle, name: str, stated: _StatedFile, seen: _Seen) -> None:
    """Land one data file as a source of its own, and take down what does not agree with what is stated."""
    path = bundle.folder / name
    if Path(name).name != name or not os.path.isfile(path):  # noqa: PTH113  Path raises for a name that is too long
        raise VersionError(
            f"{bundle.folder} has no file {name}, of which its {PROOF} tells.", "Fetch the bundle again."
        )
    sha256 = file_digest(path)
    source = digest({"sha256": sha256, "shape": SHAPE, "format": bundle.exporter.name})[:ID_LENGTH]
    known = bool(connection.execute("SELECT 1 FROM sources WHERE source = ?", [source]).fetchall())
    had, rows = count_conversations(connection), 0
    for records in reread(path, bundle.exporter):
        _refuse_unreadable(records, path)
        rows += records.height
        seen.members.append(records.select(pl.col("id").alias("conversation"), pl.lit(stated.split).alias("split")))
        found = differing(records.filter(pl.col("said").is_not_null())).head(_SHOWN).to_dicts()
        seen.differing_ids += [
            f"{name} line {one['line'] or one['row']}: {one['said']} is really {one['id']}" for one in found
        ]
        write_batch(connection, source, _import_batch(records, known=known))
    new = count_conversations(connection) - had
    seen.new += new
    if rows != stated.conversations:
        seen.odd.append(f"{name} has {plural(rows, 'conversation')} instead of {stated.conversations:,}")
    elif sha256 != stated.sha256:
        seen.odd.append(f"{name} is not the file that was exported")
    if not known:
        _record(connection, source, path, bundle, count_source(connection, source, had))


def _refuse_unreadable(records: pl.DataFrame, path: Path) -> None:
    for one in records.filter(pl.col("id").is_null()).head(1).to_dicts():
        raise VersionError(
            f"{path} line {one['line'] or one['row']} cannot be read: {one['problem']}", "Fetch the bundle again."
        )


def _import_batch(records: pl.DataFrame, *, known: bool) -> ImportBatch:
    """The records as an import lands them; without origins when the store knows this file."""
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


def _record(connection: DuckDBPyConnection, source: str, path: Path, bundle: Bundle, sums: SourceCounts) -> None:
    """The row of `sources`, so that the sums hold for what came in this way too."""
    rows = sums.rows_kept + sums.rows_duplicate
    how = {
        "shape": SHAPE,
        "format": bundle.exporter.name,
        "version": bundle.version.label,
        "digest": bundle.version.digest,
    }
    connection.execute(
        """INSERT INTO sources (source, path, sha256, bytes, shape, mapping, columns, rows_read, rows_kept,
                                rows_duplicate, rows_rejected, conversations, warnings)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{}')""",
        [
            *(
                source,
                str(path),
                file_digest(path),
                path.stat().st_size,
                SHAPE,
                canonical_json(how),
                list(bundle.exporter.columns),
            ),
            *(rows, sums.rows_kept, sums.rows_duplicate, sums.rows_rejected, sums.conversations),
        ],
    )


def _not_proved(bundle: Bundle, seen: _Seen) -> VersionError:
    """Why the digest differs, as closely as it can be told."""
    told = seen.differing_ids[:_SHOWN] or seen.odd
    why = "; ".join(told) or (
        f"every id is true and every file as exported, so {PROOF} itself was changed (digest, recipe or splits)"
    )
    return VersionError(
        f"The conversations in {bundle.folder} are not those of {bundle.version.label}: {why}.",
        "Nothing was written. Fetch the bundle again from where it was exported.",
    )
