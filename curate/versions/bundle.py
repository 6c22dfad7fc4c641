"""Exporting: a frozen version comes in; a folder that proves itself, or one file, goes out.

The folder is a *bundle*: a data file per side of the split, `version.json` with the digest and the recipe,
and a card. Every file is read back the way an import reads it before anything gets its final name.
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

from curate.versions.bundle_reader import differing, reread
from curate.versions.card_stats import describe_languages, describe_rejects, describe_scores, describe_sources
from curate.versions.formats import EXPORTERS
from curate.versions.formats.dataset_card import CardFacts, write_card
from curate.versions.formats.format import UNFIT, Exporter, as_lines, as_table, quoted
from schemas.atomic import staging_path, write_hint
from schemas.conversation import unfold
from schemas.digest import file_digest
from schemas.environment import installed_version
from schemas.errors import ExportError, VersionError
from schemas.text import join_names, plural
from schemas.version import SPLITS, Version, check_members, find_version

BUNDLE = 1
"""What `version.json` says of its own form; a later form has a higher number."""

PROOF, CARD, LEFT_OUT, SCORES, ORIGINS = (
    "version.json",
    "README.md",
    "left_out.csv",
    "scores.parquet",
    "origins.parquet",
)
SUFFIXES = (".jsonl", ".parquet")
REPLACED = ".curate-replaced"
"""How the name of a folder ends while another takes its place: one that no person gives."""

ALL = "all"
BATCH_ROWS = 20_000
"""Conversations at a time: some ten megabytes of text, so the largest version needs no more memory than this."""

PACKAGES = ("curate-sft", "duckdb", "polars", "pyarrow")

SCORES_SQL = (
    """SELECT s.* FROM scores s JOIN members m USING (conversation) WHERE m.version = ? ORDER BY conversation"""
)
ORIGINS_SQL = """
    SELECT o.conversation, s.path, s.sha256, o."row", o.line, o.duplicate, o.metadata, o.repairs, o.raw
    FROM origins o JOIN sources s USING (source) JOIN members m ON m.conversation = o.conversation
    WHERE m.version = ? ORDER BY o.conversation, s.path, o.source, o."row"
"""

TOOLS_PLAIN_SQL = """
    SELECT coalesce(bool_and(tools = json(tools)), true) FROM members JOIN conversations ON id = conversation
    WHERE version = ? AND tools IS NOT NULL
