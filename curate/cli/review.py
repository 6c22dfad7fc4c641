"""The words of `curate review push`, `pull`, `status`, `export`, `import`: what people are asked, and what they said.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start.

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli.console import note, print_json, print_table, progress_bar
from curate.cli.options import GroupedHelp, JsonOption, RecipeOption, SetOption, StoreOption
from curate.cli.review_server import HomeOption, UrlOption
from curate.cli.review_server import register as register_server_commands
from schemas.text import plural, printable

if TYPE_CHECKING:
    from curate.review.agreement import Standing
    from curate.review.pull import Pulled
    from curate.review.queue import Wanted
    from curate.review.spreadsheet import Filled

ASK, SHEETS = "Ask people", "Without a server"

app = typer.Typer(
    help="Let people judge conversations: a labelling server, what goes there, what comes back.",
    no_args_is_help=True,
    cls=GroupedHelp,
    rich_markup_mode=None,  # see GroupedHelp
)

WhereOption = Annotated[
    str | None, typer.Option("--where", metavar="SQL", help='Only these, such as "words >= 20 and quality < 0.9".')
]
OrderOption = Annotated[
    str | None, typer.Option("--order", metavar="SQL", help='Which first, such as "quality" or "words desc".')
]
QueueOption = Annotated[
    str | None,
    typer.Option(
        "--queue",
        help="random; uncertain: quality close to a rule's cut; disagreement: people differ; near-duplicates: who has"
        " any, cluster by cluster, the largest first.",
        show_default="random, or by --order",
    ),
]
SampleOption = Annotated[
    int | None, typer.Option("--sample", min=1, help="How many the set holds at most.", show_default="all")
]
OverlapOption = Annotated[
    int | None, typer.Option("--overlap", min=1, help="Answers each waits for.", show_default="1, or the recipe's")
]
BlindOption = Annotated[
    str | None,
    typer.Option("--blind", metavar="SHARE", help="Shown without suggestions.", show_default="10%, or the recipe's"),
]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", help="Where on the server.", show_default="the only one")
]
AlsoDroppedOption = Annotated[bool, typer.Option("--also-dropped", help="Those too that the rules dropped.")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="Judge also where fewer have answered than the set waits for.")
]


@app.command(rich_help_panel=ASK)
def push(
    name: Annotated[str, typer.Argument(help="What the review set is called, such as support.")],
    where: WhereOption = None,
    order: OrderOption = None,
    queue: QueueOption = None,
    sample: SampleOption = None,
    overlap: OverlapOption = None,
    blind: BlindOption = None,
    also_dropped: AlsoDroppedOption = False,
    workspace: WorkspaceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, send nothing.")] = False,
    url: UrlOption = None,
    home: HomeOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring conversations and the recipe's questions to the labelling server; the same again changes nothing.

    \b
    curate review push support --where "answer_words < 40" --sample 200 --overlap 2 --blind 10%
    """
    from curate.review.argilla.client import connect
    from curate.review.push import push as push_set
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    settings = load_recipe(recipe, _overrides(set_, overlap, blind))
    wanted = _wanted(where, order, queue, sample, overlap, dropped=also_dropped)
    with connect(url, home, workspace) as server, progress_bar("pushing") as advance:
        done = push_set(
            store_path(store), settings, server, name, wanted,
            dry_run=dry_run,
            progress=advance,
        )  # fmt: skip
    if as_json:
        return print_json(done.as_json())
    answers = "one answer" if done.overlap == 1 else f"{done.overlap} answers"
    conversations = plural(done.conversations, "conversation")
    typer.echo(f"{name} on {done.server}: {conversations}, {done.blind:,} blind, {answers} each.")
    typer.echo("Nothing was sent." if dry_run else f"{done.sent:,} sent, {done.unchanged:,} were there just so.")
    _print_unfit(done.unfit)
    note(f"Next: people answer on {done.server}, then curate review pull {name}.")
    return None


