"""Converting: batches of a source come in as they were read, parcels of conversations and rejects go out.

Nothing here touches the store. Every row of a batch is in its parcel exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curate.ingest.column_mapping import ColumnMapping, extend_mapping, metadata_json, parse_table
from curate.ingest.readers import REJECTS, Batch
from curate.ingest.repairs import repair
from curate.ingest.shapes import SHAPES
from curate.ingest.validation import validate
from curate.ingest.writer import CORRECTIONS, ImportBatch
from schemas.conversation import fold
from schemas.errors import SourceError
from schemas.recipe import ImportSection

EXPORT_COLUMNS = ("_curate_reject", "_curate_reason", "_curate_raw")
"""What `curate rejects --export` writes beside a source's own columns. The first names the reject that is repaired."""


EXAMPLES = 3
"""Conversations that a dry run shows."""


@dataclass(slots=True)
class Conversion:
    """How one source becomes conversations, and what has been seen of it so far."""

    path: str
    mapping: ColumnMapping
    """grows with the optional columns that later batches bring"""
    section: ImportSection
    columns: tuple[str, ...] = ()
    rows: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    """code -> conversations"""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """the first conversations"""

    def parcels(self, batches: Iterable[Batch]) -> Iterator[ImportBatch]:
        """One parcel per batch. Raises `SourceError` when a batch contradicts the mapping."""
        for batch in batches:
            self.rows += batch.table.height + batch.rejects.height
            with prefix_errors(self.path):
                if batch.table.height:
                    self._learn(batch.table)
                parcel, warnings = convert(batch, self.mapping, self.section)
            self.warnings.update(warnings)
            self.examples = self.examples or _first_different(parcel.conversations)
            yield parcel

    def _learn(self, table: pl.DataFrame) -> None:
        self.mapping = extend_mapping(self.mapping, drop_export_columns(table), self.section)
        self.columns = tuple(dict.fromkeys([*self.columns, *table.columns]))


@contextmanager
def prefix_errors(path: str) -> Iterator[None]:
    """Put the source's path in front of what is said of its columns: one command may read many files."""
    try:
        yield
    except SourceError as error:
        raise SourceError(f"{path}: {error.what}", error.hint) from error


def convert(batch: Batch, mapping: ColumnMapping, section: ImportSection) -> tuple[ImportBatch, dict[str, int]]:
    """Parse, repair, validate and fold the rows of one batch; and the count of each warning."""
    table = drop_export_columns(batch.table)
    read = parse_table(table, mapping)
    turns, repaired = repair(read.turns, section.repair)
    findings = validate(turns, read.tools, asked=SHAPES[mapping.shape].asked)
    refused = _refused(read.problems, findings)
    folded = _folded(turns, read.tools, refused)
    members = read.members if read.members.height else None
    parcel = ImportBatch(
        conversations=folded.select(pl.Series("key", batch.row.gather(folded["row"])), "id", "conversations", "tools"),
        origins=_origins(batch, metadata_json(table, mapping), folded["row"], members, repaired),
        rejects=pl.concat([batch.rejects.select(*REJECTS), _rejects(batch, refused, members)]).sort("row"),
        corrections=_corrections(batch),
    )
    return parcel, _warnings(findings, refused)


def drop_export_columns(table: pl.DataFrame) -> pl.DataFrame:
    """The table without the columns that an export of rejects added."""
    return table.drop(EXPORT_COLUMNS, strict=False)


def join_batches(batches: Iterable[Batch]) -> Batch:
    """All batches as one, for shapes whose conversations may span batches."""
    parts = list(batches)
    ends = pl.Series([part.table.height for part in parts], dtype=pl.Int64).cum_sum()

    def raw(positions: pl.Series) -> pl.Series:
        part = ends.search_sorted(positions, side="right")
        pieces = [
            parts[number].raw(positions.filter(part == number) - (ends[number] - parts[number].table.height))
            for number in part.unique().sort()
        ]
        return pl.concat(pieces) if pieces else pl.Series([], dtype=pl.String)

    return Batch(
        pl.concat([part.table for part in parts], how="diagonal"),
        pl.concat([part.row for part in parts]),
        pl.concat([part.line for part in parts]),
        pl.concat([part.rejects for part in parts]),
        raw,
    )


