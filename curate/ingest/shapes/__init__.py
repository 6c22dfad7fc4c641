"""The shapes that rows come in. A new one is a file with `FIELDS` and `read`, and a line here."""

from __future__ import annotations

from curate.ingest.shapes import alpaca, messages, pairs, raw_text, sharegpt, transcript, turn_per_row
from curate.ingest.shapes.shape import Shape

SHAPES: dict[str, Shape] = {
    "sharegpt": Shape("a list of turns with from and value", sharegpt.FIELDS, sharegpt.read),
    "messages": Shape("a list of messages with role and content", messages.FIELDS, messages.read),
    "alpaca": Shape("instruction, input and output", alpaca.FIELDS, alpaca.read),
    "pairs": Shape("a question and its answer", pairs.FIELDS, pairs.read),
    "transcript": Shape("one text, Human: … Assistant: …", transcript.FIELDS, transcript.read),
    "long": Shape("one turn a row, put together by a column", turn_per_row.FIELDS, turn_per_row.read, detected=False),
    "text": Shape("raw text, to go on pretraining with", raw_text.FIELDS, raw_text.read, last=True, asked=False),
}
"""Name -> shape, in the order in which readings are listed."""