"""
"""Whether all tools are spelt as a reader of JSON hands on a list; one column cannot be lists here and texts there."""

Cells = Callable[[pl.DataFrame], None]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A data file of an export: the side of the split it holds, how many conversations, and its bytes."""

    split: str
    conversations: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export wrote, and what it had to leave out (`id`, `reason`, `split`)."""

    version: Version
    format: str
    to: Path
    files: Mapping[str, WrittenFile]
    left_out: pl.DataFrame

    @property
    def whole(self) -> bool:
        """Whether every conversation of the version is in it."""
        return sum(file.conversations for file in self.files.values()) == sum(self.version.counts.values())

    @property
    def reasons(self) -> dict[str, int]:
        """How many conversations were left out, by reason, the most frequent first."""
        return count_reasons(self.left_out)

    def as_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "version": self.version.label,
            "digest": self.version.digest,
            "format": self.format,
            "to": str(self.to),
            "files": {name: asdict(written) for name, written in self.files.items()},
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
    force: bool = False,
    with_scores: bool = False,
    with_origins: bool = False,
) -> ExportResult:
    """Write the version to the folder `to`, or to one file when `to` ends in .jsonl or .parquet.

    `split` keeps one side, or says `all` for one file with both. Raises `VersionError` when the version is not what
    it says, `ExportError` when `to` is there already, cannot be written or is no Parquet where that is asked for, or
    conversations do not fit the format and `skip_unfit` does not leave them out. Whatever fails, nothing new stands
    under the name `to`.
    """
    exporter = find_exporter(format)
    version = find_version(connection, label)
    check_members(connection, version)
    single = to.suffix in SUFFIXES
    plan = (
        _plan_file(version, to, split, parquet=parquet)
        if single
        else _plan_folder(version, ".parquet" if parquet else ".jsonl", split)
    )
    with in_place(to, force=force) as place:
        files, left_out = _write_files(connection, version, exporter, place, plan)
        _refuse_unfit(left_out, version, exporter, skip_unfit=skip_unfit)
        for name, written in files.items():
            _prove(place if single else place / name, exporter, written.conversations)
        exported = ExportResult(version, exporter.name, to, files, left_out)
        if not single:
            _write_scores_and_origins(connection, version, place, with_scores=with_scores, with_origins=with_origins)
            _write_proof_and_card(connection, exported, place)
    return exported


def find_exporter(format: str) -> Exporter:
    """The exporter called `format`. Raises `ExportError` naming those that are there."""
    if format not in EXPORTERS:
        raise ExportError(f"There is no export format {format}.", f"These are there: {', '.join(EXPORTERS)}.")
    return EXPORTERS[format]


def count_reasons(left_out: pl.DataFrame) -> dict[str, int]:
    """How many conversations were left out, by reason, the most frequent first."""
    counts = left_out.group_by("reason").len("count").sort("count", "reason", descending=[True, False])
    return dict(counts.iter_rows())


# --- which file holds what


def _plan_folder(version: Version, suffix: str, split: str | None) -> dict[str, tuple[str, ...]]:
    """File name -> the sides it holds; a side without a conversation has no file."""
    wanted = SPLITS if split in (None, ALL) else (_known_split(split),)
    return {f"{side}{suffix}": (side,) for side in wanted if version.counts.get(side)}


def _plan_file(version: Version, to: Path, split: str | None, *, parquet: bool) -> dict[str, tuple[str, ...]]:
    if parquet and to.suffix != ".parquet":
        raise ExportError(
            f"--parquet asks for Parquet, and {to.name} would be JSON Lines.",
            f"Say --to {to.with_suffix('.parquet')}, or leave --parquet out.",
        )
    filled = tuple(side for side in SPLITS if version.counts.get(side))
    if split is None and len(filled) > 1:
        raise ExportError(
            f"{version.label} has two sides, {' and '.join(filled)}, and {to.name} is one file.",
            "Say --split train, --split held_out or --split all; or give a folder, which has a file for each.",
        )
    return {to.name: filled if split in (None, ALL) else (_known_split(split),)}


def _known_split(split: str | None) -> str:
    if split not in SPLITS:
        raise ExportError(f"There is no split {split}.", f"These are there: {', '.join(SPLITS)}, {ALL}.")
    return split


# --- data files


def _write_files(
    connection: DuckDBPyConnection, version: Version, exporter: Exporter, place: Path, plan: Mapping[str, Sequence[str]]
) -> tuple[dict[str, WrittenFile], pl.DataFrame]:
    """Write every file of the plan: what it holds, and what does not fit (`id`, `reason`, `split`)."""
    files: dict[str, WrittenFile] = {}
    left_out = [pl.DataFrame(schema={**UNFIT, "split": pl.String})]
    single = place.suffix in SUFFIXES
    for name, sides in plan.items():
        path = place if single else place / name
        count, unfit = _write_file(connection, version, exporter, path, sides)
        left_out.append(unfit)
        files[name] = WrittenFile("+".join(sides), count, path.stat().st_size, file_digest(path))
    return files, pl.concat(left_out)


def _write_file(
    connection: DuckDBPyConnection, version: Version, exporter: Exporter, path: Path, sides: Sequence[str]
) -> tuple[int, pl.DataFrame]:
    """Write the conversations of these sides that fit: how many, and those that do not (`id`, `reason`, `split`)."""
    count, left_out = 0, []
    columns = dict(exporter.columns) if len(sides) == 1 else {**exporter.columns, "split": pl.String()}
    with _SINKS[path.suffix](path, columns) as put:
        for batch in _batches(connection, version, sides):
            turns = unfold(batch)
            unfit = exporter.unfit(batch, turns)
            fitting = batch.join(unfit, on="id", how="anti", maintain_order="left") if unfit.height else batch
            turns = turns.join(unfit, on="id", how="anti", maintain_order="left") if unfit.height else turns
            cells = exporter.cells(fitting, turns)
            put(cells if len(sides) == 1 else cells.with_columns(fitting.select(quoted("split").alias("split"))))
            left_out.append(unfit.join(batch.select("id", "split"), on="id", maintain_order="left"))
            count += fitting.height
    return count, pl.concat([pl.DataFrame(schema={**UNFIT, "split": pl.String}), *left_out])


def _batches(connection: DuckDBPyConnection, version: Version, sides: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The conversations of these sides, sorted by id: `id`, `conversations`, `tools`, `split`, `tools_plain`."""
    ((plain,),) = connection.execute(TOOLS_PLAIN_SQL, [version.label]).fetchall()
    reader = connection.cursor().sql(
        """SELECT c.id, c.conversations, c.tools, m.split FROM members m JOIN conversations c ON c.id = m.conversation
           WHERE m.version = ? AND list_contains(?, m.split) ORDER BY c.id""",
        params=[version.label, list(sides)],
    ).to_arrow_reader(BATCH_ROWS)  # fmt: skip
    count = 0
    for batch in reader:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        count += frame.height
        yield frame.with_columns(tools_plain=pl.lit(plain))
    wanted = sum(version.counts.get(side, 0) for side in sides)
    if count != wanted:
        raise VersionError(
            f"{version.label} has {plural(wanted, 'conversation')} in {', '.join(sides)}, "
            f"the store has {count:,} of them.",
            "The store was changed by hand; curate restore rebuilds a version from its exported bundle.",
        )


