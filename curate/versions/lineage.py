"""Tracing: an id, or a line of a file, comes in; the whole journey of that row goes out, both ways.

From the line of a file to the conversation it became (or the reason why it became none), to what was thought of it,
to the versions it is in and to what became of it in every training.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from schemas.conversation import Conversation
from schemas.errors import SourceError, VersionError
from schemas.run import LEDGER_FILE, resolve_run
from schemas.store import folder_of
from schemas.text import join_names, printable

PREFIX = re.compile(r"[0-9a-fA-F]{4,32}")
PLACE = re.compile(r"(?P<file>.+)(?P<by>[:#])(?P<number>\d+)", re.DOTALL)
CANDIDATES = 10
RECORDS_PER_LINE = 20

PLACES_SQL = """
    WITH places AS (
        SELECT source, "row", line, conversation, NULL AS code FROM origins
        UNION ALL SELECT source, "row", line, NULL, code FROM rejects
    ), named AS (
        SELECT source, "row", if($by = '#', "row", coalesce(line, "row")) AS start, conversation
        FROM places JOIN sources USING (source)
        WHERE path = $file OR ends_with(path, '/' || $file)
    )
    SELECT source, "row", start, conversation FROM named
    WHERE start = if($by = '#', $number, (
        SELECT max(start) FROM named AS same WHERE same.source = named.source AND same.start <= $number))
    ORDER BY source, "row"
"""
"""The records that start on this line, or on the last line before it on which one starts; or the row of this number."""

LAST_SQL = """
    SELECT mapping->>'$.format' AS format, path, sha256, mapping->>'$.encoding' AS encoding, (
        SELECT max(coalesce(line, "row")) FROM (SELECT source, "row", line FROM origins
                                                UNION ALL SELECT source, "row", line FROM rejects) AS places
        WHERE places.source = sources.source) AS last
    FROM sources WHERE source = ?
"""
"""How a source was read, and where its last record starts."""

TEXT_SQL = """
    SELECT array_to_string(list_transform(conversations, lambda turn: turn.value), ''), metadata
    FROM origins JOIN conversations ON id = conversation WHERE source = $source AND "row" = $row
    UNION ALL SELECT raw, NULL FROM rejects WHERE source = $source AND "row" = $row
"""
"""What a record held: the texts of its cells and, as JSON, what stood beside them; or its text as it was read."""

ORIGINS_SQL = """
    SELECT path, "row", line, duplicate, shape, sha256, imported_at, metadata, repairs, raw
    FROM origins JOIN sources USING (source) WHERE conversation = ? ORDER BY imported_at, path, "row"
"""
REJECT_SQL = """
    SELECT s.path, r."row", r.line, r.code, r.reason, r.raw,
           if(closing.imported_at >= s.imported_at, closing.path, NULL) AS corrected_in,
           if(closing.imported_at < s.imported_at, closing.path, NULL) AS again_of
    FROM rejects r JOIN sources s USING (source) LEFT JOIN sources closing ON closing.source = r.closed_by
    WHERE r.source = ? AND r."row" = ?
"""
VERDICTS_SQL = """
    SELECT verdict, reason, by_whom, edited_to, decided_at FROM verdicts
    WHERE conversation = ? ORDER BY decided_at, rowid
"""
REVIEWS_SQL = """
    SELECT dataset, reviewer, status, answers, answered_at, blind FROM reviews WHERE conversation = ?
    ORDER BY answered_at, rowid
"""
CLUSTERS_SQL = """
    SELECT method, cluster, own.nearest, own.similarity, count(*) AS size
    FROM clusters own JOIN clusters USING (method, cluster)
    WHERE own.conversation = ? GROUP BY ALL ORDER BY method
"""
VERSIONS_SQL = """
    SELECT version, split, digest, frozen_at FROM members JOIN versions USING (version)
    WHERE conversation = ? ORDER BY name, number
