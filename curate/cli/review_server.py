"""Commands of the labelling server: serve, users, backup, restore, compose. Each imports its libraries when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.console import note, print_json, print_line, print_table, progress_bar
from curate.cli.groups import GroupedHelp
from curate.cli.options import DEFAULT_STORE, DryRunOption, JsonOption, RecipeOption, SetOption, StoreOption
from schemas.text import plural

PANEL = "Labelling server"

users = typer.Typer(
    name="users",
    help="Manage the accounts of the labelling server.",
    no_args_is_help=True,
    cls=GroupedHelp,
    rich_markup_mode=None,
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Folder of the server.", envvar="CURATE_REVIEW_HOME",
                 show_default="curate-review"),
]  # fmt: skip
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Address of your own server; its key is read from ARGILLA_API_KEY.",
                 envvar="ARGILLA_API_URL", show_default="the server of --home"),
]  # fmt: skip

WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", help="Workspace on the server.", show_default="the only one")
]


def register(review: typer.Typer) -> None:
    """Add the server's commands to `curate review`."""
    for command in (serve, backup, restore, compose):
        review.command(rich_help_panel=PANEL)(command)
    review.add_typer(users, rich_help_panel=PANEL)


def serve(
    home: HomeOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 permits access from the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 6900,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Redis for background jobs; use the variable if the URL contains a password.",
            envvar="CURATE_REVIEW_REDIS",
            show_default="in the process",
        ),
    ] = None,
    only_set_up: Annotated[
        bool, typer.Option("--only-set-up", help="Install the server's environment and exit; requires network access.")
    ] = False,
) -> None:
    """Run the labelling server: Argilla and its web page on this machine, until Ctrl-C.

    \b
    curate review serve
    curate review serve --home labels --port 7000
    """
    from curate.review.argilla import process

    if not process.is_installed():
        note("Installing the labelling server's environment: 90 packages, about a minute, once.")
        with progress_bar("installing") as advance:
            process.install_environment(advance)
    if only_set_up:
        note(f"The labelling server's environment is installed: {process.environment_dir()}")
        return
    if host not in {"127.0.0.1", "localhost", "::1"}:
        note("The server accepts connections from the network without encryption. If necessary, use a TLS proxy.")
    process.serve(home or process.DEFAULT_HOME, host, port, redis, lambda _done, _total, _step: None)


@users.command(rich_help_panel=PANEL)
def add(
    name: Annotated[str, typer.Argument(help="Name to sign in with.")],
    role: Annotated[str, typer.Option(help="annotator, admin or owner.")] = "annotator",
    workspace: Annotated[str, typer.Option(help="Workspace whose datasets the account can see.")] = "curate",
    home: HomeOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an account and print its password once.

    \b
    curate review users add ann
    """
    from curate.review.argilla.accounts import add_account
    from curate.review.argilla.process import resolve_server

    account = add_account(*resolve_server(url, home), name, role=role, workspace=workspace)
    if as_json:
        print_json(account)
    else:
        print_line(f"{account.name}, {account.role} in the workspace {account.workspace}\npassword {account.password}")
        note("The password is not stored and cannot be shown again.")


@users.command(rich_help_panel=PANEL)
def password(
    name: Annotated[str, typer.Argument(help="Name of the account.")],
    home: HomeOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a new password for an account and print it once. Its sessions and its API key end.

    \b
    curate review users password owner
    """
    from curate.review.argilla.accounts import set_password
    from curate.review.argilla.process import resolve_server

    new = set_password(*resolve_server(url, home), name)
    print_json(new) if as_json else print_line(f"{name}\npassword {new.password}")
    if not new.ends_sessions:
        note(f"This server keeps the sessions and the API key of {name} valid: to end them, delete the account there.")


@users.command(rich_help_panel=PANEL)
def remove(
    name: Annotated[str, typer.Argument(help="Name of the annotator.")],
    dry_run: DryRunOption = False,
    workspace: WorkspaceOption = None,
    url: UrlOption = None,
    home: HomeOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Delete an account. The annotator's answers stay in the store and no longer count.

    \b
    curate review users remove bob --dry-run
    """
    from curate.cli.views.reviews import show_annotator_removal
    from curate.review.argilla.client import connect_if_used
    from curate.review.removal import remove_annotator
    from schemas.recipe import load_recipe

    section = load_recipe(recipe, set_ or []).review
    with connect_if_used(store, url, home, workspace) as server:
        result = remove_annotator(store, section, server, name, dry_run=dry_run)
    print_json(result) if as_json else show_annotator_removal(result, dry_run=dry_run)


@users.command("list", rich_help_panel=PANEL)
def list_(home: HomeOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the accounts.

    \b
    curate review users list
    """
    from curate.review.argilla.accounts import list_accounts
    from curate.review.argilla.process import resolve_server

    accounts = list_accounts(*resolve_server(url, home))
    print_json(accounts) if as_json else print_table(accounts, ["name", "role", "since"])


def backup(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up the labelling server to a file, also while it runs.

    \b
    curate review backup labels-friday.db
    """
    from curate.review.argilla import process

    with progress_bar("copying") as advance:
        answers = process.backup(home or process.DEFAULT_HOME, file, advance)
    if as_json:
        print_json({"file": file, "answers": answers})
    else:
        print_line(f"Wrote {file} with {plural(answers, 'answer')}. It contains API keys: protect it.")


def restore(
    file: Annotated[Path, typer.Argument(help="Backup to restore.")],
    home: HomeOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Rename existing data and replace it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup of the labelling server.

    \b
    curate review restore labels-friday.db --home labels
    """
    from curate.review.argilla import process

    folder = home or process.DEFAULT_HOME
    answers = process.restore(file, folder, replace=replace)
    if as_json:
        print_json({"home": folder, "answers": answers})
    else:
        print_line(f"Restored {plural(answers, 'answer')} to {folder}. Next: curate review serve --home {folder}")


def compose() -> None:
    """Print a Compose file for large teams: server, workers, Elasticsearch, Redis, PostgreSQL, security headers.

    \b
    curate review compose > compose.yaml
    """
    from curate.review.argilla.process import COMPOSE

    typer.echo(COMPOSE.read_text(encoding="utf-8"), nl=False)
    note("This file is not covered by tests. Its first lines list the variables to set.")
