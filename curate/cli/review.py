"""Commands of `curate review`: push, pull, status, export, import. Each imports its libraries when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.cli import completion
from curate.cli.console import note_dry_run, print_json, progress_bar
from curate.cli.groups import GroupedHelp
from curate.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, RecipeOption, SetOption, StoreOption
from curate.cli.review_server import HomeOption, UrlOption, WorkspaceOption
from curate.cli.review_server import register as register_server_commands

SERVER, SPREADSHEETS = "Review on a server", "Review in spreadsheets"

review = typer.Typer(
    help="Review conversations with annotators, on a labelling server or in spreadsheets.",
    no_args_is_help=True,
    cls=GroupedHelp,
    rich_markup_mode=None,  # see GroupedHelp
)

WhereOption = Annotated[
    str | None,
    typer.Option("--where", metavar="SQL", help='Select conversations, for example "words >= 20 and quality < 0.9".'),
]
OrderOption = Annotated[
    str | None, typer.Option("--order", metavar="SQL", help='Sort, for example by "quality" or "words desc".')
]
QueueOption = Annotated[
    str | None,
    typer.Option(
        "--queue",
        autocompletion=completion.QUEUES,
        help="random; uncertain: quality close to a rule's threshold; disagreement: disputed; near-duplicates: cluster"
        " by cluster, the largest first.",
        show_default="random, or by --order",
    ),
]
SampleOption = Annotated[
    int | None, typer.Option("--sample", min=1, help="Maximum size of the set.", show_default="all")
]
OverlapOption = Annotated[
    int | None, typer.Option("--overlap", min=1, help="Answers per conversation.", show_default="1, or the recipe's")
]
BlindOption = Annotated[
    str | None,
    typer.Option(
        "--blind", metavar="SHARE", help="Share shown without suggestions.", show_default="10%, or the recipe's"
    ),
]
AssignOption = Annotated[
    str | None,
    typer.Option(
        "--assign",
        metavar="NAMES",
        help='Offer new conversations only to these annotators, "ann,bob"; "" to all.',
        show_default="all",
    ),
]
AlsoDroppedOption = Annotated[bool, typer.Option("--also-dropped", help="Include conversations that rules dropped.")]
PartialOption = Annotated[
    bool | None,
    typer.Option(
        "--partial/--no-partial",
        help="Whether fewer answers than the set asks for are enough, also in later pulls.",
        show_default="unchanged",
    ),
]


@review.command(rich_help_panel=SERVER)
def push(
    name: Annotated[
        str, typer.Argument(help="Name of the review set, for example support.", autocompletion=completion.REVIEW_SETS)
    ],
    where: WhereOption = None,
    order: OrderOption = None,
    queue: QueueOption = None,
    sample: SampleOption = None,
    overlap: OverlapOption = None,
    blind: BlindOption = None,
    also_dropped: AlsoDroppedOption = False,
    assign: AssignOption = None,
    workspace: WorkspaceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent without sending it.")] = False,
    url: UrlOption = None,
    home: HomeOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Send conversations and questions to the labelling server. Idempotent.

    \b
    curate review push support --where "answer_words < 40" --sample 200 --overlap 2 --blind 10%
    """
    from curate.cli.views.reviews import show_push
    from curate.review.argilla.client import connect
    from curate.review.push import push as push_set
    from curate.review.queue import QueueQuery
    from schemas.recipe import load_recipe

    settings = load_recipe(recipe, _overrides(set_, overlap, blind))
    names = None if assign is None else tuple(filter(None, (one.strip() for one in assign.split(","))))
    query = QueueQuery(where, order, queue, sample, also_dropped, overlap, names)
    with connect(url, home, workspace) as server, progress_bar("pushing") as advance:
        result = push_set(store, settings, server, name, query, dry_run=dry_run, progress=advance)
    print_json(result) if as_json else show_push(result, dry_run=dry_run)


