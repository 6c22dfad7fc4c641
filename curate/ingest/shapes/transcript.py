"""A transcript per row, one text with a speaker's name and a colon before each turn → turns without outer white space.

Example: `Human: … Assistant: …`.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from curate.ingest.shapes.roles import to_role
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    complete_turns,
    number_cells,
    problem_rows,
    shorten_expr,
)
from curate.ingest.shapes.system_prompt import SYSTEM, add_system_turns

_USERS = ("Human", "User", "Customer", "Client", "Prompter")
_ASSISTANTS = ("Assistant", "ChatGPT", "GPT", "AI", "Bot", "Chatbot", "Model", "Agent", "Support")
_TOOLS = ("Function Response", "FUNCTION RESPONSE")
_END_OF_TEXT = "<|endoftext|>"
"""End of an answer in transcripts of Glaive."""


def _speaker(*names: str) -> str:
    alternatives = "|".join((*names, *(name.upper() for name in names if name.isalpha())))
    return rf"(?:#{{1,4}} *|\*\*)?({alternatives})(?:\*\*)?[ \t]*:(?:\*\*)?"


def _any_speaker(roles: Mapping[str, str]) -> str:
    return _speaker(*map(_own_name, roles), *_USERS, *_ASSISTANTS, *_TOOLS, "System")


def _any_assistant(roles: Mapping[str, str]) -> str:
    return _speaker(*(_own_name(name) for name, role in roles.items() if role == "gpt"), *_ASSISTANTS)


def _own_name(name: str) -> str:
    return f"(?i:{pl.escape_regex(name.strip())})"


def _on_line(speaker: str) -> str:
    return rf"(?m)^[ \t]*{speaker}"


_START = rf"^\s*{_any_speaker({})}"
_ASSISTANT_LINE = _on_line(_any_assistant({}))
_GAP = r"(?:^|\s+|\s*#{2,4} ?)"
"""What precedes a speaker within a line; openassistant-guanaco writes `### Human: …### Assistant: …`."""

_ASSISTANT_INLINE = rf"{_GAP}{_any_assistant({})}"

_TURN, _NAME_END = "\ufdd0", "\ufdd1"
"""Unicode noncharacters, reserved for internal use by programs."""


def fits(cells: pl.Series) -> pl.Series:
    """Whether each cell starts with a speaker and contains an assistant's turn."""
    text = pl.col("cell")
    is_transcript = text.str.contains(_START) & text.str.contains(rf"{_ASSISTANT_LINE}|{_ASSISTANT_INLINE}")
    return pl.DataFrame({"cell": cells}).select(is_transcript.fill_null(False)).to_series()


NAMES = ("transcript", "conversation", "dialogue", "dialog", "chat", "text")

FIELDS = {
    "transcript": Field(NAMES, required=True, fits=fits, any_name=True),
    "system": SYSTEM,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a column of transcripts."""
    cells = number_cells(mapping.column(table, "transcript").fill_null(""))
    pieces = cells.with_columns(_mark_speakers(mapping.roles).str.split(_TURN).alias("piece"))
    system = mapping.column(table, "system").str.replace(r"^\s*SYSTEM:\s*", "")
    turns, contradicting = add_system_turns(_turns(pieces, mapping.roles), system)
    return ParsedTable(turns).reject(*_problems(pieces), contradicting)


def _mark_speakers(roles: Mapping[str, str]) -> pl.Expr:
    """The text with a mark before and after each speaker's name.

    Names are recognised at the start of a line; if no line starts with an assistant's name, after any white space.
    """
    text, marks = pl.col("cell"), f"{_TURN}${{1}}{_NAME_END}"
    by_line = text.str.contains(_on_line(_any_assistant(roles)))
    lines, inline = _on_line(_any_speaker(roles)), rf"{_GAP}{_any_speaker(roles)}"
    return pl.when(by_line).then(text.str.replace_all(lines, marks)).otherwise(text.str.replace_all(inline, marks))


def _turns(pieces: pl.DataFrame, roles: Mapping[str, str]) -> pl.DataFrame:
    turns = pieces.select("row", pl.col("piece").list.slice(1)).explode("piece", empty_as_null=False)
    named = turns.with_columns(pl.col("piece").str.splitn(_NAME_END, 2).struct.rename_fields(["name", "text"]))
    role, text = to_role(pl.col("name"), roles), pl.col("text").str.strip_chars()
    text = pl.when(role == "gpt").then(text.str.strip_suffix(_END_OF_TEXT).str.strip_chars_end()).otherwise(text)
    return complete_turns(named.unnest("piece").select("row", role.alias("from"), text.alias("value")))


def _problems(pieces: pl.DataFrame) -> list[pl.DataFrame]:
    before = pl.col("piece").list.first().str.strip_chars()
    blank = pieces.filter(pl.col("cell").str.strip_chars() == "")
    reserved = pieces.filter(pl.col("cell").str.contains_any([_TURN, _NAME_END]))
    no_speaker = pl.format("No speaker is named: {}", shorten_expr(pl.col("cell")))
    text_before = pl.format("Text precedes the first speaker: {}", shorten_expr(before))
    return [
        problem_rows(blank, "missing-conversation", "The transcript column is empty in this row."),
        problem_rows(reserved, "reserved-character", "The text contains a noncharacter, U+FDD0 or U+FDD1."),
        problem_rows(pieces.filter(pl.col("piece").list.len() == 1), "no-speaker", no_speaker),
        problem_rows(pieces.filter(before != ""), "text-before-speaker", text_before),
    ]
