"""Batches of records → import batches: columns to turns, repairs, validation, rejects.

This module does not access the store. Every row of a batch is in its import batch exactly once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curate.ingest.call_markup import read_call_markup
from curate.ingest.cell_problems import missing_values, unusable_values
from curate.ingest.column_mapping import extend_mapping, metadata_json, parse_table
from curate.ingest.media import media_problems
from curate.ingest.named_split import SPLIT_COLUMN
from curate.ingest.readers import REJECTS, Batch
from curate.ingest.readers.batch import EXPORT_COLUMNS, REJECT_COLUMN, UNUSABLE
from curate.ingest.repair_advice import RepairAdvice, RepairTrial, rival_rows, try_repairs
from curate.ingest.repairs import repair
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.shape import IMPORT_COMMAND, ColumnMapping, ParsedTable
from curate.ingest.shapes.system_prompt import add_system_prompt
from curate.ingest.validation import Limits, find_rows, validate
from curate.ingest.writer import CORRECTIONS, FILE_ROWS, ImportBatch
from schemas.conversation import fold
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection
from schemas.text import shell_quote

EXAMPLES = 3
"""Conversations shown by a dry run."""


@dataclass(slots=True)
class Conversion:
    """The conversion of one source to conversations, and its results so far."""

    path: str
    mapping: ColumnMapping
    """extended by the optional columns of later batches"""
    section: ImportSection
    split: str | None = None
    """the split that the source is named after"""
    mapped: pl.DataFrame | None = None
    """the table in which `mapping` was found"""
    described_by: str | None = None
    """the entry of a `dataset_info.json` that describes the source"""
    columns: tuple[str, ...] = ()
    rows: int = 0
    conversations: int = 0
    several: bool = False
    """whether some row has several conversations"""
    warnings: Counter[str] = field(default_factory=Counter)
    """code → conversations"""
    warning_examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    """code → row, line and reason of the first conversation"""
    advice: dict[str, RepairAdvice] = field(default_factory=dict)
    """code of a reject or warning → the repairs that were tried on the first batch with it"""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """the first conversations"""

    def convert_all(self, batches: Iterable[Batch]) -> Iterator[ImportBatch]:
        """One import batch per batch. Raises `SourceError` if a batch contradicts the mapping."""
        for batch in batches:
            self.rows += batch.records
            with prefix_errors(self.path):
                if batch.table.height and batch.table is not self.mapped:
                    self.mapping = extend_mapping(self.mapping, drop_export_columns(batch.table), self.section)
                if batch.table.height:
                    table = batch.table.drop(UNUSABLE, strict=False)
                    self.columns = tuple(dict.fromkeys([*self.columns, *table.columns]))
                converted, notes = convert(
                    batch,
                    self.mapping,
                    self.section,
                    first_key=self.conversations,
                    split=self.split,
                    known=self.advice,
                )
            self.conversations += converted.conversations.height
            self.several = self.several or batch.sources is not None or converted.rows > batch.records
            self.add_notes(notes.get(0, BatchNotes()))
            self.examples = self.examples or first_distinct(converted.conversations)
            yield converted

    def add_notes(self, notes: BatchNotes) -> None:
        """Add the warnings and repairs of the next batch."""
        self.warnings.update(notes.warnings)
        self.warning_examples = {**notes.warning_examples, **self.warning_examples}
        self.advice |= notes.advice


@contextmanager
def prefix_errors(path: str) -> Iterator[None]:
    """Add the path of the source to the messages and commands of `SourceError`; a command may import many files."""
    try:
        yield
    except SourceError as error:
        command = f"{IMPORT_COMMAND.removesuffix('FILE')}{shell_quote(path)}"
        raise SourceError(f"{path}: {error.what}", error.hint.replace(IMPORT_COMMAND, command)) from error


@dataclass(frozen=True, slots=True)
class BatchNotes:
    """What the report says about a batch: warnings and repairs, by code."""

    warnings: dict[str, int] = field(default_factory=dict)
    warning_examples: dict[str, dict[str, Any]] = field(default_factory=dict)
    advice: dict[str, RepairAdvice] = field(default_factory=dict)


def convert(
    batch: Batch,
    mapping: ColumnMapping,
    section: ImportSection,
    *,
    first_key: int = 0,
    split: str | None = None,
    known: Collection[str] = (),
) -> tuple[ImportBatch, dict[int, BatchNotes]]:
    """Parse, repair, validate and fold the rows of one batch; also the notes on each of its files that has some.

    `first_key` is the key of the first conversation; keys distinguish the conversations of a source. `split` becomes
    metadata of rows without a column of this name. Repairs are not tried for `known` codes. The number of the file is 0
    unless row numbers contain one (`FILE_ROWS`).
    """
    table = drop_export_columns(batch.table)
    parsed, read_calls = read_call_markup(parse_table(table, mapping))
    turns, repaired = repair(parsed.turns, section.repair, section.substitute)
    if section.system:
        turns = add_system_prompt(turns, section.system)
    findings = validate(turns, parsed.tools, has_questions=SHAPES[mapping.shape].has_questions)
    rivals = rival_rows(table, parsed.members) if mapping.shape == "long" else pl.Series([], dtype=pl.Int64)
    unusable, stored = unusable_values(batch.table, mapping, parsed, every=section.sql is not None)
    warned = {"rival-replies": rivals, "calls-in-text": read_calls, "unusable-metadata": stored}
    more = [find_rows(code, rows.to_frame("row"), Limits()) for code, rows in warned.items()]
    findings = pl.concat([findings, *more])
    missing = missing_values(table, mapping, parsed)
    media = media_problems(table, mapping, parsed.turns, parsed.members)
    problems = pl.concat([unusable, missing, parsed.problems, media])
    rejected = _first_problems(problems, findings)
    folded = _fold_accepted(turns, parsed.tools, rejected)
    members = _members(batch, parsed)
    keys = folded.select("row", key=pl.int_range(first_key, first_key + pl.len()))
    converted = ImportBatch(
        conversations=folded.select(keys["key"], "id", "conversations", "tools"),
        origins=_origins(batch, metadata_json(_with_split(table, split), mapping), keys, members, repaired),
        rejects=pl.concat([batch.rejects.select(*REJECTS), _rejects(batch, rejected, members)]).sort("row"),
        corrections=_corrections(batch),
        excluded=batch.excluded,
    )
    if findings.is_empty():
        return converted, {}
    warnings = findings.filter(pl.col("severity") == "warning").join(rejected, on="row", how="anti")
    rejecting = findings.filter((pl.col("severity") == "reject") & ~pl.col("row").is_in(rivals.implode()))
    trials = try_repairs(
        turns, parsed.tools, pl.concat([rejecting, warnings]), known, has_questions=SHAPES[mapping.shape].has_questions
    )
    return converted, _notes_by_file(_locate(warnings, batch, members), trials, batch, members)


def _members(batch: Batch, parsed: ParsedTable) -> pl.DataFrame | None:
    """Each conversation (`row`) with the `position` and `record` of its rows; None if each is one row and record."""
    if batch.sources is None:
        return parsed.members.with_columns(record="position") if parsed.members.height else None
    if not parsed.members.height:
        return batch.sources.with_columns(row="position")
    members = parsed.members.join(batch.sources, on="position", maintain_order="left")
    return members.unique(["row", "record"], keep="first", maintain_order=True)


def _with_split(table: pl.DataFrame, split: str | None) -> pl.DataFrame:
    return (
        table
        if split is None or SPLIT_COLUMN in table.columns
        else table.with_columns(pl.lit(split).alias(SPLIT_COLUMN))
    )


def drop_export_columns(table: pl.DataFrame) -> pl.DataFrame:
    """The table without the columns added by an export of rejects, and without that of unusable values."""
    return table.drop(*EXPORT_COLUMNS, UNUSABLE, strict=False)


def join_batches(batches: Iterable[Batch]) -> Batch:
    """All batches as one, for shapes whose conversations may span batches."""
    parts = list(batches)
    if len(parts) == 1:
        return parts[0]
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
        excluded=pl.concat([part.excluded for part in parts]),
    )


def _first_problems(problems: pl.DataFrame, findings: pl.DataFrame) -> pl.DataFrame:
    """Row, code and reason of every rejected conversation: parse problems first, then violated rules."""
    violations = findings.filter(pl.col("severity") == "reject").select("row", "code", "reason")
    return pl.concat([problems, violations]).unique("row", keep="first", maintain_order=True)


def _fold_accepted(turns: pl.DataFrame, tools: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    """The conversations of the rows that are not rejected."""
    if rejected.height:
        turns = turns.filter(~pl.col("row").is_in(rejected["row"].implode()))
    if tools.is_empty():
        return fold(turns)
    rows = turns.select(pl.col("row").unique(maintain_order=True))
    return fold(turns, rows.join(tools, on="row", how="left", maintain_order="left")["tools"])


def _origins(
    batch: Batch, metadata: pl.Series, keys: pl.DataFrame, members: pl.DataFrame | None, repaired: pl.DataFrame
) -> pl.DataFrame:
    """The origins of the accepted conversations (`row`, `key`): one per row of the source that a conversation uses."""
    if members is None:
        owners = keys.with_columns(position="row", record="row")
    else:
        owners = members.join(keys, on="row", how="inner").sort("record", "row")
    record = owners["record"]
    origins = pl.DataFrame(
        {
            "row": batch.row.gather(record),
            "line": batch.line.gather(record),
            "key": owners["key"],
            "metadata": metadata.gather(owners["position"]),
        }
    )
    if repaired.is_empty():
        return origins.with_columns(repairs=pl.lit(None, pl.List(pl.String)), raw=pl.lit(None, pl.String))
    repairs = owners.join(repaired, on="row", how="left", maintain_order="left")["repairs"]
    changed = record.filter(repairs.is_not_null()).unique(maintain_order=True)
    raw = pl.DataFrame({"row": batch.row.gather(changed), "raw": batch.raw(changed)})
    return origins.with_columns(repairs=repairs).join(raw, on="row", how="left", maintain_order="left")


def _rejects(batch: Batch, rejected: pl.DataFrame, members: pl.DataFrame | None) -> pl.DataFrame:
    """The rows of rejected conversations with their original text, each row once."""
    if rejected.is_empty():
        return pl.DataFrame(schema=REJECTS)
    rows = rejected.with_columns(record="row") if members is None else _reasons_by_record(rejected, members)
    rows = rows.sort("record")
    return batch.texts_at(rows["record"]).with_columns(rows["code"], rows["reason"]).select(*REJECTS)


def _reasons_by_record(rejected: pl.DataFrame, members: pl.DataFrame) -> pl.DataFrame:
    """`record`, `code`, `reason` of each row with a rejected conversation.

    The reason for a row with several conversations names those that are rejected; the code is that of the first.
    """
    number, several = pl.int_range(1, pl.len() + 1).over("record"), pl.col("of") > 1
    numbered = members.sort("record", "row").with_columns(number=number, of=pl.len().over("record"))
    found = numbered.join(rejected, on="row", how="inner", maintain_order="left")
    by_reason = found.group_by("record", "of", "code", "reason", maintain_order=True).agg(
        plural=pl.when(pl.len() > 1).then(pl.lit("s")).otherwise(pl.lit("")),
        numbers=pl.col("number").cast(pl.String).str.join(", "),
    )
    reason = pl.format("Conversation{} {} of {}: {}", "plural", "numbers", "of", "reason")
    sentences = by_reason.with_columns(pl.when(several).then(reason).otherwise("reason").alias("reason"))
    return sentences.group_by("record", maintain_order=True).agg(pl.first("code"), pl.col("reason").str.join(" "))


def _locate(warnings: pl.DataFrame, batch: Batch, members: pl.DataFrame | None) -> pl.DataFrame:
    """The warnings, sorted by conversation, with the `file`, `number` and `line` of the first row of each."""
    found = warnings.sort("row", maintain_order=True).select("code", "reason", conversation="row")
    record = _first_record(found["conversation"], members)
    number = batch.row.gather(record)
    return found.with_columns(
        (number // FILE_ROWS).alias("file"), (number % FILE_ROWS).alias("row"), batch.line.gather(record).alias("line")
    )


def _first_record(conversations: pl.Series, members: pl.DataFrame | None) -> pl.Series:
    """The position of the first record of each conversation."""
    if members is None:
        return conversations
    first = members.group_by("row").agg(pl.col("record").min())
    return conversations.to_frame("row").join(first, on="row", how="left", maintain_order="left")["record"]


def _notes_by_file(
    warnings: pl.DataFrame, trials: Mapping[str, RepairTrial], batch: Batch, members: pl.DataFrame | None
) -> dict[int, BatchNotes]:
    """Number of accepted conversations and first example per file and warning, and results of trials per file."""
    notes: defaultdict[int, BatchNotes] = defaultdict(BatchNotes)
    examples = warnings.group_by("file", "code", maintain_order=True).agg(
        pl.col("conversation").n_unique(), pl.first("row", "line", "reason")
    )
    for file, code, count, row, line, reason in examples.iter_rows():
        notes[file].warnings[code] = count
        notes[file].warning_examples[code] = {"row": row, "line": line, "reason": reason}
    for code, trial in trials.items():
        tried, repaired = (
            Counter((batch.row.gather(_first_record(rows, members)) // FILE_ROWS).to_list())
            for rows in (trial.tried, trial.repaired)
        )
        for file, count in tried.items():
            notes[file].advice[code] = RepairAdvice(trial.repairs, count, repaired[file])
    return dict(notes)


def first_distinct(conversations: pl.DataFrame) -> list[dict[str, Any]]:
    """The first distinct conversations, as many as a dry run shows."""
    first = conversations.head(100 * EXAMPLES).drop("key").unique("id", keep="first", maintain_order=True)
    return first.head(EXAMPLES).to_dicts()


def _corrections(batch: Batch) -> pl.DataFrame:
    """The rejects that rows correct, from the column `_curate_reject` (`source:row`); `by` is the correcting row."""
    if REJECT_COLUMN not in batch.table.columns:
        return pl.DataFrame(schema=CORRECTIONS)
    parts = batch.table[REJECT_COLUMN].str.splitn(":", 2).struct
    row = parts.field("field_1").cast(pl.Int64, strict=False)
    by = batch.row if batch.sources is None else _first_records(batch.row, batch.sources)
    return (
        pl.DataFrame({"source": parts.field("field_0"), "row": row, "by": by}).drop_nulls().unique(maintain_order=True)
    )


def _first_records(row: pl.Series, sources: pl.DataFrame) -> pl.Series:
    """The number of the first record of each row of a table."""
    return row.gather(sources.unique("position", keep="first", maintain_order=True)["record"])
