"""Turns → the turns with suspicious texts: placeholders, invisible characters, mojibake, markup, markers, by code.

Few turns are inspected closely: short ones for placeholders, those with characters outside ASCII for mojibake, those
with one of `MARKS` for control tokens and markup.
"""

from __future__ import annotations

import re
from functools import lru_cache

import polars as pl

from curate.ingest.media import MEDIA_MARKS
from schemas.control_tokens import CONTROL_TOKENS

MISSING = r"(?i)^\s*[<(\[]?(?:nan|nat|na|n/a|#n/a|none|null|nil|undefined|#value!|#ref!|#name\?|#null!)[>)\]]?\s*$"
"""A whole text that means a missing value, as pandas, spreadsheets, databases and JavaScript print it."""

BLANK = r"^[\s\p{Cf}\x{034F}\x{115F}\x{1160}\x{2800}\x{3164}\x{FFA0}]*$"
"""A text of white space, format characters (zero-width, direction marks) and fillers: nothing of it is visible."""

INVISIBLE = tuple("\u00ad\u180e\u200b\u2060\u2061\u2062\u2063\u2064\u202a\u202b\u202c\u202d\u202e\ufeff")
"""Invisible characters. Not among them: joiners and marks that emoji, Persian, Arabic and Hebrew need."""

NO_LETTERS = r"^[^\p{L}\p{N}]*$"

MARKER = r"(?:###+|</s>|<\|?(?:endoftext|end_of_text|eot_id|im_end)\|?>|\[(?:END|EOS|STOP)\]|<(?:END|EOS|STOP)>)"
"""A marker that ends a turn in a prompt format."""

WORD_MARKER = r"\s(?:END|STOP)"
"""A marker that is also the end of programs; it counts if it ends most answers."""

MARKUP = (
    *("</p>", "</div>", "</span>", "</li>", "</ul>", "</ol>", "</a>", "</b>", "</i>", "</em>", "</strong>", "</pre>"),
    *("</h1>", "</h2>", "</h3>", "</blockquote>", "</td>", "<br>", "<br/>", "<br />", "&nbsp;", "&amp;", "&quot;"),
    *("&lt;", "&gt;", "&#39;", "&#34;", "&#x27;", "&rsquo;", "&apos;"),
)
"""Tags and entities of text in HTML."""

_CODE = (
    r"(?i)```|<!doctype|<html|<head|<body|<script|<style|<form|<input|<svg|<audio|<video|className="
    r"|(?:^|[^<\w/])(?:html|css|xml|jsx|svg|react|javascript|code|snippet|tags?|markup|web ?(?:site|page|app)s?)\b"
)
"""Signs that markup is the topic or an example of code, not the format of the text."""

MARKS = r"[<&\[\x00]"
"""Characters with which tags, entities, control tokens and placeholders begin, and NUL. Searching for them takes a
tenth of the time of all searches that they make unnecessary."""

UNREADABLE = ("\ufffd", "\x00")

MARKER_ENDS = "#>]DP" + "".join(filter(str.isspace, map(chr, range(0x3001))))
"""Last characters of texts that end with a marker, and white space. Few texts end so, and removing them takes a third
of the time of a regular expression."""

_SHORT = 40
"""Bytes of a text that may be a placeholder or have no letters."""

_LEAD_AND_TRAIL = (
    r"[\x{C2}-\x{F4}][\x{80}-\x{BF}\x{152}\x{153}\x{160}\x{161}\x{178}\x{17D}\x{17E}\x{192}\x{2C6}\x{2DC}\x{2010}-\x{2122}]"
    r"|[\x{C2}\x{C3}] |[\x{420}\x{421}][\x{A0}-\x{BF}\x{402}-\x{40F}\x{452}-\x{45F}\x{2010}-\x{2122}]|\x{432}\x{402}"
    r"|[\x{221A}\x{2248}\x{201A}][\x{A0}-\x{FF}\x{2010}-\x{25CA}]"
)
"""The first bytes of a UTF-8 character, decoded as Latin-1, Windows-1252, Windows-1251 or Mac Roman."""


def find_blank(context: pl.DataFrame) -> pl.Series:
    """The `index` of the turns of which nothing is visible, although they are not empty."""
    wide = context.filter(pl.col("wide") & ~pl.col("empty"))
    return wide.filter(pl.col("value").str.contains(BLANK))["index"]


