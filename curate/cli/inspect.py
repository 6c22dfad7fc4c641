"""Command search: conversations in the store → matches. Nothing is written."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from typing import Annotated

import typer

from curate.cli.console import print_json
from curate.cli.options import JsonOption, RecipeOption, SetOption, StoreOption


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words, or an expression with --regex.")],
    regex: Annotated[
        bool, typer.Option("--regex", help="Search for a regular expression (RE2, case-sensitive, (?i) is not).")
    ] = False,
    role: Annotated[
        str | None, typer.Option("--role", metavar="ROLE", help="Only turns of this role: human, gpt, system …")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="RULE", help="Only conversations that meet this rule.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of conversations to print.")] = 20,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the conversations that contain all the words, in any turn and any case.

    \b
    curate search "refund late" --role human
    """
    from curate.cli.views.conversations import show_matches
    from curate.search import search as search_store
    from schemas.recipe import load_recipe
    from schemas.store import reading, store_path

    settings = load_recipe(recipe, set_ or [])
    with reading(store_path(store)) as connection:
        found = search_store(connection, text, settings, regex=regex, role=role, where=where, limit=limit)
    print_json(found.as_json()) if as_json else show_matches(found)