"""
RUNS_SQL = """
    SELECT run, runs.version, split, status, adapter FROM runs JOIN members ON members.version = runs.version
    WHERE conversation = ? ORDER BY started_at
"""
STANDING_SQL = "SELECT kept, by_whom, reason FROM current_verdicts WHERE conversation = ?"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that became no conversation: where it stood, the rule and the reason, and its text."""

    path: str
    row: int
    line: int | None
    code: str
    reason: str
    raw: str
    corrected_in: str | None
    again_of: str | None = None
    """the file whose reject this row was to repair; that one is still open"""

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return {"rejected": asdict(self)}

    def lines(self) -> Iterator[str]:
        """The row for people, line by line."""
        yield f"{_where(self.path, self.row, self.line)} was rejected: {self.code}"
        yield f"  {self.reason}"
        if self.corrected_in:
            yield f"  brought back repaired by {self.corrected_in}"
        if self.again_of:
            yield f"  refused again: the reject of {self.again_of} that it names is the open one"
        yield f"  {_cut(self.raw)}"


@dataclass(frozen=True, slots=True)
class Journey:
    """All that the store, and the ledgers of its runs, know of one conversation."""

    id: str
    conversation: Conversation
    parent: str | None
    edits: list[str]
    origins: Rows
    scores: dict[str, Any]
    standing: dict[str, Any]
    verdicts: Rows
    reviews: Rows
    clusters: Rows
    versions: Rows
    runs: Rows

    def as_json(self) -> dict[str, Any]:
        """The journey as plain values."""
        turns = [turn.as_row() for turn in self.conversation.turns]
        values = {**asdict(self), "conversations": turns, "tools": self.conversation.tools}
        values.pop("conversation")
        return values

    def lines(self) -> Iterator[str]:
        """The journey for people, line by line."""
        yield f"conversation {self.id}"
        for turn in self.conversation.turns:
            marks = "" if turn.train else " (not learned)"
            yield f"  {turn.role}{marks}: {_cut(turn.value)}"
        if self.conversation.tools:
            yield f"  tools: {_cut(self.conversation.tools)}"
        yield from _listed("came from", map(_origin_line, self.origins))
        if self.parent:
            yield f"edited from {self.parent}"
        yield from _listed("edited to", self.edits)
        yield from _listed("near-duplicates", map(_cluster_line, self.clusters))
        yield from _listed("scores", (f"{name} {printable(value)}" for name, value in self.scores.items()))
        yield from _listed("verdicts", map(_verdict_line, self.verdicts))
        yield from _listed("reviews", map(_review_line, self.reviews))
        yield _standing_line(self.standing)
        yield from _listed("versions", (f"{v['version']}, {v['split']}" for v in self.versions))
        yield from _listed("runs", map(_run_line, self.runs))


def trace(connection: DuckDBPyConnection, asked: str) -> list[Journey | Refused]:
    """The journeys of what was asked for: an id or its beginning, `file:line`, or `file#row`.

    A line on which several records start gives several. Raises `VersionError` when nothing is found, when the
    beginning of an id fits several conversations (they are listed), or when the text is neither.
    """
    if PREFIX.fullmatch(asked):
        return [_journey(connection, _complete(connection, asked.lower()))]
    place = PLACE.fullmatch(asked)
    if place is None:
        raise VersionError(
            f"{asked!r} is neither an id nor a place in a file.",
            "Give at least 4 hex digits of an id, or a place such as data.csv:7 (line) or data.csv#6 (row).",
        )
    return [_found(connection, record) for record in _records(connection, place)]


def say_earlier(connection: DuckDBPyConnection, asked: str) -> str | None:
    """What to say beside the answer where it begins on an earlier line than the one that was asked for.

    The line may stand inside that record or behind the last one: the store does not know where a record ends.
    """
    place = PLACE.fullmatch(asked)
    if place is None or place["by"] == "#":
        return None
    start = max(start for _, _, start, _ in _places(connection, place))
    asked_for = f"No record of {place['file']} starts on line {place['number']}"
    return None if start == int(place["number"]) else f"{asked_for}; the last one before it starts on line {start}."


