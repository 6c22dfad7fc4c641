"""The words of what leaves the house: options in, one call, results out. Everything heavy is imported inside."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from pathlib import Path
from typing import Annotated

import typer

from schemas.terminal import JsonOption, StoreOption, note, print_json, progress_bar

PANEL = "Hand over"

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run such as r1, or an adapter's folder.", show_default=False)
]
RowsOption = Annotated[int, typer.Option("--rows", min=1, help="Held-out conversations to compare on.")]
CheckOption = Annotated[bool, typer.Option("--check/--no-check", help="Compare with the adapter, and with training.")]


def register(app: typer.Typer) -> None:
    """Add the commands that hand a model over to the roof's `app`."""
    app.command("merge", rich_help_panel=PANEL)(merge_command)
    app.command("gguf", rich_help_panel=PANEL)(gguf_command)


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
    from schemas.store import store_path
    from train.merging import DTYPE_NAMES, merge
    from train.showing_exports import show_merged

    kind = _one_of(dtype, DTYPE_NAMES, "--dtype")
    with progress_bar("merging") as bar:
        merged = merge(
            store_path(store),
            run,
            to=to,
            dtype=kind,
            rows=rows,
            check=check,
            report=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    print_json(merged.as_json()) if as_json else show_merged(merged)


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
    rows: RowsOption = 8,
    check: CheckOption = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run as GGUF files for llama.cpp, and say what each quantisation costs and which to take.

    \b
    curate gguf r1 --quant q4_k_m,q8_0
    """
    from schemas.store import store_path
    from train.quantising import quantise_run
    from train.showing_exports import show_quantised

    kinds = [kind.strip().lower() for kind in quant.split(",") if kind.strip() not in ("", "none")]
    files = quantise_run(store_path(store), run, kinds, to=to, llama_cpp=llama_cpp, rows=rows, check=check, report=note)
    print_json([file.as_json() for file in files]) if as_json else show_quantised(files)
