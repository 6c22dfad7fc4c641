"""Commands preview, plan, train, runs, verify, retrain, chat, check-packing and templates: versions → adapters."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli import completion
from curate.cli.console import print_json, progress_bar
from curate.cli.options import (
    DEFAULT_STORE,
    JsonOption,
    ModelOption,
    RecipeOption,
    SetOption,
    StoreOption,
    TemplateOption,
    repeat_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from polars import DataFrame

    from train.plan.prepare import PreparedVersion
    from train.runs.run_folder import Start

EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Training engine, unsloth or transformers.",
        autocompletion=completion.one_of("unsloth", "transformers"),
        show_default="train.engine",
    ),
]
VersionArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME@n",
        help="Frozen version; NAME is the newest one.",
        show_default=False,
        autocompletion=completion.VERSIONS,
    ),
]


def preview(
    version: VersionArgument,
    conversation: Annotated[
        str, typer.Option("--id", metavar="PREFIX", help="Only conversations whose id starts with this.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Number of conversations to show.")] = 3,
    tokens: Annotated[bool, typer.Option("--tokens", help="List all tokens with id and label.")] = False,
    token: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Trace this token to its turn, file and line.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only this window of a split conversation.")
    ] = None,
    model: ModelOption = None,
    template: TemplateOption = None,
    store: StoreOption = DEFAULT_STORE,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show conversations as they are trained, with the tokens in the loss in colour and ⟦brackets⟧.

    \b
    curate preview support@1 --model data/tiny --limit 1
    """
    from curate.cli.views.plans import show_previews, show_token_origin
    from train.plan.preview import find_ids, find_windows, first_members, preview, trace_token

    only = partial(first_members, prefix=conversation, limit=limit)
    prepared = _prepare(version, model, template, store, recipe, overrides, only)
    windows = find_windows(prepared, find_ids(prepared, conversation, limit), window)
    if token is not None:
        origin = trace_token(prepared, store, windows[0][0], token, windows[0][1])
        return print_json(origin) if as_json else show_token_origin(origin)
    previews = [preview(prepared, *window) for window in windows]
    if as_json:
        return print_json([one.as_json(tokens=tokens) for one in previews])
    return show_previews(previews, tokens=tokens)


