"""Answers → whether they are refusals or contain stock phrases of AI assistants, by phrase lists."""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

Count = Annotated[int, Field(ge=1, le=1_000_000)]  # Polars accepts at most 64 bits

_APOSTROPHE = "['’]"
_CANNOT = rf"(?:cannot|can not|can{_APOSTROPHE}t|(?:am|{_APOSTROPHE}m) (?:unable|not able) to)"
_TASK = (
    r"(?:help (?:you|with)|assist|provide|create|generate|answer|fulfil|complete|comply|do (?:that|this)|discuss"
    r"|perform|set up|send|access|browse|search|play|draw|display|show|upload|open|process"
    r"|determine|identify|recommend)"
)

REFUSALS = (
    # English: an apology and an inability; an inability to do a task; a task that cannot be done
    rf"(?:i{_APOSTROPHE}m|i am|we are|we{_APOSTROPHE}re)?\s*(?:very |so |truly |really )?"
    rf"(?:sorry|afraid|apologi[sz]e)\b[^.!?\n]{{0,60}}\bi *(?:{_CANNOT}|won{_APOSTROPHE}t|don{_APOSTROPHE}t have)\b",
    rf"(?:unfortunately,? )?(?:as an? [^.\n]{{0,40}},? )?i *{_CANNOT} (?:directly |legally )?{_TASK}\b",
    rf"(?:the|this|that|your)(?: type of| kind of)? (?:request|task|instruction|question|prompt) {_CANNOT} be "
    r"(?:answered|fulfilled|completed|done|performed|processed|carried out)",
    r"(?:sorry,? )?(?:the|this) (?:request|task|instruction) (?:requires|involves|does not|is not|is beyond|is outside)"
    r"[^.\n]{0,80}\b(?:gpt|language model|the model|ai assistant|cannot)\b",
    r"i (?:must|have to|will have to) (?:decline|refuse)",
    # German, French, Spanish, Portuguese, Italian, Dutch, Russian, Chinese, Japanese
    r"(?:es )?tut mir leid,? (?:aber )?(?:ich|das|da|dabei) ?(?:kann|darf)?[^.\n]{0,40}nicht",
    r"(?:je suis )?désolée?,? (?:mais )?je ne (?:peux|suis)",
    r"lo siento,? (?:pero )?no (?:puedo|me es posible)",
    r"(?:sinto muito|desculpe|lamento),? (?:mas )?(?:eu )?não (?:posso|consigo)",
    r"mi dispiace,? (?:ma )?non (?:posso|sono in grado)",
    r"het spijt me,? (?:maar )?ik kan[^.\n]{0,40}niet",
    r"(?:к сожалению|извините|простите),? (?:но )?я не (?:могу|в состоянии)",
    r"(?:很?抱歉|对不起)[，,]?(?:但是?)?我(?:不能|无法|不可以)",
    r"申し訳(?:ありません|ございません)が",
)
"""Regular expressions for the beginning of a refusal, in lower case."""

BOILERPLATE = (
    "as an ai ",
    "as an ai,",
    "as an artificial intelligence",
    "as a language model",
    "as a large language model",
    "i'm an ai ",
    "i am an ai ",
    "i'm just an ai",
    "i do not have personal opinions",
    "i don't have personal opinions",
    "i don't have personal experiences",
    "i do not have personal experiences",
    "i do not have feelings",
    "i don't have feelings",
    "my knowledge cutoff",
    "my training data",
    "my last update",
    "as a gpt",
    "als ki-modell",
    "als ki-sprachmodell",
    "als künstliche intelligenz",
    "en tant que modèle de langage",
    "en tant qu'ia",
    "en tant qu'intelligence artificielle",
    "como modelo de lenguaje",
    "como una inteligencia artificial",
    "como modelo de linguagem",
    "como um modelo de linguagem",
    "come modello linguistico",
    "come modello di linguaggio",
    "in quanto intelligenza artificiale",
    "als ai-taalmodel",
    "как языковая модель",
    "как искусственный интеллект",
    "作为一个人工智能",
    "作为人工智能",
    "作为一个ai",
    "作为ai",
    "作为一个语言模型",
    "言語モデルとして",
    "aiとして",
)
"""Stock phrases of AI assistants, in lower case."""


def refusal(*, within: Count = 300) -> pl.Expr:
    """Whether an answer begins with a refusal of the task, in ten languages, within its first `within` characters.

    Based on the phrase lists that Vicuna and WizardLM used to clean ShareGPT. Here a phrase must be at the beginning
    and state an inability, because "sorry" alone is an everyday word.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(refusal, ("Do it", "I'm sorry, but I can't help with that."), ("Write", "Sorry for being late!"))
    [True, False]
    >>> example_scores(refusal, ("Los", "Es tut mir leid, aber ich kann das nicht."), ("做", "抱歉，我无法做到。"))
    [True, True]
    """
    opening = pl.element().str.slice(0, within).str.to_lowercase()
    pattern = rf"^\W*(?:{'|'.join(REFUSALS)})"
    return pl.col("answers").list.eval(opening.str.contains(pattern)).list.any()


def boilerplate() -> pl.Expr:
    """Whether an answer contains a stock phrase of AI assistants ("as an AI language model"), in ten languages.

    Based on the phrase lists that Vicuna and WizardLM used to clean ShareGPT.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(boilerplate, ("Feel?", "As an AI language model, I feel nothing."), ("Feel?", "Fine."))
    [True, False]
    """
    return pl.col("answer_lower").str.contains_any(list(BOILERPLATE))
