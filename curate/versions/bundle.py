"""A frozen version → a bundle (a folder with data, metadata and a dataset card) or a single data file.

A bundle has one data file per split, `version.json` with the digest and the recipe, and a dataset card. Every file is
read back by the import readers and compared before it gets its final name.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from curate.versions.bundle_reader import find_differences, read_records
from curate.versions.card_stats import (
    describe_languages,
    describe_rejects,
    describe_scores,
    describe_sources,
    describe_uses,
)
from curate.versions.formats import FORMATS
from curate.versions.formats.dataset_card import CardFacts, write_card
from curate.versions.formats.format import UNFIT, ExportFormat, json_string, to_json_lines, to_table
from schemas.atomic import staging_path, write_hint
from schemas.conversation import unfold
from schemas.digest import file_digest
from schemas.environment import installed_version
from schemas.errors import ExportError, VersionError
from schemas.text import join_names, plural
from schemas.timing import timed
from schemas.version import MIX, SPLITS, Version, check_members, find_version

BUNDLE_FORMAT = 1
"""The value of `bundle` in `version.json`; higher numbers are newer forms of the file."""

VERSION_FILE, CARD_FILE, LEFT_OUT_FILE = "version.json", "README.md", "left_out.csv"
SCORES_FILE, ORIGINS_FILE = "scores.parquet", "origins.parquet"
SUFFIXES = (".jsonl", ".parquet")
REPLACED = ".curate-replaced"
"""Suffix of the hidden name of a folder that is being replaced."""

ALL = "all"
BATCH_ROWS = 20_000
"""Conversations that are written at a time: about ten megabytes of text, so memory does not depend on the version."""

PACKAGES = ("curate-sft", "duckdb", "polars", "pyarrow")

SCORES_SQL = "SELECT s.* FROM scores s JOIN members m USING (conversation) WHERE m.version = ? ORDER BY conversation"
ORIGINS_SQL = """
    SELECT o.conversation, s.path, s.sha256, o."row", o.line, o.duplicate, o.metadata, o.repairs, o.raw
    FROM origins o JOIN sources s USING (source) JOIN members m ON m.conversation = o.conversation
    WHERE m.version = ? ORDER BY o.conversation, s.path, o.source, o."row"
"""

CANONICAL_TOOLS_SQL = """
    SELECT coalesce(bool_and(tools = json(tools)), true) FROM members JOIN conversations ON id = conversation
    WHERE version = ? AND tools IS NOT NULL
"""
"""Whether all tools are spelled as DuckDB's JSON reader returns lists. A column cannot contain both lists and texts."""

WriteCells = Callable[[pl.DataFrame], None]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A data file of an export: its split, the number of conversations, and its bytes."""

    split: str
    conversations: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The written files, and the conversations that were left out (`id`, `reason`, `split`)."""

    version: Version
    format: str
    to: Path
    files: Mapping[str, WrittenFile]
    left_out: pl.DataFrame

    @property
    def is_complete(self) -> bool:
        """Whether the files contain every conversation of the version."""
        return sum(file.conversations for file in self.files.values()) == sum(self.version.counts.values())

    @property
    def reasons(self) -> dict[str, int]:
        """The number of conversations that were left out, by reason, the most frequent first."""
        counts = self.left_out.group_by("reason").len("count").sort("count", "reason", descending=[True, False])
        return dict(counts.iter_rows())

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "version": self.version.label,
            "digest": self.version.digest,
            "format": self.format,
            "to": str(self.to),
            "files": {name: asdict(file) for name, file in self.files.items()},
            "left_out": self.reasons,
            "left_out_ids": self.left_out["id"].to_list(),
        }


