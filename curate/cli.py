"""The roof: turns words into calls and results into words. It alone sees both `curate` and `train`.

Nothing heavy is imported here: each command imports what it needs when it runs, so `curate --help` is quick.
"""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

import errno
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import curate.siblings  # noqa: F401  before the imports below: says which file hides our `schemas` or `train`
from schemas.errors import CurateError
from schemas.terminal import (
    GroupedHelp,
    JsonOption,
    RecipeOption,
    SetOption,
    StoreOption,
    note,
    print_json,
    print_table,
    printable,
    progress_bar,
)
from train.cli import register as register_training_commands

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from typer._click import Command

INTERRUPTED = 130
MOST_ROWS = 10**9
START, DATA, REVIEW, VERSIONS, LOOK = "Start", "Data", "Review", "Versions", "Look"

app = typer.Typer(
    name="curate",
    help="From CSV and JSONL exports to a tuned model that names its data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=GroupedHelp,
    rich_markup_mode=None,  # see GroupedHelp
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of a failure.", envvar="CURATE_DEBUG")
    ] = False,
) -> None:
    """From CSV and JSONL exports to a tuned model that names its data."""
    if debug:
        os.environ["CURATE_DEBUG"] = "1"


@app.command(rich_help_panel=START)
def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("curate.toml"),
    replace: Annotated[bool, typer.Option("--replace", help="Write over a recipe that is there.")] = False,
) -> None:
    """Write a full recipe: every key with its default and what it means.

    \b
    curate init
    """
    from curate.initialising import write_recipe

    write_recipe(path, replace=replace)
    typer.echo(f"{path} is written. Next: curate import FILE, then curate score.")


