"""Imports and rejects → terminal output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.cli.console import file_names, note, print_line, print_table
from curate.ingest.dataset_info import DESCRIBED_BY
from curate.ingest.import_result import ImportResult
from curate.ingest.named_split import HELD_OUT_NAMES, SPLIT_COLUMN
from curate.ingest.readers.batch import EXPORT_COLUMNS, RAW_COLUMN, REJECT_COLUMN
from curate.ingest.readers.json_repairs import conversion_hint
from curate.ingest.readers.paths import find_skipped
from curate.ingest.rejects import ExportedRejects
from curate.ingest.repairs import REPAIRS
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.shape import PARSE_RULES
from curate.ingest.validation import RULES
from schemas.text import join_names, plural, shell_quote, shorten

ROLE_WIDTH = 13
MAX_GROUPED = 3
"""Files that are named with the mapping that they have in common."""

MAX_FILES = 50
"""Files that a table of an import lists."""

EXAMPLE_CHARACTERS = 400
"""Characters of a turn in a dry run."""

MAX_EXAMPLES, MAX_SKIPPED, MAX_COLUMNS, MAX_ROLES = 8, 5, 8, 6
"""Groups of rejects and files with examples, names of skipped files, metadata columns and unknown roles."""


def show_import(results: Sequence[ImportResult], *, dry_run: bool) -> None:
    """Print the mapping of each file, the sums, the reasons of rejects, and the next command."""
    for how, paths in _group_by_note(results).items():
        print_line(f"{join_names(paths, MAX_GROUPED)}: {how}")
    if dry_run:
        for result in results[:MAX_EXAMPLES]:
            _show_examples(result)
        if len(results) > MAX_EXAMPLES:
            print_line(
                f"and {plural(len(results) - MAX_EXAMPLES, 'more file')}; --json has the examples of all of them"
            )
    new = [result for result in results if result.imported_before is None]
    if len(new) == 1:
        _show_file(new[0])
    elif new:
        _show_files(new)
    for line in _remarks(new, dry_run=dry_run):
        print_line(line)
    note(_next_step(new, dry_run=dry_run))


def note_skipped(paths: Sequence[str]) -> None:
    """Note the files of folders and patterns that are not data by their names, and names without a file."""
    skipped = find_skipped(paths)
    _note_names("not data by name", "file", [path for path in skipped if Path(path).is_file()])
    _note_names("no such file", "name", [path for path in skipped if not Path(path).is_file()])


def _note_names(reason: str, kind: str, paths: Sequence[str]) -> None:
    if paths:
        names = ", ".join([*paths[:MAX_SKIPPED], *(["…"] if len(paths) > MAX_SKIPPED else [])])
        note(f"Skipped {plural(len(paths), kind)} ({reason}): {names}")


def _group_by_note(results: Sequence[ImportResult]) -> dict[str, list[str]]:
    """How files were read -> the paths of these files."""
    groups: dict[str, list[str]] = {}
    for result in results:
        columns = join_names(_metadata_columns(result), MAX_COLUMNS)
        metadata = f"\n  metadata: {columns} (meta.NAME in rules)" if columns else ""
        groups.setdefault(f"{_mapping_note(result)}{metadata}", []).append(result.path)
    return groups


def _mapping_note(result: ImportResult) -> str:
    if result.imported_before is not None:
        name = "" if result.imported_before == result.path else f" as {result.imported_before}"
        return f"already imported{name}; nothing was added."
    names = {**result.mapping["fields"], **_role_settings(result)}
    fields = ", ".join(f"{name} = {column}" for name, column in names.items())
    described_by = result.mapping.get(DESCRIBED_BY)
    notes = [SHAPES[result.shape].summary, f"as described by {described_by}" if described_by else ""]
    return f"{result.shape} ({fields})" + "".join(f"\n  {note}" for note in notes if note)


def _role_settings(result: ImportResult) -> dict[str, str]:
    """The own keys and roles of the import."""
    keys = {f"{name} key": key for name, key in result.mapping.get("keys", {}).items()}
    return {**keys, **{f"role {name}": role for name, role in result.mapping.get("roles", {}).items()}}


def _metadata_columns(result: ImportResult) -> list[str]:
    """The columns outside the conversations; none if the file was imported before."""
    used = {*result.mapping["fields"].values(), *EXPORT_COLUMNS}
    if result.imported_before is not None or result.mapping.get("sql"):
        return []
    return [name for name in result.columns if name not in used]


def _show_file(result: ImportResult) -> None:
    one_each = result.rows_kept == result.conversations
    kept = "conversations" if one_each else f"in {plural(result.conversations, 'conversation')}"
    rows = [
        {"outcome": kept, "rows": result.rows_kept, "first at": "", "reason": ""},
        {"outcome": "duplicates", "rows": result.rows_duplicate, "first at": "", "reason": ""},
        *_excluded_row(result),
        *({"outcome": f"rejected: {code}", **reason} for code, reason in _reject_reasons(result).items()),
    ]
    print_table(rows, list(rows[0]))
    print_line(sum_line([result]))


def _show_files(results: Sequence[ImportResult]) -> None:
    names = file_names([result.path for result in results])
    sums = [
        {
            "file": names[result.path],
            "rows": result.rows_read,
            "conversations": result.conversations,
            "duplicates": result.rows_duplicate,
            "rejected": result.rows_rejected,
        }
        for result in results[:MAX_FILES]
    ]
    print_table(sums, list(sums[0]))
    if len(results) > MAX_FILES:
        print_line(f"and {plural(len(results) - MAX_FILES, 'more file')}; --json and curate sources list all of them")
    reasons = [
        {"file": names[result.path], "rejected for": code, "rows": reason["rows"], "first at": reason["first at"]}
        for result in results
        for code, reason in _reject_reasons(result).items()
    ]
    if reasons:
        print_table(sorted(reasons, key=lambda reason: -reason["rows"])[:MAX_FILES], list(reasons[0]))
    print_line(sum_line(results))


def sum_line(results: Iterable[ImportResult]) -> str:
    """`47,441 rows read = 16,407 conversations + 0 duplicates + 31,034 rejected`, of all results together."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(
            read=result.rows_read,
            kept=result.rows_kept,
            duplicate=result.rows_duplicate,
            rejected=result.rows_rejected,
            excluded=result.rows_excluded,
            conversations=result.conversations,
        )
    kept = plural(total["conversations"], "conversation")
    if total["kept"] != total["conversations"]:
        kept = f"{plural(total['kept'], 'row')} in {kept}"
    duplicates = plural(total["duplicate"], "duplicate")
    excluded = f" + {total['excluded']:,} excluded" if total["excluded"] else ""
    return f"{plural(total['read'], 'row')} read = {kept} + {duplicates} + {total['rejected']:,} rejected{excluded}"


