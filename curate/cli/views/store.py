"""The contents of the store and results of SQL queries → terminal output."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.cli.console import file_names, note, print_line, print_table
from schemas.text import local_minute, plural

if TYPE_CHECKING:
    from curate.sql import QueryResult

CELL_CHARACTERS, NAME_CHARACTERS = 80, 320
"""Characters of a cell in a table of `curate sql`: of a text, and of a text without spaces."""


def show_status(store: Path, status: Mapping[str, Any], limit: int) -> None:
    """Print the contents of the store, of its imports the last `limit`, and the next command."""
    counts = status["counts"]
    print_line(
        f"{store}: {plural(counts['conversations'], 'conversation')} from {plural(len(status['sources']), 'file')}"
    )
    earlier, newest = len(status["sources"][:-limit]), status["sources"][-limit:]
    names = file_names(source["path"] for source in newest)
    sources = [
        {
            "file": names[source["path"]],
            "rows": source["rows_read"],
            "conversations": source["conversations"],
            "duplicates": source["rows_duplicate"],
            "rejected": source["rows_rejected"],
            "open": source["open_rejects"],
        }
        for source in newest
    ]
    versions = [
        {
            "version": version["version"],
            "digest": version["digest"][:12],
            "conversations": ", ".join(f"{count:,} {split}" for split, count in version["counts"].items()),
            "frozen at": local_minute(version["frozen_at"]),
        }
        for version in status["versions"]
    ]
    runs = [
        {
            **{key: run[key] for key in ("run", "version", "status")},
            "adapter": os.path.relpath(run["adapter"]),
            "started at": local_minute(run["started_at"]),
        }
        for run in status["runs"]
    ]
    for rows in (sources, versions, runs):
        if rows:
            print_table(rows, list(rows[0]))
        if rows is sources:
            note_earlier(earlier)
    unscored = f", {plural(counts['unscored'], 'conversation')} without scores" if counts["unscored"] else ""
    print_line(f"Scores    {plural(counts['scorers'], 'scorer') if counts['scorers'] else 'none'}{unscored}")
    human = f", {counts['with_human_verdict']:,} by annotators" if counts["with_human_verdict"] else ""
    verdicts = plural(counts["with_verdict"], "conversation") if counts["with_verdict"] else "none yet"
    print_line(f"Verdicts  {verdicts}{human}; kept: {counts['kept']:,}")
    if status["reviews"]["sets"]:
        print_line(f"Reviews   {_review_line(status['reviews'])}")
    print_line(f"Rejects   {_reject_line(counts)}")
    print_line(f"Next: {status['next']}")


def note_earlier(imports: int) -> None:
    """Print how many imports a table leaves out, if it leaves out any."""
    if imports:
        print_line(f"and {plural(imports, 'earlier import')}; --limit N lists the newest N, --json all of them")


def _reject_line(counts: Mapping[str, int]) -> str:
    """Open and repaired rejects, and those that were replaced by a reject of a later import."""
    superseded = counts["closed_rejects"] - counts["corrected_rejects"]
    more = f"; {superseded:,} superseded by a later import of the row" if superseded else ""
    return f"{counts['open_rejects']:,} open, {counts['corrected_rejects']:,} repaired{more}"


def _review_line(reviews: Mapping[str, Any]) -> str:
    """Answered conversations of all review sets, the annotators, and their current verdicts."""
    sets = ", ".join(reviews["sets"])
    if not reviews["answers"]:
        return f"no answers yet for {plural(reviews['conversations'], 'conversation')} in {sets}"
    answered = f"{reviews['answered']:,} of {plural(reviews['conversations'], 'conversation')} answered in {sets}"
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in reviews["verdicts"].items()) or "none"
    return f"{answered} by {', '.join(reviews['reviewers'])}; verdicts: {verdicts}"


def show_rows(result: QueryResult, limit: int) -> None:
    """Print at most `limit` rows of a query result as a table, with long texts shortened."""
    rows = [dict(zip(result.columns, map(_cell, row), strict=True)) for row in result.first(limit + 1)]
    print_table(rows[:limit], result.columns)
    if len(rows) > limit:
        note(f"Only the first {limit:,} rows are shown; --limit shows more, --json and --csv show all.")


def print_csv(result: QueryResult, limit: int | None) -> None:
    """Print a query result as CSV; lists and structs as JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(result.columns)
    writer.writerows([_as_json(cell) for cell in row] for row in result.first(limit))


def _as_json(cell: object) -> object:
    return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, (list, dict)) else cell


def _cell(cell: object) -> object:
    """A number as it is; anything else as one line, shortened, but not inside a name."""
    if cell is None or isinstance(cell, (bool, int, float)):
        return cell
    line = " ".join(str(_as_json(cell))[: NAME_CHARACTERS + 1].split())
    most = CELL_CHARACTERS if " " in line else NAME_CHARACTERS
    return line if len(line) <= most else f"{line[:most]}…"