def _complete(connection: DuckDBPyConnection, prefix: str) -> str:
    """The one id that begins with `prefix`."""
    query = "SELECT id FROM conversations WHERE starts_with(id, ?) ORDER BY id LIMIT ?"
    ids = [one for (one,) in connection.execute(query, [prefix, CANDIDATES + 1]).fetchall()]
    if len(ids) == 1:
        return str(ids[0])
    if not ids:
        raise VersionError(f"No conversation's id begins with {prefix}.", "Ask for the line of a file: data.csv:7.")
    more = " and more" if len(ids) > CANDIDATES else ""
    raise VersionError(
        f"The ids of several conversations begin with {prefix}: {', '.join(ids[:CANDIDATES])}{more}.",
        "Give more digits.",
    )


def _records(connection: DuckDBPyConnection, place: re.Match[str]) -> list[tuple[str, int, str | None]]:
    """The records at a place: source, row, and the conversation, null where the row was rejected."""
    found, file = _places(connection, place), place["file"]
    if not found:
        raise _no_such_place(connection, place)
    start = found[0][2]
    found = [record for record in found if not _ends_before(connection, record, int(place["number"]))]
    if not found:
        raise VersionError(
            f"{file} has no record on line {place['number']}: its last one starts on line {start}.",
            f"curate trace {file}:{start}",
        )
    if len(found) > RECORDS_PER_LINE:
        raise VersionError(
            f"{len(found):,} records start on line {found[0][2]} of {file}.",
            f"Ask for one by its number, such as {file}#{found[0][1]}.",
        )
    return [(source, row, conversation) for source, row, _, conversation in found]


def _places(connection: DuckDBPyConnection, place: re.Match[str]) -> list[tuple[str, int, int, str | None]]:
    """The records at a place: source, row, the line on which it starts (for `#` its row again), and conversation."""
    params = {"file": _as_imported(connection, place["file"]), "by": place["by"], "number": int(place["number"])}
    return connection.execute(PLACES_SQL, params).fetchall()


def _as_imported(connection: DuckDBPyConnection, file: str) -> str:
    """The path, or its end, under which a file was imported: `file`, or another way from here to the same place."""
    paths = _imported(connection)
    if any(path == file or path.endswith(f"/{file}") for path in paths):
        return file
    here = os.path.abspath(file)  # noqa: PTH100 - Path.resolve refuses a NUL, which a person may type
    return next((path for path in paths if os.path.abspath(path) == here), file)  # noqa: PTH100


def _imported(connection: DuckDBPyConnection) -> list[str]:
    return [path for (path,) in connection.sql("SELECT DISTINCT path FROM sources ORDER BY path").fetchall()]


def _ends_before(connection: DuckDBPyConnection, record: tuple[str, int, int, str | None], line: int) -> bool:
    """Whether a source's last record ends before this line: its cells have no more line ends than its texts.

    An array of JSON may be laid out over any number of lines; there the file says it, as long as it is what it was.
    """
    source, row, start, _ = record
    (read,) = connection.sql(LAST_SQL, params=[source]).pl().to_dicts()
    if start != read["last"] or line <= start:
        return False
    if read["format"] == "json":
        end = _end_of_array(read["path"], read["sha256"], read["encoding"])
        return end is not None and line > end
    texts = connection.execute(TEXT_SQL, {"source": source, "row": row}).fetchall()
    return bool(line > start + max(text.count("\n") + (beside or "").count("\\n") for text, beside in texts))