@app.command(rich_help_panel=ASK)
def pull(
    name: Annotated[str, typer.Argument(help="The review set.")],
    partial: PartialOption = False,
    again: Annotated[bool, typer.Option("--again", help="Read every record, also when nobody has answered.")] = False,
    workspace: WorkspaceOption = None,
    url: UrlOption = None,
    home: HomeOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take people's answers from the labelling server, and what they come to as verdicts.

    \b
    curate review pull support
    """
    from curate.review.argilla.client import connect
    from curate.review.pull import pull as pull_set
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    section = load_recipe(recipe, set_ or []).review
    with connect(url, home, workspace) as server, progress_bar("pulling") as advance:
        done = pull_set(
            store_path(store), section, server, name,
            partial=partial,
            again=again,
            progress=advance,
        )  # fmt: skip
    return print_json(done.as_json()) if as_json else _print_pulled(done)


@app.command(rich_help_panel=ASK)
def status(
    name: Annotated[str | None, typer.Argument(help="Only this review set.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the conversations on which people differ.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far people are, how well they agree, and what suggestions do to them.

    \b
    curate review status support
    """
    from curate.review.agreement import survey_reviews
    from schemas.recipe import load_recipe
    from schemas.store import reading, store_path

    section = load_recipe(recipe, set_ or []).review
    with reading(store_path(store)) as connection:
        found = survey_reviews(connection, section, name)
    return print_json(found.as_json()) if as_json else _print_standing(found, list_=list_)


@app.command(rich_help_panel=SHEETS)
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="The spreadsheet to write.")],
    name: Annotated[str | None, typer.Option("--name", help="The review set.", show_default="the file's name")] = None,
    where: WhereOption = None,
    order: OrderOption = None,
    queue: QueueOption = None,
    sample: SampleOption = None,
    overlap: OverlapOption = None,
    blind: BlindOption = None,
    also_dropped: AlsoDroppedOption = False,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a file that is there.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write conversations and the recipe's questions to a spreadsheet, to be filled and imported again.

    \b
    curate review export support.csv --where "answer_words < 40" --sample 200
    """
    from curate.review.spreadsheet import export_sheet
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    settings = load_recipe(recipe, _overrides(set_, overlap, blind))
    wanted = _wanted(where, order, queue, sample, overlap, dropped=also_dropped)
    done = export_sheet(store_path(store), settings, file, name or file.stem.lower(), wanted, replace=replace)
    if as_json:
        return print_json(done.as_json())
    typer.echo(
        f"{file}: {plural(done.rows, 'conversation')} of the review set {done.review_set}, "
        f"{done.blind:,} of them blind."
    )
    _print_unfit(done.unfit)
    note(f"Fill the columns behind the suggestions, and `reviewer`. Next: curate review import {file}")
    return None


@app.command("import", rich_help_panel=SHEETS)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="A filled spreadsheet.")],
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", metavar="NAME", help="Who filled the rows that do not say.")
    ] = None,
    partial: PartialOption = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the answers of a filled spreadsheet, and what they come to as verdicts.

    \b
    curate review import support.csv --reviewer ann
    """
    from curate.review.spreadsheet import import_sheet
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    done = import_sheet(store_path(store), load_recipe(recipe, set_ or []).review, file, reviewer, partial=partial)
    if as_json:
        print_json(done.as_json())
    else:
        _print_filled(file, done)
    if done.refused and not done.answered:
        raise typer.Exit(1)


def _overrides(set_: list[str] | None, overlap: int | None, blind: str | None) -> list[str]:
    """What the options say of the recipe's section, as overrides."""
    from schemas.recipe import parse_share

    said = list(set_ or [])
    said += [] if overlap is None else [f"review.overlap={overlap}"]
    return said + ([] if blind is None else [f"review.blind={parse_share(blind, '--blind')}"])


def _wanted(
    where: str | None, order: str | None, queue: str | None, sample: int | None, overlap: int | None, *, dropped: bool
) -> "Wanted":
    from curate.review.queue import Wanted

    return Wanted(where, order, queue, sample, dropped, overlap)


def _print_unfit(unfit: list[dict[str, str]]) -> None:
    if unfit:
        typer.echo(f"{len(unfit):,} do not fit and stay out:")
        for row in unfit:
            typer.echo(printable(f"  {row['conversation'][:12]}  {row['reason']}"))


def _print_filled(file: Path, done: "Filled") -> None:
    """What a sheet brought, and why rows were refused, each reason once."""
    typer.echo(
        f"{file}: {plural(done.answered, 'row')} with answers, {done.empty:,} still empty, "
        f"{len(done.refused):,} refused."
    )
    lines: dict[str, list[int]] = {}
    for row in done.refused:  # few: a person filled them in
        lines.setdefault(row["reason"], []).append(row["line"])
    for reason, at in lines.items():
        more = f" and {plural(len(at) - 1, 'more row')}" if len(at) > 1 else ""
        typer.echo(printable(f"  line {at[0]}{more}: {reason}"))
    for pulled in done.pulled:
        _print_pulled(pulled)


def _print_pulled(done: "Pulled") -> None:
    """What answers brought, and what they come to."""
    if done.unchanged:
        typer.echo(f"{done.review_set}: nobody has answered since the latest pull.")
    else:
        said = ", ".join(f"{count:,} {status}" for status, count in done.answers.items() if count)
        typer.echo(f"{done.review_set}: new answers: {said or 'none'}.")
    outcomes: dict[str, Any] = {outcome: count for outcome, count in done.outcomes.items() if count}
    if outcomes:
        typer.echo(f"The conversations of {done.review_set} with answers come to, with those of all other sets:")
        print_table([outcomes], list(outcomes))
    typer.echo(f"{done.verdicts:,} new verdicts.")
    if done.to_be_fixed:
        note(f"{done.to_be_fixed:,} are to be fixed and nobody has written how: they are out until somebody does.")
    if done.gone:
        deleted = plural(done.gone, "record")
        note(f"Deleted on the server: {deleted}; answers pulled before stay, a push puts them back.")
    if done.unknown:
        note(f"Left alone: {plural(done.unknown, 'answer')} to records that this store did not push.")
    if outcomes.get("undecided"):
        note("Undecided: an answer was taken back, and its verdict with it; the rules decide until somebody answers.")
    if outcomes.get("disputed"):
        note("People differ: curate review push NAME --queue disagreement asks a third person.")
    note("Next: curate review status, then curate freeze NAME.")


def _print_standing(found: "Standing", *, list_: bool) -> None:
    from curate.cli.views.reviews import tell

    for told in tell(found):
        typer.echo(printable(told.title))
        print_table(told.rows, list(told.rows[0]))
        for line in told.below:
            typer.echo(printable(line))
        typer.echo()
    if not found.people:
        note("Nobody has answered yet.")
    if found.disputed:
        typer.echo(f"People differ on {len(found.disputed):,}: curate review push NAME --queue disagreement.")
        for row in found.disputed if list_ else []:
            typer.echo(printable(f"  {row['conversation'][:12]}  {row['said']}"))


register_server_commands(app)
