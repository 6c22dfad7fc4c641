"""Reporting: what an import, the rejects and the state of the store look like to a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import typer

from curate.importing import ImportResult
from curate.validating import RULES
from schemas.terminal import print_table, printable

ROLE_WIDTH = 13
EXAMPLE_LENGTH = 400
"""Characters of a turn that a dry run shows."""


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
        mend = RULES[code].mend if code in RULES else None
        if mend:
            yield f"{number:,} rows rejected for {code} could be mended: --mend {mend}"


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