def export_version(
    connection: DuckDBPyConnection,
    label: str,
    to: Path,
    *,
    format: str = "sharegpt",
    parquet: bool = False,
    split: str | None = None,
    skip_unfit: bool = False,
    replace: bool = False,
    with_scores: bool = False,
    with_origins: bool = False,
    dry_run: bool = False,
) -> ExportResult:
    """Write the version to the folder `to`, or to one file if `to` ends with .jsonl or .parquet.

    `dry_run` keeps nothing. `split` selects one split, or with `all` one file with both. Raises `VersionError` if
    the members do not match the version's digest; raises `ExportError` if `to` exists or cannot be written, if its
    suffix contradicts `parquet`, or if conversations do not fit the format and `skip_unfit` is not set. Nothing is
    left at `to` after an error.
    """
    export_format = find_format(format)
    version = find_version(connection, label)
    check_members(connection, version)
    is_file = to.suffix in SUFFIXES
    plan = (
        _plan_file(version, to, split, parquet=parquet)
        if is_file
        else _plan_folder(version, ".parquet" if parquet else ".jsonl", split)
    )
    with _replace(to, replace=replace, dry_run=dry_run) as temporary:
        files, left_out = _write_files(connection, version, export_format, temporary, plan)
        result = ExportResult(version, export_format.name, to, files, left_out)
        if left_out.height and not skip_unfit:
            raise _unfit_error(result)
        for name, file in files.items():
            _verify(temporary if is_file else temporary / name, export_format, file.conversations)
        if not is_file:
            if with_scores:
                _write_table(connection, version, SCORES_SQL, temporary / SCORES_FILE)
            if with_origins:
                _write_table(connection, version, ORIGINS_SQL, temporary / ORIGINS_FILE)
            _write_metadata(connection, result, temporary)
    return result


def find_format(name: str) -> ExportFormat:
    """The export format called `name`. Raises `ExportError` with the known names."""
    if name not in FORMATS:
        raise ExportError(f"Unknown export format {name}.", f"Formats: {', '.join(FORMATS)}.")
    return FORMATS[name]


def _unfit_error(result: ExportResult) -> ExportError:
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in result.reasons.items())
    total = plural(sum(result.version.counts.values()), "conversation")
    return ExportError(
        f"{result.left_out.height:,} of the {total} of {result.version.label} do not fit {result.format} ({reasons}).",
        f"--skip-unfit leaves them out and lists them in {LEFT_OUT_FILE}; --format sharegpt supports all of them.",
    )


# --- the files of an export


def _plan_folder(version: Version, suffix: str, split: str | None) -> dict[str, tuple[str, ...]]:
    """File name -> its splits; there is no file for an empty split."""
    splits = SPLITS if split in (None, ALL) else (_check_split(split),)
    return {f"{name}{suffix}": (name,) for name in splits if version.counts.get(name)}


def _plan_file(version: Version, to: Path, split: str | None, *, parquet: bool) -> dict[str, tuple[str, ...]]:
    if parquet and to.suffix != ".parquet":
        raise ExportError(
            f"--parquet contradicts the suffix of {to.name}, which means JSON Lines.",
            f"Use --to {to.with_suffix('.parquet')}, or omit --parquet.",
        )
    nonempty = tuple(name for name in SPLITS if version.counts.get(name))
    if split is None and len(nonempty) > 1:
        raise ExportError(
            f"{version.label} has two splits, {' and '.join(nonempty)}, and {to.name} is one file.",
            "Use --split train, --split held_out or --split all; or give a folder, which gets a file for each.",
        )
    return {to.name: nonempty if split in (None, ALL) else (_check_split(split),)}


def _check_split(split: str | None) -> str:
    if split not in SPLITS:
        raise ExportError(f"Unknown split {split}.", f"Splits: {', '.join(SPLITS)}, {ALL}.")
    return split


# --- data files


def _write_files(
    connection: DuckDBPyConnection,
    version: Version,
    export_format: ExportFormat,
    to: Path,
    plan: Mapping[str, Sequence[str]],
) -> tuple[dict[str, WrittenFile], pl.DataFrame]:
    """Write all data files; returns them and the conversations that do not fit (`id`, `reason`, `split`)."""
    files: dict[str, WrittenFile] = {}
    left_out = [pl.DataFrame(schema={**UNFIT, "split": pl.String})]
    for name, splits in plan.items():
        path = to if to.suffix in SUFFIXES else to / name
        count, unfit = _write_file(connection, version, export_format, path, splits)
        left_out.append(unfit)
        files[name] = WrittenFile("+".join(splits), count, path.stat().st_size, file_digest(path))
    return files, pl.concat(left_out)


