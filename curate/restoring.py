"""Restoring: an exported bundle comes in, the version that it is goes into a store, and its digest proves it.

Nothing is believed: every id is computed again from the words, and the version is written only when the digest
that follows from them is the one that the bundle states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from duckdb import DuckDBPyConnection

from curate.exporters import EXPORTERS
from curate.exporters.exporter import Exporter
from curate.exporting import BUNDLE, PROOF
from curate.freezing import check_name, write_version
from curate.importers import REJECTS
from curate.landing import CLOSES, Parcel, Sums, count, count_conversations, land, set_up
from curate.rereading import differing, reread
from schemas.conversation import ID_LENGTH
from schemas.errors import VersionError
from schemas.recipe import canonical_json, digest, file_digest
from schemas.version import Version, version_digest

SHAPE = "bundle"
"""What `sources` says of a file that came in this way."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `version.json` states: the version, the format, and the data files with their sides and counts."""

    folder: Path
    version: Version
    exporter: Exporter
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Restored:
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

    def as_text(self) -> str:
        """The result for people, a few lines."""
        state = "restored" if self.new else "was here already and is made whole"
        total = sum(self.version.counts.values())
        return (
            f"{self.version.label} {state}: {total:,} conversations, {self.conversations:,} of them new to the store\n"
            f"digest {self.version.digest}, computed from their words"
        )


@dataclass(slots=True)
class _Seen:
    """What reading the files has found so far."""

    members: list[pl.DataFrame] = field(default_factory=list)
    differing_ids: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    new: int = 0


def restore(connection: DuckDBPyConnection, bundle: Bundle, *, name: str | None = None) -> Restored:
    """The version of the bundle, written into the store, under another `name` if one is given.

    Raises `VersionError` when its words do not give its digest (with the first ids that differ), or when the store
    has another version of this label.
    """
    version = bundle.version if name is None else replace(bundle.version, name=check_name(name))
    there = _there(connection, version)
    set_up(connection)
    seen = _Seen()
    for file, stated in bundle.files.items():
        _read_file(connection, bundle, file, stated, seen)
    members = pl.concat(seen.members)
    if version_digest(members, version.recipe) != version.digest:
        raise _not_proved(bundle, seen)
    if there:
        connection.execute("DELETE FROM members WHERE version = ?", [version.label])
        connection.execute("DELETE FROM versions WHERE version = ?", [version.label])
    write_version(connection, version, members)
    return Restored(version, not there, seen.new)


def read_bundle(folder: Path) -> Bundle:
    """What the bundle in `folder` states. Raises `VersionError` when it is none, or cannot hold a version whole."""
    proof = _read_proof(folder)
    exporter = EXPORTERS.get(proof["format"])
    held = sum(stated["conversations"] for stated in proof["files"].values())
    if exporter is None or not exporter.restorable or held != sum(proof["counts"].values()):
        raise VersionError(
            f"{folder} is an export as {proof['format']} with {held:,} of {sum(proof['counts'].values()):,} "
            "conversations, which cannot give back the whole version.",
            "Restore from a bundle with both sides that was exported with --format sharegpt or messages.",
        )
    version = Version(
        check_name(proof["name"]),
        int(proof["number"]),
        proof["digest"],
        proof["parent"],
        proof["recipe"],
        proof["counts"],
        datetime.fromisoformat(proof["frozen_at"]),
    )
    return Bundle(folder, version, exporter, proof["files"])


def _read_proof(folder: Path) -> dict[str, Any]:
    keys = {
        "bundle",
        "name",
        "number",
        "digest",
        "parent",
        "recipe",
        "counts",
        "frozen_at",
        "format",
        "files",
    }
    try:
        proof = json.loads((folder / PROOF).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VersionError(
            f"{folder} has no {PROOF}, so it is no exported bundle.", "curate export NAME@n --to FOLDER writes one."
        ) from error
    except ValueError as error:
        raise VersionError(f"{folder / PROOF} is no JSON: {error}.", "Fetch the bundle again.") from error
    if not isinstance(proof, dict) or not keys <= proof.keys():
        missing = ", ".join(sorted(keys - proof.keys())) if isinstance(proof, dict) else "everything"
        raise VersionError(f"{folder / PROOF} lacks {missing}.", "Fetch the bundle again.")
    if proof["bundle"] > BUNDLE:
        raise VersionError(f"{folder} was exported by a newer release.", "pip install --upgrade curate-sft")
    return proof


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


def _read_file(connection: DuckDBPyConnection, bundle: Bundle, name: str, stated: dict[str, Any], seen: _Seen) -> None:
    """Land one data file as a source of its own, and take down what does not agree with what is stated."""
    path = bundle.folder / name
    if Path(name).name != name or not path.is_file():
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
        seen.members.append(records.select(pl.col("id").alias("conversation"), pl.lit(stated["split"]).alias("split")))
        found = differing(records.filter(pl.col("said").is_not_null())).head(_SHOWN).to_dicts()
        seen.differing_ids += [
            f"{name} line {one['line'] or one['row']}: {one['said']} is really {one['id']}" for one in found
        ]
        land(connection, source, _parcel(records, known=known))
    new = count_conversations(connection) - had
    seen.new += new
    if rows != stated["conversations"]:
        seen.odd.append(f"{name} has {rows:,} conversations instead of {stated['conversations']:,}")
    elif sha256 != stated["sha256"]:
        seen.odd.append(f"{name} is not the file that was exported")
    if not known:
        _record(connection, source, path, bundle, count(connection, source, had))


def _refuse_unreadable(records: pl.DataFrame, path: Path) -> None:
    for one in records.filter(pl.col("id").is_null()).head(1).to_dicts():
        raise VersionError(
            f"{path} line {one['line'] or one['row']} cannot be read: {one['problem']}", "Fetch the bundle again."
        )


def _parcel(records: pl.DataFrame, *, known: bool) -> Parcel:
    """The records as an import lands them; without origins when the store knows this file."""
    origins = records.select(
        "row",
        "line",
        pl.col("row").alias("key"),
        pl.lit(None, pl.String).alias("metadata"),
        pl.lit(None, pl.List(pl.String)).alias("mends"),
        pl.lit(None, pl.String).alias("raw"),
    )
    return Parcel(
        conversations=records.select(pl.col("row").alias("key"), "id", "conversations", "tools"),
        origins=origins.head(0) if known else origins,
        rejects=pl.DataFrame(schema=REJECTS),
        closes=pl.DataFrame(schema=CLOSES),
    )


def _record(connection: DuckDBPyConnection, source: str, path: Path, bundle: Bundle, sums: Sums) -> None:
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
