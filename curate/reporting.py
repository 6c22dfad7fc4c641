"""Reporting: what an import, the rejects, the state of the store and the answer to a question look like to a person."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from curate.importing import ImportResult
from curate.mending import MENDS
from curate.querying import Answer
from curate.rejecting import Exported
from curate.validating import RULES
from schemas.terminal import note, print_table, printable

ROLE_WIDTH = 13
EXAMPLE_LENGTH = 400
"""Characters of a turn that a dry run shows."""

CELL = 80
"""Characters of a cell that a table shows."""


def show_import(results: Sequence[ImportResult], *, dry_run: bool) -> None:
    """Print what an import did: how each file was read, its sums, why rows were refused, and what to type next."""
    for result in results:
        typer.echo(_how_it_was_read(result))
    if dry_run:
        for result in results:
            _show_examples(result)
    new = [result for result in results if result.imported_before is None]
    if new:
        print_table([_sums_row(result) for result in new], list(_sums_row(new[0])))
    _show_reasons(new)
    for result in new if len(new) <= 10 else []:
        typer.echo(sum_line([result]))
    if len(new) > 1:
        typer.echo(f"Together: {sum_line(new)}")
    for line in _remarks(new):
        typer.echo(line)
    typer.echo(_next_step(new, dry_run=dry_run))


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
    kept = f"{total['conversations']:,} conversations"
    if total["kept"] != total["conversations"]:
        kept = f"{total['kept']:,} rows in {kept}"
    duplicates = f"{total['duplicate']:,} duplicates"
    return f"{total['read']:,} rows read = {kept} + {duplicates} + {total['rejected']:,} rejected"


def _how_it_was_read(result: ImportResult) -> str:
    if result.imported_before is not None:
        name = "" if result.imported_before == result.path else f" as {printable(result.imported_before)}"
        return f"{printable(result.path)}: the store has this very file{name} already; nothing was added."
    fields = ", ".join(f"{name} = {column}" for name, column in result.mapping["fields"].items())
    return f"{printable(result.path)}: {result.shape} ({printable(fields)})"


def _sums_row(result: ImportResult) -> dict[str, Any]:
    return {
        "file": result.path,
        "rows": result.rows_read,
        "conversations": result.conversations,
        "duplicates": result.rows_duplicate,
        "rejected": result.rows_rejected,
    }


def _show_reasons(results: Sequence[ImportResult]) -> None:
    """A table of the reasons for which rows were refused, most frequent first, each with where it first occurs."""
    rows = [
        {
            "rejected for": example["code"],
            "rows": result.rejected[example["code"]],
            "first at": _place(result.path if len(results) > 1 else "", example),
            "because": example["reason"],
        }
        for result in results
        for example in result.reject_examples
    ]
    if rows:
        print_table(sorted(rows, key=lambda row: -row["rows"]), list(rows[0]))


def _place(path: str, example: Mapping[str, Any]) -> str:
    where = f"row {example['row']}" if example["line"] is None else f"line {example['line']}"
    return f"{path} {where}".strip()


def _remarks(results: Sequence[ImportResult]) -> Iterator[str]:
    """Lines on what was mended, closed, looks odd, or could be mended."""
    for mend, number in _together(result.mended for result in results).items():
        yield f"Mended by {mend}: {number:,}; what they were before is kept with their origin."
    closed = sum(result.closed for result in results)
    if closed:
        yield f"{closed:,} rejects of earlier imports came back and are closed."
    for code, number in _together(result.warnings for result in results).items():
        yield f"Warning {code}: {number:,} conversations. {RULES[code].sentence}"
    for code, number in _together(result.rejected for result in results).items():
        rule = RULES.get(code)
        if rule and rule.mend:
            yield f"{number:,} rows rejected for {code} could be mended: --mend {rule.mend}"


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
        typer.echo(f"\n  rejected for {example['code']}, {_place('', example)}: {printable(example['reason'])}")
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
    """Print rejects grouped by file and reason, with the first places and one example each."""
    if not groups:
        return typer.echo("No row is rejected, or all rejects are closed: curate rejects --all shows those.")
    rows = [
        {
            "file": group["path"],
            "rejected for": group["code"],
            "rows": group["rows"],
            "first at": _places(group),
            "because": group["reason"],
            "example": _cut(group["raw"]),
        }
        for group in groups
    ]
    print_table(rows, list(rows[0]))
    typer.echo(f"{sum(row['rows'] for row in rows):,} rows.")
    return typer.echo(
        "Next: curate rejects --list shows each; curate rejects --export fix.csv writes them to be mended."
    )


def show_reject_list(rejects: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Print single rejects."""
    rows = [
        {
            "file": reject["path"],
            "row": reject["row"],
            "line": reject["line"],
            "rejected for": reject["code"],
            "because": reject["reason"],
            "as it was read": _cut(reject["raw"]),
        }
        for reject in rejects
    ]
    if rows:
        print_table(rows, list(rows[0]))
    if len(rows) == limit:
        note(f"The first {limit:,} are shown: --limit shows more.")