@contextmanager
def _lines(path: Path, _: Mapping[str, Any]) -> Iterator[Cells]:
    """JSON Lines: one object a line."""
    with path.open("w", encoding="utf-8", newline="") as file:

        def put(cells: pl.DataFrame) -> None:
            if cells.height:
                file.write(as_lines(cells).str.join("\n").item() + "\n")

        yield put


@contextmanager
def _table(path: Path, columns: Mapping[str, Any]) -> Iterator[Cells]:
    """Parquet, one row group per batch."""
    with pq.ParquetWriter(path, pl.DataFrame(schema=columns).to_arrow().schema, compression="zstd") as writer:

        def put(cells: pl.DataFrame) -> None:
            writer.write_table(as_table(cells, columns).to_arrow().cast(writer.schema))

        yield put


_SINKS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {".jsonl": _lines, ".parquet": _table}


def _prove(path: Path, exporter: Exporter, count: int) -> None:
    """Read the file back. Raises `ExportError` when a conversation comes out as another one, or not at all."""
    seen = 0
    for records in reread(path, exporter) if count else ():
        seen += records.height
        for record in differing(records).head(1).to_dicts():
            why = (record["problem"] or f"it reads back as {record['id']}").removesuffix(".")
            place = record["line"] or record["row"]
            which = f"the conversation in line {place}" if record["said"] is None else f"conversation {record['said']}"
            raise ExportError(
                f"{exporter.name} cannot hold {which} as it is: {why}.",
                "--format sharegpt holds everything that an import brings in, unless the store was changed by hand.",
            )
    if seen != count:
        raise ExportError(
            f"Written: {plural(count, 'conversation')}; read back: {seen:,}.", "Try --parquet, or report it."
        )


def _refuse_unfit(left_out: pl.DataFrame, version: Version, exporter: Exporter, *, skip_unfit: bool) -> None:
    if left_out.is_empty() or skip_unfit:
        return
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in count_reasons(left_out).items())
    raise ExportError(
        f"{left_out.height:,} of the {plural(sum(version.counts.values()), 'conversation')} of {version.label} "
        f"do not fit {exporter.name} ({reasons}).",
        f"--skip-unfit leaves them out and lists them in {LEFT_OUT}; --format sharegpt holds them all.",
    )


# --- what lies beside the data


