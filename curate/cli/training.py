"""The training commands' words: options in, one call, results out. Everything heavy is imported inside."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli.console import print_json, progress_bar
from curate.cli.options import JsonOption, RecipeOption, SetOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from polars import DataFrame

    from train.plan.prepare import PreparedVersion
    from train.runs.fit import Start

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


def preview_command(
    version: VersionArgument,
    conversation: Annotated[str, typer.Option("--id", metavar="PREFIX", help="Ids that begin so.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to show.")] = 3,
    tokens: Annotated[bool, typer.Option("--tokens", help="List every token with its id and label.")] = False,
    token: Annotated[
        int | None, typer.Option("--token", metavar="N", min=0, help="Trace this token to turn, file and line.")
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", metavar="N", min=1, help="Of one that is split: this window alone.")
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
    from curate.cli.views.plans import show_preview, show_trace
    from schemas.store import store_path
    from train.plan.preview import find_ids, find_windows, first_members, preview, trace_token

    only = partial(first_members, prefix=conversation, limit=limit)
    prepared = _prepared(version, model, template, store, recipe, overrides, only)
    chosen = find_windows(prepared, find_ids(prepared, conversation, limit), window)
    if token is not None:
        traced = trace_token(prepared, store_path(store), chosen[0][0], token, chosen[0][1])
        print_json(asdict(traced)) if as_json else show_trace(traced)
        return
    previews = [preview(prepared, *each) for each in chosen]
    if as_json:
        print_json([shown.as_json(tokens=tokens) for shown in previews])
        return
    for shown in previews:
        show_preview(shown, tokens=tokens)


def plan_command(
    version: VersionArgument,
    model: ModelOption = None,
    template: TemplateOption = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="Memory and speed on it: this, h100-80g, rtx4090-24g, 24g …"),
    ] = None,
    store: StoreOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what training would see and do: tokens, packs, steps, what is too long. Exit code 1 when it would refuse.

    \b
    curate plan support@1 --model data/tiny
    """
    from curate.cli.views.plans import show_plan
    from curate.cli.views.runs import show_budget
    from train.plan.memory import estimate_memory
    from train.plan.plan import has_gpu, plan

    prepared = _prepared(version, model, template, store, recipe, overrides)
    planned = plan(prepared, on_gpu=gpu is not None or has_gpu())
    budgeted = (
        estimate_memory(prepared.tokenizer.folder, prepared.section, planned.tokens, gpu) if gpu is not None else None
    )
    if as_json:
        print_json(planned.as_json() | ({"budget": budgeted.as_json()} if budgeted is not None else {}))
    else:
        if budgeted is not None:
            show_budget(budgeted)
        show_plan(planned)
    if planned.refusal is not None:
        raise typer.Exit(1)


def _prepared(
    version: str,
    model: str | None,
    template: str | None,
    store: Path | None,
    recipe: Path | None,
    overrides: list[str] | None,
    only: "Callable[[DataFrame], DataFrame] | None" = None,
) -> "PreparedVersion":
    """The version under the recipe with the options laid over it, or those of its members alone."""
    from schemas.recipe import load_recipe
    from schemas.store import store_path
    from train.plan.prepare import prepare_version

    section = load_recipe(recipe, _given(overrides, model=model, template=template)).train
    with progress_bar("rendering") as advance:
        return prepare_version(store_path(store), version, section, advance, only=only)


def _given(overrides: list[str] | None, **options: str | None) -> list[str]:
    """All that was said on the command line, as overrides of the recipe; an option goes before --set."""
    named = [f"train.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or ()), *named]


AdapterArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run such as r1, or an adapter's folder.", show_default=False)
]
ToOption = Annotated[
    Path | None,
    typer.Option("--to", metavar="FOLDER", help="Where the adapter goes.", show_default="adapters/RUN by the store"),
]


def train_command(
    version: VersionArgument,
    model: ModelOption = None,
    template: TemplateOption = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="unsloth or transformers.", show_default="train.engine"),
    ] = None,
    to: ToOption = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Go on with the run that was cut off, or begin anew.",
            show_default="resume if there is one",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, metavar="N", help="Train on so many GPUs.")] = 1,
    sharding: Annotated[
        str, typer.Option("--sharding", metavar="ddp|fsdp", help="A model on each GPU, or one shared between them.")
    ] = "ddp",
    nodes: Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Machines that train together.")] = 1,
    node: Annotated[
        int, typer.Option("--node", min=0, metavar="K", help="Which of them this is; 0 has the store, others join it.")
    ] = 0,
    master: Annotated[
        str | None, typer.Option("--master", metavar="HOST:PORT", help="Where machine 0 is reached.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")] = False,
    store: StoreOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter on a version. Cut off, the same command goes on where it was.

    \b
    curate train support@1 --model data/tiny --set train.steps=60
    """
    from curate.cli.views.runs import progress, show_run, show_work
    from schemas.recipe import load_recipe
    from schemas.store import store_path
    from train.runs.fit import prepare_run, train_version
    from train.runs.torchrun import join_training, make_processes

    given = _given(overrides, model=model, template=template, engine=engine)
    section = load_recipe(recipe, given).train
    processes = make_processes(gpus, sharding, nodes, node, master)
    if processes.node:
        with progress():
            join_training(to, processes)
        return
    if dry_run:
        with progress_bar("rendering") as advance:
            prepared = prepare_run(
                store_path(store),
                version,
                section,
                overrides=given,
                processes=processes,
                rendering=advance,
            )
        print_json(prepared.manifest.model_dump(mode="json")) if as_json else show_work(prepared)
        return
    start: Start = "auto" if resume is None else "resume" if resume else "fresh"
    with progress() as report:
        run = train_version(
            store_path(store),
            version,
            section,
            overrides=given,
            to=to,
            start=start,
            processes=processes,
            report=report.step,
            rendering=report.rendering,
        )
    print_json(run.as_json()) if as_json else show_run(run)


def runs_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the runs: what each was trained on, how far it came, where its adapter lies.

    \b
    curate runs
    """
    from curate.cli.views.runs import show_runs
    from schemas.run import read_runs
    from schemas.store import reading, store_path

    with reading(store_path(store)) as connection:
        runs = read_runs(connection)
    print_json([run.as_json() for run in runs]) if as_json else show_runs(runs)