def _excluded_row(result: ImportResult) -> list[dict[str, Any]]:
    """The row of the table with the rows that the SELECT left out, if there are any."""
    reason = "The SELECT of --sql does not return them."
    rows = [{"outcome": "excluded", "rows": result.rows_excluded, "first at": "", "reason": reason}]
    return rows if result.rows_excluded else []


def _reject_reasons(result: ImportResult) -> dict[str, dict[str, Any]]:
    """Rule -> number of rejected rows, location and reason of the first; most frequent first."""
    return {
        example["code"]: {
            "rows": result.rejected[example["code"]],
            "first at": _location(example),
            "reason": example["reason"],
        }
        for example in result.reject_examples
        if not example["partly"]
    }


def _location(example: Mapping[str, Any]) -> str:
    """The line or row number, without separators, as in `curate trace FILE:LINE`."""
    return f"row {example['row']}" if example["line"] is None else f"line {example['line']}"


def _remarks(results: Sequence[ImportResult], *, dry_run: bool) -> Iterator[str]:
    """Sentences on replaced imports, repairs, closed rejects, warnings and possible repairs."""
    yield from _replacements([result for result in results if result.replaced])
    for repair, count in _sum_counts(result.repaired for result in results).items():
        yield f"Repaired by {repair}: {plural(count, 'row')}; the original rows are stored with their conversations."
    for code, count in _sum_counts(result.partly_rejected for result in results).items():
        where = f"In {plural(count, 'row')}"
        yield f"{where}, some conversations were imported and others rejected for {code}; curate rejects shows them."
    yield from _named_splits(results)
    unknown = _sum_counts(result.unknown_roles for result in results)
    if unknown:
        yield _unknown_roles(unknown, is_stored=not dry_run)
    closed = sum(result.closed for result in results)
    if closed:
        yield f"Closed {plural(closed, 'reject')} of earlier imports."
    for code, count in _sum_counts(result.warnings for result in results).items():
        where, repairs = _first_place(results, code), _repairs(results, code)
        yield f"Warning {code}: {plural(count, 'conversation')}{where}. {RULES[code].description}{repairs}"
    for code, count in _sum_counts(result.rejected for result in results).items():
        if repairs := _repairs(results, code):
            yield f"Rejected for {code}: {plural(count, 'row')}.{repairs}"
    yield from _conversions(results)
    names = dict.fromkeys(name for result in results for advice in result.advice.values() for name in advice.repairs)
    if names:
        yield f"To repair them, add: {' '.join(f'--repair {name}' for name in names)} --replace"