@app.command(rich_help_panel=START)
def doctor(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say what is installed, which device there is, what clashes, and what to type.

    \b
    curate doctor
    """
    from dataclasses import asdict

    from curate.diagnosing import diagnose
    from schemas.store import store_path

    findings = diagnose(store_path(store))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        typer.echo("\n".join(finding.as_text() for finding in findings))
    if any(finding.state == "clash" for finding in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=START)
def demo(
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder for it.")] = Path("curate-demo"),
) -> None:
    """Walk the whole way on a sample, from a CSV to a tuned model, with the commands that do it.

    An earlier demo in that folder is kept, beside the new one.

    \b
    curate demo --to demo
    """
    from curate.demonstrating import demonstrate

    demonstrate(to, typer.echo)


@app.command("import", rich_help_panel=DATA)
def import_(
    files: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, a Hugging Face dataset, or - for standard input.")
    ],
    shape: Annotated[
        str | None,
        typer.Option(help="alpaca, pairs, sharegpt, messages, transcript or long.", show_default="found"),
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Which column is what; repeatable.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Such as cp1252.", show_default="UTF-8")] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, tsv, jsonl, json or parquet.", show_default="found by suffix and content")
    ] = None,
    mend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A mend to apply, such as trailing-user; repeatable.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Long format: names the conversation of a row.")
    ] = None,
    order_by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Long format: orders the turns.")] = None,
    role: Annotated[str | None, typer.Option(metavar="COLUMN", help="Long format: who speaks.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Long format: the words.")] = None,
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
    # Read by Polars' allocator when it is loaded: keep memory for the next batch, instead of giving it back and
    # taking it again page by page, which cost a tenth of the time.
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1")
    from curate.hashing import Hashing

    with Hashing() as hashing:
        hashing.begin(files[0])  # before all that the next lines load
        from curate.importing import import_files, lay_over
        from curate.reporting import show_import
        from schemas.recipe import load_recipe
        from schemas.store import store_path

        written = {
            **{"shape": shape, "map": map_, "encoding": encoding, "format": format, "mend": mend},
            **{"group_by": group_by, "order_by": order_by, "role": role, "text": text, "max_rejects": max_rejects},
        }
        section = lay_over(load_recipe(recipe, set_ or []).import_, written)
        with progress_bar("importing") as bar:
            results = import_files(
                store_path(store),
                files,
                section,
                dry_run=dry_run,
                progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total or None),
                hashing=hashing,
            )
    if as_json:
        print_json([result.as_json() for result in results])
    else:
        show_import(results, dry_run=dry_run)


@app.command(rich_help_panel=DATA)
def rejects(
    source: Annotated[str | None, typer.Option(metavar="FILE", help="Only those of a file, or of a source id.")] = None,
    code: Annotated[str | None, typer.Option(help="Only those refused by this rule.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Every row instead of groups.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="Rows that --list shows.")] = 50,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write them to a .csv or .jsonl file to be mended.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let --export write over a file.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Show all rules and mends instead.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the rows that were refused, and why; or write them to a file that is mended and imported again.

    \b
    curate rejects --code empty-answer --export fix.csv
    """
    from curate import rejecting, reporting
    from schemas.store import reading, store_path

    if rules:
        return print_json(reporting.rules()) if as_json else reporting.show_rules()
    option = f" --store {store}" if store else ""
    wanted = rejecting.Wanted(source, code, closed=all_)
    with reading(store_path(store)) as connection:
        if export is not None:
            exported = rejecting.export_rejects(connection, wanted, export, replace=replace)
            return print_json(exported.as_json()) if as_json else reporting.show_exported(exported, option)
        found = (
            rejecting.list_rejects(connection, wanted, limit) if list_ else rejecting.group_rejects(connection, wanted)
        )
    if as_json:
        return print_json(found)
    return reporting.show_reject_list(found, limit) if list_ else reporting.show_reject_groups(found)


@app.command(rich_help_panel=LOOK)
def status(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say in one look what the store holds, and what comes next.

    \b
    curate status
    """
    from curate.reporting import show_status
    from curate.surveying import survey
    from schemas.store import reading, store_path

    path = store_path(store)
    with reading(path) as connection:
        found = survey(connection)
    if as_json:
        print_json(found)
    else:
        show_status(path, found)


@app.command(rich_help_panel=LOOK)
def sql(
    query: Annotated[str, typer.Argument(help="A SELECT; DESCRIBE, SUMMARIZE and SHOW TABLES work too.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows to print.", show_default="40 as a table, else all")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the store a question in SQL. Nothing can be changed that way.

    \b
    curate sql "SELECT path, rows_read, rows_rejected FROM sources"
    """
    from curate import reporting
    from curate.querying import ask
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        answer = ask(connection, query)
        if as_csv:
            reporting.print_csv(answer, limit)
        elif as_json:
            print_json(answer.as_json(limit))
        else:
            reporting.show_answer(answer, limit or 40)


@app.command(rich_help_panel=DATA)
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

    from curate import scoring
    from curate.presenting import show_explanation, show_scores
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    settings = load_recipe(recipe, set_ or [])
    if list_:
        listed = scoring.describe_scorers()
        print_json(listed) if as_json else print_table(listed, ["scorer", "parameters", "what"])
    elif why is not None:
        explained = scoring.explain(store_path(store), settings, why)
        print_json(explained) if as_json else show_explanation(explained)
    else:
        with progress_bar("Scoring") as bar:
            report = scoring.score_store(
                store_path(store),
                settings,
                only or [],
                again=again,
                progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
            )
        print_json(asdict(report)) if as_json else show_scores(report)


@app.command(rich_help_panel=DATA)
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

    \b
    curate select --where "quality >= 0.6 and not refusal" --dry-run
    """
    from dataclasses import asdict

    from curate.presenting import show_selection
    from curate.selecting import select_store
    from schemas.recipe import load_recipe
    from schemas.store import store_path

    selection = select_store(store_path(store), load_recipe(recipe, set_ or []), where, dry_run=dry_run)
    print_json(asdict(selection)) if as_json else show_selection(selection, dry_run=dry_run)


class ReviewGroup(GroupedHelp):
    """`curate review …`, whose commands are read when they are asked for: a tenth of every start otherwise."""

    _read: "MutableMapping[str, Command] | None" = None

    @property
    def commands(self) -> "MutableMapping[str, Command]":
        """The commands by name."""
        if self._read is None:
            from curate.review_cli import app as review

            self._read = typer.main.get_group(review).commands
        return self._read

    @commands.setter
    def commands(self, empty: "MutableMapping[str, Command]") -> None:
        """Nothing: what Typer sets when it makes the group."""


app.add_typer(
    typer.Typer(
        cls=ReviewGroup,
        help="Let people judge conversations: a labelling server, what goes there, what comes back.",
        no_args_is_help=True,
        rich_markup_mode=None,  # see GroupedHelp
    ),
    name="review",
    rich_help_panel=REVIEW,
)


@app.command(rich_help_panel=VERSIONS)
def freeze(
    name: Annotated[str, typer.Argument(help="What the dataset is called, such as support.")],
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", help="Share kept away from training.", show_default="5%, or the recipe's"),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="VERSION", help="What it follows, or none.", show_default="the newest NAME@n"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the split and the digest, write nothing.")] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze the kept conversations as the next version of NAME, split so that nothing leaks.

    \b
    curate freeze support --held-out 5%
    """
    from curate import freezing
    from curate.presenting import note_disputes
    from curate.pushing import disputes
    from schemas.recipe import load_recipe, parse_share
    from schemas.store import reading, store_path, writing

    share = [] if held_out is None else [f"freeze.held_out={parse_share(held_out, '--held-out')}"]
    settings = load_recipe(recipe, [*(set_ or []), *share])
    with (reading if dry_run else writing)(store_path(store)) as connection:
        frozen = freezing.freeze(connection, name, settings, parent=parent, dry_run=dry_run)
        disputed = disputes(connection, settings.review, only_kept=True)
    if as_json:
        return print_json(frozen.as_json())
    typer.echo(frozen.as_text())
    return note_disputes(len(disputed))


@app.command(rich_help_panel=VERSIONS)
def versions(
    name: Annotated[str | None, typer.Argument(help="Only the versions of this dataset.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the frozen versions: how large, from which parent, and what was trained on them.

    \b
    curate versions support
    """
    from curate.freezing import list_versions
    from curate.presenting import show_versions
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        listed = list_versions(connection, name)
    if as_json:
        print_json(listed)
    else:
        show_versions(listed)


@app.command(rich_help_panel=VERSIONS)
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The earlier version.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The later version.")],
    list_: Annotated[bool, typer.Option("--list", help="Show the single conversations, edits as text.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many of them; 0 shows all.")] = 20,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell two versions apart: what was added, removed, edited or moved, and why.

    \b
    curate diff support@1 support@2 --list
    """
    from curate.comparing import compare, list_changes
    from curate.presenting import show_changes
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        seen = compare(connection, before, after)
        changes = list_changes(connection, seen, limit or None) if list_ or as_json else []
    if as_json:
        print_json({**seen.as_json(), "changes": changes})
    else:
        show_changes(seen, changes)


@app.command(rich_help_panel=VERSIONS)
def export(
    version: Annotated[str, typer.Argument(metavar="NAME@n", help="The version; NAME alone is its newest.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder, or a file that ends in .jsonl or .parquet.")],
    format_: Annotated[str, typer.Option("--format", help="sharegpt, messages or alpaca.")] = "sharegpt",
    parquet: Annotated[bool, typer.Option("--parquet", help="Parquet instead of JSON Lines in the folder.")] = False,
    split: Annotated[str | None, typer.Option("--split", help="Only train or held_out; all for one file.")] = None,
    skip_unfit: Annotated[bool, typer.Option("--skip-unfit", help="Leave out and list what does not fit.")] = False,
    with_scores: Annotated[bool, typer.Option("--with-scores", help="Add scores.parquet.")] = False,
    with_origins: Annotated[bool, typer.Option("--with-origins", help="Add origins.parquet: file, line, raw.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as files that prove themselves, with a dataset card.

    \b
    curate export support@1 --format messages --to support-1
    """
    from curate.exporting import export_version
    from schemas.store import reading, store_path

    options = {"parquet": parquet, "skip_unfit": skip_unfit, "force": force}
    sides = {"with_scores": with_scores, "with_origins": with_origins}
    with reading(store_path(store)) as connection:
        exported = export_version(connection, version, to, format=format_, split=split, **options, **sides)
    if as_json:
        print_json(exported.as_json())
    else:
        typer.echo(exported.as_text())


@app.command(rich_help_panel=VERSIONS)
def restore(
    bundle: Annotated[Path, typer.Argument(metavar="FOLDER", help="What curate export wrote.")],
    name: Annotated[str | None, typer.Option("--name", help="Restore it under another name.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a version from its exported bundle alone; its digest proves it.

    \b
    curate restore support-1 --store other.duckdb
    """
    from curate import restoring
    from schemas.store import store_path, writing

    stated = restoring.read_bundle(bundle)
    with writing(store_path(store)) as connection:
        restored = restoring.restore(connection, stated, name=name)
    if as_json:
        print_json(restored.as_json())
    else:
        typer.echo(restored.as_text())


@app.command(rich_help_panel=LOOK)
def trace(
    what: Annotated[str, typer.Argument(metavar="ID|FILE:LINE", help="The beginning of an id, or a line of a file.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a row from its line in a file to every version and training, or back.

    \b
    curate trace data.csv:7
    """
    from curate import tracing
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        found = tracing.trace(connection, what)
        if earlier := tracing.say_earlier(connection, what):
            note(earlier)
    if as_json:
        print_json([one.as_json() for one in found])
        return
    for one in found:
        for line in one.lines():
            typer.echo(printable(line))


register_training_commands(app)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 explained failure, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without our characters shows their numbers
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (CurateError, ModuleNotFoundError) as error:
        explained = error if isinstance(error, CurateError) else _missing(error)
        if explained is None or os.environ.get("CURATE_DEBUG"):
            raise
        _explain(explained)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None or os.environ.get("CURATE_DEBUG"):
            raise
        _explain(CurateError("What is printed cannot be written: the disk is full.", "Free some space."))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end of the process would try again
        sys.exit(1)
    except KeyboardInterrupt:  # while the commands are set up
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # how DuckDB tells of Ctrl-C, on any connection
            raise
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer's answer to Ctrl-C
            _say_interrupted()
        raise


def _explain(error: CurateError) -> None:
    """What is wrong and what to do next, on two lines; names in it come from data."""
    note(f"Error: {error.what}")
    if error.hint:
        note(f"  → {error.hint}")


def _missing(error: ModuleNotFoundError) -> CurateError | None:
    """What to install for a package of one of our extras; None when it is none of them, which is a surprise."""
    from curate.diagnosing import extra_of
    from schemas.installing import install_command

    extra = extra_of(error.name or "")
    if extra is None:
        return None
    return CurateError(f"This needs {error.name}, which is not installed.", install_command(extra))


def _say_interrupted() -> None:
    typer.echo("Interrupted; nothing is damaged. The same command again finishes the work.", err=True)