@review.command(rich_help_panel=SERVER)
def pull(
    name: Annotated[str, typer.Argument(help="Name of the review set.", autocompletion=completion.REVIEW_SETS)],
    partial: PartialOption = None,
    again: Annotated[bool, typer.Option("--again", help="Read all records, even without new answers.")] = False,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    url: UrlOption = None,
    home: HomeOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Fetch answers from the labelling server and resolve them to verdicts.

    \b
    curate review pull support
    """
    from curate.cli.views.reviews import show_pull
    from curate.review.argilla.client import connect
    from curate.review.pull import pull as pull_set
    from schemas.recipe import load_recipe

    section = load_recipe(recipe, set_ or []).review
    with connect(url, home, workspace) as server, progress_bar("pulling") as advance:
        result = pull_set(store, section, server, name, partial=partial, again=again, dry_run=dry_run, progress=advance)
    print_json(result) if as_json else show_pull(result)
    note_dry_run(dry_run)


@review.command(rich_help_panel=SERVER)
def remove(
    name: Annotated[str, typer.Argument(help="Name of the review set.")],
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Beginnings of conversation ids.")] = None,
    where: WhereOption = None,
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    url: UrlOption = None,
    home: HomeOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Take conversations out of a review set. Answers to them stay in the store and count.

    \b
    curate review remove support --where "answer_words < 40"
    """
    from curate.cli.views.reviews import show_member_removal
    from curate.review.argilla.client import connect_if_used
    from curate.review.removal import remove_members
    from schemas.recipe import load_recipe

    if not ids and where is None:
        raise typer.BadParameter("Name conversations by ID or --where.")
    with connect_if_used(store, url, home, workspace) as server:
        result = remove_members(
            store, load_recipe(recipe, set_ or []), server, name, ids=ids or (), where=where, dry_run=dry_run
        )
    print_json(result) if as_json else show_member_removal(result, dry_run=dry_run)


@review.command(rich_help_panel=SERVER)
def status(
    name: Annotated[
        str | None, typer.Argument(help="Only this review set.", autocompletion=completion.REVIEW_SETS)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List disputed conversations with their answers.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show progress, inter-annotator agreement and suggestion bias.

    \b
    curate review status support
    """
    from curate.cli.views.reviews import show_stats
    from curate.review.agreement import review_stats
    from schemas.recipe import load_recipe
    from schemas.store import reading

    section = load_recipe(recipe, set_ or []).review
    with reading(store) as connection:
        stats = review_stats(connection, section, name)
    print_json(stats) if as_json else show_stats(stats, list_disputed=list_)


@review.command(rich_help_panel=SPREADSHEETS)
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Spreadsheet to write.")],
    name: Annotated[str | None, typer.Option(help="Name of the review set.", show_default="the file's name")] = None,
    where: WhereOption = None,
    order: OrderOption = None,
    queue: QueueOption = None,
    sample: SampleOption = None,
    overlap: OverlapOption = None,
    blind: BlindOption = None,
    also_dropped: AlsoDroppedOption = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")] = False,
    dry_run: DryRunOption = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write conversations and questions to a spreadsheet for annotators to fill in.

    \b
    curate review export support.csv --where "answer_words < 40" --sample 200
    """
    from curate.cli.views.reviews import show_export
    from curate.review.queue import QueueQuery
    from curate.review.spreadsheet import export_sheet
    from schemas.recipe import load_recipe

    settings = load_recipe(recipe, _overrides(set_, overlap, blind))
    query = QueueQuery(where, order, queue, sample, also_dropped, overlap)
    result = export_sheet(store, settings, file, name or file.stem.lower(), query, replace=replace, dry_run=dry_run)
    print_json(result) if as_json else show_export(result)
    note_dry_run(dry_run)


@review.command("import", rich_help_panel=SPREADSHEETS)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Filled spreadsheet.")],
    reviewer: Annotated[
        str | None, typer.Option("--annotator", metavar="NAME", help="Annotator of rows without a name.")
    ] = None,
    partial: PartialOption = None,
    dry_run: DryRunOption = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Read answers from a filled spreadsheet and resolve them to verdicts.

    \b
    curate review import support.csv --annotator ann
    """
    from curate.cli.views.reviews import show_import
    from curate.review.spreadsheet import import_sheet
    from schemas.recipe import load_recipe

    result = import_sheet(
        store, load_recipe(recipe, set_ or []).review, file, reviewer, partial=partial, dry_run=dry_run
    )
    print_json(result) if as_json else show_import(result)
    note_dry_run(dry_run)
    if result.rejected and not result.answered:
        raise typer.Exit(1)


def _overrides(set_: list[str] | None, overlap: int | None, blind: str | None) -> list[str]:
    """The overrides of the recipe by --set and the other options."""
    from schemas.section import parse_share

    overrides = list(set_ or [])
    if overlap is not None:
        overrides.append(f"review.overlap={overlap}")
    if blind is not None:
        overrides.append(f"review.blind={parse_share(blind, '--blind')}")
    return overrides


register_server_commands(review)