def check_texts(context: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The turns of users, assistants and system prompts with suspicious texts, and all with control tokens, by code."""
    value, said = pl.col("value"), pl.col("role").is_in(["system", "human", "gpt"]) & ~pl.col("empty")
    marked = context.filter("marked")
    short, wide = context.filter(said & (pl.col("bytes") <= _SHORT)), context.filter(said & pl.col("wide"))
    tagged = marked.filter(said).filter(value.str.contains_any([*MARKUP, *MEDIA_MARKS]))
    odd = context.filter(pl.col("marked") | pl.col("wide"))
    found = {
        "control-token-text": marked.filter(value.str.contains_any(list(CONTROL_TOKENS))),
        "unreadable-character": odd.filter(value.str.contains_any(list(UNREADABLE))),
        "stop-marker": _end_with_marker(context, said),
    }
    if short.height:
        found["placeholder-text"] = short.filter(value.str.contains(MISSING))
        found["no-letters"] = short.filter(value.str.contains(NO_LETTERS) & (value.str.strip_chars() != "?"))
    if wide.height:
        found["invisible-text"] = wide.filter(value.str.contains_any(list(INVISIBLE)))
        found["mojibake"] = wide.filter(is_mojibake(wide["value"]))
    if tagged.height:
        found["html-markup"] = tagged.filter(is_markup(tagged, context))
        is_media = (pl.col("role") == "human") & value.str.contains_any(list(MEDIA_MARKS))
        found["media-placeholder"] = tagged.filter(is_media)
    return {code: turns for code, turns in found.items() if turns.height}


@lru_cache(maxsize=1)
def _mojibake_pattern() -> str:
    """Ftfy's pattern of character sequences that are nearly always mojibake, without its comments and layout."""
    from ftfy.badness import BADNESS_RE  # 0.1 s, and only needed for texts outside ASCII

    return re.sub(r"(\[[^\]]*\])|#.*|\s+", r"\1", BADNESS_RE.pattern)


def is_mojibake(texts: pl.Series) -> pl.Series:
    """Whether each text contains UTF-8 that was decoded with another encoding, such as `Ã©` for `é`."""
    likely = texts.str.contains(_LEAD_AND_TRAIL).fill_null(False)
    return likely & texts.str.contains(_mojibake_pattern()) if likely.any() else likely


def ends_with_marker(turns: pl.DataFrame) -> pl.Series:
    """Whether each turn ends with a marker of a prompt format; `END` counts if most answers end with it."""
    found = _end_with_marker(turns.with_row_index("at"), pl.lit(True))["at"]
    return pl.int_range(turns.height, eager=True, dtype=pl.UInt32).is_in(found.implode())


def _end_with_marker(turns: pl.DataFrame, said: pl.Expr) -> pl.DataFrame:
    """The turns among those that are `said` that end with a marker."""
    value, is_answer = pl.col("value"), pl.col("from") == "gpt"
    likely = turns.filter(said & (value.str.strip_chars_end(MARKER_ENDS).str.len_bytes() != value.str.len_bytes()))
    likely = likely.filter(value.str.contains(r"(?:##|[>\]DP])\s*$"))
    if likely.is_empty():
        return likely
    marked, by_word = value.str.contains(rf"{MARKER}\s*$"), value.str.contains(rf"{WORD_MARKER}\s*$") & is_answer
    answers, words = turns.select((said & is_answer).sum()).item(), likely.select(by_word.sum()).item()
    return likely.filter(marked | by_word if words * 2 > answers else marked)


def has_markup() -> pl.Expr:
    """Whether a text has tags or entities of HTML."""
    return pl.col("value").str.contains_any(list(MARKUP))


def is_markup(tagged: pl.DataFrame, turns: pl.DataFrame) -> pl.Series:
    """Whether each of `tagged`, which have tags or entities, is text in HTML: nothing in its row is about markup."""
    about = turns.filter(pl.col("row").is_in(tagged["row"].unique().implode()))
    about = about.filter(pl.col("value").str.contains(_CODE))
    return tagged["value"].str.contains_any(list(MARKUP)) & ~tagged["row"].is_in(about["row"].implode())