def _end_of_array(path: str, sha256: str, encoding: str | None) -> int | None:
    """The line on which the last record of a JSON file ends; None where the file is gone or another one by now."""
    from curate.ingest.readers.byte_stream import ByteStream, split_lines

    if not Path(path).is_file():
        return None
    stream, end = ByteStream(path, encoding), None
    try:
        for chunk in stream.chunks(split_lines):
            held = chunk.data.tobytes().rstrip(b" \t\r\n]")
            end = chunk.first_line + held.count(b"\n") if held else end
    except SourceError:
        return None
    return end if stream.sha256 == sha256 else None


def _no_such_place(connection: DuckDBPyConnection, place: re.Match[str]) -> VersionError:
    file, number = _as_imported(connection, place["file"]), place["number"]
    paths = _imported(connection)
    imported = any(path == file or path.endswith(f"/{file}") for path in paths)
    if imported and place["by"] == "#":
        return VersionError(f"{file} has no row {number}.", "Rows count from 1, without the header and blank lines.")
    if imported:
        return VersionError(
            f"No record of {file} starts on line {number} or before.", "The first line may be a header."
        )
    known = f"Imported were {join_names(paths, CANDIDATES)}." if paths else "curate import FILE reads some in."
    return VersionError(f"Nothing was imported from {file}.", known)


def _found(connection: DuckDBPyConnection, record: tuple[str, int, str | None]) -> Journey | Refused:
    source, row, conversation = record
    if conversation is not None:
        return _journey(connection, conversation)
    (reject,) = connection.sql(REJECT_SQL, params=[source, row]).pl().to_dicts()
    return Refused(**reject)


def _journey(connection: DuckDBPyConnection, identity: str) -> Journey:
    """Everything about one conversation."""

    def ask(query: str) -> Rows:
        return list(connection.sql(query, params=[identity]).pl().to_dicts())

    (row,) = ask("SELECT conversations, tools, parent FROM conversations WHERE id = ?")
    scores = ask("SELECT * FROM scores WHERE conversation = ?")
    edits = ask("SELECT id FROM conversations WHERE parent = ? ORDER BY id")
    return Journey(
        id=identity,
        conversation=Conversation.from_row(row),
        parent=row["parent"],
        edits=[edit["id"] for edit in edits],
        origins=[_read_metadata(origin) for origin in ask(ORIGINS_SQL)],
        scores={
            name: score
            for each in scores
            for name, score in each.items()
            if name != "conversation" and score is not None
        },
        standing=next(iter(ask(STANDING_SQL)), {}),
        verdicts=ask(VERDICTS_SQL),
        reviews=ask(REVIEWS_SQL),
        clusters=ask(CLUSTERS_SQL),
        versions=ask(VERSIONS_SQL),
        runs=[_with_fate(connection, run, identity) for run in ask(RUNS_SQL)],
    )


def _read_metadata(origin: dict[str, Any]) -> dict[str, Any]:
    return {**origin, "metadata": json.loads(origin["metadata"]) if origin["metadata"] else None}


def _with_fate(connection: DuckDBPyConnection, run: dict[str, Any], identity: str) -> dict[str, Any]:
    status, adapter = resolve_run(folder_of(connection), run["run"], run["adapter"], run["status"])
    unfinished = {"ledger": None, "note": "a run writes its ledger when it ends"}
    fate = _fate(connection, adapter, identity) if status == "done" else unfinished
    return {**run, "status": status, "adapter": str(adapter), **fate}


def _fate(connection: DuckDBPyConnection, adapter: Path, identity: str) -> dict[str, Any]:
    """What the run's ledger says of the conversation: `ledger` (a row or null), and `note` when there is no ledger.

    Of a conversation that was split, `ledger` is its first window and `windows` has all of them.
    """
    path = adapter / LEDGER_FILE
    if not path.is_file():
        return {"ledger": None, "note": f"{path} is not there"}
    try:
        rows = connection.sql("SELECT * FROM read_parquet(?) WHERE conversation = ?", params=[str(path), identity]).pl()
    except duckdb.Error as error:
        return {"ledger": None, "note": f"{path} cannot be read: {str(error).splitlines()[0]}"}
    found = {"ledger": next(iter(rows.to_dicts()), None), "note": None if rows.height else "not in its ledger"}
    return found if rows.height <= 1 else {**found, "windows": rows.to_dicts()}


