"""Conversations frame → the same rows with the text columns that scorers read.

String operations that several scorers need (joining turns, lower case, splitting into words) run once, here.

    column         type            content
    id, conversations, tools       as in every conversations frame
    answers        List(String)    texts of the assistant (`gpt` turns), in order, without tool calls
    prompts        List(String)    texts of the user (`human` turns), in order
    answer         String          `answers` joined by line breaks; empty if there are none
    prompt         String          `prompts` joined by line breaks; empty if there are none
    answer_lower   String          `answer` in lower case
    prompt_lower   String          `prompt` in lower case
    answer_terms   List(String)    words of `answer_lower`, separated by white space; a Han, hiragana or katakana
                                   character is a word, because these scripts have no spaces
    prompt_terms   List(String)    words of `prompt_lower`
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import polars as pl

from schemas.conversation import CONVERSATIONS, TURN

HUMAN, ASSISTANT = "human", "gpt"

_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
"""Scripts without spaces between words: a character is a better unit than a sentence."""

_SPACES = "[\n\t\r\u00a0\u3000]"


def compute_features(conversations: pl.DataFrame) -> pl.DataFrame:
    """The features frame of a conversations frame: the same rows in the same order."""
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


FEATURES = frozenset(compute_features(pl.DataFrame(schema=cast(pl.Schema, CONVERSATIONS))).columns)
"""The columns of a features frame."""


def run_scorer(scorer: Callable[..., Any], frame: pl.DataFrame, **parameters: object) -> pl.Series:
    """The scorer's value for each row of a features frame."""
    values = scorer(frame, **parameters) if is_frame_scorer(scorer) else scorer(**parameters)
    return frame.select(values).to_series() if isinstance(values, pl.Expr) else values


def is_frame_scorer(scorer: Callable[..., Any]) -> bool:
    """Whether a scorer takes the features frame and returns a series, instead of returning an expression."""
    kinds = {parameter.kind for parameter in inspect.signature(scorer).parameters.values()}
    return not kinds <= {inspect.Parameter.KEYWORD_ONLY}


def example_scores(scorer: Callable[..., Any], *pairs: tuple[str, str], **parameters: object) -> list[Any]:
    """The scores of (prompt, answer) pairs, for doctests and for trying a scorer.

    >>> from curate.scorers.length import answer_words
    >>> example_scores(answer_words, ("Hi", "Hello there!"), ("你好", "你好。"))
    [2, 3]
    """
    turns = [[_turn(HUMAN, prompt), _turn(ASSISTANT, answer)] for prompt, answer in pairs]
    columns = {"id": [str(number) for number in range(len(pairs))], "conversations": turns}
    frame = pl.DataFrame(columns, schema_overrides={"conversations": pl.List(TURN)})
    features = compute_features(frame.with_columns(tools=pl.lit(None, pl.String)))
    values = run_scorer(scorer, features, **parameters)
    return [round(value, 3) if isinstance(value, float) else value for value in values]


def _turn(role: str, value: str) -> dict[str, Any]:
    return {"from": role, "value": value, "train": True, "tool_call_id": None}
