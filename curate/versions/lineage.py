"""An id or a place in a file → the lineage of that row: origins, scores, verdicts, versions, runs; or its reject."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from curate.ingest.readers.byte_stream import ByteStream, split_lines
from curate.versions.removed_rows import RemovedRow, find_removed_at, find_removed_ids, find_removed_rows
from schemas.conversation import Conversation, preview_prompts
from schemas.errors import SourceError, TrainError, VersionError
from schemas.ledger import LEDGER_FILE, read_ledger
from schemas.run import resolve_run
from schemas.store import folder_of
from schemas.text import join_names
from schemas.timing import timed

PREFIX = re.compile(r"[0-9a-fA-F]{4,32}")
PLACE = re.compile(r"(?P<file>.+)(?P<by>[:#])(?P<number>\d+)", re.DOTALL)
MOST_NAMES = 10
"""Ids or paths that an error message lists."""

MOST_RECORDS = 20
"""Records of one line that are traced together."""

RECORDS_SQL = """
    WITH records AS (
        SELECT source, "row", line, conversation, NULL AS code FROM origins
        UNION ALL SELECT source, "row", line, NULL, code FROM rejects
        UNION ALL SELECT source, "row", line, NULL, NULL FROM excluded_rows
    ), in_file AS (
        SELECT source, "row", if($by = '#', "row", coalesce(line, "row")) AS start, conversation
        FROM records JOIN sources USING (source)
        WHERE path = $file OR ends_with(path, '/' || $file)
    )
    SELECT source, "row", start, conversation FROM in_file
    WHERE start = if($by = '#', $number, (
        SELECT max(start) FROM in_file AS same WHERE same.source = in_file.source AND same.start <= $number))
    ORDER BY source, "row"
"""
"""The record of a row number (`#`); or the records that start on a line, or else on the last line before it."""

LAST_RECORD_SQL = """
    SELECT mapping->>'$.format' AS format, path, sha256, mapping->>'$.encoding' AS encoding, (
        SELECT max(coalesce(line, "row")) FROM (SELECT source, "row", line FROM origins
                                                UNION ALL SELECT source, "row", line FROM rejects
                                                UNION ALL SELECT source, "row", line FROM excluded_rows) AS records
        WHERE records.source = sources.source) AS last
    FROM sources WHERE source = ?
"""
"""How a source was read, and the start of its last record."""

TEXT_SQL = """
    SELECT array_to_string(list_transform(conversations, lambda turn: turn.value), ''), metadata
    FROM origins JOIN conversations ON id = conversation WHERE source = $source AND "row" = $row
    UNION ALL SELECT raw, NULL FROM rejects WHERE source = $source AND "row" = $row
"""
"""The text of a record: of its turns, and its metadata as JSON; of a reject, the text as it was read."""

ORIGINS_SQL = """
    SELECT path, "row", line, duplicate, shape, sha256, imported_at, metadata, repairs, raw
    FROM origins JOIN sources USING (source) WHERE conversation = ? ORDER BY sources.seq, "row"
"""
REJECT_SQL = """
    SELECT s.path, r."row", r.line, r.code, r.reason, r.raw,
           if(closing.seq >= s.seq, closing.path, NULL) AS corrected_in,
           if(closing.seq < s.seq, closing.path, NULL) AS again_of
    FROM rejects r JOIN sources s USING (source) LEFT JOIN sources closing ON closing.source = r.closed_by
    WHERE r.source = ? AND r."row" = ?
"""
EXCLUDED_SQL = """
    SELECT path, "row", line, mapping->>'$.sql' AS sql FROM excluded_rows JOIN sources USING (source)
    WHERE source = ? AND "row" = ?
"""
VERDICTS_SQL = """
    SELECT verdict, reason, by_whom, edited_to, decided_at FROM verdicts
    WHERE conversation = ? ORDER BY seq
"""
REVIEWS_SQL = """
    SELECT dataset, reviewer, status, answers, answered_at, blind FROM reviews WHERE conversation = ?
    ORDER BY seq
"""
CLUSTERS_SQL = """
    SELECT method, cluster, coalesce(d.nearest, own.nearest) AS nearest,
        coalesce(d.similarity, own.similarity) AS similarity, d.nearest IS NOT NULL AS selected, count(*) AS size
    FROM clusters own JOIN clusters USING (method, cluster)
    LEFT JOIN near_duplicates d ON d.conversation = own.conversation
    WHERE own.conversation = ? GROUP BY ALL ORDER BY method