def _conversions(results: Sequence[ImportResult]) -> Iterator[str]:
    """For the first file with broken records, the command that converts it, if one is known."""
    for result in results:
        for example in result.reject_examples:
            if example["code"] == "broken-json" and (hint := conversion_hint(result.path, example["raw"])):
                yield f"{result.path}, {_location(example)}: {hint}"
                return


def _replacements(results: Sequence[ImportResult]) -> Iterator[str]:
    """The replaced imports of each file; of many files, their number."""
    if len(results) > MAX_EXAMPLES:
        imports = sum(len(result.replaced) for result in results)
        gone = plural(sum(result.disappeared for result in results), "conversation")
        files = plural(len(results), "file")
        yield f"Replaced {plural(imports, 'import')} of {files}; removed {gone} that disappeared."
        if moved := sum(count for result in results for count in result.moved.values()):
            yield f"{plural(moved, 'conversation')} of them {'has' if moved == 1 else 'have'} another first import now."
        return
    for result in results:
        ids = ", ".join(source[:12] for source in result.replaced)
        gone, was = plural(result.disappeared, "conversation"), "was" if result.disappeared == 1 else "were"
        yield f"Replaced the import {ids} of {result.path}; {gone} of it disappeared and {was} removed."
        for path, count in result.moved.items():
            yield (
                f"{plural(count, 'conversation')} of it {'is' if count == 1 else 'are'} also in {path}, which is the "
                "first import now: rules see it as source, file and import_id, and its columns first."
            )


def _first_place(results: Sequence[ImportResult], code: str) -> str:
    """The location of the first conversation with a warning, and of which file if there are several."""
    found = [(result.path, result.warning_examples[code]) for result in results if code in result.warning_examples]
    if not found:
        return ""
    path, example = found[0]
    return f", first in {_location(example)}{f' of {path}' if len(results) > 1 else ''}"


def _repairs(results: Sequence[ImportResult], code: str) -> str:
    """A sentence on the repairs for a rule that worked when they were tried; empty without one."""
    found = [result.advice[code] for result in results if code in result.advice]
    names = dict.fromkeys(name for advice in found for name in advice.repairs)
    repaired, tried = sum(advice.repaired for advice in found), sum(advice.tried for advice in found)
    return f" Repaired by {' and '.join(names)} in a trial: {repaired:,} of {tried:,}." if names else ""


def _named_splits(results: Sequence[ImportResult]) -> Iterator[str]:
    """The rows of files that are named after a split, by its name."""
    rows: Counter[str] = Counter()
    for result in results:
        if word := result.mapping.get(SPLIT_COLUMN):
            rows[word] += result.rows_kept + result.rows_duplicate
    if rows:
        counts = ", ".join(f"{word} {plural(count, 'row')}" for word, count in rows.items())
        held_out = [word for word in rows if word in HELD_OUT_NAMES]
        use = f"; curate freeze holds out {' and '.join(held_out)}" if held_out else ""
        yield f"Splits named by files or folders (meta.{SPLIT_COLUMN}): {counts}{use}."


def _unknown_roles(unknown: Mapping[str, int], *, is_stored: bool) -> str:
    """The names without a role with their rejected rows, and options that assign them, the first to a user."""
    names = [f"{shorten(name, 30)} ({plural(count, 'row')})" for name, count in unknown.items()]
    whole = [name for name in unknown if name and not name.endswith("…")][:MAX_ROLES]
    roles = ("human" if number % 2 == 0 else "gpt" for number in range(len(whole)))
    options = " ".join(f"--role {shell_quote(f'{name}={role}')}" for name, role in zip(whole, roles, strict=True))
    again = " --replace" if is_stored else ""
    advice = f" Assign each name its role, for example: {options}{again}" if options else ""
    return f"Unknown {'role' if len(unknown) == 1 else 'roles'}: {join_names(names, MAX_ROLES)}.{advice}"


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())


