"""Open files → groups of consecutive small files, whose rows are converted together.

A conversion evaluates a hundred expressions, each of which takes longer to start than to process a few rows. Files with
the same columns and mapping are converted as one table; the result of each is the same as alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl

from curate.ingest.convert import BatchNotes, convert, join_batches
from curate.ingest.file_hash import Digest
from curate.ingest.open_file import SMALL_FILE, OpenFile
from curate.ingest.readers import Batch
from curate.ingest.readers.batch import UNUSABLE
from curate.ingest.shapes import SHAPES
from curate.ingest.writer import FILE_ROWS, ImportBatch, concat_batches
from schemas.errors import SourceError

MAX_FILES = 100
"""Files of a group: fewer make the start-up of the expressions noticeable, more delay the thread that writes them."""

MAX_BYTES = 8 << 20
"""Bytes of a group, so that a group needs no more memory than a large file."""

_END_WORDS = ["END", "STOP"]
"""Whether these are markers at the end of an answer depends on all answers of the file."""


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Consecutive small files, and the rows of all; row numbers contain the number of the file (`FILE_ROWS`)."""

    files: list[OpenFile]
    batch: ImportBatch

    def select(self, numbers: Iterable[int]) -> ImportBatch:
        """The rows of some of the files."""
        chosen = [*numbers]
        if len(chosen) == len(self.files):
            return self.batch
        is_chosen = (pl.col("row") // FILE_ROWS).is_in(chosen)
        origins = self.batch.origins.filter(is_chosen)
        return replace(
            self.batch,
            conversations=self.batch.conversations.join(origins, on="key", how="semi", maintain_order="left"),
            origins=origins,
            rejects=self.batch.rejects.filter(is_chosen),
            excluded=self.batch.excluded.filter(is_chosen),
        )


def split_files(
    files: Iterable[str], start_digest: Callable[[str], Digest | None]
) -> Iterator[dict[str, Digest | None]]:
    """The files in order, with their digests, in parts that are opened together: one file, or several small ones."""
    part: dict[str, Digest | None] = {}
    size = 0
    for path in files:
        digest = start_digest(path)
        is_small = digest is not None and digest.size <= SMALL_FILE
        size += digest.size if digest is not None else 0
        if part and (not is_small or len(part) == MAX_FILES or size > MAX_BYTES):
            yield part
            part, size = {}, digest.size if digest is not None else 0
        part[path] = digest
        if not is_small:
            yield part
            part, size = {}, 0
    if part:
        yield part


def group_files(files: Iterable[OpenFile], committed: int) -> Iterator[OpenFile | FileGroup]:
    """The same files in order; consecutive small ones as groups, which end where `committed` files are complete."""
    waiting: list[OpenFile] = []
    for number, file in enumerate(files, 1):
        if file.whole is not None:
            waiting.append(file)
        total = sum(each.source.bytes for each in waiting)
        is_full = len(waiting) == MAX_FILES or total >= MAX_BYTES or number % committed == 0
        if waiting and (is_full or file.whole is None):
            yield _group(waiting)
            waiting = []
        if file.whole is None:
            yield file
    if waiting:
        yield _group(waiting)


def _group(files: list[OpenFile]) -> FileGroup:
    """The group of `files`, converted in as few tables as possible."""
    tables: dict[object, list[int]] = {}
    for number, file in enumerate(files):
        tables.setdefault(_table_key(file) or number, []).append(number)
    converted: list[ImportBatch] = []
    keys = 0
    for numbers in itertools.chain.from_iterable(_set_apart(files, numbers) for numbers in tables.values()):
        converted.append(_convert({number: files[number] for number in numbers}, keys))
        keys += converted[-1].conversations.height
    batch = concat_batches(converted)
    return FileGroup(list(files), batch if len(converted) == 1 else _sort(batch))


def _table_key(file: OpenFile) -> object:
    """Equal for files that can be converted as one table; None if a file has to be converted alone."""
    whole, conversion = file.whole, file.conversion
    if whole is None or whole.sources is not None or SHAPES[conversion.mapping.shape].spans_rows:
        return None
    if UNUSABLE in whole.table.columns:
        return None
    return repr(conversion.mapping), tuple(whole.table.columns), conversion.split, conversion.section.model_dump_json()


def _set_apart(files: Sequence[OpenFile], numbers: list[int]) -> list[list[int]]:
    """The numbers of the files of a table, in which each file with one of `_END_WORDS` is apart."""
    tables = [whole.table for number in numbers if (whole := files[number].whole) is not None]
    if len(numbers) == 1 or not tables[0].width:
        return [numbers]
    has_word = pl.concat(tables).select(pl.any_horizontal(pl.all().str.contains_any(_END_WORDS))).to_series()
    of = pl.Series(numbers).repeat_by(pl.Series([table.height for table in tables])).explode()
    apart = set(of.filter(has_word))
    together = [number for number in numbers if number not in apart]
    return [*([together] if together else []), *([number] for number in sorted(apart))]


def _convert(files: dict[int, OpenFile], first_key: int) -> ImportBatch:
    """The rows of files that can be converted as one table."""
    if len(files) > 1:
        try:
            return _convert_together(files, first_key)
        except SourceError:
            pass  # the conversion of the single files names the one with the error
    alone: list[ImportBatch] = []
    for number, file in files.items():
        alone.append(_convert_alone(file, number, first_key))
        first_key += alone[-1].conversations.height
    return concat_batches(alone)


def _convert_together(files: dict[int, OpenFile], first_key: int) -> ImportBatch:
    batches = [_number(file.whole, number) for number, file in files.items() if file.whole is not None]
    first = next(iter(files.values())).conversion
    joined = join_batches(batches)
    whole = replace(joined, table=joined.table.rechunk())  # a part per file makes every expression slower
    converted, notes = convert(whole, first.mapping, first.section, first_key=first_key, split=first.split)
    for (number, file), batch in zip(files.items(), batches, strict=True):
        conversion = file.conversion
        conversion.rows = batch.records
        conversion.columns = tuple(batch.table.columns)
        conversion.add_notes(notes.get(number, BatchNotes()))
    return converted


def _number(batch: Batch, number: int) -> Batch:
    """The batch with the number of its file in its row numbers."""
    return replace(
        batch,
        row=batch.row + number * FILE_ROWS,
        rejects=_numbered(batch.rejects, number),
        excluded=_numbered(batch.excluded, number),
    )


def _convert_alone(file: OpenFile, number: int, first_key: int) -> ImportBatch:
    batch = concat_batches(list(file.batches))
    return replace(
        batch,
        conversations=batch.conversations.with_columns(pl.col("key") + first_key),
        origins=_numbered(batch.origins, number).with_columns(pl.col("key") + first_key),
        rejects=_numbered(batch.rejects, number),
        excluded=_numbered(batch.excluded, number),
    )


def _numbered(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    return frame.with_columns(pl.col("row") + number * FILE_ROWS) if frame.height else frame


def _sort(batch: ImportBatch) -> ImportBatch:
    """The rows of several tables in the order of the files: of equal conversations, the first one is kept."""
    files = batch.origins.group_by("key").agg(file=pl.col("row").first() // FILE_ROWS)
    conversations = batch.conversations.join(files, on="key", how="left", maintain_order="left")
    return replace(
        batch,
        conversations=conversations.sort("file", "key").drop("file"),
        origins=batch.origins.sort("row", "key"),
        rejects=batch.rejects.sort("row"),
        excluded=batch.excluded.sort("row"),
    )
