"""Answers and prompts → their languages, detected by script and by byte n-grams, without a download."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

from curate.scorers.language_identifier import NO_LANGUAGE, identify

Characters = Annotated[int, Field(ge=1, le=1000)]  # 8,192 texts of 4,000 bytes need 260 MB
Share = Annotated[float, Field(ge=0, le=1)]

SCRIPTS = {
    "ja": r"[\p{Hiragana}\p{Katakana}]",
    "zh": r"\p{Han}",
    "ko": r"\p{Hangul}",
    "he": r"\p{Hebrew}",
    "el": r"\p{Greek}",
    "th": r"\p{Thai}",
}
"""Scripts that a single language of `language_identifier.LANGUAGES` uses; with kana, Han is Japanese."""

UNKNOWN = "unknown"


def language(frame: pl.DataFrame, *, characters: Characters = 240, confidence: Share = 0.3) -> pl.Series:
    """The answer's language as an ISO 639-1 code; if it is unknown, the prompt's language; otherwise "unknown".

    A script of one language that makes up more than half of the letters determines the language. Otherwise it is the
    most probable one for the first `characters`, if its probability is at least `confidence`. Numbers, code and single
    words are unknown.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(language, ("Why?", "Because the sky is blue."), ("Warum?", "Weil der Himmel blau ist."))
    ['en', 'de']
    >>> example_scores(language, ("What is 6 times 7?", "42"), ("6*7", "42"), ("为什么？", "因为天空是蓝色的。"))
    ['en', 'unknown', 'zh']
    """
    answer = _detect(frame["answer"], characters, confidence)
    short = answer.is_null()
    prompt = prompt_language(frame.filter(short), characters=characters, confidence=confidence)
    return answer.scatter(short.arg_true(), prompt)


def prompt_language(frame: pl.DataFrame, *, characters: Characters = 240, confidence: Share = 0.3) -> pl.Series:
    """The prompt's language, detected as in `language`: `language <> prompt_language` finds answers in another one.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(prompt_language, ("Say it in English: der Hund und die Katze", "The dog and the cat"))
    ['de']
    """
    return _detect(frame["prompt"], characters, confidence).fill_null(UNKNOWN)


def _detect(texts: pl.Series, characters: int, confidence: float) -> pl.Series:
    """The language code of each text, null if none was detected."""
    beginnings = texts.str.head(characters)
    code, probability = identify(beginnings)
    known = (probability >= confidence) & (code != NO_LANGUAGE).to_numpy()
    codes = pl.DataFrame({"script": _by_script(beginnings), "code": code, "known": known})
    return codes.select(pl.coalesce("script", pl.when("known").then("code"))).to_series()


def _by_script(texts: pl.Series) -> pl.Series:
    """The language whose script makes up more than half of the letters; null for ASCII texts, which are skipped."""
    counts = (
        pl.DataFrame({"row": pl.int_range(len(texts), eager=True), "text": texts})
        .filter(pl.col("text").str.len_bytes() != pl.col("text").str.len_chars())
        .select("row", letters=_count(r"\p{L}"), **{code: _count(script) for code, script in SCRIPTS.items()})
    )
    kana = pl.when(pl.col("ja") * 10 > pl.col("zh")).then(pl.col("ja") + pl.col("zh")).otherwise(0)
    most = (
        counts.with_columns(ja=kana)
        .unpivot(index=["row", "letters"], variable_name="code", value_name="count")
        .filter(pl.col("count") * 2 > pl.col("letters"))
        .sort("count", descending=True, maintain_order=True)
        .unique("row", keep="first", maintain_order=True)
    )
    rows = pl.DataFrame({"row": pl.int_range(len(texts), eager=True)})
    return rows.join(most.select("row", "code"), on="row", how="left", maintain_order="left")["code"]


def _count(pattern: str) -> pl.Expr:
    return pl.col("text").str.count_matches(pattern).cast(pl.Int64)
