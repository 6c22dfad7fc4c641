"""Words by which people judge answers as good or bad: in any column, and in one that is named after a judgement."""

from __future__ import annotations

import re

import polars as pl

GOOD = {
    *("good", "correct", "like", "liked", "accepted", "accept", "approved", "desirable", "helpful"),
    *("preferred", "chosen", ":+1:", "+1"),
    *("thumbs up", "thumb up", "thumbsup", "thumbs_up", "thumbs-up", "thumb_up", "upvote", "upvoted", "👍"),
}
BAD = {
    *("bad", "incorrect", "wrong", "dislike", "disliked", "rejected", "reject", "undesirable", "unhelpful"),
    *("thumbs down", "thumb down", "thumbsdown", "thumbs_down", "thumbs-down", "thumb_down", "downvote", "downvoted"),
    *("👎", ":-1:", "not helpful", "not good", "disapproved", "dispreferred"),
}
"""Values that judge an answer in a column of any name."""

TRUE = {"true", "t", "1", "1.0", "yes", "y", "up", "positive", "pos", "pass", "passed", "right", "ok"}
FALSE = {
    *("false", "f", "0", "0.0", "no", "n", "-1", "-1.0", "down", "negative", "neg", "fail", "failed"),
    "not ok",
}
"""Values that judge an answer only in a column with the name of a label."""

LABELS = {
    *("label", "labels", "kto tag", "kto label", "feedback", "thumb", "thumbs", "thumbs up", "vote", "votes", "rating"),
    *("good", "is good", "correct", "is correct", "accepted", "is accepted", "approved", "is approved", "helpful"),
    *("is helpful", "desirable", "is desirable", "preferred", "is preferred", "preference", "verdict", "liked", "like"),
    *("upvoted", "user feedback", "human feedback", "judgement", "judgment", "chosen", "is chosen"),
    *("acceptable", "useful", "answer label", "response label", "completion label", "good answer", "reward"),
    *("feedback value", "is useful"),
}
REVERSED = {
    *("bad", "is bad", "wrong", "is wrong", "incorrect", "is incorrect", "rejected", "is rejected", "disliked"),
    *("thumbs down", "downvoted", "undesirable", "bad answer", "hallucinated", "hallucination", "is hallucination"),
}
"""Names of label columns; in a reversed one, true marks a bad answer."""


def is_bad_expr(name: pl.Expr, value: pl.Expr) -> pl.Expr:
    """Whether a value marks an answer as bad in a column or question of that name; false for null.

    >>> table = pl.DataFrame({"name": ["x", "verdict", "x", "Is_Bad"], "value": ["Bad", "no", "no", "true"]})
    >>> table.select(is_bad_expr(pl.col("name"), pl.col("value"))).to_series().to_list()
    [True, True, False, True]
    """
    text, plain = plain_expr(value), name.str.to_lowercase().str.replace_all(r"[_-]", " ")
    label, reverse = plain.is_in(list(LABELS)), plain.is_in(list(REVERSED))
    bad = (text.is_in(list(BAD)) & ~reverse) | (label & text.is_in(list(FALSE))) | (reverse & text.is_in(list(TRUE)))
    return bad.fill_null(False)


_DECORATION = "[\ufe0f\U0001f3fb-\U0001f3ff]"
"""Variation selectors and skin tones of emoji."""


def plain_expr(value: pl.Expr) -> pl.Expr:
    """The values in lower case, without white space around them, variation selectors and skin tones of emoji."""
    return value.str.strip_chars().str.to_lowercase().str.replace_all(_DECORATION, "")


def plain_text(value: str) -> str:
    """`plain_expr` of one value, which takes longer for few."""
    return re.sub(_DECORATION, "", value.strip().lower())
