"""Answers and prompts → their languages, detected by script and function words, without a model or a download."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

Count = Annotated[int, Field(ge=1, le=1_000_000)]  # Polars accepts at most 64 bits
Share = Annotated[float, Field(ge=0, le=1)]

FUNCTION_WORDS = {
    "en": (
        "a i the of and to in is that it for was with as be on are this you your by from or have not can an "
        "which has he she his her they their we our will would do does if but what how when who who's about "
        "into than more no so were had its it's some any all these there one per me my at up out"
    ),
    "de": (
        "der die das und ist nicht ein eine einen einem einer zu den von mit sich des auf für im dem als auch "
        "es wie werden wird oder sind bei aus nach kann ich sie wir war hat noch nur über so zum zur was du "
        "mein bitte"
    ),
    "fr": (
        "le la les et est des une dans que pour qui sur pas au aux ce avec il elle sont vous nous plus par "
        "cette du en ou je un mon votre ses sa son comme mais être a été très leur si fait on se ne de"
    ),
    "es": (
        "el la los las es que en una un por con para del se no su sus como al más este esta son lo pero yo mi "
        "muy ser fue hay está también cuando qué de te me ya"
    ),
    "pt": (
        "os as é que em uma um para com não do da dos das se por como mais ao são na no nas nos foi ou seu "
        "sua muito também você eu está pela pelo ser tem já de isso"
    ),
    "it": (
        "il lo la gli le è che di un una per con non del della delle dei si sono in nel nella più come alla "
        "al ha ma anche questo questa io mi da su se essere molto dal"
    ),
    "nl": (
        "de het een en van is dat niet te zijn op met voor er aan ook als bij of naar door deze worden om kan "
        "ik je wij was heeft maar dit wordt uit nog hij mijn in"
    ),
    "sv": (
        "och att det som en på är av för med den till inte har de ett om var jag men kan från eller vid sin "
        "du vi så under också när efter"
    ),
    "pl": (
        "na się nie do to jest że jak za od po co są ale przez dla jego oraz lub być może czy tak już tylko "
        "ten jako przy było ich jej"
    ),
    "tr": (
        "ve bir bu için ile da de çok olarak daha gibi olan ne en var kadar sonra mi ama ya değil her veya "
        "ben sen ise ki şey olur"
    ),
    "id": (
        "yang dan di dengan untuk ini itu dari dalam tidak pada adalah akan ke juga oleh atau sebagai bisa "
        "kami saya anda dapat lebih ada telah mereka karena"
    ),
    "vi": (
        "và là của có một các không trong cho được những với này khi đã đến người từ như để cũng tôi bạn về "
        "nhiều rất vào ra"
    ),
}
"""Frequent function words in lower case; a word of several languages counts in equal parts for each. Words of one
letter are left out, because they are variables in formulas and code, except the frequent English ones. In a tie the
language listed first is used."""

SCRIPTS = {
    "ja": r"[\p{Hiragana}\p{Katakana}]",
    "zh": r"\p{Han}",
    "ko": r"\p{Hangul}",
    "ru": r"\p{Cyrillic}",
    "ar": r"\p{Arabic}",
    "he": r"\p{Hebrew}",
    "el": r"\p{Greek}",
    "hi": r"\p{Devanagari}",
    "th": r"\p{Thai}",
}
"""The most common language of each script, which is detected by the script alone."""

UNKNOWN = "unknown"


def language(frame: pl.DataFrame, *, within: Count = 40, evidence: Share = 0.05) -> pl.Series:
    """The answer's language as an ISO 639-1 code; if it is too short, the prompt's language; otherwise "unknown".

    A script that makes up more than half of the letters determines the language. For Latin script it is the language
    with the most function words among the first `within` words, if their share is at least `evidence` (short words as
    features: Grefenstette 1995, Comparing two language identification schemes). Unreliable for a name or title alone.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(language, ("Why?", "Because the sky is blue."), ("Warum?", "Weil der Himmel blau ist."))
    ['en', 'de']
    >>> example_scores(language, ("What is 6 times 7?", "42"), ("6*7", "42"), ("为什么？", "因为天空是蓝色的。"))
    ['en', 'unknown', 'zh']
    """
    answer = _detect(frame["answer"], frame["answer_terms"], within, evidence)
    short = answer.is_null()
    prompt = prompt_language(frame.filter(short), within=within, evidence=evidence)
    return answer.scatter(short.arg_true(), prompt)


def prompt_language(frame: pl.DataFrame, *, within: Count = 40, evidence: Share = 0.05) -> pl.Series:
    """The prompt's language, detected as in `language`: `language <> prompt_language` finds answers in another one.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(prompt_language, ("Say it in English: der Hund und die Katze", "The dog and the cat"))
    ['de']
    """
    return _detect(frame["prompt"], frame["prompt_terms"], within, evidence).fill_null(UNKNOWN)


def _detect(texts: pl.Series, terms: pl.Series, within: int, evidence: float) -> pl.Series:
    """The language code of each text, null if none was detected."""
    codes = pl.DataFrame({"script": _by_script(texts, 8 * within), "words": _by_words(terms, within, evidence)})
    return codes.select(pl.coalesce("script", "words")).to_series()


def _by_script(texts: pl.Series, characters: int) -> pl.Series:
    """The language whose script makes up more than half of the letters; null for ASCII texts, which are skipped."""
    not_ascii = (
        pl.DataFrame({"row": pl.int_range(len(texts), eager=True), "text": texts})
        .filter(pl.col("text").str.len_bytes() != pl.col("text").str.len_chars())
        .with_columns(pl.col("text").str.head(characters))
    )
    counts = not_ascii.select(
        "row", letters=_count(r"\p{L}"), **{code: _count(script) for code, script in SCRIPTS.items()}
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


def _by_words(terms: pl.Series, within: int, evidence: float) -> pl.Series:
    """The language with the most function words among the first words, null if there are too few."""
    words = pl.DataFrame({"row": pl.int_range(len(terms), eager=True), "word": terms.list.head(within)})
    matches = words.explode("word").join(_FUNCTION_WORDS, on="word")
    cells = (matches["row"] * len(FUNCTION_WORDS) + matches["rank"]).to_numpy()
    weights = np.bincount(cells, matches["weight"].to_numpy(), minlength=len(terms) * len(FUNCTION_WORDS))
    by_language = weights.reshape(len(terms), len(FUNCTION_WORDS))
    most, best = by_language.max(axis=1), by_language.argmax(axis=1)  # argmax returns the first maximum
    enough = (most > 0) & (most >= evidence * words["word"].list.len().to_numpy())
    codes = pl.DataFrame({"code": pl.Series(list(FUNCTION_WORDS)).gather(best), "enough": enough})
    return codes.select(pl.when("enough").then("code")).to_series()


def _count(pattern: str) -> pl.Expr:
    return pl.col("text").str.count_matches(pattern).cast(pl.Int64)


def _word_table() -> pl.DataFrame:
    pairs = [(word, rank) for rank, words in enumerate(FUNCTION_WORDS.values()) for word in words.split()]
    table = pl.DataFrame(pairs, schema=["word", "rank"], orient="row").unique(maintain_order=True)
    return table.with_columns(weight=1.0 / pl.len().over("word"))


_FUNCTION_WORDS = _word_table()
