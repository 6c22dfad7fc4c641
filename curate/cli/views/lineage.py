"""Lineages of conversations and rejected rows → terminal output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from curate.cli.console import print_line
from curate.versions.lineage import ExcludedRow, Found, Lineage, RejectedRow
from curate.versions.removed_rows import RemovedRow
from schemas.ledger import PER_EPOCH
from schemas.text import local_minute, plural, printable

MOST_ENTRIES = 5
"""Entries that are shown of a list; of scores all are."""

MOST_CHARACTERS = 300


def show_lineages(lineages: Iterable[Found]) -> None:
    """Print each lineage, a fact per line."""
    for lineage in lineages:
        for line in lineage_lines(lineage):
            print_line(line)


def lineage_lines(lineage: Found) -> Iterator[str]:
    """The lines of a lineage, of a rejected row, or of a row of a removed import."""
    if isinstance(lineage, RemovedRow):
        yield _removed_line(asdict(lineage))
        return
    if isinstance(lineage, ExcludedRow):
        yield f"{_place(lineage.path, lineage.row, lineage.line)} was excluded: the SELECT of --sql does not return it"
        yield f"  {_excerpt(lineage.sql)}"
        return
    if isinstance(lineage, RejectedRow):
        yield from _rejected_row_lines(lineage)
        return
    yield f"conversation {lineage.id}"
    for turn in lineage.conversation.turns:
        flag = "" if turn.train else " (no loss)"
        yield f"  {turn.role}{flag}: {_excerpt(turn.value)}"
    if lineage.conversation.tools:
        yield f"  tools: {_excerpt(lineage.conversation.tools)}"
    yield from fact_lines(lineage)


def fact_lines(lineage: Lineage) -> Iterator[str]:
    """The lines of a lineage after its turns: origins, edits, near-duplicates, scores, verdicts, versions, runs."""
    yield from _section("imported from", map(_origin_line, lineage.origins))
    yield from _section("removed imports", map(_removed_line, lineage.removed))
    if lineage.parent:
        yield f"edited from {lineage.parent}"
    yield from _section("edited to", lineage.edits)
    yield from _section("near-duplicates", map(_cluster_line, lineage.clusters))
    yield from _section("scores", (f"{name} {printable(score)}" for name, score in lineage.scores.items()), most=None)
    yield from _section("verdicts", map(_verdict_line, lineage.verdicts))
    yield from _section("reviews", map(_review_line, lineage.reviews))
    yield _current_verdict_line(lineage.current_verdict)
    yield from _section("versions", (f"{row['version']}, {row['split']}" for row in lineage.versions))
    yield from _section("runs", map(_run_line, lineage.runs))


def _rejected_row_lines(row: RejectedRow) -> Iterator[str]:
    yield f"{_place(row.path, row.row, row.line)} was rejected: {row.code}"
    yield f"  {row.reason}"
    if row.corrected_in:
        yield f"  corrected and imported from {row.corrected_in}"
    if row.again_of:
        yield f"  rejected again: its reject in {row.again_of} is still open"
    yield f"  {_excerpt(row.raw)}"


def _section(title: str, entries: Iterable[str], most: int | None = MOST_ENTRIES) -> Iterator[str]:
    """The title and the first `most` entries; nothing if there are none."""
    lines = list(entries)
    if lines:
        yield title
    yield from (f"  {line}" for line in lines[:most])
    if most is not None and len(lines) > most:
        yield f"  and {len(lines) - most:,} more: --json shows all"


def _place(path: str, row: int, line: int | None) -> str:
    return f"{path} row {row}" if line is None else f"{path} line {line} (row {row})"


def _origin_line(origin: Mapping[str, Any]) -> str:
    parts = [_place(origin["path"], origin["row"], origin["line"])]
    if origin["duplicate"]:
        parts.append("duplicate")
    if origin["repairs"]:
        parts.append(f"repaired ({', '.join(origin['repairs'])}); original row: {_excerpt(origin['raw'] or '')}")
    if origin["metadata"]:
        parts.append(f"metadata: {_excerpt(json.dumps(origin['metadata'], ensure_ascii=False))}")
    return "; ".join(parts)


def _removed_line(row: Mapping[str, Any]) -> str:
    outcome = f"conversation {row['conversation']}" if row["conversation"] else f"rejected: {row['code']}"
    head = f"{_place(row['path'], row['row'], row['line'])}: {outcome}"
    return f"{head}; its import {row['source'][:12]} was removed on {local_minute(row['removed_at'])}: {row['reason']}"


def _cluster_line(cluster: Mapping[str, Any]) -> str:
    head = f"{cluster['method']}: one of {cluster['size']} in cluster {cluster['cluster']}"
    if cluster["nearest"] is None:
        return f"{head}, kept"
    among = " in the latest selection" if cluster["selected"] else ""
    return f"{head}, near-duplicate of {cluster['nearest']}{among}, similarity {cluster['similarity']:.3f}"


def _verdict_line(verdict: Mapping[str, Any]) -> str:
    to = f" to {verdict['edited_to']}" if verdict["edited_to"] else ""
    return f"{local_minute(verdict['decided_at'])} {verdict['by_whom']}: {verdict['verdict']}{to}, {verdict['reason']}"


def _review_line(review: Mapping[str, Any]) -> str:
    state = "" if review["status"] == "submitted" else f" ({review['status']})"
    blind = ", without suggestions" if review["blind"] else ""
    head = f"{local_minute(review['answered_at'])} {review['reviewer']}{state} in {review['dataset']}{blind}"
    return f"{head}: {review['answers']}"


def _current_verdict_line(verdict: Mapping[str, Any]) -> str:
    kept = "kept" if verdict.get("kept") else "not kept"
    author = f", {verdict['by_whom']}: {verdict['reason']}" if verdict.get("by_whom") else ""
    return f"current verdict: {kept}{author}"


def _run_line(run: Mapping[str, Any]) -> str:
    head = f"{run['run']} on {run['version']} ({run['split']}), {run['status']}"
    if run["ledger"] is None:
        return f"{head}: {run['note']}"
    return f"{head}: {'; '.join(map(_ledger_line, run.get('windows', [run['ledger']])))}"


def _ledger_line(ledger: Mapping[str, Any]) -> str:
    """The columns of a ledger row; `epoch_count` is printed as a phrase, `per_epoch` if it is not 1."""
    values = {name: value for name, value in ledger.items() if name not in ("conversation", "split")}
    if values.get(PER_EPOCH) == 1:
        del values[PER_EPOCH]
    times = values.pop("epoch_count", None)
    parts = [f"{name} {printable(value)}" for name, value in values.items() if value is not None]
    if times is not None:
        parts.append(f"trained on {plural(times, 'time')}" if times else "not trained on: the run had too few steps")
    return ", ".join(parts)


def _excerpt(text: str) -> str:
    """The beginning of `text`; its further lines are indented, so that they differ from the lines of this view."""
    cut = f"{text[:MOST_CHARACTERS]}… ({len(text):,} characters; --json shows all)"
    return "\n    ".join((text if len(text) <= MOST_CHARACTERS else cut).splitlines())
