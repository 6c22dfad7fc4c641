"""Transcripts: a whole conversation as one text, with a speaker's name and a colon before each turn.

In: one row per conversation, `Human: … Assistant: …`. Out: its turns, without the white space around them.
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes.pairs import SYSTEM
from curate.ingest.shapes.roles import role
from curate.ingest.shapes.shape import TOOLS, TURNS, ColumnMapping, Field, ParsedTable, cut, problem, without_problems
from curate.ingest.shapes.system_prompt import with_system

_ASKS = ("Human", "User", "Customer", "Client", "Prompter")
_ANSWERS = ("Assistant", "ChatGPT", "GPT", "AI", "Bot", "Chatbot", "Model", "Agent", "Support")


def _speaker(*names: str) -> str:
    spelt = "|".join((*names, *(name.upper() for name in names)))
    return rf"(?:#{{1,4}} *|\*\*)?({spelt})(?:\*\*)?[ \t]*:(?:\*\*)?"


_ANYBODY = _speaker(*_ASKS, *_ANSWERS, "System")
_STARTS = rf"^\s*{_ANYBODY}"
_ANSWER_LINE = rf"(?m)^[ \t]*{_speaker(*_ANSWERS)}"
_ANSWER_INLINE = rf"\s{_speaker(*_ANSWERS)}"
_LINES = rf"(?m)^[ \t]*{_ANYBODY}"
_INLINE = rf"(?:^|\s+){_ANYBODY}"

_TURN, _NAME_END = "\ufdd0", "\ufdd1"
"""Noncharacters: Unicode keeps them for use inside a program, so no text has a claim to them."""


def fits(cells: pl.Series) -> pl.Series:
    """Which cells begin with somebody's name and a colon and have an assistant's later on."""
    text = pl.col("cell")
    found = text.str.contains(_STARTS) & text.str.contains(rf"{_ANSWER_LINE}|{_ANSWER_INLINE}")
    return pl.DataFrame({"cell": cells}).select(found.fill_null(False)).to_series()


NAMES = ("transcript", "conversation", "dialogue", "dialog", "chat", "text")

FIELDS = {
    "transcript": Field(NAMES, required=True, fits=fits, anywhere=True),
    "system": SYSTEM,
}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a column of transcripts."""
    cells = pl.DataFrame({"cell": mapping.column(table, "transcript")}).with_row_index("row")
    cells = cells.with_columns(pl.col("row").cast(pl.Int64), pl.col("cell").fill_null(""))
    pieces = cells.with_columns(_marked().str.split(_TURN).alias("piece"))
    turns, doubled = with_system(_turns(pieces), mapping.column(table, "system"))
    return without_problems(turns, pl.DataFrame(schema=TOOLS), [*_problems(pieces), doubled])


def _marked() -> pl.Expr:
    """The text with a mark before each speaker's name and one behind it.

    Names count at the start of a line; where no assistant speaks at the start of a line, anywhere after a space.
    """
    text, marks = pl.col("cell"), f"{_TURN}${{1}}{_NAME_END}"
    by_line = text.str.contains(_ANSWER_LINE)
    return pl.when(by_line).then(text.str.replace_all(_LINES, marks)).otherwise(text.str.replace_all(_INLINE, marks))


def _turns(pieces: pl.DataFrame) -> pl.DataFrame:
    turns = pieces.select("row", pl.col("piece").list.slice(1)).explode("piece", empty_as_null=False)
    named = turns.with_columns(pl.col("piece").str.splitn(_NAME_END, 2).struct.rename_fields(["name", "text"]))
    return (
        named.unnest("piece")
        .select(
            "row",
            role(pl.col("name")).alias("from"),
            pl.col("text").fill_null("").str.strip_chars().alias("value"),
            train=pl.lit(True),
            tool_call_id=pl.lit(None, pl.String),
        )
        .select(*TURNS)
    )


def _problems(pieces: pl.DataFrame) -> list[pl.DataFrame]:
    before = pl.col("piece").list.first().str.strip_chars()
    alone = pl.col("piece").list.len() == 1
    blank = pl.col("cell").str.strip_chars() == ""
    reserved = pl.col("cell").str.contains_any([_TURN, _NAME_END])
    told = pl.format("Before the first speaker stands: {}", cut(before))
    return [
        problem(pieces.filter(blank), "missing-conversation", "The column with the transcript is empty here."),
        problem(
            pieces.filter(reserved), "reserved-character", "The text holds U+FDD0 or U+FDD1, which are no characters."
        ),
        problem(
            pieces.filter(alone), "no-speaker", pl.format("Nobody is named as the speaker: {}", cut(pl.col("cell")))
        ),
        problem(pieces.filter(before != ""), "text-before-speaker", told),
    ]
