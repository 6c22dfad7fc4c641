"""Turns → repaired turns, and the repairs applied to each conversation.

Only the repairs that the user names are applied, in the given order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl

from curate.ingest.html_text import html_to_text
from curate.ingest.text_checks import (
    INVISIBLE,
    MARKER,
    MISSING,
    WORD_MARKER,
    ends_with_marker,
    has_markup,
    is_markup,
    is_mojibake,
)
from schemas.conversation import ASSISTANT_ROLES


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair: its description in one sentence, and the function from turns to repaired turns."""

    description: str
    apply: Callable[[pl.DataFrame], pl.DataFrame]


STORED_REPAIRS = "mend"
"""Key of the repairs in `sources.mapping`, and in the value whose digest is the id of an import."""


def repair(
    turns: pl.DataFrame, names: Sequence[str], substitutions: Mapping[str, tuple[str, str]] | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The turns after the substitutions and repairs, and `row`, `repairs` of the conversations that changed.

    A conversation that a repair would empty is not changed, and is left to validation.
    """
    steps: list[tuple[str, Callable[[pl.DataFrame], pl.DataFrame]]] = [
        *((f"substitute.{name}", partial(substitute, pattern=how)) for name, how in (substitutions or {}).items()),
        *((name, REPAIRS[name].apply) for name in names),
    ]
    touched = pl.DataFrame(schema={"row": pl.Int64, "repair": pl.String})
    for name, apply in steps:
        repaired = _restore_emptied(turns, apply(turns))
        changed = _changed_rows(turns, repaired)
        touched = pl.concat([touched, changed.select("row", pl.lit(name).alias("repair"))])
        turns = repaired
    return turns, touched.group_by("row", maintain_order=True).agg(pl.col("repair").alias("repairs")).sort("row")


def substitute(turns: pl.DataFrame, pattern: tuple[str, str]) -> pl.DataFrame:
    r"""Replace a regular expression of the recipe in every turn, in time proportional to the text.

    >>> talk = pl.DataFrame({"row": [0], "from": ["human"], "value": ["It leaks. [#42]"]})
    >>> substitute(talk, (r" \[#(\d+)\]", ""))["value"].to_list()
    ['It leaks.']
    """
    return turns.with_columns(pl.col("value").str.replace_all(*pattern))


def strip(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Remove white space around every turn; of a text whose lines are indented, the first keeps its indentation.

    A single space is not indentation: models that complete a text start their answers with one.

    >>> code = "\n    a = 1\n    b = 2\n"
    >>> strip(pl.DataFrame({"row": [0], "from": ["gpt"], "value": [code]}))["value"].to_list()
    ['    a = 1\n    b = 2']
    >>> strip(pl.DataFrame({"row": [0], "from": ["human"], "value": [" Hi "]}))["value"].to_list()
    ['Hi']
    """
    value = pl.col("value").str.strip_chars_end()
    without_blank_lines = value.str.replace(r"\A\s*\n", "")
    is_indented = value.str.contains(_INDENTED_LINES)
    return turns.with_columns(pl.when(is_indented).then(without_blank_lines).otherwise(value.str.strip_chars_start()))


_INDENTED_LINES = r"\A(?:\s*\n)?(?: {2,}|\t)[ \t]*\S[^\n]*\n(?:[^\n]*\n)*[ \t]+\S"
"""A first line with two spaces or a tab before its text, and another indented line after it."""


def drop_trailing_user(turns: pl.DataFrame) -> pl.DataFrame:
    """Remove the turns after the last assistant turn.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["human", "gpt", "human"], "value": ["Hi", "Hello", "Bye"]})
    >>> drop_trailing_user(talk)["value"].to_list()
    ['Hi', 'Hello']
    """
    return turns.filter(pl.col("from").is_in(list(ASSISTANT_ROLES)).cum_max(reverse=True).over("row"))


def drop_leading_assistant(turns: pl.DataFrame) -> pl.DataFrame:
    """Remove the turns before the first user turn, except a system prompt.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["gpt", "human", "gpt"], "value": ["Welcome", "Hi", "Hello"]})
    >>> drop_leading_assistant(talk)["value"].to_list()
    ['Hi', 'Hello']
    """
    after_user = (pl.col("from") == "human").cum_max().over("row")
    return turns.filter(after_user | (pl.col("from") == "system"))


def merge_consecutive(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Merge consecutive turns of the same role with a blank line between; tool calls and results are not merged.

    Turns with different training flags are not merged either: the flag applies to a turn as a unit.

    >>> talk = pl.DataFrame({"row": [0, 0, 0], "from": ["human", "human", "gpt"], "value": ["Hi", "You?", "Hello"]})
    >>> merge_consecutive(talk)["value"].to_list()
    ['Hi\n\nYou?', 'Hello']
    """
    same = [pl.col(name) == pl.col(name).shift(1) for name in ("row", "from", "train") if name in turns.columns]
    joins = pl.all_horizontal(*same, pl.col("from").is_in(["system", "human", "gpt"])).fill_null(False)
    if not turns.select(joins.any()).item():
        return turns
    others = [name for name in turns.columns if name != "value"]
    groups = turns.with_columns(joins.not_().cum_sum().alias("_turn")).group_by("_turn", maintain_order=True)
    merged = groups.agg(pl.col(others).first(), pl.col("value").str.join("\n\n"))
    return merged.select(turns.columns)


def remove_html(turns: pl.DataFrame) -> pl.DataFrame:
    """Write HTML texts as plain text; conversations about code are not changed.

    >>> talk = pl.DataFrame({"row": [0], "from": ["human"], "value": ["<p>Fish &amp; chips?</p>"]})
    >>> remove_html(talk)["value"].to_list()
    ['Fish & chips?']
    """
    tagged = turns.with_row_index("at").filter(has_markup())
    return _replace_texts(turns, tagged.filter(is_markup(tagged, turns)), html_to_text)


def decode_mojibake(turns: pl.DataFrame) -> pl.DataFrame:
    """Decode texts again that were decoded with another encoding than their own, as far as ftfy is certain.

    >>> talk = pl.DataFrame({"row": [0], "from": ["human"], "value": ["Ein CafÃ© am Hafen?"]})
    >>> decode_mojibake(talk)["value"].to_list()
    ['Ein Café am Hafen?']
    """
    broken = turns.with_row_index("at").filter(is_mojibake(turns["value"]))
    if broken.is_empty():
        return turns
    from ftfy import fix_encoding  # 0.1 s

    return _replace_texts(turns, broken, fix_encoding)


def _replace_texts(turns: pl.DataFrame, some: pl.DataFrame, change: Callable[[str], str]) -> pl.DataFrame:
    """The turns with the changed texts of `some`, which have the position `at`."""
    texts = [change(text) for text in some["value"]]  # a Python loop: only over texts with the defect
    return turns.with_columns(turns["value"].clone().scatter(some["at"], pl.Series(texts, dtype=pl.String)))


def remove_invisible(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Remove zero-width spaces, soft hyphens and marks of text direction; joiners of emoji and scripts stay.

    >>> remove_invisible(pl.DataFrame({"row": [0], "from": ["human"], "value": ["How\u200b far?"]}))["value"].to_list()
    ['How far?']
    """
    return turns.with_columns(pl.col("value").str.replace_many(list(INVISIBLE), [""]))


def empty_placeholders(turns: pl.DataFrame) -> pl.DataFrame:
    """Empty texts that are only a placeholder of a missing value, so that validation rejects them.

    >>> empty_placeholders(pl.DataFrame({"row": [0], "from": ["gpt"], "value": ["nan"]}))["value"].to_list()
    ['']
    """
    value = pl.col("value")
    return turns.with_columns(pl.when(~value.str.contains(MISSING)).then(value).otherwise(pl.lit("")))


def remove_stop_markers(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Remove markers of prompt formats, such as ### or END, at the end of turns.

    >>> remove_stop_markers(pl.DataFrame({"row": [0], "from": ["gpt"], "value": ["Pull it. END"]}))["value"].to_list()
    ['Pull it.']
    """
    marked = ends_with_marker(turns)
    cut = pl.col("value").str.replace(rf"(?:\s*{MARKER}|{WORD_MARKER})+\s*$", "")
    return turns.with_columns(pl.when(marked).then(cut).otherwise("value"))


def remove_signatures(turns: pl.DataFrame) -> pl.DataFrame:
    r"""Remove e-mail signatures and lines such as "Sent from my iPhone" at the end of questions.

    >>> letter = "It leaks.\n\nKind regards,\nAda\n\nSent from my iPhone"
    >>> talk = pl.DataFrame({"row": [0], "from": ["human"], "value": [letter]})
    >>> remove_signatures(talk)["value"].to_list()
    ['It leaks.']
    """
    cut = pl.col("value")
    for pattern in (_SENT_FROM, _SIGNATURE, _CLOSING):
        cut = cut.str.replace(pattern, "")
    is_kept = (pl.col("from") != "human") | (cut.str.strip_chars() == "")
    return turns.with_columns(pl.when(is_kept).then("value").otherwise(cut))


_SENT_FROM = (
    r"(?i)\s*\n\s*(?:sent from (?:my|mail for|yahoo|outlook|samsung|proton)|get outlook for"
    r"|von meinem [^\n]{0,30}gesendet|gesendet (?:von|mit)|envoyé (?:de|depuis) mon|enviado desde mi|inviato da)"
    r"[^\n]{0,60}\s*$"
)
_SIGNATURE = r"(?s)\s*\n-- ?\n.*$"
"""The delimiter of RFC 3676, section 4.3, and all that follows."""

_CLOSING = (
    r"\s*\n\s*(?i:(?:best |kind |warm )?regards|best wishes|cheers|(?:many |with )?thanks(?: in advance)?"
    r"|thank you|sincerely|yours (?:sincerely|faithfully|truly)|mit freundlichen grüßen|viele grüße|beste grüße|mfg"
    r"|cordialement|saludos|atentamente|cordiali saluti)[,.!]?"
    r"(?:\s*\n\s*(?:(?:\p{Lu}[\p{L}'’-]*\.? *){1,4}|[+(]?\d[\d ()/.-]{4,}|\S+@\S+|(?:https?://|www\.)\S+)){1,5}\s*$"
)
"""The closing of a letter, and one to five lines with names, a telephone number or an address; no sentences."""


REPAIRS: dict[str, Repair] = {
    "strip": Repair("Remove white space around every turn, except the indentation of code.", strip),
    "trailing-user": Repair("Remove the turns after the last assistant turn.", drop_trailing_user),
    "leading-assistant": Repair("Remove assistant turns before the first user turn.", drop_leading_assistant),
    "html": Repair("Write HTML as plain text, except in conversations about code.", remove_html),
    "mojibake": Repair("Decode texts again that were decoded with another encoding.", decode_mojibake),
    "invisible": Repair("Remove invisible characters, except joiners.", remove_invisible),
    "nan-text": Repair("Empty placeholders such as nan or N/A, which rejects them.", empty_placeholders),
    "stop-marker": Repair("Remove markers such as ### or END at the end of turns.", remove_stop_markers),
    "trim-signature": Repair("Remove e-mail signatures at the end of questions.", remove_signatures),
    "merge-consecutive": Repair("Merge consecutive turns of the same role, with a blank line.", merge_consecutive),
}
"""Name for `--repair` → repair."""


def _restore_emptied(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The repaired turns, and the original turns of conversations that have none left."""
    if before.height == after.height:
        return after
    emptied = before.join(after.select("row").unique(), on="row", how="anti", maintain_order="left")
    return after if emptied.is_empty() else pl.concat([after, emptied]).sort("row", maintain_order=True)


def _changed_rows(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """The rows whose turns differ."""
    if before.height == after.height:
        differs = (before["value"].ne_missing(after["value"])) | (before["from"].ne_missing(after["from"]))
        return before.filter(differs).select("row").unique(maintain_order=True)
    texts = [
        turns.group_by("row", maintain_order=True).agg(pl.col("value"), pl.col("from")) for turns in (before, after)
    ]
    both = texts[0].join(texts[1], on="row", suffix="_after", maintain_order="left")
    is_changed = (pl.col("value") != pl.col("value_after")) | (pl.col("from") != pl.col("from_after"))
    return both.filter(is_changed).select("row")
