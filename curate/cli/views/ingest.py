"""Reporting: what an import, the rejects, the state of the store and the answer to a question look like to a person."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from curate.cli.console import note, print_line, print_table
from curate.ingest.convert import EXPORT_COLUMNS
from curate.ingest.pipeline import ImportResult
from curate.ingest.readers.paths import passed_over
from curate.ingest.rejects import ExportedRejects
from curate.ingest.repairs import REPAIRS
from curate.ingest.shapes.shape import PARSE_RULES
from curate.ingest.validation import RULES
from curate.sql import Answer
from schemas.text import join_names, plural, printable

ROLE_WIDTH = 13
EXAMPLE_LENGTH = 400
"""Characters of a turn that a dry run shows."""

EXAMPLE_GROUPS = 8
"""Groups of rejects of which an example is shown."""

MOST_LEFT_OUT = 5
"""Names of files that were left out which are shown."""

MOST_BESIDE = 8
"""Columns beside the conversation that are named."""

CELL = 80
"""Characters of a cell that a table shows."""

MINUTE = len("2026-11-21 12:25")
"""Characters of a time up to its minutes."""


def show_import(results: Sequence[ImportResult], *, dry_run: bool) -> None:
    """Print what an import did: how each file was read, its sums, why rows were refused, and what to type next."""
    for result in results:
        typer.echo(_how_it_was_read(result))
        if beside := _beside(result):
            print_line(f"  beside it: {join_names(beside, MOST_BESIDE)} (meta.NAME in rules)")
    if dry_run:
        for result in results:
            _show_examples(result)
    new = [result for result in results if result.imported_before is None]
    if len(new) == 1:
        _show_outcomes(new[0])
    elif new:
        _show_files(new)
    for line in _remarks(new):
        print_line(line)
    typer.echo(_next_step(new, dry_run=dry_run))


def note_passed_over(paths: Sequence[str]) -> None:
    """Say what of folders and patterns is no data or describes some, and where a name leads to no file."""
    left_out = passed_over(paths)
    files = [path for path in left_out if Path(path).is_file()]
    _note_left_out("no data by name", "file", files)
    _note_left_out("no file is there", "name", [path for path in left_out if not Path(path).is_file()])


def _note_left_out(why: str, kind: str, paths: Sequence[str]) -> None:
    if paths:
        shown = [*paths[:MOST_LEFT_OUT], *(["…"] if len(paths) > MOST_LEFT_OUT else [])]
        note(f"Left out, as {why}: {plural(len(paths), kind)}, {', '.join(shown)}")


def sum_line(results: Iterable[ImportResult]) -> str:
    """`47,441 rows read = 16,407 conversations + 0 duplicates + 31,034 rejected`, of all results together."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(
            read=result.rows_read,
            kept=result.rows_kept,
            duplicate=result.rows_duplicate,
            rejected=result.rows_rejected,
            conversations=result.conversations,
        )
    kept = plural(total["conversations"], "conversation")
    if total["kept"] != total["conversations"]:
        kept = f"{plural(total['kept'], 'row')} in {kept}"
    duplicates = plural(total["duplicate"], "duplicate")
    return f"{plural(total['read'], 'row')} read = {kept} + {duplicates} + {total['rejected']:,} rejected"


def _how_it_was_read(result: ImportResult) -> str:
    if result.imported_before is not None:
        name = "" if result.imported_before == result.path else f" as {printable(result.imported_before)}"
        return f"{printable(result.path)}: the store has this very file{name} already; nothing was added."
    fields = ", ".join(f"{name} = {column}" for name, column in result.mapping["fields"].items())
    return f"{printable(result.path)}: {result.shape} ({printable(fields)})"


def _beside(result: ImportResult) -> list[str]:
    """The columns that are no part of the conversations; none of a file that the store has already."""
    used = {*result.mapping["fields"].values(), *EXPORT_COLUMNS}
    return [] if result.imported_before is not None else [name for name in result.columns if name not in used]


