"""Conversations that a search found, or that are shown in full → terminal output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curate.cli.console import note, print_line
from curate.cli.views.lineage import fact_lines, lineage_lines
from curate.cli.views.plans import ID_PREFIX, LOSS_END, LOSS_START, show_previews
from curate.search import Match, SearchResult
from curate.versions.lineage import Found, Lineage
from schemas.conversation import Conversation
from schemas.text import indent_json, plural, shorten

if TYPE_CHECKING:
    from train.plan.preview import Preview

JSON_ROLES = ("function_call", "observation")
"""Roles whose text is JSON, as a rule."""


def show_matches(result: SearchResult) -> None:
    """Print a line per conversation: the beginning of its id, the role, and the match in its context."""
    width = max((len(match.role) for match in result.matches), default=0)
    for match in result.matches:
        print_line(f"{match.id[:ID_PREFIX]}  {match.role:<{width}}  {_excerpt(match)}")
    shown = len(result.matches)
    if shown < result.conversations:
        note(f"{shown:,} of {plural(result.conversations, 'conversation')} are shown. (--limit)")
    elif result.conversations:
        note(f"Found {plural(result.conversations, 'conversation')}; curate show ID prints one of them.")
    else:
        note("No conversation matches.")


def _excerpt(match: Match) -> str:
    """The match between marks, on one line."""
    text = f"{match.before}{LOSS_START}{match.match}{LOSS_END}{match.after}"
    return " ".join(text.split())


def show_conversation(
    lineage: Found,
    near_duplicates: Sequence[Mapping[str, Any]],
    previews: Sequence[Preview],
) -> None:
    """Print all turns of a conversation, what the store contains about it, and its loss mask if there are previews."""
    if not isinstance(lineage, Lineage):
        lines = lineage_lines(lineage)
    else:
        lines = _conversation_lines(lineage, near_duplicates)
    for line in lines:
        print_line(line)
    if previews:
        print_line("loss mask")
        show_previews(previews)


def _conversation_lines(lineage: Lineage, near_duplicates: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"conversation {lineage.id}"
    yield from _turn_lines(lineage.conversation)
    yield ""
    yield from fact_lines(lineage)
    if near_duplicates:
        yield "other members of the near-duplicate cluster"
        yield from (f"  {_member_line(member)}" for member in near_duplicates)


def _turn_lines(conversation: Conversation) -> Iterator[str]:
    """Every turn, complete: its number and role, then its text, indented, so that it differs from the other lines."""
    if conversation.tools:
        yield from ("", "tools", *_indented(indent_json(conversation.tools)))
    for number, turn in enumerate(conversation.turns, start=1):
        text = indent_json(turn.value) if turn.role in JSON_ROLES else turn.value
        call = f" of call {turn.tool_call_id}" if turn.tool_call_id else ""
        yield from ("", f"{number} {turn.role}{call}{'' if turn.train else ' (no loss)'}", *_indented(text))


def _indented(text: str) -> Iterator[str]:
    return (f"  {line}" for line in text.split("\n"))


def _member_line(member: Mapping[str, Any]) -> str:
    state = "kept" if member["nearest"] is None else f"similarity {member['similarity']:.3f}"
    instead = ", kept instead of this one" if member["kept_instead"] else ""
    return f"{member['conversation'][:ID_PREFIX]} {state}{instead}: {shorten(member['prompt'])}"
