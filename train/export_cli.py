"""The words of what leaves the house: options in, one call, results out. Everything heavy is imported inside."""

# No `from __future__ import annotations` here: Typer would evaluate every annotation again at each start, 25 ms.

from pathlib import Path
from typing import Annotated

import typer

from schemas.terminal import JsonOption, StoreOption, print_json, progress_bar

PANEL = "Hand over"

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN|FOLDER", help="A run such as r1, or an adapter's folder.", show_default=False)
]
RowsOption = Annotated[int, typer.Option("--rows", min=1, help="Held-out conversations to compare on.")]
CheckOption = Annotated[bool, typer.Option("--check/--no-check", help="Compare with the adapter, and with training.")]


def register(app: typer.Typer) -> None:
    """Add the commands that hand a model over to the roof's `app`."""
    app.command("merge", rich_help_panel=PANEL)(merge_command)


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