def _show_outcomes(result: ImportResult) -> None:
    """What became of the rows of one file."""
    one_each = result.rows_kept == result.conversations
    kept = "conversations" if one_each else f"in {plural(result.conversations, 'conversation')}"
    rows = [
        {"outcome": kept, "rows": result.rows_kept, "first at": "", "because": ""},
        {"outcome": "duplicates", "rows": result.rows_duplicate, "first at": "", "because": ""},
        *({"outcome": f"rejected: {code}", **reason} for code, reason in _reasons(result).items()),
    ]
    print_table(rows, list(rows[0]))
    typer.echo(sum_line([result]))


def _show_files(results: Sequence[ImportResult]) -> None:
    """What became of the rows of several files, and why rows were refused."""
    names = file_names([result.path for result in results])
    sums = [
        {
            "file": names[result.path],
            "rows": result.rows_read,
            "conversations": result.conversations,
            "duplicates": result.rows_duplicate,
            "rejected": result.rows_rejected,
        }
        for result in results
    ]
    print_table(sums, list(sums[0]))
    reasons = [
        {"file": names[result.path], "rejected for": code, "rows": reason["rows"], "first at": reason["first at"]}
        for result in results
        for code, reason in _reasons(result).items()
    ]
    if reasons:
        print_table(sorted(reasons, key=lambda reason: -reason["rows"]), list(reasons[0]))
    typer.echo(sum_line(results))


def _reasons(result: ImportResult) -> dict[str, dict[str, Any]]:
    """Why rows were refused, by code, most frequent first, each with where it first occurs."""
    return {
        example["code"]: {
            "rows": result.rejected[example["code"]],
            "first at": _place(example),
            "because": example["reason"],
        }
        for example in result.reject_examples
    }


def file_names(paths: Iterable[str]) -> dict[str, str]:
    """What files are called in a table: their names, or their whole paths where two have the same name.

    >>> file_names(["a/x.csv", "b/y.csv"])
    {'a/x.csv': 'x.csv', 'b/y.csv': 'y.csv'}
    """
    all_paths = set(paths)
    short = {path: Path(path).name or path for path in sorted(all_paths)}
    return short if len(set(short.values())) == len(all_paths) else {path: path for path in sorted(all_paths)}


def _place(example: Mapping[str, Any]) -> str:
    """Where a row stands; without separators between the digits, as it is typed behind `curate trace FILE:`."""
    return f"row {example['row']}" if example["line"] is None else f"line {example['line']}"


def _remarks(results: Sequence[ImportResult]) -> Iterator[str]:
    """Lines on what was repaired, closed, looks odd, or could be repaired."""
    for repair, number in _together(result.repaired for result in results).items():
        yield f"Repaired by {repair}: {plural(number, 'row')}, and kept as they were read beside their conversations."
    closed = sum(result.closed for result in results)
    if closed:
        yield f"Closed: {plural(closed, 'reject')} of earlier imports."
    for code, number in _together(result.warnings for result in results).items():
        repair = f" (--repair {RULES[code].repair})" if RULES[code].repair else ""
        yield f"Warning {code}: {plural(number, 'conversation')}. {RULES[code].description}{repair}"
    for code, number in _together(result.rejected for result in results).items():
        rule = RULES.get(code)
        if rule and rule.repair:
            yield f"{plural(number, 'row')} rejected for {code} could be repaired by --repair {rule.repair}."


def _together(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())


def _show_examples(result: ImportResult) -> None:
    """The first conversations as they would be stored, and the raw text of the first reject of every code."""
    for number, example in enumerate(result.examples, start=1):
        typer.echo(f"\n  conversation {number}  {example['id']}")
        for turn in example["conversations"]:
            typer.echo(f"    {turn['from']:{ROLE_WIDTH}}  {_shortened(turn['value'])}")
    for example in result.reject_examples:
        typer.echo(f"\n  rejected for {example['code']}, {_place(example)}: {printable(example['reason'])}")
        typer.echo(f"    {_shortened(example['raw'])}")
    typer.echo("")


