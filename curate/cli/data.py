"""Commands import, rejects, score, dedup and select: source files → scored conversations with verdicts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from curate.cli import completion
from curate.cli.console import note_dry_run, print_json, print_table, progress_bar
from curate.cli.options import (
    DEFAULT_STORE,
    DryRunOption,
    JsonOption,
    RecipeOption,
    SetOption,
    StoreOption,
    repeat_options,
)
from curate.cli.startup import process_end, tune_import
from schemas.text import shell_quote

MAX_LIMIT = 10**9

MAPPING_OPTIONS = {"shape", "map_", "group_by", "order_by", "role", "text"}
"""Parameters that a suggested import command replaces."""


def import_(
    context: typer.Context,
    files: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, a Hugging Face dataset, or - for standard input.")
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.SHAPES,
            help="Shape of the rows, such as pairs, messages or long; an unknown name lists all.",
            show_default="detected",
        ),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="Assign a column to a field of the shape; repeatable."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the files, such as cp1252.", show_default="UTF-8")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.FILE_FORMATS,
            help="Format of the files, such as csv or jsonl.",
            show_default="detected by suffix and content",
        ),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="CSV: character between cells.", show_default="detected")
    ] = None,
    quote: Annotated[
        str | None, typer.Option(metavar="CHAR", help="CSV: character around cells, '' for none.", show_default='"')
    ] = None,
    escape: Annotated[
        str | None,
        typer.Option(metavar="CHAR", help="CSV: character that makes the next one text.", show_default="none"),
    ] = None,
    skip_lines: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Lines above the header.", show_default="0")
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether the first row has the column names; without them, they are column_1 and so on.",
            show_default="it must look like names",
        ),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Sheet of a workbook, or table of a database.", show_default="the only one"),
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.REPAIRS,
            help="Apply this repair, such as trailing-user; repeatable.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt of conversations without one.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="One turn per row: column with the conversation's name.")
    ] = None,
    order_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="One turn per row: column that orders the turns.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ROLE|COLUMN",
            help="Assign a speaker's name to system, human or gpt; repeatable. A column: one turn per row, its role.",
        ),
    ] = None,
    turns_key: Annotated[
        str | None, typer.Option(metavar="PATH", help="Column or path with a list of turns, such as chat.turns.")
    ] = None,
    role_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Lists of turns: key or path of the role, such as author.role.")
    ] = None,
    text_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Lists of turns: key or path of the text, such as utterance.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="One turn per row, or plain text: column with the text.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Import only rows for which this is true, such as \"label = 'good'\"."),
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(
            metavar="SELECT", help="Import the result of this SELECT over the table rows, with its column row_number."
        ),
    ] = None,
    max_rejects: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Import nothing if a larger share of a file's rows is rejected.", show_default="100%"
        ),
    ] = None,
    max_record: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Reject larger records, such as 64M.", show_default="16M")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove earlier imports of a file that was imported before.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Keep earlier imports of a file that was imported before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the mapping, examples and rejects; write nothing.")
    ] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Import files: every row becomes a conversation, a duplicate, or a reject with a reason.

    \b
    curate import tickets.csv --map question=title --map answer=reply --dry-run
    curate import chats.csv --group-by ticket --order-by created_at --role author --text body
    """
    tune_import()
    from curate.ingest.file_hash import FileHasher

    with FileHasher() as hasher:
        hasher.start(files[0])  # before the imports below, which take longer
        from curate.cli.views.ingest import note_skipped, show_import
        from curate.ingest.import_options import apply_options
        from curate.ingest.pipeline import import_files
        from schemas.errors import SourceError
        from schemas.recipe import load_recipe

        options = {
            **{"shape": shape, "map": map_, "encoding": encoding, "format": format, "repair": repair},
            **{"group_by": group_by, "order_by": order_by, "role": role, "text": text},
            **{"max_rejects": max_rejects, "max_record": max_record},
            **{"where": where, "sql": sql, "turns_key": turns_key, "role_key": role_key, "text_key": text_key},
            **{"delimiter": delimiter, "quote": quote, "escape": escape, "skip_lines": skip_lines},
            **{"header": header, "sheet": sheet, "system": system},
        }
        if replace and add:
            raise SourceError("--replace and --add exclude each other.", "Give one of them.")
        section = apply_options(load_recipe(recipe, set_ or []).import_, options)
        with progress_bar("Importing") as advance:
            try:
                results = import_files(
                    store,
                    files,
                    section,
                    dry_run=dry_run,
                    on_changed="replace" if replace else "add" if add else "stop",
                    progress=advance,
                    on_mapping=lambda path, mapping: advance(description=f"{Path(path).name} as {mapping.shape}"),
                    hasher=hasher,
                )
            except SourceError as error:
                raise SourceError(error.what, _complete_commands(error.hint, context)) from error
    note_skipped(files)
    print_json(results) if as_json else show_import(results, dry_run=dry_run)
    process_end.is_short = True


def _complete_commands(hint: str, context: typer.Context) -> str:
    """The hint, in which the import commands have the options of the running one, unless they set them."""
    return re.sub(
        r"\n    curate import (.*)",
        lambda line: f"\n    curate import{_given_options(line[1], context)} {line[1]}",
        hint,
    )