@timed("writing a file")
def _write_file(
    connection: DuckDBPyConnection, version: Version, export_format: ExportFormat, path: Path, splits: Sequence[str]
) -> tuple[int, pl.DataFrame]:
    """Write the conversations of some splits; returns their number and those that do not fit."""
    count, left_out = 0, [pl.DataFrame(schema={**UNFIT, "split": pl.String})]
    added: dict[str, pl.DataType] = {"split": pl.String()} if len(splits) > 1 else {}
    added |= {"per_epoch": pl.Int32()} if MIX in version.recipe else {}
    as_json = {"split": json_string("split"), "per_epoch": pl.col("per_epoch").cast(pl.String)}
    columns = {**export_format.columns, **added}
    with _WRITERS[path.suffix](path, columns) as write:
        for batch in _batches(connection, version, splits):
            turns = unfold(batch)
            unfit = export_format.find_unfit(batch, turns)
            fitting = batch.join(unfit, on="id", how="anti", maintain_order="left") if unfit.height else batch
            turns = turns.join(unfit, on="id", how="anti", maintain_order="left") if unfit.height else turns
            cells = export_format.to_cells(fitting, turns)
            write(cells.with_columns(fitting.select(as_json[name].alias(name) for name in added)))
            left_out.append(unfit.join(batch.select("id", "split"), on="id", maintain_order="left"))
            count += fitting.height
    return count, pl.concat(left_out)