def _shortened(text: str) -> str:
    shown = printable(text[:EXAMPLE_LENGTH]) + (" …" if len(text) > EXAMPLE_LENGTH else "")
    return shown.replace("\n", "\n" + " " * (ROLE_WIDTH + 6))


def _next_step(results: Sequence[ImportResult], *, dry_run: bool) -> str:
    if dry_run:
        return "Nothing was written. The same command without --dry-run imports."
    if any(result.rows_rejected for result in results):
        return "Next: curate rejects shows what was refused and why; curate score goes on with the rest."
    return "Next: curate score"


def show_reject_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Print rejects grouped by file and reason, with the first places, and an example of each."""
    if not groups:
        return typer.echo("No reject is open. curate rejects --all shows those that were closed.")
    names = file_names(group["path"] for group in groups)
    rows = [
        {
            "file": names[group["path"]],
            "rejected for": group["code"],
            "rows": group["rows"],
            "first at": _places(group),
        }
        for group in groups
    ]
    print_table(rows, list(rows[0]))
    for row, group in zip(rows, groups[:EXAMPLE_GROUPS], strict=False):
        first = _places(
            {**group, "rows": 1, "first_lines": group["first_lines"][:1], "first_rows": group["first_rows"][:1]}
        )
        _show_reject(f"{row['file']}, {first}", group)
    typer.echo(f"{plural(sum(group['rows'] for group in groups), 'row')} in all.")
    return typer.echo("Next: curate rejects --list shows each; --export fix.csv writes them to a file to be repaired.")


def show_reject_list(rejects: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Print single rejects."""
    names = file_names(reject["path"] for reject in rejects)
    for reject in rejects:
        _show_reject(f"{names[reject['path']]}, {_place(reject)}", reject)
    if len(rejects) == limit:
        note(f"The first {limit:,} are shown: --limit shows more.")


def _show_reject(where: str, reject: Mapping[str, Any]) -> None:
    """A reject in two lines: where and why, and the place in it that this speaks of."""
    print_line(f"{where}: {reject['code']}. {reject['reason']}")
    print_line(f"    {reject['excerpt']}")


def show_exported(exported: ExportedRejects, store_option: str) -> None:
    """Print what was written, and how it comes back."""
    typer.echo(f"{plural(exported.rows, 'reject')} written to {exported.path}, in the columns of the source.")
    if exported.raw_only:
        typer.echo(f"{exported.raw_only:,} of them could not be split into columns: fill these in from _curate_raw.")
    if exported.formulas:
        cells = plural(exported.formulas, "cell")
        typer.echo(f"{cells} beginning with =, +, - or @: written exactly as they were, for the way back.")
        typer.echo("  A spreadsheet may take them for formulas.")
    typer.echo("Correct the rows, delete those that shall stay out, leave _curate_reject as it is; then:")
    typer.echo(f"  curate import {exported.path} {exported.options}{store_option}".rstrip())


def rules() -> list[dict[str, Any]]:
    """What a row must be to be read, then the rules of validation: code, severity, sentence, repair that is offered."""
    to_be_read = [
        {"rule": code, "then": "reject", "what must hold": sentence, "repair": None}
        for code, sentence in PARSE_RULES.items()
        if code not in RULES
    ]
    return to_be_read + [
        {"rule": code, "then": rule.severity, "what must hold": rule.description, "repair": rule.repair}
        for code, rule in RULES.items()
    ]


def show_rules() -> None:
    """Print the rules and the repairs."""
    listed = rules()
    print_table(listed, list(listed[0]))
    print_table(
        [{"repair": name, "what it does": repair.description} for name, repair in REPAIRS.items()],
        ["repair", "what it does"],
    )