def _write_scores_and_origins(
    connection: DuckDBPyConnection, version: Version, place: Path, *, with_scores: bool, with_origins: bool
) -> None:
    wanted = {SCORES: (with_scores, SCORES_SQL), ORIGINS: (with_origins, ORIGINS_SQL)}
    for name, (asked, query) in wanted.items():
        if asked:
            frame = connection.sql(query, params=[version.label]).pl()
            pq.write_table(frame.to_arrow(), place / name, compression="zstd")


def _write_proof_and_card(connection: DuckDBPyConnection, exported: ExportResult, place: Path) -> None:
    """`version.json`, the card and, where something is left out, the list of it."""
    version = exported.version
    facts = CardFacts(
        files={written.split: name for name, written in exported.files.items()},
        format=exported.format,
        restorable=find_exporter(exported.format).restorable and exported.whole,
        languages=describe_languages(connection, version),
        sources=describe_sources(connection, version),
        rejects=describe_rejects(connection, version),
        scores=describe_scores(connection, version),
        left_out=exported.reasons,
    )
    (place / PROOF).write_text(json.dumps(_proof(exported), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (place / CARD).write_text(write_card(version, facts), encoding="utf-8")
    if exported.left_out.height:
        exported.left_out.write_csv(place / LEFT_OUT)


def _proof(exported: ExportResult) -> dict[str, Any]:
    version = exported.version
    return {
        "bundle": BUNDLE,
        "version": version.label,
        "name": version.name,
        "number": version.number,
        "digest": version.digest,
        "parent": version.parent,
        "frozen_at": version.frozen_at.isoformat(),
        "counts": version.counts,
        "format": exported.format,
        "files": {name: asdict(written) for name, written in exported.files.items()},
        "left_out": exported.reasons,
        "recipe": version.recipe,
        "made_with": {**{name: installed_version(name) for name in PACKAGES}, "python": platform.python_version()},
    }


# --- into place


@contextmanager
def in_place(to: Path, *, force: bool) -> Iterator[Path]:
    """A temporary path beside `to` that takes its name when the block ends well, and is gone otherwise.

    A folder is made, a file is left to the block. Raises `ExportError` when `to` is taken or cannot be written.
    """
    try:
        to = to.resolve() if to.is_dir() else to.absolute()  # a link to a folder stays one
        _check_target(to, force=force)
        with staging_path(to) as temporary:
            if to.suffix not in SUFFIXES:
                temporary.mkdir()
            yield temporary
            _check_target(to, force=force)  # another export may have come first
            _move(temporary, to)
    except OSError as error:
        raise ExportError(f"{to} cannot be written: {error.strerror or error}.", write_hint(error, to)) from error


def _check_target(to: Path, *, force: bool) -> None:
    if not to.parent.is_dir():
        raise ExportError(f"The folder {to.parent} is not there.", f"mkdir -p {to.parent}")
    if not to.exists() or (to.is_dir() and to.suffix not in SUFFIXES and not any(to.iterdir())):
        return
    if not force:
        raise ExportError(f"{to} is there already.", "--force replaces it; or give another --to.")
    if to.is_dir() == (to.suffix in SUFFIXES):
        raise ExportError(f"{to} is a {'folder' if to.is_dir() else 'file'}.", "Give another --to.")
    strange = _strange_entries(to) if to.is_dir() else []
    if strange:
        raise ExportError(
            f"{to} holds {join_names(strange, 3)}, which no export wrote, so it is not replaced.", "Give another --to."
        )


def _strange_entries(folder: Path) -> list[str]:
    data = {f"{side}{suffix}" for side in SPLITS for suffix in SUFFIXES}
    known = {PROOF, CARD, LEFT_OUT, SCORES, ORIGINS, *data}
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in known or entry.is_dir())


def _move(temporary: Path, to: Path) -> None:
    """Give the new one its name; the old one goes only when the new one stands."""
    old = to.with_name(f".{to.name}{REPLACED}")
    if to.is_dir():
        _remove(old)  # left by an export that was killed at its last step: a whole one stands
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
    shutil.rmtree(folder, ignore_errors=True)  # of two exports at once, both may do it