def _refused(problems: pl.DataFrame, findings: pl.DataFrame) -> pl.DataFrame:
    """Row, code, reason of every conversation that is not taken: what could not be read, then what breaks a rule."""
    broken = findings.filter(pl.col("severity") == "reject").select("row", "code", "reason")
    return pl.concat([problems, broken]).unique("row", keep="first", maintain_order=True)


def _folded(turns: pl.DataFrame, tools: pl.DataFrame, refused: pl.DataFrame) -> pl.DataFrame:
    """The conversations of the rows that are taken."""
    if refused.height:
        turns = turns.filter(~pl.col("row").is_in(refused["row"].implode()))
    if tools.is_empty():
        return fold(turns)
    rows = turns.select(pl.col("row").unique(maintain_order=True))
    return fold(turns, rows.join(tools, on="row", how="left", maintain_order="left")["tools"])


def _origins(
    batch: Batch, metadata: pl.Series, taken: pl.Series, members: pl.DataFrame | None, repaired: pl.DataFrame
) -> pl.DataFrame:
    """Where the taken conversations came from: one line per row of the source."""
    places = pl.DataFrame({"position": taken, "owner": taken})
    if members is not None:
        places = members.select("position", owner="row").filter(pl.col("owner").is_in(taken.implode())).sort("position")
    position = places["position"]
    origins = pl.DataFrame(
        {
            "row": batch.row.gather(position),
            "line": batch.line.gather(position),
            "key": batch.row.gather(places["owner"]),
            "metadata": metadata.gather(position),
        }
    )
    if repaired.is_empty():
        return origins.with_columns(repairs=pl.lit(None, pl.List(pl.String)), raw=pl.lit(None, pl.String))
    repairs = places.join(repaired, left_on="owner", right_on="row", how="left", maintain_order="left")["repairs"]
    kept_raw = position.filter(repairs.is_not_null())
    raws = pl.DataFrame({"row": batch.row.gather(kept_raw), "raw": batch.raw(kept_raw)})
    return origins.with_columns(repairs=repairs).join(raws, on="row", how="left", maintain_order="left")


def _rejects(batch: Batch, refused: pl.DataFrame, members: pl.DataFrame | None) -> pl.DataFrame:
    """The rows of conversations that are not taken, as they were read."""
    if refused.is_empty():
        return pl.DataFrame(schema=REJECTS)
    places = refused.with_columns(position="row")
    if members is not None:
        places = members.join(refused, on="row", how="inner")
    places = places.sort("position")
    position = places["position"]
    return pl.DataFrame(
        {
            "row": batch.row.gather(position),
            "line": batch.line.gather(position),
            "code": places["code"],
            "reason": places["reason"],
            "raw": batch.raw(position),
        }
    )


def _warnings(findings: pl.DataFrame, refused: pl.DataFrame) -> dict[str, int]:
    """How many taken conversations break each rule that only warns."""
    warnings = findings.filter(pl.col("severity") == "warning").join(refused, on="row", how="anti")
    return dict(warnings.group_by("code").agg(pl.col("row").n_unique()).iter_rows())


def _first_different(conversations: pl.DataFrame) -> list[dict[str, Any]]:
    first = conversations.head(100 * EXAMPLES).drop("key").unique("id", keep="first", maintain_order=True)
    return first.head(EXAMPLES).to_dicts()


def _corrections(batch: Batch) -> pl.DataFrame:
    """The rejects that the rows of a batch correct, from the first of `EXPORT_COLUMNS`; `by` is the correcting row."""
    column = EXPORT_COLUMNS[0]
    if column not in batch.table.columns:
        return pl.DataFrame(schema=CORRECTIONS)
    parts = batch.table[column].str.splitn(":", 2).struct
    row = parts.field("field_1").cast(pl.Int64, strict=False)
    return pl.DataFrame({"source": parts.field("field_0"), "row": row, "by": batch.row}).drop_nulls()
