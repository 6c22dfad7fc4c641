"""Conversations that a search found → text for people."""

from __future__ import annotations

from curate.cli.console import note, print_line
from curate.cli.views.plans import ID_PREFIX, LOSS_END, LOSS_START
from curate.search import Match, SearchResult
from schemas.text import plural


def show_matches(result: SearchResult) -> None:
    """Print a line per conversation: the beginning of its id, the role, and the match in its context."""
    width = max((len(match.role) for match in result.matches), default=0)
    for match in result.matches:
        print_line(f"{match.id[:ID_PREFIX]}  {match.role:<{width}}  {_excerpt(match)}")
    shown = len(result.matches)
    if shown < result.conversations:
        note(f"{shown:,} of {plural(result.conversations, 'conversation')} are shown. (--limit)")
    elif result.conversations:
        note(f"{plural(result.conversations, 'conversation')}..")
    else:
        note("No conversation matches.")


def _excerpt(match: Match) -> str:
    """The match between marks, on one line."""
    text = f"{match.before}{LOSS_START}{match.match}{LOSS_END}{match.after}"
    return " ".join(text.split())
