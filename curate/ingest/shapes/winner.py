"""Two answers to a prompt and the side that won, as in Chatbot Arena → the answer that won.

The answers are texts, or complete conversations as lists of messages; ties are rejected. A prompt and its answers may
be lists of texts, one per turn.
https://huggingface.co/datasets/lmsys/chatbot_arena_conversations
"""

from __future__ import annotations

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.pairs import QUESTION_NAMES
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, mostly_like, problem_rows, shorten_expr

_SIDE_A = r"(?i)^\s*(?:model|response|answer|assistant|conversation|output)?[_ ]?a\s*$"
_SIDE_B = r"(?i)^\s*(?:model|response|answer|assistant|conversation|output)?[_ ]?b\s*$"
_TIE = r"(?i)^\s*(?:tie|both|neither|draw|equal)"


_names_side = mostly_like(f"{_SIDE_A}|{_SIDE_B}|{_TIE}")
_is_flag = mostly_like(r"(?i)^\s*(?:0|1|true|false)(?:\.0)?\s*$")


def _side(letter: str) -> Field:
    words = ("conversation", "response", "answer", "output", "messages", "completion")
    return Field(tuple(f"{word}_{letter}" for word in words), required=True)


_PROMPT = Field(("prompt", "instruction", *QUESTION_NAMES))
FIELDS = {
    "a": _side("a"),
    "b": _side("b"),
    "winner": Field(("winner", "preference", "preferred", "choice", "label"), required=True, fits=_names_side),
    "prompt": _PROMPT,
}
FLAG_FIELDS = {
    "a": _side("a"),
    "b": _side("b"),
    "a_won": Field(("winner_model_a", "winner_a", "a_wins"), required=True, fits=_is_flag),
    "b_won": Field(("winner_model_b", "winner_b", "b_wins"), required=True, fits=_is_flag),
    "prompt": _PROMPT,
}

_TURNS = """
    SELECT row, CASE
        WHEN left(answer, 1) = '[' AND json_valid(answer) AND json_type(answer, '$[0]') = 'OBJECT' THEN answer
        WHEN left(answer, 1) = '[' AND left(prompt, 1) = '[' AND json_valid(answer) AND json_valid(prompt)
            THEN to_json(flatten([[json_object('role', 'user', 'content', t[1]),
                json_object('role', 'assistant', 'content', t[2])]
                FOR t IN list_zip(from_json(prompt, '["VARCHAR"]'), from_json(answer, '["VARCHAR"]'))]))::VARCHAR
        WHEN answer IS NOT NULL THEN json_array(json_object('role', 'user', 'content', prompt),
            json_object('role', 'assistant', 'content', answer))::VARCHAR
        END AS messages
    FROM answers ORDER BY row
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The answers that won; a row without a winner is a problem."""
    rows = mapping.rows(table, ("a", "b", "prompt", "winner", "a_won", "b_won"))
    winner, flag = pl.col("winner"), r"(?i)^\s*(?:1|true)(?:\.0)?\s*$"
    a_won = (winner.str.contains(_SIDE_A) | pl.col("a_won").str.contains(flag)).fill_null(False)
    b_won = (winner.str.contains(_SIDE_B) | pl.col("b_won").str.contains(flag)).fill_null(False)
    answers = rows.select(
        "row",
        pl.col("prompt").fill_null("").str.strip_chars(),
        pl.when(a_won & ~b_won).then("a").when(b_won & ~a_won).then("b").str.strip_chars().alias("answer"),
        no_winner=a_won == b_won,
        winner=pl.when(winner.is_null()).then(pl.lit("none")).otherwise(shorten_expr(winner, 20)),
    )
    lists = query_frames(_TURNS, answers=answers).select("messages")
    parsed = turn_lists.parse(lists, ColumnMapping("messages", {"messages": "messages"}), "messages")
    tie = problem_rows(answers.filter("no_winner"), "no-winner", pl.format("Neither answer won: {}.", "winner"))
    return parsed.reject(tie)