def _batches(connection: DuckDBPyConnection, version: Version, splits: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The conversations of some splits by id: the columns of `read_members`, and `tools_are_canonical`."""
    ((canonical,),) = connection.execute(CANONICAL_TOOLS_SQL, [version.label]).fetchall()
    reader = connection.cursor().sql(
        """SELECT c.id, c.conversations, c.tools, m.split, m.per_epoch
           FROM members m JOIN conversations c ON c.id = m.conversation
           WHERE m.version = ? AND list_contains(?, m.split) ORDER BY c.id""",
        params=[version.label, list(splits)],
    ).to_arrow_reader(BATCH_ROWS)  # fmt: skip
    count = 0
    for batch in reader:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        count += frame.height
        yield frame.with_columns(tools_are_canonical=pl.lit(canonical))
    expected = sum(version.counts.get(split, 0) for split in splits)
    if count != expected:
        raise VersionError(
            f"{version.label} has {plural(expected, 'conversation')} in {', '.join(splits)}, "
            f"but the store has only {count:,} of them.",
            "The store was modified; curate restore rebuilds a version from its exported bundle.",
        )


@contextmanager
def _json_lines_writer(path: Path, _: Mapping[str, Any]) -> Iterator[WriteCells]:
    with path.open("w", encoding="utf-8", newline="") as file:

        def write(cells: pl.DataFrame) -> None:
            if cells.height:
                file.write(to_json_lines(cells).str.join("\n").item() + "\n")

        yield write


@contextmanager
def _parquet_writer(path: Path, columns: Mapping[str, Any]) -> Iterator[WriteCells]:
    """Writes one row group per batch."""
    with pq.ParquetWriter(path, pl.DataFrame(schema=columns).to_arrow().schema, compression="zstd") as writer:

        def write(cells: pl.DataFrame) -> None:
            writer.write_table(to_table(cells, columns).to_arrow().cast(writer.schema))

        yield write


_WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    ".jsonl": _json_lines_writer,
    ".parquet": _parquet_writer,
}


@timed("reading a file back")
def _verify(path: Path, export_format: ExportFormat, expected: int) -> None:
    """Read a data file back. Raises `ExportError` if a conversation is missing or has changed."""
    count = 0
    for records in read_records(path, export_format) if expected else ():
        count += records.height
        for record in find_differences(records).head(1).to_dicts():
            why = (record["problem"] or f"it reads back as {record['id']}").removesuffix(".")
            line = record["line"] or record["row"]
            which = (
                f"the conversation in line {line}"
                if record["stated_id"] is None
                else f"conversation {record['stated_id']}"
            )
            raise ExportError(
                f"{export_format.name} cannot represent {which}: {why}.",
                "--format sharegpt supports everything that can be imported, unless the store was modified.",
            )
    if count != expected:
        raise ExportError(
            f"Wrote {plural(expected, 'conversation')}, but read back {count:,}.",
            "Try --parquet, or report this error.",
        )


# --- other files of a bundle


def _write_table(connection: DuckDBPyConnection, version: Version, query: str, path: Path) -> None:
    frame = connection.sql(query, params=[version.label]).pl()
    pq.write_table(frame.to_arrow(), path, compression="zstd")


@timed("writing metadata")
def _write_metadata(connection: DuckDBPyConnection, result: ExportResult, folder: Path) -> None:
    """Write `version.json`, the dataset card and the list of conversations that were left out."""
    version = result.version
    facts = CardFacts(
        files={file.split: name for name, file in result.files.items()},
        format=result.format,
        restorable=find_format(result.format).restorable and result.is_complete,
        languages=describe_languages(connection, version),
        sources=describe_sources(connection, version),
        rejects=describe_rejects(connection, version),
        scores=describe_scores(connection, version),
        uses=describe_uses(connection, version) if MIX in version.recipe else (),
        left_out=result.reasons,
    )
    statement = json.dumps(_version_json(result), ensure_ascii=False, indent=2) + "\n"
    (folder / VERSION_FILE).write_text(statement, encoding="utf-8")
    (folder / CARD_FILE).write_text(write_card(version, facts), encoding="utf-8")
    if result.left_out.height:
        result.left_out.write_csv(folder / LEFT_OUT_FILE)


def _version_json(result: ExportResult) -> dict[str, Any]:
    version = result.version
    return {
        "bundle": BUNDLE_FORMAT,
        "version": version.label,
        "name": version.name,
        "number": version.number,
        "digest": version.digest,
        "parent": version.parent,
        "frozen_at": version.frozen_at.isoformat(),
        "counts": version.counts,
        "format": result.format,
        "files": {name: asdict(file) for name, file in result.files.items()},
        "left_out": result.reasons,
        "recipe": version.recipe,
        "made_with": {**{name: installed_version(name) for name in PACKAGES}, "python": platform.python_version()},
    }


# --- replacing the target


@contextmanager
def _replace(to: Path, *, replace: bool, dry_run: bool) -> Iterator[Path]:
    """A temporary folder, or path for a file, that becomes `to` when the block ends.

    It is removed if the block raises, and after a `dry_run`. Raises `ExportError` if `to` exists or cannot be written.
    """
    try:
        to = to.resolve() if to.is_dir() else to.absolute()  # keeps a link to a folder
        _check_target(to, replace=replace)
        with staging_path(to) as temporary:
            if to.suffix not in SUFFIXES:
                temporary.mkdir()
            yield temporary
            _check_target(to, replace=replace)  # another export may have finished in the meantime
            if not dry_run:
                _move(temporary, to)
    except OSError as error:
        raise ExportError(f"{to} cannot be written: {error.strerror or error}.", write_hint(error, to)) from error


def _check_target(to: Path, *, replace: bool) -> None:
    if not to.parent.is_dir():
        raise ExportError(f"The folder {to.parent} does not exist.", f"mkdir -p {to.parent}")
    if to.suffix in (".csv", ".json", ".xlsx"):
        raise ExportError(
            f"Versions are not written as {to.suffix}.", f"Use {to.with_suffix('.jsonl')}, .parquet or a folder."
        )
    if not to.exists() or (to.is_dir() and to.suffix not in SUFFIXES and not any(to.iterdir())):
        return
    if not replace:
        raise ExportError(f"{to} already exists.", "Use --replace to replace it, or another --to.")
    if to.is_dir() == (to.suffix in SUFFIXES):
        raise ExportError(f"{to} is a {'folder' if to.is_dir() else 'file'}.", "Use another --to.")
    foreign = _foreign_entries(to) if to.is_dir() else []
    if foreign:
        raise ExportError(
            f"{to} contains {join_names(foreign, 3)}, which is not part of an export, so it is not replaced.",
            "Use another --to.",
        )


def _foreign_entries(folder: Path) -> list[str]:
    data = {f"{split}{suffix}" for split in SPLITS for suffix in SUFFIXES}
    known = {VERSION_FILE, CARD_FILE, LEFT_OUT_FILE, SCORES_FILE, ORIGINS_FILE, *data}
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known or entry.is_dir())


def _move(temporary: Path, to: Path) -> None:
    """Move `temporary` to `to`, and remove the previous content only after that."""
    old = to.with_name(f".{to.name}{REPLACED}")
    if to.is_dir():
        _remove(old)  # left by an export that was killed during its last step
        to.rename(old)
        try:
            temporary.rename(to)
        except OSError:
            old.rename(to)
            raise
    else:
        temporary.replace(to)
    _remove(old)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # two exports may remove it at the same time