def show_status(store: Path, found: Mapping[str, Any]) -> None:
    """Print what the store holds, and the command that comes next."""
    counts = found["counts"]
    typer.echo(
        f"{store}: {plural(counts['conversations'], 'conversation')} from {plural(len(found['sources']), 'file')}"
    )
    names = file_names(source["path"] for source in found["sources"])
    sources = [
        {
            "file": names[source["path"]],
            "rows": source["rows_read"],
            "conversations": source["conversations"],
            "duplicates": source["rows_duplicate"],
            "rejected": source["rows_rejected"],
            "open": source["open_rejects"],
        }
        for source in found["sources"]
    ]
    versions = [
        {
            "version": version["version"],
            "digest": version["digest"][:12],
            "conversations": ", ".join(f"{count:,} {split}" for split, count in json.loads(version["counts"]).items()),
            "frozen at": version["frozen_at"][:MINUTE],
        }
        for version in found["versions"]
    ]
    runs = [
        {
            **{key: run[key] for key in ("run", "version", "status")},
            "adapter": os.path.relpath(run["adapter"]),
            "started at": run["started_at"][:MINUTE],
        }
        for run in found["runs"]
    ]
    for rows in (sources, versions, runs):
        if rows:
            print_table(rows, list(rows[0]))
    scored = "nothing is scored" if not counts["scorers"] else plural(counts["scorers"], "scorer")
    missing = f", {plural(counts['unscored'], 'conversation')} without scores" if counts["unscored"] else ""
    typer.echo(f"Scores    {scored}{missing}")
    people = f", {counts['judged_by_people']:,} by people" if counts["judged_by_people"] else ""
    typer.echo(f"Verdicts  {plural(counts['judged'], 'conversation')} judged{people}; kept: {counts['kept']:,}")
    if found["people"]["sets"]:
        typer.echo(f"People    {_what_people_said(found['people'])}")
    typer.echo(f"Rejects   {counts['open_rejects']:,} open, {_what_closed(counts)}")
    typer.echo(f"Next: {found['next']}")


def _what_closed(counts: Mapping[str, int]) -> str:
    """How many rejects were repaired, apart from those that only another reject stands for now."""
    superseded = counts["closed_rejects"] - counts["corrected_rejects"]
    more = f"; {superseded:,} superseded, as their rows were read again" if superseded else ""
    return f"{counts['corrected_rejects']:,} repaired{more}"


def _what_people_said(people: Mapping[str, Any]) -> str:
    """How much of what was asked is answered, by whom, and which verdicts of theirs stand."""
    where = f"in {printable(', '.join(people['sets']))}"
    if not people["answers"]:
        return f"nobody has answered yet; {plural(people['asked'], 'conversation')} wait {where}"
    said = f"{people['answered']:,} of {plural(people['asked'], 'conversation')} answered {where}"
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in people["verdicts"].items()) or "none"
    return f"{said} by {printable(', '.join(people['people']))}; verdicts: {verdicts}"


def show_answer(answer: Answer, limit: int) -> None:
    """Print at most `limit` rows of an answer as a table, long cells cut."""
    rows = [dict(zip(answer.columns, map(_cell, row), strict=True)) for row in answer.first(limit + 1)]
    print_table(rows[:limit], answer.columns)
    if len(rows) > limit:
        note(f"The first {limit:,} rows are shown: --limit shows more; --json and --csv show all.")


def print_csv(answer: Answer, limit: int | None) -> None:
    """Print an answer as CSV; lists and structs as JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows([_as_json(cell) for cell in row] for row in answer.first(limit))


def _as_json(cell: object) -> object:
    return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, (list, dict)) else cell


def _cell(cell: object) -> object:
    return cell if cell is None or isinstance(cell, (bool, int, float)) else _cut(str(_as_json(cell)))


def _cut(text: str) -> str:
    """The start of a text, on one line."""
    line = " ".join(text[: 4 * CELL].split())
    return printable(line if len(line) <= CELL else f"{line[:CELL]}…")


def _places(group: Mapping[str, Any]) -> str:
    lines = [line for line in group["first_lines"] if line is not None]
    places = ", ".join(str(number) for number in lines or group["first_rows"])
    more = " …" if group["rows"] > len(group["first_rows"]) else ""
    return f"{'line' if lines else 'row'} {places}{more}"