"""
VERSIONS_SQL = """
    SELECT version, split, digest, frozen_at FROM members JOIN versions USING (version)
    WHERE conversation = ? ORDER BY name, number
"""
RUNS_SQL = """
    SELECT run, runs.version, split, status, adapter FROM runs JOIN members ON members.version = runs.version
    WHERE conversation = ? ORDER BY runs.seq
"""
MEMBERS_SQL = """
    SELECT other.conversation, other.nearest, other.similarity,
        coalesce(other.conversation = own.nearest, false) AS kept_instead
    FROM clusters own JOIN clusters other USING (method, cluster)
    WHERE own.conversation = ? AND other.conversation <> own.conversation
    ORDER BY other.nearest IS NOT NULL, other.similarity DESC, other.conversation LIMIT ?
"""
"""The other members of a conversation's cluster: the kept ones, then by their similarity to the one kept instead."""

CURRENT_VERDICT_SQL = "SELECT kept, by_whom, reason FROM current_verdicts WHERE conversation = ?"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A rejected row: its place, the code and reason of the rejection, and its text."""

    path: str
    row: int
    line: int | None
    code: str
    reason: str
    raw: str
    corrected_in: str | None
    """the file from which the corrected row was imported"""
    again_of: str | None = None
    """the file whose reject this row was meant to correct; that reject is still open"""

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {"rejected": asdict(self)}


@dataclass(frozen=True, slots=True)
class ExcludedRow:
    """A row that the SELECT of its import left out: its place and the SELECT."""

    path: str
    row: int
    line: int | None
    sql: str

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {"excluded": asdict(self)}


@dataclass(frozen=True, slots=True)
class Lineage:
    """Everything that the store and the ledgers of its runs contain about one conversation."""

    id: str
    conversation: Conversation
    parent: str | None
    edits: list[str]
    origins: Rows
    scores: dict[str, Any]
    current_verdict: dict[str, Any]
    verdicts: Rows
    reviews: Rows
    clusters: Rows
    versions: Rows
    runs: Rows
    removed: Rows
    """rows of removed imports: path, row, line, source, imported_at, removed_at, reason"""

    def as_json(self) -> dict[str, Any]:
        """The lineage as plain values."""
        turns = [turn.as_row() for turn in self.conversation.turns]
        values = {**asdict(self), "conversations": turns, "tools": self.conversation.tools}
        values.pop("conversation")
        return values


Found = Lineage | RejectedRow | ExcludedRow | RemovedRow
"""What is at a place: a conversation, or a row without one."""


@dataclass(frozen=True, slots=True)
class _Record:
    """A record of a source, the line (for `#` the row) on which it starts, and its conversation unless rejected."""

    source: str
    row: int
    start: int
    conversation: str | None


@timed("tracing")
def trace(connection: DuckDBPyConnection, query: str) -> list[Found]:
    """The lineages of an id or the beginning of one, of `FILE:LINE`, or of `FILE#ROW`.

    A line on which several records start gives several. What was deleted with its import gives its removed rows. Raises
    `VersionError` if nothing matches, if several ids begin with `query` (the message lists them), or if `query` is
    neither an id nor a place.
    """
    if PREFIX.fullmatch(query):
        id_ = _complete_id(connection, query.lower())
        stored = connection.execute("SELECT 1 FROM conversations WHERE id = ?", [id_]).fetchall()
        return [_read_lineage(connection, id_)] if stored else [*find_removed_rows(connection, id_)]
    place = PLACE.fullmatch(query)
    if place is None:
        raise VersionError(
            f"{query!r} is neither an id nor a place in a file.",
            "Give at least 4 hex digits of an id, or a place such as data.csv:7 (line) or data.csv#6 (row).",
        )
    file, by, number = place["file"], place["by"], int(place["number"])
    if not _records_at(connection, place) and (removed := find_removed_at(connection, file, by, number)):
        return [*removed]
    return [_read_record(connection, record) for record in _find_records(connection, place)]


def list_near_duplicates(connection: DuckDBPyConnection, id_: str, limit: int) -> Rows:
    """The first `limit` other conversations of its near-duplicate cluster, each with the beginning of its question.

    `similarity` is that of a conversation to the one that is kept instead of it (`nearest`), null for a kept one.
    """
    members: Rows = connection.sql(MEMBERS_SQL, params=[id_, limit]).pl().to_dicts()
    prompts = preview_prompts(connection, [member["conversation"] for member in members])
    return [{**member, "prompt": prompts[member["conversation"]]} for member in members]


def find_earlier_line(connection: DuckDBPyConnection, query: str) -> int | None:
    """The line on which the records of `FILE:LINE` start, if it is not LINE itself; None for all other queries.

    LINE may be inside the record or after the last one: the store does not contain the lines on which records end.
    """
    place = PLACE.fullmatch(query)
    if place is None or place["by"] == "#":
        return None
    start = max((record.start for record in _records_at(connection, place)), default=None)
    return None if start == int(place["number"]) else start


def _complete_id(connection: DuckDBPyConnection, prefix: str) -> str:
    """The one id that begins with `prefix`."""
    query = "SELECT id FROM conversations WHERE starts_with(id, ?) ORDER BY id LIMIT ?"
    ids = [str(id_) for (id_,) in connection.execute(query, [prefix, MOST_NAMES + 1]).fetchall()]
    ids = ids or find_removed_ids(connection, prefix, MOST_NAMES + 1)
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise VersionError(f"No conversation id begins with {prefix}.", "Give a line of a file instead: data.csv:7.")
    more = " and more" if len(ids) > MOST_NAMES else ""
    raise VersionError(
        f"Several conversation ids begin with {prefix}: {', '.join(ids[:MOST_NAMES])}{more}.", "Give more digits."
    )


def _find_records(connection: DuckDBPyConnection, place: re.Match[str]) -> list[_Record]:
    """The records at a place. Raises `VersionError` if there are none or too many."""
    candidates, file = _records_at(connection, place), place["file"]
    if not candidates:
        raise _no_such_place(connection, place)
    start = candidates[0].start
    records = [record for record in candidates if not _ends_before(connection, record, int(place["number"]))]
    if not records:
        raise VersionError(
            f"{file} has no record on line {place['number']}: its last one starts on line {start}.",
            f"curate trace {file}:{start}",
        )
    if len(records) > MOST_RECORDS and len({record.row for record in records}) == 1:
        ids = join_names([record.conversation for record in records if record.conversation], MOST_NAMES)
        raise VersionError(
            f"Row {records[0].row} of {file} has {len(records):,} conversations.", f"Trace one by its id: {ids}."
        )
    if len(records) > MOST_RECORDS:
        raise VersionError(
            f"{len(records):,} records start on line {records[0].start} of {file}.",
            f"Give the number of a row, such as {file}#{records[0].row}.",
        )
    return records


def _records_at(connection: DuckDBPyConnection, place: re.Match[str]) -> list[_Record]:
    """The records that start at a place, or at the last start before it."""
    params = {"file": _imported_path(connection, place["file"]), "by": place["by"], "number": int(place["number"])}
    return [_Record(*row) for row in connection.execute(RECORDS_SQL, params).fetchall()]


def _imported_path(connection: DuckDBPyConnection, file: str) -> str:
    """The path, or end of a path, under which a file was imported: `file`, or another path to the same file."""
    paths = _imported_paths(connection)
    if any(path == file or path.endswith(f"/{file}") for path in paths):
        return file
    absolute = os.path.abspath(file)  # noqa: PTH100 - Path.resolve raises for a NUL, which a user may type
    return next((path for path in paths if os.path.abspath(path) == absolute), file)  # noqa: PTH100


def _imported_paths(connection: DuckDBPyConnection) -> list[str]:
    return [path for (path,) in connection.sql("SELECT DISTINCT path FROM sources ORDER BY path").fetchall()]


def _ends_before(connection: DuckDBPyConnection, record: _Record, line: int) -> bool:
    """Whether the last record of a source ends before `line`: its cells have no more line breaks than its texts.

    The layout of a JSON array is arbitrary, so its end is read from the file, if the file is unchanged.
    """
    (source,) = connection.sql(LAST_RECORD_SQL, params=[record.source]).pl().to_dicts()
    if record.start != source["last"] or line <= record.start:
        return False
    if source["format"] == "json":
        end = _end_of_array(source["path"], source["sha256"], source["encoding"])
        return end is not None and line > end
    texts = connection.execute(TEXT_SQL, {"source": record.source, "row": record.row}).fetchall()
    breaks = max((text.count("\n") + (metadata or "").count("\\n") for text, metadata in texts), default=0)
    return bool(line > record.start + breaks)


def _end_of_array(path: str, sha256: str, encoding: str | None) -> int | None:
    """The line on which the last record of a JSON file ends; None if the file is missing or was changed."""
    if not Path(path).is_file():
        return None
    stream, end = ByteStream(path, encoding), None
    try:
        for chunk in stream.chunks(split_lines):
            text = chunk.data.tobytes().rstrip(b" \t\r\n]")
            end = chunk.first_line + text.count(b"\n") if text else end
    except SourceError:
        return None
    return end if stream.sha256 == sha256 else None


def _no_such_place(connection: DuckDBPyConnection, place: re.Match[str]) -> VersionError:
    file, number = _imported_path(connection, place["file"]), place["number"]
    paths = _imported_paths(connection)
    imported = any(path == file or path.endswith(f"/{file}") for path in paths)
    if imported and place["by"] == "#":
        return VersionError(f"{file} has no row {number}.", "Rows count from 1, without the header and blank lines.")
    if imported:
        return VersionError(
            f"No record of {file} starts on line {number} or before.", "The first line may be a header."
        )
    hint = f"Imported files: {join_names(paths, MOST_NAMES)}." if paths else "curate import FILE"
    return VersionError(f"Nothing was imported from {file}.", hint)


def _read_record(connection: DuckDBPyConnection, record: _Record) -> Found:
    if record.conversation is not None:
        return _read_lineage(connection, record.conversation)
    place = [record.source, record.row]
    if excluded := connection.sql(EXCLUDED_SQL, params=place).pl().to_dicts():
        return ExcludedRow(**excluded[0])
    (reject,) = connection.sql(REJECT_SQL, params=place).pl().to_dicts()
    return RejectedRow(**reject)


def _read_lineage(connection: DuckDBPyConnection, id_: str) -> Lineage:
    def rows(query: str) -> Rows:
        return list(connection.sql(query, params=[id_]).pl().to_dicts())

    (row,) = rows("SELECT conversations, tools, parent FROM conversations WHERE id = ?")
    scores: dict[str, Any] = next(iter(rows("SELECT * FROM scores WHERE conversation = ?")), {})
    return Lineage(
        id=id_,
        conversation=Conversation.from_row(row),
        parent=row["parent"],
        edits=[edit["id"] for edit in rows("SELECT id FROM conversations WHERE parent = ? ORDER BY id")],
        origins=[_parse_metadata(origin) for origin in rows(ORIGINS_SQL)],
        scores={name: score for name, score in scores.items() if name != "conversation" and score is not None},
        current_verdict=next(iter(rows(CURRENT_VERDICT_SQL)), {}),
        verdicts=rows(VERDICTS_SQL),
        reviews=rows(REVIEWS_SQL),
        clusters=rows(CLUSTERS_SQL),
        versions=rows(VERSIONS_SQL),
        runs=[_add_ledger(connection, run, id_) for run in rows(RUNS_SQL)],
        removed=[asdict(row) for row in find_removed_rows(connection, id_)],
    )


def _parse_metadata(origin: dict[str, Any]) -> dict[str, Any]:
    return {**origin, "metadata": json.loads(origin["metadata"]) if origin["metadata"] else None}


def _add_ledger(connection: DuckDBPyConnection, run: dict[str, Any], id_: str) -> dict[str, Any]:
    status, adapter = resolve_run(folder_of(connection), run["run"], run["adapter"], run["status"])
    unfinished = {"ledger": None, "note": "a run writes its ledger when it ends"}
    ledger = _read_ledger(adapter, id_) if status == "done" else unfinished
    return {**run, "status": status, "adapter": str(adapter), **ledger}


def _read_ledger(adapter: Path, id_: str) -> dict[str, Any]:
    """The conversation in a run's ledger: `ledger` (a row or None), and `note` (why there is none).

    If the conversation was divided into windows, `ledger` is the first of them and `windows` has all.
    """
    path = adapter / LEDGER_FILE
    if not path.is_file():
        return {"ledger": None, "note": f"{path} does not exist"}
    try:
        rows = read_ledger(path, id_)
    except TrainError as error:
        return {"ledger": None, "note": error.what}
    ledger = {"ledger": next(iter(rows.to_dicts()), None), "note": None if rows.height else "not in its ledger"}
    return ledger if rows.height <= 1 else {**ledger, "windows": rows.to_dicts()}
