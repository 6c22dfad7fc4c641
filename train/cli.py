"""The training commands' words: options in, one call, results out. Everything heavy is imported inside."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.terminal import JsonOption, RecipeOption, SetOption, StoreOption, print_json

if TYPE_CHECKING:
    from train.planning import Prepared

PANEL = "Train"

VersionArgument = Annotated[
    str, typer.Argument(metavar="NAME@n", help="A frozen version; NAME alone is its newest.", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="FOLDER", help="The base model.", show_default="train.model")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template", metavar="NAME", help="The chat template: a name or a Jinja file.", show_default="train.template"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the training commands to the roof's `app`."""
    app.command("preview", rich_help_panel=PANEL)(preview_command)
    app.command("plan", rich_help_panel=PANEL)(plan_command)


def preview_command(
    version: VersionArgument,
    conversation: Annotated[str, typer.Option("--id", metavar="PREFIX", help="Ids that begin so.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to show.")] = 3,
    tokens: Annotated[bool, typer.Option("--tokens", help="List every token with its id and label.")] = False,
    token: Annotated[
        int | None, typer.Option("--token", metavar="N", min=0, help="Trace this token to turn, file and line.")
    ] = None,
    model: ModelOption = None,
    template: TemplateOption = None,
    store: StoreOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show conversations as they are trained: what is learned in colour and ⟦brackets⟧, the rest only seen.

    \b
    curate preview support@1 --model data/tiny --limit 1
    """
    from schemas.store import store_path
    from train.previewing import choose, preview, trace_token
    from train.showing import show_preview, show_trace

    prepared = _prepared(version, model, template, store, recipe, overrides)
    chosen = choose(prepared, conversation, limit)
    if token is not None:
        traced = trace_token(prepared, store_path(store), chosen[0], token)
        print_json(asdict(traced)) if as_json else show_trace(traced)
        return
    previews = [preview(prepared, name) for name in chosen]
    if as_json:
        print_json([shown.as_json(tokens=tokens) for shown in previews])
        return
    for shown in previews:
        show_preview(shown, tokens=tokens)


def plan_command(
    version: VersionArgument,
    model: ModelOption = None,
    template: TemplateOption = None,
    store: StoreOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what training would see and do: tokens, packs, steps, what is too long; nothing heavy is loaded.

    \b
    curate plan support@1 --model data/tiny
    """
    from train.planning import plan
    from train.showing import show_plan

    planned = plan(_prepared(version, model, template, store, recipe, overrides))
    print_json(planned.as_json()) if as_json else show_plan(planned)


def _prepared(
    version: str,
    model: str | None,
    template: str | None,
    store: Path | None,
    recipe: Path | None,
    overrides: list[str] | None,
) -> Prepared:
    """The version under the recipe with the options laid over it."""
    from schemas.recipe import load_recipe
    from schemas.store import store_path
    from train.planning import prepare

    options = {"train.model": model, "train.template": template}
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    section = load_recipe(recipe, [*(overrides or ()), *given]).train
    return prepare(store_path(store), version, section)
