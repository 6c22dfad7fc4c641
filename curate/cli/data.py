"""The words of `curate import`, `rejects`, `score`, `dedup` and `select`: from files to what is kept.

Each command imports what it needs when it runs.
"""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.console import print_json, print_table, progress_bar
from curate.cli.options import JsonOption, RecipeOption, SetOption, StoreOption
from curate.cli.startup import tune_import

MOST_ROWS = 10**9


def import_(
    files: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, a Hugging Face dataset, or - for standard input.")
    ],
    shape: Annotated[
        str | None,
        typer.Option(help="alpaca, pairs, sharegpt, messages, transcript, long or text.", show_default="found"),
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Which column is what; repeatable.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Such as cp1252.", show_default="UTF-8")] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, tsv, jsonl, json or parquet.", show_default="found by suffix and content")
    ] = None,
    repair: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A repair to apply, such as trailing-user; repeatable.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Long format: names the conversation of a row.")
    ] = None,
    order_by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Long format: orders the turns.")] = None,
    role: Annotated[str | None, typer.Option(metavar="COLUMN", help="Long format: who speaks.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Long format and texts: the words.")] = None,
    max_rejects: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Import nothing if a file loses more of its rows.", show_default="100%"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the mapping, examples and what would be rejected; write nothing.")
    ] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read files into the store: every row becomes a conversation, a duplicate of one, or a reject with its reason.

    \b
    curate import tickets.csv --map question=title --map answer=reply --dry-run
    curate import chats.csv --group-by ticket --order-by created_at --role author --text body
    """
    tune_import()
    from curate.ingest.file_hash import FileHasher

    with FileHasher() as hasher:
        hasher.start(files[0])  # before all that the next lines load
        from curate.cli.views.ingest import note_passed_over, show_import
        from curate.ingest.pipeline import apply_options, import_files
        from schemas.recipe import load_recipe
        from schemas.store import store_path

        written = {
            **{"shape": shape, "map": map_, "encoding": encoding, "format": format, "repair": repair},
            **{"group_by": group_by, "order_by": order_by, "role": role, "text": text, "max_rejects": max_rejects},
        }
        section = apply_options(load_recipe(recipe, set_ or []).import_, written)
        with progress_bar("importing") as advance:
            results = import_files(
                store_path(store),
                files,
                section,
                dry_run=dry_run,
                progress=advance,
                on_mapping=lambda path, mapping: advance(description=f"{path} as {mapping.shape}"),
                hasher=hasher,
            )
    note_passed_over(files)
    if as_json:
        print_json([result.as_json() for result in results])
    else:
        show_import(results, dry_run=dry_run)


def rejects(
    source: Annotated[str | None, typer.Option(metavar="FILE", help="Only those of a file, or of a source id.")] = None,
    code: Annotated[str | None, typer.Option(help="Only those refused by this rule.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Every row instead of groups.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="Rows that --list shows.")] = 50,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write them to a .csv or .jsonl file to be repaired.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let --export write over a file.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Show all rules and repairs instead.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the rows that were refused, and why; or write them to a file that is repaired and imported again.

    \b
    curate rejects --code empty-answer --export fix.csv
    """
    from curate.cli.views import ingest
    from curate.ingest import rejects as rejecting
    from schemas.store import reading, store_path

    if rules:
        return print_json(ingest.rules()) if as_json else ingest.show_rules()
    option = f" --store {store}" if store else ""
    wanted = rejecting.RejectFilter(source, code, closed=all_)
    with reading(store_path(store)) as connection:
        if export is not None:
            exported = rejecting.export_rejects(connection, wanted, export, replace=replace)
            return print_json(exported.as_json()) if as_json else ingest.show_exported(exported, option)
        found = (
            rejecting.list_rejects(connection, wanted, limit) if list_ else rejecting.group_rejects(connection, wanted)
        )
    if as_json:
        return print_json(found)
    return ingest.show_reject_list(found, limit) if list_ else ingest.show_reject_groups(found)


def score(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this scorer; repeatable.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Compute what is computed already once more.")] = False,
    why: Annotated[
        str | None, typer.Option("--why", metavar="ID", help="Show one conversation's scores and lost quality.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the scorers and their parameters.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the conversations: only what is missing is computed.

    \b
    curate score
    """
    from dataclasses import asdict

    from curate.cli.views.curation import show_explanation, show_scores
    from curate.scorers import runner
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    settings = load_recipe(recipe, set_ or [])
    if list_:
        listed = runner.describe_scorers()
        print_json(listed) if as_json else print_table(listed, ["scorer", "parameters", "what"])
    elif why is not None:
        explained = runner.explain(store_path(store), settings, why)
        print_json(explained) if as_json else show_explanation(explained)
    else:
        with progress_bar("Scoring") as advance:
            report = runner.score_store(
                store_path(store),
                settings,
                only or [],
                again=again,
                progress=advance,
            )
        print_json(asdict(report)) if as_json else show_scores(report)


def dedup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, write nothing.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find near-duplicates: who resembles whom, how much, and whom of them to keep.

    The rule "not near_duplicate" then keeps one of each, and a freeze puts all of a kind on one side of the split.
    Two conversations are alike when they share most of their words, five in a row; the system prompt does not count.

    \b
    curate dedup --set dedup.similarity=0.9 --dry-run
    """
    from dataclasses import asdict

    from curate.cli.views.curation import show_duplicates
    from curate.dedup.clusters import deduplicate_store
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    with progress_bar("Comparing") as advance:
        found = deduplicate_store(
            store_path(store),
            load_recipe(recipe, set_ or []),
            dry_run=dry_run,
            progress=advance,
        )
    print_json(asdict(found)) if as_json else show_duplicates(found)


def select(
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help='One more rule, such as "words >= 20".')
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would leave, write nothing.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply the recipe's rules: who leaves, at which rule, and why.

    A rule reads scores (curate score --list), columns of the source (meta.NAME), id, source, file, turns, has_tools,
    prompt, answer and, behind curate dedup, near_duplicate. Where it gives NULL, as by an empty cell or a division by
    zero, the conversation leaves.

    \b
    curate select --where "quality >= 0.6 and not refusal" --dry-run
    """
    from dataclasses import asdict

    from curate.cli.views.curation import show_selection
    from curate.selection import select_store
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    selection = select_store(store_path(store), load_recipe(recipe, set_ or []), where, dry_run=dry_run)
    print_json(asdict(selection)) if as_json else show_selection(selection, dry_run=dry_run)