def verify_command(adapter: AdapterArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Take every digest of an adapter's manifest again, and name what differs. Exit code 1 when it is not proven.

    \b
    curate verify r1
    """
    from curate.cli.views.runs import show_verification
    from schemas.store import store_path
    from train.runs.verify import verify

    verification = verify(store_path(store), adapter)
    shown = {**asdict(verification), "proven": verification.proven}
    print_json(shown) if as_json else show_verification(verification)
    if not verification.proven:
        raise typer.Exit(1)


def retrain_command(
    adapter: AdapterArgument, to: ToOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Train the same version with the same recipe again, and say how far the new adapter is from the old one.

    \b
    curate retrain r1
    """
    from curate.cli.views.runs import progress, show_retraining
    from schemas.store import store_path
    from train.runs.retrain import retrain

    with progress() as report:
        retraining = retrain(store_path(store), adapter, to=to, report=report.step)
    print_json(retraining.as_json()) if as_json else show_retraining(retraining)


def chat_command(
    adapter: AdapterArgument,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask this and stop; may be given often.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without the adapter.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Ask both, before and after.")] = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 gives the same words every time.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Of the likeliest tokens, this share.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Of the likeliest tokens, so many; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Repeats what is drawn by lot.")] = 0,
    save: Annotated[
        str, typer.Option("--save", metavar="good|bad", help="Write what was said into the store, as a row.")
    ] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask an adapter, its base model, or both. Without --prompt it is a conversation, line by line.

    \b
    curate chat r1 --compare --prompt "How do I return my boat?"
    """
    if save not in ("", "good", "bad"):
        raise typer.BadParameter("good or bad", param_hint="--save")
    from curate.cli.chat_repl import ChatLog, answer_prompts, run_repl
    from curate.cli.views.runs import show_answers
    from schemas.store import store_path
    from train.inference.generate import Sampling
    from train.model.base_model import find_adapter

    folder, _ = find_adapter(store_path(store), adapter)
    sides = ("base", "adapter") if compare else ("base",) if base else ("adapter",)
    sampling = Sampling(max_tokens, temperature, top_p, top_k, seed)
    log = ChatLog(store_path(store), folder, sampling)
    if not prompt:
        run_repl(folder, sides, system=system, sampling=sampling, log=log, rating=save)
        return
    save_chat = partial(log.save, rating=save) if save else None
    answered = answer_prompts(folder, prompt, sides, system=system, sampling=sampling, save=save_chat)
    print_json(answered) if as_json else show_answers(answered)


def check_packing_command(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The base model.", show_default="train.model")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", help="unsloth or transformers.", show_default="train.engine"),
    ] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that packed conversations do not see each other: one is changed, the others' losses must not move.

    \b
    curate check-packing data/tiny --engine transformers
    """
    from curate.cli.views.plans import show_isolation
    from schemas.recipe import load_recipe
    from train.engines.packing_isolation import check_isolation

    section = load_recipe(recipe, _given(overrides, model=model, engine=engine)).train
    isolation = check_isolation(section)
    print_json(isolation.as_json()) if as_json else show_isolation(isolation)
    if not isolation.isolated:
        raise typer.Exit(1)


def templates_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names or Jinja files.", show_default="all known")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FOLDER", help="Prove them for its tokenizer.", show_default="one that fits all"
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove chat templates token for token against transformers, and say what becomes of tools, reasoning and the rest.

    \b
    curate templates qwen-3 llama-3.1
    """
    from curate.cli.views.plans import show_reports, templates_page
    from train.model.log_capture import quiet
    from train.tokens.template_parity import check_templates

    with quiet():
        reports = check_templates(model, names or ())
    if as_json:
        print_json([report.as_json() for report in reports])
    elif markdown:
        typer.echo(templates_page(reports), nl=False)
    else:
        show_reports(reports)
    if names and any(report.problem for report in reports):
        raise typer.Exit(1)
