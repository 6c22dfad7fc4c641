"""Commands that export a run, serve it, and check that inference engines produce the training tokens."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli import completion
from curate.cli.console import note, print_json, progress_bar
from curate.cli.options import DEFAULT_STORE, JsonOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from train.checks.serving_parity import ParityReport

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FOLDER",
        help="Run, such as r1, or the folder of an adapter.",
        show_default=False,
        autocompletion=completion.RUNS,
    ),
]
RowsOption = Annotated[int, typer.Option("--rows", min=1, help="Number of held-out conversations to compare.")]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare the export's logits and tokens with those of training.")
]
QuantOption = Annotated[
    str,
    typer.Option(
        "--quant",
        metavar="KIND",
        autocompletion=completion.QUANTS,
        help="GGUF of the run to use.",
        show_default="recommended by gguf",
    ),
]


def merge(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Output folder.", show_default="merged/RUN next to the store")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            autocompletion=completion.one_of("base", "float32", "float16", "bfloat16"),
            help="base (the stored type), float32, float16 or bfloat16.",
        ),
    ] = "base",
    rows: RowsOption = 8,
    check: CheckOption = True,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base model: a complete model with tokenizer, chat template, stop tokens and manifest.

    \b
    curate merge r1
    """
    from curate.cli.views.models import show_merged
    from train.checks.serving_parity import check_export
    from train.export.merge import DTYPE_NAMES, merge

    kind = _check_choice(dtype, DTYPE_NAMES, "--dtype")
    note(f"Reading {run} and its base model …")
    with progress_bar("merging") as advance:
        merged = merge(store, run, to=to, dtype=kind, rows=rows, check=check, progress=advance)
    report = check_export(store, str(merged.folder)) if check else None
    _show_export(asdict(merged), report, partial(show_merged, merged), as_json=as_json)


def _show_export(
    exported: Mapping[str, object], report: ParityReport | None, show: Callable[[], None], *, as_json: bool
) -> None:
    """Print an export and its serving parity, which a run on raw text does not have."""
    print_json({**exported, "parity": report and report.as_json()}) if as_json else show()
    _show_parity(report, as_json=as_json)


def _show_parity(report: ParityReport | None, *, as_json: bool) -> None:
    """Print a parity report; exit code 1 if an engine failed."""
    if report is None:
        return
    if not as_json:
        from curate.cli.views.models import show_parity

        show_parity(report)
    if not report.passed:
        raise typer.Exit(1)


def _check_choice(value: str, choices: tuple[str, ...], option: str) -> str:
    if value not in choices:
        raise typer.BadParameter(f"{value} is not one of {', '.join(choices)}.", param_hint=option)
    return value


def gguf(
    run: RunArgument,
    quant: Annotated[
        str, typer.Option(metavar="KINDS", help="Quantisations, such as q4_k_m,q8_0; none for 16 bits only.")
    ] = "q4_k_m,q5_k_m,q8_0",
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Output folder.", show_default="gguf/RUN next to the store")
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of a llama.cpp to use.", show_default="the installed packages"),
    ] = None,
    imatrix: Annotated[
        bool,
        typer.Option(
            "--imatrix", help="Quantise with an importance matrix from the version; more accurate at 2 to 4 bits."
        ),
    ] = False,
    rows: RowsOption = 8,
    check: CheckOption = True,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write a run as GGUF files for llama.cpp, measure each quantisation and recommend one.

    \b
    curate gguf r1 --quant q4_k_m,q8_0
    """
    from curate.cli.views.models import show_gguf
    from train.checks.serving_parity import check_export
    from train.export.gguf import export_gguf

    kinds = [kind.strip().lower() for kind in quant.split(",") if kind.strip() not in ("", "none")]
    paths = {"to": to, "llama_cpp": llama_cpp}
    files = export_gguf(store, run, kinds, **paths, imatrix=imatrix, rows=rows, check=check, report=note)
    report = check_export(store, str(files[0].path)) if check else None
    _show_export({"files": [file.as_json() for file in files]}, report, partial(show_gguf, files), as_json=as_json)


def ollama(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Output folder.", show_default="ollama/RUN next to the store")
    ] = None,
    quant: QuantOption = "",
    check: CheckOption = True,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write an Ollama Modelfile with a run's chat template, stop tokens and GGUF.

    \b
    curate ollama r1
    """
    from curate.cli.views.models import show_ollama
    from train.checks.serving_parity import check_export
    from train.export.modelfile import write_modelfile

    export = write_modelfile(store, run, to=to, quant=quant.lower(), report=note)
    report = check_export(store, str(export.folder)) if check else None
    _show_export(asdict(export), report, partial(show_ollama, export), as_json=as_json)


def serve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|GGUF",
            help="Run with a GGUF, or a GGUF file.",
            autocompletion=completion.RUNS,
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 uses a free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default allows this machine only.")
    ] = "127.0.0.1",
    key: Annotated[
        str,
        typer.Option(
            "--api-key", help="API key that clients must send.", envvar="CURATE_API_KEY", show_default="a random one"
        ),
    ] = "",
    origins: Annotated[
        str,
        typer.Option(
            "--cors", metavar="ORIGINS", help="Web origins that may send requests.", show_default="the server's own"
        ),
    ] = "",
    context: Annotated[int, typer.Option(min=0, help="Context length in tokens; 0 uses the model's own.")] = 0,
    slots: Annotated[int, typer.Option(min=1, help="Number of simultaneous requests.")] = 1,
    quant: QuantOption = "",
    engine: Annotated[
        str,
        typer.Option(
            autocompletion=completion.one_of("llama.cpp", "vllm"),
            help="llama.cpp for a GGUF, vllm for the merged model.",
        ),
    ] = "llama.cpp",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Serve a run or a GGUF with an OpenAI-compatible API until Ctrl-C.

    \b
    curate serve r1 --port 8080
    """
    from curate.cli.views.models import show_server
    from train.export.llamacpp.server import ServeOptions
    from train.export.serve import ENGINES, exec_vllm, serve

    options = ServeOptions(host, port, key, origins, context, slots)
    on_ready = partial(show_server, as_json=as_json)
    if _check_choice(engine, ENGINES, "--engine") == "vllm":
        exec_vllm(store, target, options, on_ready)
    try:
        serve(store, target, options, on_ready, quant=quant.lower(), report=note)
    except KeyboardInterrupt:
        note("Stopped.")


def check_serving(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER|GGUF",
            help="Run with all its exports, or a single export.",
            autocompletion=completion.RUNS,
            show_default=False,
        ),
    ],
    url: Annotated[str, typer.Option(help="OpenAI-compatible server to check as well.", show_default=False)] = "",
    key: Annotated[
        str, typer.Option("--api-key", help="API key of that server.", envvar="OPENAI_API_KEY", show_default=False)
    ] = "",
    model: Annotated[str, typer.Option(help="Model of that server.", show_default="the first one it serves")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Number of conversations of the version to compare.")] = 500,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check that inference engines produce the training tokens and stop at the trained stop token.

    Exit code 1 if an engine differs.

    \b
    curate check-serving r1
    """
    from train.checks.serving_parity import check_serving

    report = check_serving(store, target, url=url, key=key, model=model, limit=limit)
    if as_json:
        print_json(report.as_json())
    _show_parity(report, as_json=as_json)