# --- for people

SHOWN = 5
CUT = 300


def _listed(title: str, entries: Iterable[str]) -> Iterator[str]:
    """A title and the first entries under it; nothing when there are none."""
    lines = list(entries)
    if lines:
        yield title
    limit = len(lines) if title == "scores" else SHOWN
    yield from (f"  {entry}" for entry in lines[:limit])
    if len(lines) > limit:
        yield f"  and {len(lines) - limit:,} more: --json shows all"


def _where(path: str, row: int, line: int | None) -> str:
    return f"{path} line {line} (row {row})" if line is not None else f"{path} row {row}"


def _origin_line(origin: dict[str, Any]) -> str:
    parts = [_where(origin["path"], origin["row"], origin["line"])]
    parts += ["as a duplicate"] if origin["duplicate"] else []
    parts += (
        [f"repaired: {', '.join(origin['repairs'])}; as it was: {_cut(origin['raw'] or '')}"]
        if origin["repairs"]
        else []
    )
    parts += [f"beside it: {_cut(json.dumps(origin['metadata'], ensure_ascii=False))}"] if origin["metadata"] else []
    return "; ".join(parts)


def _cluster_line(cluster: Mapping[str, Any]) -> str:
    one_of = f"{cluster['method']}: one of {cluster['size']} around {cluster['cluster']}"
    if cluster["nearest"] is None:
        return f"{one_of}, and not for another one"
    return f"{one_of}, for {cluster['nearest']}, similarity {cluster['similarity']:.3f}"


def _verdict_line(verdict: dict[str, Any]) -> str:
    to = f" to {verdict['edited_to']}" if verdict["edited_to"] else ""
    return f"{verdict['decided_at']:%Y-%m-%d %H:%M} {verdict['by_whom']}: {verdict['verdict']}{to}, {verdict['reason']}"


def _review_line(review: dict[str, Any]) -> str:
    state = "" if review["status"] == "submitted" else f" ({review['status']})"
    blind = ", without suggestions" if review["blind"] else ""
    head = f"{review['answered_at']:%Y-%m-%d %H:%M} {review['reviewer']}{state} in {review['dataset']}{blind}"
    return f"{head}: {review['answers']}"


def _standing_line(standing: dict[str, Any]) -> str:
    word = "kept" if standing.get("kept") else "not kept"
    judge = f", {standing['by_whom']}: {standing['reason']}" if standing.get("by_whom") else ""
    return f"stands now: {word}{judge}"


def _run_line(run: dict[str, Any]) -> str:
    head = f"{run['run']} on {run['version']} ({run['split']}), {run['status']}"
    ledger = run["ledger"]
    if ledger is None:
        return f"{head}: {run['note']}"
    return f"{head}: {'; '.join(map(_fate_line, run.get('windows', [ledger])))}"


def _fate_line(ledger: dict[str, Any]) -> str:
    told = (f"{name} {printable(value)}" for name, value in ledger.items() if name not in _TOLD and value is not None)
    return ", ".join([*told, *_times_seen(ledger.get("seen"))])


_TOLD = ("conversation", "split", "seen")


def _times_seen(times: int | None) -> list[str]:
    """How often the run's steps saw it, where its ledger says so."""
    if times is None:
        return []
    return [f"seen {times:,} {'time' if times == 1 else 'times'}" if times else "not reached by its steps"]


def _cut(text: str) -> str:
    """The text, shortened to what a screen bears, its further lines set in so that none looks like one of ours."""
    shown = text if len(text) <= CUT else f"{text[:CUT]}… ({len(text):,} characters; --json shows all)"
    return "\n    ".join(shown.splitlines())
