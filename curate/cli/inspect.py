"""Commands show and search: conversations in the store → text. Nothing is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli.console import note, print_json
from curate.cli.options import (
    DEFAULT_STORE,
    JsonOption,
    ModelOption,
    RecipeOption,
    SetOption,
    StoreOption,
    TemplateOption,
)

if TYPE_CHECKING:
    from curate.versions.lineage import Found
    from schemas.recipe import TrainSection
    from train.plan.preview import Preview

MOST_MEMBERS = 10
"""Members of a near-duplicate cluster that are shown."""


def show(
    target: Annotated[str, typer.Argument(metavar="ID|FILE:LINE", help="Prefix of an id, or a line of a file.")],
    model: ModelOption = None,
    template: TemplateOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show a conversation: all turns, scores, verdicts, near-duplicates, source lines and versions.

    With a model, from --model or the recipe, the loss mask is shown as curate preview does.

    \b
    curate show data.csv:7
    """
    from curate.cli.views.conversations import show_conversation
    from curate.versions.lineage import Lineage, list_near_duplicates, trace
    from schemas.recipe import load_recipe
    from schemas.store import reading

    options = {"model": model, "template": template}
    named = [f"train.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    section = load_recipe(recipe, [*(set_ or []), *named]).train
    with reading(store) as connection:
        lineages = trace(connection, target)
        members = [
            list_near_duplicates(connection, lineage.id, MOST_MEMBERS) if isinstance(lineage, Lineage) else []
            for lineage in lineages
        ]
    previews = [_previews(lineage, section, required=bool(named)) for lineage in lineages]
    found = list(zip(lineages, members, previews, strict=True))
    if as_json:
        return print_json([_as_json(*parts) for parts in found])
    for parts in found:
        show_conversation(*parts)
    return None


def _as_json(lineage: Found, members: list[dict[str, object]], previews: list[Preview]) -> object:
    added = {"near_duplicates": members, "loss_mask": [preview.as_json() for preview in previews]}
    is_row = {"rejected", "excluded", "removed"} & lineage.as_json().keys() and "id" not in lineage.as_json()
    return lineage.as_json() if is_row else lineage.as_json() | added


def _previews(lineage: Found, section: TrainSection, *, required: bool) -> list[Preview]:
    """The loss mask of a conversation, by windows; none without a model.

    A model that only the recipe names may be unavailable here, which is noted, unless the mask is `required`.
    """
    from curate.versions.lineage import Lineage
    from schemas.errors import TrainError

    if not isinstance(lineage, Lineage) or not (required or section.model):
        return []
    from train.plan.prepare import prepare_conversation
    from train.plan.preview import find_windows, preview

    try:
        prepared = prepare_conversation(lineage.conversation, section)
        return [preview(prepared, *window) for window in find_windows(prepared, [lineage.id], None)]
    except TrainError as error:
        if required:
            raise
        note(f"No loss mask: {error.what}\n  → {error.hint}")
        return []


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words, or an expression with --regex.")],
    regex: Annotated[
        bool, typer.Option("--regex", help="Search for a regular expression (RE2, case-sensitive, (?i) is not).")
    ] = False,
    role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Only turns of this role: human, gpt, system …")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="RULE", help="Only conversations that meet this rule.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of conversations to print.")] = 20,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Find the conversations that contain all the words, in any turn and any case.

    \b
    curate search "refund late" --role human
    """
    from curate.cli.views.conversations import show_matches
    from curate.search import search as search_store
    from schemas.recipe import load_recipe
    from schemas.store import reading

    settings = load_recipe(recipe, set_ or [])
    with reading(store) as connection:
        found = search_store(connection, text, settings, regex=regex, role=role, where=where, limit=limit)
    print_json(found) if as_json else show_matches(found)
