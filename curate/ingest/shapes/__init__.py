"""The registry of shapes: the ways in which rows contain conversations.

A new shape is a module with `FIELDS` and `parse`, and one line here.
"""

from __future__ import annotations

from curate.ingest.shapes import alpaca, messages, pairs, raw_text, sharegpt, squad, transcript, turn_per_row
from curate.ingest.shapes.shape import Shape

SHAPES: dict[str, Shape] = {
    "sharegpt": Shape(sharegpt.FIELDS, sharegpt.parse),
    "messages": Shape(messages.FIELDS, messages.parse),
    "alpaca": Shape(alpaca.FIELDS, alpaca.parse),
    "pairs": Shape(pairs.FIELDS, pairs.parse),
    "transcript": Shape(transcript.FIELDS, transcript.parse),
    "long": Shape(turn_per_row.FIELDS, turn_per_row.parse, detected=False, spans_rows=True),
    "squad": Shape(
        squad.FIELDS, squad.parse, proven=True, summary="prompt: context and question; answer: the first of answers"
    ),
    "squad-articles": Shape(
        squad.ARTICLE_FIELDS,
        squad.parse_articles,
        proven=True,
        summary="prompt: context and question; answer: the first of answers",
    ),
    "text": Shape(raw_text.FIELDS, raw_text.parse, fallback=True, has_questions=False),
}
"""Name → shape, in the order in which candidates are listed."""