def show_exported(exported: Exported, store_option: str) -> None:
    """Print what was written, and how it comes back."""
    typer.echo(f"{exported.rows:,} rejects are written to {exported.path}, in the columns of their source.")
    if exported.raw_only:
        typer.echo(f"{exported.raw_only:,} of them could not be split into columns: fill these in from _curate_raw.")
    if exported.formulas:
        typer.echo(
            f"{exported.formulas:,} cells begin with =, +, - or @. They are written exactly as they were, for the way "
            "back; a spreadsheet may take them for formulas."
        )
    typer.echo("Correct the rows, delete those that shall stay out, leave _curate_reject as it is; then:")
    typer.echo(f"  curate import {exported.path} {exported.options}{store_option}".rstrip())


def rules() -> list[dict[str, Any]]:
    """All rules of validation: code, severity, sentence, the mend that is offered."""
    return [
        {"rule": code, "then": rule.severity, "because": rule.sentence, "mend": rule.mend}
        for code, rule in RULES.items()
    ]


def show_rules() -> None:
    """Print the rules and the mends."""
    listed = rules()
    print_table(listed, list(listed[0]))
    print_table(
        [{"mend": name, "what it does": mend.sentence} for name, mend in MENDS.items()], ["mend", "what it does"]
    )


def show_status(store: Path, found: Mapping[str, Any]) -> None:
    """Print what the store holds, and the command that comes next."""
    counts = found["counts"]
    typer.echo(f"{store}: {counts['conversations']:,} conversations from {len(found['sources']):,} files")
    columns = ["path", "shape", "rows_read", "conversations", "rows_duplicate", "rows_rejected", "open_rejects"]
    for title, rows, names in (
        ("", found["sources"], columns),
        ("Versions", found["versions"], ["version", "counts", "frozen_at"]),
        ("Runs", found["runs"], ["run", "version", "status", "adapter", "started_at"]),
    ):
        if rows:
            print_table(rows, names, title)
    scored = "nothing is scored" if not counts["scorers"] else f"{counts['scorers']:,} scorers"
    missing = f", {counts['unscored']:,} conversations without scores" if counts["unscored"] else ""
    typer.echo(f"Scores    {scored}{missing}")
    people = f", {counts['judged_by_people']:,} by people" if counts["judged_by_people"] else ""
    typer.echo(f"Verdicts  {counts['judged']:,} conversations judged{people}; {counts['kept']:,} are kept")
    typer.echo(f"Rejects   {counts['open_rejects']:,} open, {counts['closed_rejects']:,} closed")
    typer.echo(f"Next: {found['next']}")


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
    return line if len(line) <= CELL else f"{line[:CELL]}…"


def _places(group: Mapping[str, Any]) -> str:
    lines = [line for line in group["first_lines"] if line is not None]
    places = ", ".join(f"{number:,}" for number in lines or group["first_rows"])
    more = " …" if group["rows"] > len(group["first_rows"]) else ""
    return f"{'line' if lines else 'row'} {places}{more}"
