"""The words of `curate review …`: what people say about conversations."""

import typer

from schemas.terminal import GroupedHelp

app = typer.Typer(
    help="Let people judge conversations: a labelling server, what goes there, what comes back.",
    no_args_is_help=True,
    cls=GroupedHelp,
    rich_markup_mode=None,  # see GroupedHelp
)
