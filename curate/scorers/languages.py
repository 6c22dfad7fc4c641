"""Which language a text is in, guessed from its script and its function words: no model, no download."""

from __future__ import annotations

import polars as pl

FUNCTION_WORDS = {
    "en": "i the of and to in is that it for was with as be on are this you your by from or have not can an which has",
    "de": "der die das und ist nicht ein eine zu den von mit sich des auf für im dem als auch es wie werden oder sind",
    "fr": "le la les et est des une dans que pour qui sur pas au ce avec il sont vous plus par cette du en nous ou",
    "es": "el la los las y es que en una por con para del se no su como al más este son o lo pero sus un",
    "pt": "o a os as e é que em uma para com não do da dos das se por como mais ao um são na no foi ou",
    "it": "il lo la gli le e è che di un una per con non del della si sono in nel dei più come alla ha",
    "nl": "de het een en van is dat niet te zijn op met voor er aan ook als bij of naar door deze worden om kan",
    "sv": "och att det som en på är av för med den till inte har de ett om var jag men kan från eller vid sin",
    "pl": "i w na z się nie do to jest że o jak za od po co są ale przez dla jego oraz lub być może czy",
    "tr": "ve bir bu için ile da de çok olarak daha gibi olan ne en var kadar sonra mi ama ya değil her veya",
    "id": "yang dan di dengan untuk ini itu dari dalam tidak pada adalah akan ke juga oleh atau sebagai bisa kami",
    "vi": "và là của có một các không trong cho được những với này khi đã đến người từ như để cũng",
}
"""Frequent words that carry grammar, lower-case; a word of several languages counts a share for each.
Between equals the earlier language is taken: "a" alone is English before it is Portuguese."""

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
"""Scripts that name a language well enough: the most common one that is written with it."""

UNKNOWN = "unknown"


def language(frame: pl.DataFrame, *, within: int = 60, evidence: float = 0.05) -> pl.Series:
    """The answer's language as an ISO 639-1 code; where it is too short to tell, the prompt's; else "unknown".

    A script that fills half of the letters names its language. Latin script is judged by function words among
    the first `within` words: the language with most of them, if they make a share of at least `evidence`.

    >>> from curate.scorers.material import scored
    >>> scored(language, ("Why?", "Because the sky is blue."), ("Warum?", "Weil der Himmel blau ist."))
    ['en', 'de']
    >>> scored(language, ("What is 6 times 7?", "42"), ("6*7", "42"), ("为什么？", "因为天空是蓝色的。"))
    ['en', 'unknown', 'zh']
    """
    answer = _guess(frame["answer"], frame["answer_terms"], within, evidence)
    return answer.fill_null(prompt_language(frame, within=within, evidence=evidence))


def prompt_language(frame: pl.DataFrame, *, within: int = 60, evidence: float = 0.05) -> pl.Series:
    """The prompt's language, guessed as `language` does: `language <> prompt_language` finds an answer in another one.

    >>> from curate.scorers.material import scored
    >>> scored(prompt_language, ("Say it in English: der Hund und die Katze", "The dog and the cat"))
    ['de']
    """
    return _guess(frame["prompt"], frame["prompt_terms"], within, evidence).fill_null(UNKNOWN)


def _guess(texts: pl.Series, terms: pl.Series, within: int, evidence: float) -> pl.Series:
    """An ISO code per text, null where nothing speaks for one."""
    found = pl.DataFrame(
        {"script": _by_script(texts.str.head(8 * within)), "words": _by_words(terms.list.head(within), evidence)}
    )
    return found.select(pl.coalesce("script", "words")).to_series()


def _by_script(texts: pl.Series) -> pl.Series:
    """The language whose script fills half of the letters; only texts that are not plain ASCII are looked at."""
    other = pl.DataFrame({"row": pl.int_range(len(texts), eager=True), "text": texts}).filter(
        pl.col("text").str.len_bytes() != pl.col("text").str.len_chars()
    )
    counts = other.select("row", letters=_count(r"\p{L}"), **{code: _count(script) for code, script in SCRIPTS.items()})
    kana = pl.when(pl.col("ja") * 10 > pl.col("zh")).then(pl.col("ja") + pl.col("zh")).otherwise(0)
    most = (
        counts.with_columns(ja=kana)
        .unpivot(index=["row", "letters"], variable_name="code", value_name="count")
        .filter(pl.col("count") * 2 > pl.col("letters"))
        .sort("count", descending=True, maintain_order=True)
        .unique("row", keep="first", maintain_order=True)
    )
    return _spread(most, len(texts))


def _by_words(terms: pl.Series, evidence: float) -> pl.Series:
    words = pl.DataFrame({"row": pl.int_range(len(terms), eager=True), "word": terms, "of": terms.list.len()})
    most = (
        words.explode("word")
        .with_columns(pl.col("word").str.strip_chars(".,;:!?\"'()“”„«»"))
        .join(_FUNCTION_WORDS, on="word")
        .group_by("row", "of", "code", "rank")
        .agg(pl.col("weight").sum())
        .filter(pl.col("weight") >= evidence * pl.col("of"))
        .sort(["weight", "rank"], descending=[True, False])
        .unique("row", keep="first", maintain_order=True)
    )
    return _spread(most, len(terms))


def _count(pattern: str) -> pl.Expr:
    return pl.col("text").str.count_matches(pattern).cast(pl.Int64)


def _spread(found: pl.DataFrame, height: int) -> pl.Series:
    rows = pl.DataFrame({"row": pl.int_range(height, eager=True)})
    return rows.join(found.select("row", "code"), on="row", how="left", maintain_order="left")["code"]


def _word_table() -> pl.DataFrame:
    languages = enumerate(FUNCTION_WORDS.items())
    pairs = [(word, code, rank) for rank, (code, words) in languages for word in words.split()]
    table = pl.DataFrame(pairs, schema=["word", "code", "rank"], orient="row").unique(maintain_order=True)
    return table.with_columns(weight=1.0 / pl.len().over("word"))


_FUNCTION_WORDS = _word_table()
