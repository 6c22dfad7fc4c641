"""The words of what leaves the house: options in, one call, results out. Everything heavy is imported inside."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli.console import note, print_json, progress_bar
from curate.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from train.checks.serving_parity import Contract

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run such as r1, or an adapter's folder.", show_default=False)
]
RowsOption = Annotated[int, typer.Option("--rows", min=1, help="Held-out conversations to compare on.")]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare it with the adapter, and its tokens with the training's.")
]


def merge_command(
    run: RunArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="Where it goes.", show_default="merged/RUN by the store"),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="base (as it is stored), float32, float16 or bfloat16.")
    ] = "base",
    rows: RowsOption = 8,
    check: CheckOption = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base: a model of its own, with tokenizer, template, stop tokens and manifest.

    \b
    curate merge r1
    """
    from curate.cli.views.models import show_merged
    from schemas.store import store_path
    from train.export.merge import DTYPE_NAMES, merge

    kind = _one_of(dtype, DTYPE_NAMES, "--dtype")
    note(f"Reading {run} and its base …")
    with progress_bar("merging") as advance:
        merged = merge(
            store_path(store),
            run,
            to=to,
            dtype=kind,
            rows=rows,
            check=check,
            report=advance,
        )
    contract = _contract(store, str(merged.folder)) if check else None
    if as_json:
        print_json({**merged.as_json(), "contract": contract and contract.as_json()})
    else:
        show_merged(merged)
    _conclude(contract, as_json=as_json)


def _contract(store: Path | None, target: str) -> "Contract | None":
    """What the engines make of an export that was just written; nothing where raw text was learned."""
    from schemas.store import store_path
    from train.checks.serving_parity import check_export

    return check_export(store_path(store), target)


def _conclude(contract: "Contract | None", *, as_json: bool) -> None:
    """Show a contract behind what was exported; an engine that differs ends the command with 1."""
    if contract is None:
        return
    if not as_json:
        from curate.cli.views.models import show_contract

        show_contract(contract)
    if not contract.kept:
        raise typer.Exit(1)


def _one_of(value: str, names: tuple[str, ...], option: str) -> str:
    if value not in names:
        raise typer.BadParameter(f"{value} is none of {', '.join(names)}.", param_hint=option)
    return value


def gguf_command(
    run: RunArgument,
    quant: Annotated[
        str, typer.Option("--quant", metavar="KINDS", help="Quantisations, such as q4_k_m,q8_0; none: 16 bits only.")
    ] = "q4_k_m,q5_k_m,q8_0",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where they go.", show_default="gguf/RUN by the store")
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", metavar="DIR", help="A llama.cpp of yours.", show_default="the installed packages"),
    ] = None,
    imatrix: Annotated[
        bool,
        typer.Option("--imatrix", help="Round by what the version's conversations use most: better at 2 to 4 bits."),
    ] = False,
    rows: RowsOption = 8,
    check: CheckOption = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run as GGUF files for llama.cpp, and say what each quantisation costs and which to take.

    \b
    curate gguf r1 --quant q4_k_m,q8_0
    """
    from curate.cli.views.models import show_quantised
    from schemas.store import store_path
    from train.export.gguf import quantise_run

    kinds = [kind.strip().lower() for kind in quant.split(",") if kind.strip() not in ("", "none")]
    where = {"to": to, "llama_cpp": llama_cpp}
    files = quantise_run(store_path(store), run, kinds, **where, imatrix=imatrix, rows=rows, check=check, report=note)
    contract = _contract(store, str(files[0].path)) if check else None
    if as_json:
        print_json({"files": [file.as_json() for file in files], "contract": contract and contract.as_json()})
    else:
        show_quantised(files)
    _conclude(contract, as_json=as_json)


def ollama_command(
    run: RunArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="Where it goes.", show_default="ollama/RUN by the store"),
    ] = None,
    quant: Annotated[
        str,
        typer.Option("--quant", metavar="KIND", help="Which GGUF of the run.", show_default="as gguf says"),
    ] = "",
    check: CheckOption = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a Modelfile for Ollama: the template of the training told in Go, its stop tokens, the run's GGUF.

    \b
    curate ollama r1
    """
    from curate.cli.views.models import show_ollama
    from schemas.store import store_path
    from train.export.modelfile import write_ollama

    written = write_ollama(store_path(store), run, to=to, quant=quant.lower(), report=note)
    contract = _contract(store, str(written.folder)) if check else None
    if as_json:
        print_json({**written.as_json(), "contract": contract and contract.as_json()})
    else:
        show_ollama(written)
    _conclude(contract, as_json=as_json)


def serve_command(
    target: Annotated[
        str, typer.Argument(metavar="RUN|GGUF", help="A run with a GGUF, or a GGUF.", show_default=False)
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option("--host", help="Who can reach it: only this machine.")] = "127.0.0.1",
    key: Annotated[
        str,
        typer.Option("--api-key", help="What clients have to know.", envvar="CURATE_API_KEY", show_default="a new one"),
    ] = "",
    origins: Annotated[
        str, typer.Option("--cors", metavar="ORIGINS", help="Pages that may ask it.", show_default="its own")
    ] = "",
    context: Annotated[int, typer.Option("--context", min=0, help="Tokens; 0 is the model's own.")] = 0,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Conversations at the same time.")] = 1,
    quant: Annotated[
        str,
        typer.Option("--quant", metavar="KIND", help="Which GGUF of the run.", show_default="as gguf says"),
    ] = "",
    engine: Annotated[str, typer.Option("--engine", help="llama.cpp, or vllm for the merged model.")] = "llama.cpp",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a run, or a GGUF, behind OpenAI's protocol, until Ctrl-C.

    \b
    curate serve r1 --port 8080
    """
    from curate.cli.views.models import show_address
    from schemas.store import store_path
    from train.export.serve import ENGINES, Wish, become_vllm, serve

    wish = Wish(host, port, key, origins, context, slots, quant.lower())
    tell = partial(show_address, as_json=as_json)
    if _one_of(engine, ENGINES, "--engine") == "vllm":
        become_vllm(store_path(store), target, wish, tell)
    try:
        serve(store_path(store), target, wish, tell, note)
    except KeyboardInterrupt:
        note("Stopped.")


def check_serving_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER|GGUF", help="A run with all its exports, or one of them.", show_default=False
        ),
    ],
    url: Annotated[
        str, typer.Option("--url", help="An OpenAI-compatible server to ask as well.", show_default=False)
    ] = "",
    key: Annotated[str, typer.Option("--api-key", help="Its key.", envvar="OPENAI_API_KEY", show_default=False)] = "",
    model: Annotated[str, typer.Option("--model", help="Its model.", show_default="the one it serves")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Conversations of the version.")] = 500,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that the engines see the tokens of the training, and stop where it taught to. Exit code 1 where not.

    \b
    curate check-serving r1
    """
    from schemas.store import store_path
    from train.checks.serving_parity import check_serving

    contract = check_serving(store_path(store), target, url=url, key=key, model=model, limit=limit)
    if as_json:
        print_json(contract.as_json())
    _conclude(contract, as_json=as_json)
