"""Texts → the same texts without markup and in one Unicode form, so that neither hides a near-duplicate."""

from __future__ import annotations

import html

import polars as pl

ENTITY = r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});"

BLOCK_TAGS = "blockquote|br|center|dd|div|dl|dt|h[1-6]|hr|img|li|ol|p|pre|table|tbody|td|tfoot|th|thead|tr|ul"
INLINE_TAGS = "a|abbr|b|big|code|del|em|font|i|ins|kbd|mark|q|s|small|span|strike|strong|sub|sup|tt|u"
ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))*\s*/?"""
"""Attributes need a value, so `<b and c>` in a formula is not a tag. Other names, as in `List<String>`, are text."""

BLOCK_TAG, INLINE_TAG = (rf"(?i)</?(?:{names}){ATTRIBUTES}>" for names in (BLOCK_TAGS, INLINE_TAGS))
"""A block tag separates words, an inline tag does not."""

LINK = r"!?\[([^\[\]]*)\]\([^()\s]+\)"
EMPHASIS = r"\b_+|_+\b"
"""Underscores around words, but not within a name such as `snake_case`. Other marks of Markdown are not in words."""

INVISIBLE = r"[\x{AD}\x{61C}\x{180E}\x{200B}-\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}\x{FE00}-\x{FE0F}\x{FEFF}]"
"""Soft hyphens, zero-width characters, directions and variation selectors."""

ACCENT = r"[\x{300}-\x{36F}]"
"""Diacritics of Latin, Greek and Cyrillic; vowel signs of other scripts are letters here."""

MARKS = r"[\x00-/:-@\[-`{-\x7F\p{P}\p{Z}\p{C}]+"
"""White space, punctuation and ASCII symbols; other symbols, such as emoji, may be all that a question is about."""


def strip_markup(texts: pl.Series) -> pl.Series:
    """The texts in the form NFKC, without HTML tags and entities, Markdown links and emphasis, invisible characters.

    >>> strip_markup(pl.Series(["<p>Is <b>5&nbsp;&lt;&nbsp;6</b>?</p>", "_Is_ [5 < 6](https://example.org)?"])).to_list()
    [' Is 5 < 6? ', 'Is 5 < 6?']
    """
    text = pl.col("text")
    unescaped = _where(texts.to_frame("text"), ENTITY, text.map_batches(_unescape, pl.String))
    return (
        unescaped.with_columns(text.str.replace_all(BLOCK_TAG, " ").str.replace_all(INLINE_TAG, ""))
        .pipe(_where, r"\]\(", text.str.replace_all(LINK, "$1"))
        .pipe(_where, "_", text.str.replace_all(EMPHASIS, ""))
        .pipe(_where, r"[^\x00-\x7F]", text.str.normalize("NFKC").str.replace_all(INVISIBLE, ""))
    )["text"]


def letters_only(texts: pl.Series) -> pl.Series:
    """The texts without case, accents, punctuation and white space: what two spellings of a question share.

    `ß` and `ss` become `s`: two letters would make a typo in `ß` a difference of two.

    >>> letters_only(pl.Series(["Où est l'Hôtel ?", "OU EST L HOTEL", "Straße", "STRASSE", "?!"])).to_list()
    ['ouestlhotel', 'ouestlhotel', 'strase', 'strase', '']
    """
    text = pl.col("text")
    folded = text.str.normalize("NFKD").str.replace_all(ACCENT, "").str.replace_all("[ßẞ]", "s").str.to_uppercase()
    frame = _where(texts.to_frame("text"), r"[^\x00-\x7F]", folded)
    letters = frame.select(text.str.to_lowercase().str.replace_all(MARKS, ""))
    return _where(letters, "ss", text.str.replace_all("s{2,}", "s"))["text"]


def _where(frame: pl.DataFrame, pattern: str, changed: pl.Expr) -> pl.DataFrame:
    """The frame with `changed` applied to the texts in which `pattern` occurs."""
    found = frame["text"].str.contains(pattern)
    if not found.any():
        return frame
    parts = frame.with_row_index().with_columns(found=found)
    return pl.concat([parts.filter(~pl.col("found")), parts.filter("found").with_columns(text=changed)]).sort(
        "index"
    ).select("text")  # fmt: skip


def _unescape(texts: pl.Series) -> pl.Series:
    return pl.Series([html.unescape(text) for text in texts])  # only texts with entities; Polars has no such function
