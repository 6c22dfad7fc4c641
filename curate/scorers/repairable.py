"""Conversations → whether a repair of `curate import --repair` would change one of their texts.

Each scorer is named after its repair, so that a rule finds what was imported without it.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from curate.ingest.repairs import (
    decode_mojibake,
    empty_placeholders,
    remove_html,
    remove_invisible,
    remove_signatures,
)


def has_html(frame: pl.DataFrame) -> pl.Series:
    """Whether a text is written in HTML and the conversation is not about code: `--repair html`.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(has_html, ("Hi", "<p>Fish &amp; chips</p>"), ("Write HTML", "<p>Fish</p>"))
    [True, False]
    """
    return _is_changed(frame, remove_html)


def has_mojibake(frame: pl.DataFrame) -> pl.Series:
    """Whether a text was decoded with another encoding than its own: `--repair mojibake`.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(has_mojibake, ("Hi", "Ein CafÃ© am Hafen"), ("Hi", "Ein Café"))
    [True, False]
    """
    return _is_changed(frame, decode_mojibake)


def has_invisible(frame: pl.DataFrame) -> pl.Series:
    r"""Whether a text has zero-width spaces, soft hyphens or marks of text direction: `--repair invisible`.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(has_invisible, ("Hi", "Hel\u00adlo"), ("Hi", "Hello"))
    [True, False]
    """
    return _is_changed(frame, remove_invisible)


def has_nan_text(frame: pl.DataFrame) -> pl.Series:
    """Whether a whole text is a placeholder of a missing value, such as nan or N/A: `--repair nan-text`.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(has_nan_text, ("Hi", "N/A"), ("What is N/A?", "Not available"))
    [True, False]
    """
    return _is_changed(frame, empty_placeholders)


def has_signature(frame: pl.DataFrame) -> pl.Series:
    r"""Whether a question ends with an e-mail signature: `--repair trim-signature`.

    >>> from curate.scorers.features import example_scores
    >>> example_scores(has_signature, ("It leaks.\n\nKind regards,\nAda", "Oil it."), ("It leaks.", "Oil it."))
    [True, False]
    """
    return _is_changed(frame, remove_signatures)


def _is_changed(frame: pl.DataFrame, repair: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.Series:
    """Whether `repair`, which keeps the number of turns, changes a text of each conversation."""
    turns = frame.select("conversations").with_row_index("row").explode("conversations").unnest("conversations")
    said = turns.filter(pl.col("from").is_in(["system", "human", "gpt"]))
    changed = said.filter(repair(said)["value"].ne_missing(said["value"]))["row"]
    return pl.int_range(frame.height, eager=True, dtype=pl.UInt32).is_in(changed.implode())
