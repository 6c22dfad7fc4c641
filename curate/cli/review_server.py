"""The words of `curate review serve`, `users`, `backup`, `restore`: the server where people judge conversations.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start.

from pathlib import Path
from typing import Annotated

import typer

from curate.cli.console import note, print_json, print_table, progress_bar
from curate.cli.options import GroupedHelp, JsonOption
from schemas.text import plural

SERVER = "Server"

users = typer.Typer(
    name="users",
    help="Say who may sign in to the labelling server.",
    no_args_is_help=True,
    cls=GroupedHelp,
    rich_markup_mode=None,
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="The server's folder.", envvar="CURATE_REVIEW_HOME",
                 show_default="curate-review"),
]  # fmt: skip
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="A server of your own, with its key in ARGILLA_API_KEY.", envvar="ARGILLA_API_URL",
                 show_default="the one of --home"),
]  # fmt: skip


def register(review: typer.Typer) -> None:
    """Add the server's commands to `curate review`."""
    for command in (serve, backup, restore, compose):
        review.command(rich_help_panel=SERVER)(command)
    review.add_typer(users, rich_help_panel=SERVER)


def serve(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets the network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 6900,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A Redis for background jobs; with a password in it, by the variable.",
            envvar="CURATE_REVIEW_REDIS",
            show_default="in the process",
        ),
    ] = None,
    only_set_up: Annotated[
        bool, typer.Option("--only-set-up", help="Make its environment, which needs the network once, and end.")
    ] = False,
) -> None:
    """Run the labelling server: Argilla and its web page on this machine, until Ctrl-C.

    \b
    curate review serve
    curate review serve --home labels --port 7000
    """
    from curate.review.argilla import process

    if not process.is_made():
        note("Making the labelling server's environment: 90 packages, about a minute, this once.")
        with progress_bar("making it") as advance:
            process.make_environment(advance)
    if only_set_up:
        note(f"The labelling server's environment is ready: {process.environment()}")
        return
    if host not in {"127.0.0.1", "localhost", "::1"}:
        note("It listens beyond this machine, unencrypted: put a proxy with TLS in front of it where that matters.")
    process.serve(home or process.DEFAULT_HOME, host, port, redis, lambda _done, _total, _what: None)


@users.command(rich_help_panel=SERVER)
def add(
    name: Annotated[str, typer.Argument(help="The name to sign in with.")],
    role: Annotated[str, typer.Option(help="annotator, admin or owner.")] = "annotator",
    workspace: Annotated[str, typer.Option(help="The workspace whose datasets they see.")] = "curate",
    home: HomeOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an account, with a password that is shown this once.

    \b
    curate review users add ann
    """
    from dataclasses import asdict

    from curate.review.argilla.accounts import add_account
    from curate.review.argilla.process import meant_server

    made = add_account(*meant_server(url, home), name, role=role, workspace=workspace)
    if as_json:
        print_json(asdict(made))
    else:
        typer.echo(f"{made.name}, {made.role} in the workspace {made.workspace}\npassword {made.password}")
        note("The password is shown this once and kept nowhere.")


@users.command(rich_help_panel=SERVER)
def password(
    name: Annotated[str, typer.Argument(help="Whose.")],
    home: HomeOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an account a new password, which is shown this once.

    \b
    curate review users password owner
    """
    from curate.review.argilla.accounts import set_password
    from curate.review.argilla.process import meant_server

    new = set_password(*meant_server(url, home), name)
    print_json({"name": name, "password": new}) if as_json else typer.echo(f"{name}\npassword {new}")


@users.command("list", rich_help_panel=SERVER)
def list_(home: HomeOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List who may sign in.

    \b
    curate review users list
    """
    from curate.review.argilla.accounts import list_accounts
    from curate.review.argilla.process import meant_server

    listed = list_accounts(*meant_server(url, home))
    print_json(listed) if as_json else print_table(listed, ["name", "role", "since"])


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the labelling server's data into one file, also while people work.

    \b
    curate review backup labels-friday.db
    """
    from curate.review.argilla import process

    with progress_bar("copying") as advance:
        answers = process.backup(home or process.DEFAULT_HOME, file, advance)
    if as_json:
        print_json({"file": file, "answers": answers})
    else:
        typer.echo(
            f"{file} is written, with {plural(answers, 'answer')}. "
            "It holds the accounts' keys too: keep it to yourself."
        )


def restore(
    file: Annotated[Path, typer.Argument(help="What curate review backup wrote.")],
    home: HomeOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put what lies there aside.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Lay a copy of the labelling server's data into a folder.

    \b
    curate review restore labels-friday.db --home labels
    """
    from curate.review.argilla import process

    place = home or process.DEFAULT_HOME
    answers = process.restore(file, place, replace=replace)
    if as_json:
        print_json({"home": place, "answers": answers})
    else:
        typer.echo(f"{place} holds {plural(answers, 'answer')}. Next: curate review serve --home {place}")


def compose() -> None:
    """Print a Compose file for a large team: server, workers, Elasticsearch, Redis, PostgreSQL, security headers.

    \b
    curate review compose > compose.yaml
    """
    from curate.review.argilla.process import COMPOSE

    typer.echo(COMPOSE.read_text(encoding="utf-8"), nl=False)
    note("It is not run by this project's tests. Its first lines say what it wants to know.")