def plan(
    context: typer.Context,
    version: VersionArgument,
    model: ModelOption = None,
    template: TemplateOption = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.GPUS,
            help="GPU to estimate for: this (the installed one), h100-80g, rtx4090-24g, 24g …",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens, packs, steps and dropped conversations of a training run before it starts.

    Exit code 1 if curate train would refuse to start.

    \b
    curate plan support@1 --model data/tiny
    """
    from curate.cli.views.plans import show_memory, show_plan
    from train.plan.memory import estimate_memory
    from train.plan.plan import has_gpu, plan

    prepared = _prepare(version, model, template, store, recipe, overrides)
    result = plan(prepared, on_gpu=gpu is not None or has_gpu())
    memory = None if gpu is None else estimate_memory(prepared.tokenizer.folder, prepared.section, result.tokens, gpu)
    if as_json:
        print_json(asdict(result) | ({} if memory is None else {"memory": memory}))
    else:
        if memory is not None:
            show_memory(memory)
        show_plan(result, repeat_options(context, {"gpu", "as_json"}))
    if result.refusal is not None:
        raise typer.Exit(1)


def _prepare(
    version: str,
    model: str | None,
    template: str | None,
    store: Path,
    recipe: Path | None,
    overrides: list[str] | None,
    only: Callable[[DataFrame], DataFrame] | None = None,
) -> PreparedVersion:
    """The version, or the members that `only` selects, rendered by the recipe with the options applied."""
    from schemas.recipe import load_recipe
    from train.plan.prepare import prepare_version

    section = load_recipe(recipe, _with_options(overrides, model=model, template=template)).train
    with progress_bar("Rendering") as advance:
        return prepare_version(store, version, section, advance, only=only)


def _with_options(overrides: list[str] | None, **options: str | None) -> list[str]:
    """The options as overrides of the recipe, after those of --set, so that an option has precedence."""
    named = [f"train.{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or ()), *named]


AdapterArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FOLDER",
        help="Run such as r1, or the folder of an adapter.",
        show_default=False,
        autocompletion=completion.RUNS,
    ),
]
ToOption = Annotated[
    Path | None,
    typer.Option(
        "--to", metavar="FOLDER", help="Folder of the adapter.", show_default="adapters/RUN next to the store"
    ),
]


def train(
    version: VersionArgument,
    model: ModelOption = None,
    template: TemplateOption = None,
    engine: EngineOption = None,
    to: ToOption = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh", help="Resume an interrupted run, or start a new one.", show_default="resume if possible"
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="Number of GPUs on this machine.")] = 1,
    sharding: Annotated[
        str,
        typer.Option(
            metavar="ddp|fsdp",
            autocompletion=completion.one_of("ddp", "fsdp"),
            help="ddp: a copy of the model per GPU; fsdp: one model, sharded over all.",
        ),
    ] = "ddp",
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Number of machines that train together.")] = 1,
    node: Annotated[
        int, typer.Option(min=0, metavar="K", help="Number of this machine; 0 has the store, the others join it.")
    ] = 0,
    master: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Address of machine 0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the inputs of the run; train and write nothing.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter on a version.

    Run the same command again to resume an interrupted run.

    \b
    curate train support@1 --model data/tiny --set train.steps=60
    """
    from curate.cli.views.runs import show_prepared_run, show_run, training_progress
    from schemas.recipe import load_recipe
    from train.runs.fit import prepare_run, train_version
    from train.runs.torchrun import join_training, make_processes

    settings = _with_options(overrides, model=model, template=template, engine=engine)
    section = load_recipe(recipe, settings).train
    processes = make_processes(gpus, sharding, nodes, node, master)
    if processes.node:
        with training_progress():
            join_training(to, processes)
        return
    if dry_run:
        with progress_bar("Rendering") as advance:
            prepared = prepare_run(store, version, section, overrides=settings, processes=processes, rendering=advance)
        print_json(prepared.manifest.model_dump(mode="json")) if as_json else show_prepared_run(prepared)
        return
    start: Start = "auto" if resume is None else "resume" if resume else "fresh"
    with training_progress() as report:
        run = train_version(
            store,
            version,
            section,
            overrides=settings,
            to=to,
            start=start,
            processes=processes,
            report=report.step,
            rendering=report.rendering,
        )
    print_json(run.as_json()) if as_json else show_run(run)


def runs(
    tidy: Annotated[
        bool, typer.Option("--tidy", help="Remove failed and interrupted runs that cannot be resumed.")
    ] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Let --tidy remove runs that can be resumed as well.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what --tidy would remove; write nothing.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List the runs with their versions, states, losses and adapters.

    --tidy removes records of runs that did not finish, with their unfinished folders. Adapters stay.

    \b
    curate runs
    curate runs --tidy --dry-run
    """
    from curate.cli.views.runs import show_runs, show_tidied
    from schemas.run import read_runs
    from schemas.store import reading

    if (checkpoints or dry_run) and not tidy:
        raise typer.BadParameter("only with --tidy", param_hint="--checkpoints" if checkpoints else "--dry-run")
    if tidy:
        from train.runs.tidy import tidy_runs

        report = tidy_runs(store, checkpoints=checkpoints, dry_run=dry_run)
        return print_json(report) if as_json else show_tidied(report)
    with reading(store) as connection:
        runs = read_runs(connection)
    return print_json([run.as_json() for run in runs]) if as_json else show_runs(runs)


def verify(adapter: AdapterArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Recompute every digest in an adapter's manifest and report differences.

    Exit code 1 if a digest differs or cannot be checked.

    \b
    curate verify r1
    """
    from curate.cli.views.runs import show_verification
    from train.runs.verify import verify

    verification = verify(store, adapter)
    if as_json:
        print_json({**asdict(verification), "verified": verification.verified})
    else:
        show_verification(verification)
    if not verification.verified:
        raise typer.Exit(1)


def retrain(
    adapter: AdapterArgument, to: ToOption = None, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Repeat a run with the same version and recipe, and compare the two adapters.

    \b
    curate retrain r1
    """
    from curate.cli.views.runs import show_retraining, training_progress
    from train.runs.retrain import retrain

    with training_progress() as report:
        retraining = retrain(store, adapter, to=to, report=report.step)
    print_json(retraining.as_json()) if as_json else show_retraining(retraining)


def chat(
    adapter: AdapterArgument,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Send this message, print the answer and exit; repeatable."
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Use the base model without the adapter.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the answers of both, the base model and the adapter.")
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature; 0 always picks the most likely token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the most likely tokens with this total probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from this many most likely tokens; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    save: Annotated[
        str,
        typer.Option(
            metavar="good|bad",
            autocompletion=completion.one_of("good", "bad"),
            help="Save the chat to the store as a good or bad example.",
        ),
    ] = "",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Chat with an adapter, its base model, or both.

    Without --prompt, messages are read from standard input, one per line.

    \b
    curate chat r1 --compare --prompt "How do I return my boat?"
    """
    if save not in ("", "good", "bad"):
        raise typer.BadParameter("good or bad", param_hint="--save")
    from curate.cli.chat_repl import ChatLog, answer_prompts, run_repl
    from curate.cli.views.runs import show_answers
    from train.inference.generate import Sampling
    from train.model.base_model import find_adapter

    folder, _ = find_adapter(store, adapter)
    sides = ("base", "adapter") if compare else ("base",) if base else ("adapter",)
    sampling = Sampling(max_tokens, temperature, top_p, top_k, seed)
    log = ChatLog(store, folder, sampling)
    if not prompt:
        run_repl(folder, sides, system=system, sampling=sampling, log=log, rating=save)
        return
    save_chat = partial(log.save, rating=save) if save else None
    answers = answer_prompts(folder, prompt, sides, system=system, sampling=sampling, save=save_chat)
    print_json(answers) if as_json else show_answers(answers)


def check_packing(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Base model.", show_default="train.model")
    ] = None,
    engine: EngineOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that packed conversations do not attend to each other.

    Changes one conversation of a pack and compares the losses of the others. Exit code 1 if they change.

    \b
    curate check-packing data/tiny --engine transformers
    """
    from curate.cli.views.plans import show_isolation
    from schemas.recipe import load_recipe
    from train.engines.packing_isolation import check_isolation

    section = load_recipe(recipe, _with_options(overrides, model=model, engine=engine)).train
    isolation = check_isolation(section)
    print_json(isolation.as_json()) if as_json else show_isolation(isolation)
    if not isolation.isolated:
        raise typer.Exit(1)


def templates(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Names of templates, or Jinja files.",
            autocompletion=completion.TEMPLATES,
            show_default="all",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Check with the tokenizer of this model.", show_default="a neutral tokenizer"
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check chat templates token by token against transformers, and show their handling of tools and reasoning.

    Exit code 1 if a given template does not pass.

    \b
    curate templates qwen-3 llama-3.1
    """
    from curate.cli.views.plans import show_templates, templates_page
    from train.model.log_capture import quiet
    from train.tokens.template_parity import check_templates

    with quiet():
        reports = check_templates(model, names or ())
    if as_json:
        print_json([report.as_json() for report in reports])
    elif markdown:
        typer.echo(templates_page(reports), nl=False)
    else:
        show_templates(reports)
    if names and any(report.problem for report in reports):
        raise typer.Exit(1)
