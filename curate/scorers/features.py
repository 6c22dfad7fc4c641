"""What scorers look at: a conversations frame comes in, the same rows with the texts taken out go out.

String work that several scorers need (joining turns, lower-casing, splitting into words) is done here, once.

    column         type            what
    id, conversations, tools       as in every conversations frame
    answers        List(String)    the texts of the assistant (`gpt` turns), in order; tool calls are not text
    prompts        List(String)    the texts of the user (`human` turns), in order
    answer         String          `answers`, a line break between them; empty where there are none
    prompt         String          `prompts`, the same way
    answer_lower   String          `answer` in lower case
    prompt_lower   String          `prompt` in lower case
    answer_terms   List(String)    the words of `answer_lower`: what stands between white space; a Han character,
                                   hiragana or katakana is a word of its own, since these scripts have no spaces
    prompt_terms   List(String)    the words of `prompt_lower`
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import polars as pl

from schemas.conversation import CONVERSATIONS, TURN

HUMAN, ASSISTANT = "human", "gpt"

_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
"""Scripts that put no spaces between words; one character comes nearer to a word than one sentence does."""


_SPACES = "[\n\t\r\u00a0\u3000]"


def material(conversations: pl.DataFrame) -> pl.DataFrame:
    """The scorers' frame for a frame with the columns `id`, `conversations`, `tools`: one row each, same order."""
    return (
        conversations.with_columns(answers=_texts_of(ASSISTANT), prompts=_texts_of(HUMAN))
        .with_columns(answer=pl.col("answers").list.join("\n"), prompt=pl.col("prompts").list.join("\n"))
        .with_columns(
            answer_lower=pl.col("answer").str.to_lowercase(),
            prompt_lower=pl.col("prompt").str.to_lowercase(),
        )
        .with_columns(answer_terms=_terms_of("answer_lower"), prompt_terms=_terms_of("prompt_lower"))
    )


def _texts_of(role: str) -> pl.Expr:
    turns = pl.col("conversations").list.filter(pl.element().struct.field("from") == role)
    return turns.list.eval(pl.element().struct.field("value"))


def _terms_of(column: str) -> pl.Expr:
    spaced = pl.col(column).str.replace_all(_UNSPACED, " $1 ").str.replace_all(_SPACES, " ")
    return spaced.str.split(" ").list.filter(pl.element() != "")


MATERIAL = frozenset(material(pl.DataFrame(schema=cast(pl.Schema, CONVERSATIONS))).columns)
"""The names of the columns above."""


def evaluate(scorer: Callable[..., Any], frame: pl.DataFrame, **parameters: object) -> pl.Series:
    """The scorer's value for every row of `frame`, whichever of the two kinds of scorer it is."""
    made = scorer(frame, **parameters) if takes_frame(scorer) else scorer(**parameters)
    return frame.select(made).to_series() if isinstance(made, pl.Expr) else made


def takes_frame(scorer: Callable[..., Any]) -> bool:
    """Whether a scorer takes the frame and returns a series; the other kind only returns an expression."""
    kinds = {parameter.kind for parameter in inspect.signature(scorer).parameters.values()}
    return not kinds <= {inspect.Parameter.KEYWORD_ONLY}


def scored(scorer: Callable[..., Any], *pairs: tuple[str, str], **parameters: object) -> list[Any]:
    """What `scorer` says of some (prompt, answer) pairs: for doctests and for trying a scorer out.

    >>> from curate.scorers.length import answer_words
    >>> scored(answer_words, ("Hi", "Hello there!"), ("你好", "你好。"))
    [2, 3]
    """
    turns = [[_turn(HUMAN, prompt), _turn(ASSISTANT, answer)] for prompt, answer in pairs]
    columns = {"id": [str(number) for number in range(len(pairs))], "conversations": turns}
    frame = pl.DataFrame(columns, schema_overrides={"conversations": pl.List(TURN)})
    values = evaluate(scorer, material(frame.with_columns(tools=pl.lit(None, pl.String))), **parameters)
    return [round(value, 3) if isinstance(value, float) else value for value in values]


def _turn(role: str, value: str) -> dict[str, Any]:
    return {"from": role, "value": value, "train": True, "tool_call_id": None}