def _show_examples(result: ImportResult) -> None:
    """Print the first conversations as they would be stored, and the first reject of every rule."""
    for number, example in enumerate(result.examples, start=1):
        print_line(f"\n  conversation {number}  {example['id']}")
        for turn in example["conversations"]:
            print_line(f"    {turn['from']:{ROLE_WIDTH}}  {_indented(turn['value'])}")
    for example in result.reject_examples:
        print_line(f"\n  rejected for {example['code']}, {_location(example)}: {example['reason']}")
        print_line(f"    {_indented(example['raw'])}")
    print_line("")


def _indented(text: str) -> str:
    return shorten(text.rstrip(), EXAMPLE_CHARACTERS).replace("\n", "\n" + " " * (ROLE_WIDTH + 6))


def _next_step(results: Sequence[ImportResult], *, dry_run: bool) -> str:
    if dry_run:
        return "Nothing was written. Run the same command without --dry-run to import."
    if any(result.rows_rejected for result in results):
        return "Next: curate rejects shows the rejected rows; curate score continues with the conversations."
    return "Next: curate score"


def show_reject_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Print rejects by file and rule, with the first locations, and an example of each."""
    if not groups:
        return print_line("There are no open rejects. curate rejects --all includes closed ones.")
    names = file_names(group["path"] for group in groups)
    rows = [
        {
            "file": names[group["path"]],
            "rejected for": group["code"],
            "rows": group["rows"],
            "first at": _locations(group),
        }
        for group in groups
    ]
    print_table(rows, list(rows[0]))
    for group in groups[:MAX_EXAMPLES]:
        _show_reject(names, {**group, "line": group["first_lines"][0], "row": group["first_rows"][0]})
    print_line(f"{plural(sum(group['rows'] for group in groups), 'row')} in total.")
    return note("Next: curate rejects --list shows single rows; --export fix.csv writes them for repair.")


def _locations(group: Mapping[str, Any]) -> str:
    lines = [line for line in group["first_lines"] if line is not None]
    numbers = ", ".join(str(number) for number in lines or group["first_rows"])
    more = " …" if group["rows"] > len(group["first_rows"]) else ""
    return f"{'line' if lines else 'row'} {numbers}{more}"


def show_rejects(rejects: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Print single rejects."""
    names = file_names(reject["path"] for reject in rejects)
    for reject in rejects:
        _show_reject(names, reject)
    if len(rejects) == limit:
        note(f"Only the first {limit:,} rows are shown; --limit shows more.")


def _show_reject(names: Mapping[str, str], reject: Mapping[str, Any]) -> None:
    """Print a reject: location, rule and reason, then the excerpt that the reason refers to."""
    print_line(f"{names[reject['path']]}, {_location(reject)}: {reject['code']}. {reject['reason']}")
    print_line(f"    {reject['excerpt']}")


def show_exported_rejects(exported: ExportedRejects, store: Path | None, *, dry_run: bool) -> None:
    """Print the number of exported rows, and how to import the repaired file."""
    verb = "would be written" if dry_run else "written"
    print_line(f"{plural(exported.rows, 'reject')} {verb} to {exported.path}, in the columns of the source.")
    if exported.raw_only:
        print_line(f"{exported.raw_only:,} of them cannot be split into columns: fill these in from {RAW_COLUMN}.")
    if exported.nulls:
        print_line(
            f"{plural(exported.nulls, 'row')} had NaN or an infinity, written as null: JSON has no such numbers."
        )
    if exported.formulas:
        cells = plural(exported.formulas, "cell")
        print_line(f"Written unchanged: {cells} with a leading =, +, - or @, which a spreadsheet may run as a formula.")
    print_line(f"Correct the rows, delete the ones to leave out, and keep {REJECT_COLUMN} unchanged; then:")
    option = f" --store {store}" if store else ""
    print_line(f"  → curate import {exported.path} {exported.options}{option}".rstrip())


def rule_rows() -> list[dict[str, Any]]:
    """Parsing rules, then validation rules: code, severity, what must hold, and the repair that is offered."""
    parsing = [
        {"rule": code, "severity": "reject", "requirement": description, "repair": None}
        for code, description in PARSE_RULES.items()
        if code not in RULES
    ]
    return parsing + [
        {"rule": code, "severity": rule.severity, "requirement": rule.description, "repair": rule.repair}
        for code, rule in RULES.items()
    ]


def show_rules() -> None:
    """Print the rules and the repairs."""
    rows = rule_rows()
    print_table(rows, list(rows[0]))
    repairs = ({"repair": name, "description": repair.description} for name, repair in REPAIRS.items())
    print_table(repairs, ["repair", "description"])