def _given_options(command: str, context: typer.Context) -> str:
    """The options of the running command that a suggested one does not set."""
    options = {word for word in command.split() if word.startswith("--")}
    set_here = {name for name in context.params if f"--{name.replace('_', '-')}" in options}
    if "--no-header" in options:
        set_here.add("header")
    if "--add" in options:
        set_here.add("replace")
    if "--shape" not in options:
        return repeat_options(context, set_here)
    roles = "".join(f" --role {shell_quote(name)}" for name in context.params["role"] or [] if "=" in name)
    return repeat_options(context, MAPPING_OPTIONS | set_here) + roles


def rejects(
    source: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", autocompletion=completion.SOURCES, help="Only rows of this file, or of this source id."
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(autocompletion=completion.REJECT_CODES, help="Only rows that were rejected by this rule."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Include closed rejects.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show single rows instead of groups.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Number of rows that --list shows.")] = 50,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rows to a .csv or .jsonl file for repair.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let --export overwrite an existing file.")] = False,
    dry_run: DryRunOption = False,
    rules: Annotated[bool, typer.Option("--rules", help="Show all rules and repairs, and no rows.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show rejected rows with their reasons, or export them for repair and re-import.

    \b
    curate rejects --code empty-answer --export fix.csv
    """
    from curate.cli.views import ingest as views
    from curate.ingest.rejects import RejectFilter, export_rejects, group_rejects, list_rejects
    from schemas.store import reading

    if rules:
        return print_json(views.rule_rows()) if as_json else views.show_rules()
    criteria = RejectFilter(source, code, closed=all_)
    with reading(store) as connection:
        if export is not None:
            exported = export_rejects(connection, criteria, export, replace=replace, dry_run=dry_run)
            print_json(exported) if as_json else views.show_exported_rejects(exported, store, dry_run=dry_run)
            return note_dry_run(dry_run)
        rows = list_rejects(connection, criteria, limit) if list_ else group_rejects(connection, criteria)
    if as_json:
        return print_json(rows)
    return views.show_rejects(rows, limit) if list_ else views.show_reject_groups(rows)


def score(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", autocompletion=completion.SCORERS, help="Run only this scorer; repeatable."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Recompute scores that exist.")] = False,
    why: Annotated[
        str | None, typer.Option(metavar="ID", help="Show the scores and penalties of one conversation.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the scorers and their parameters.")] = False,
    dry_run: DryRunOption = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Compute the missing scores of all conversations.

    \b
    curate score
    """
    from curate.cli.views.scores import show_explanation, show_scores
    from curate.scorers.plan import describe_scorers
    from curate.scorers.runner import score_store
    from curate.scorers.summary import explain_quality
    from schemas.recipe import load_recipe

    settings = load_recipe(recipe, set_ or [])
    if list_:
        scorers = describe_scorers()
        print_json(scorers) if as_json else print_table(scorers, ["scorer", "parameters", "description"])
    elif why is not None:
        explanation = explain_quality(store, settings, why)
        print_json(explanation) if as_json else show_explanation(explanation)
    else:
        with progress_bar("Scoring") as advance:
            report = score_store(store, settings, only or [], again=again, dry_run=dry_run, progress=advance)
        print_json(report) if as_json else show_scores(report, dry_run=dry_run)
        note_dry_run(dry_run)


def dedup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the near-duplicates; write nothing.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Find near-duplicate conversations and choose which one of each cluster to keep.

    Two conversations are near-duplicates if the Jaccard similarity of their 5-word shingles is at least
    dedup.similarity. If one of them has fewer than 50 words, it is the similarity of their words, so that one changed
    word in ten is 0.8 or more, unless their order differs. Case, punctuation, markup and the system prompt are ignored.
    The rule "not near_duplicate" drops all but one per cluster, and curate freeze puts a cluster into one split.

    \b
    curate dedup --set dedup.similarity=0.9 --dry-run
    """
    from curate.cli.views.curation import show_duplicates
    from curate.dedup.clusters import deduplicate_store
    from schemas.recipe import load_recipe

    settings = load_recipe(recipe, set_ or [])
    with progress_bar("Comparing") as advance:
        result = deduplicate_store(store, settings, dry_run=dry_run, progress=advance)
    print_json(result) if as_json else show_duplicates(result)


def select(
    where: Annotated[str | None, typer.Option(metavar="SQL", help='An additional rule, such as "words >= 20".')] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the dropped conversations; write nothing.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Apply the filter rules and show how many conversations each rule drops.

    A rule is an SQL expression over scores (curate score --list), source columns (meta.NAME), id, source, import_id,
    file, turns, has_tools, prompt, answer and, after curate dedup, near_duplicate. A conversation is dropped by the
    first rule it fails; a rule that evaluates to NULL, for example on an empty cell, counts as failed.

    \b
    curate select --where "quality >= 0.6 and not refusal" --dry-run
    """
    from curate.cli.views.curation import show_selection
    from curate.selection import select_store
    from schemas.recipe import load_recipe

    selection = select_store(store, load_recipe(recipe, set_ or []), where, dry_run=dry_run)
    print_json(selection) if as_json else show_selection(selection, dry_run=dry_run)
