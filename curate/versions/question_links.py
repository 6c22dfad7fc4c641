"""First questions → those that are equal or differ by one typo without case, marks, white space, accents and markup.

The links depend on the two questions alone, so another conversation in the store can add links but never remove one.
"""

from __future__ import annotations

import polars as pl
from duckdb import DuckDBPyRelation

from curate.dedup.normal_text import letters_only, strip_markup
from curate.dedup.shingles import SPACELESS
from curate.dedup.typos import find_typos

BATCH_ROWS = 20_000

MIN_WORDS = 8
"""Words from which one different letter is a typo. In shorter questions it is often the subject: cat, car, bat."""

MAX_LETTERS = 10_000
"""Longer questions must be equal: the time is linear in the letters, but hundreds of times that of their comparison."""

PROMPTS = {"prompt": pl.String, "link": pl.String}


def link_questions(questions: DuckDBPyRelation) -> pl.DataFrame:
    """The `questions` (`prompt`, `question`) that ask the same: columns `prompt`, `link`; equal links belong together.

    A question without letters, digits and symbols is not linked.
    """
    batches = [_normalise(pl.DataFrame(batch)) for batch in questions.to_arrow_reader(BATCH_ROWS)]
    if not batches:
        return pl.DataFrame(schema=PROMPTS)
    prompts = pl.concat(batches).filter(pl.col("letters") != "")
    texts = prompts.group_by("letters").agg(pl.col("words").max(), pl.len()).with_row_index("number")
    numbered = prompts.join(texts.select("letters", "number", "len"), on="letters").select("prompt", "number", "len")
    same = numbered.filter(pl.col("len") > 1).select("prompt", link=pl.format("question {}", "number"))
    typos = numbered.join(_link_typos(texts), on="number").select("prompt", "link")
    return pl.concat([same, typos])


def _normalise(questions: pl.DataFrame) -> pl.DataFrame:
    """`prompt`, the `letters` of the question, its `words`: two characters are one in scripts without spaces."""
    plain = strip_markup(questions["question"])
    words = plain.str.count_matches(rf"[\w--[{SPACELESS}]]+") + plain.str.count_matches(rf"[{SPACELESS}]") // 2
    return questions.select("prompt", letters=letters_only(plain), words=words)


def _link_typos(texts: pl.DataFrame) -> pl.DataFrame:
    """`number`, `link` of the texts that differ by one typo, one of them with at least `MIN_WORDS`."""
    # a typo can join two words or add a space, so questions with one word less take part
    can_match = (pl.col("words") >= MIN_WORDS - 1) & (pl.col("letters").str.len_chars() <= MAX_LETTERS)
    links = find_typos(texts.filter(can_match).select("number", text="letters")).join(texts, on="number")
    is_long = pl.col("words").max().over("link") >= MIN_WORDS
    return links.filter(is_long).select("number", link=pl.format("typo {}", "link"))
