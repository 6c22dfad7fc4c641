"""Commands sources and sources remove: the imports of the store, and the removal of one of them."""

from __future__ import annotations

from typing import Annotated

import typer

from curate.cli import completion
from curate.cli.console import print_json
from curate.cli.groups import GroupedHelp
from curate.cli.options import DEFAULT_STORE, MAX_IMPORTS, ImportLimitOption, JsonOption, StoreOption

sources = typer.Typer(cls=GroupedHelp, invoke_without_command=True, rich_markup_mode=None)


@sources.callback()
def list_(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Include removed imports.")] = False,
    limit: ImportLimitOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List the imports with their ids and counts, and the conversations that only one import contributed.

    A rule can refer to an import: "import_id = 'ID'" with the complete id of --json, or "starts_with(import_id, 'ID')".

    \b
    curate sources --all
    """
    if context.invoked_subcommand is not None:
        return
    from curate.cli.views.sources import show_sources
    from curate.ingest.sources import list_sources
    from schemas.store import reading

    with reading(store) as connection:
        rows = list_sources(connection, removed=all_)
    print_json(rows[-(limit or len(rows)) :]) if as_json else show_sources(rows, limit or MAX_IMPORTS)


@sources.command("remove", rich_help_panel="Data")
def remove(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID|FILE", autocompletion=completion.SOURCES, help="Beginning of the id, or path, of an import."
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the numbers; write nothing.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove an import: its rows, its rejects, and the conversations that only it contributed.

    Frozen versions, verdicts and reviews stay. A conversation that they need is no longer kept, scored or counted.
    curate trace reports the removal.

    \b
    curate sources remove 1a2b3c4d --dry-run
    """
    from curate.cli.views.sources import show_removal
    from curate.ingest.removal import remove_source

    report = remove_source(store, name, dry_run=dry_run)
    print_json(report) if as_json else show_removal(report)
