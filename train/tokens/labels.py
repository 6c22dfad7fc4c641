"""Renderings and a tokenizer → token ids and labels: the columns of `RENDERED`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import polars as pl
import pyarrow as pa
from tokenizers import Encoding

from train.tokens.loss_mask import Rendering
from train.tokens.tokenizer import Tokenizer

IGNORE_INDEX = -100
"""The label of a token that does not contribute to the loss; torch's cross entropy ignores it."""

RENDERED: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "input_ids": pl.List(pl.Int32),
    "labels": pl.List(pl.Int32),  # the ids, or IGNORE_INDEX
    "problem": pl.String,  # why there are no ids, or why they must not be trained on
    "stops": pl.List(pl.Int32),  # number of tokens up to the end of each trained answer
    "context_specials": pl.String,  # special tokens typed as text outside the loss spans, joined by spaces
    "loss_specials": pl.String,  # the same inside the loss spans
    "omitted_turns": pl.List(pl.Int32),  # turns (from 1) with text of which none is rendered, or none in the loss
    "crossing": pl.Int32,  # tokens that cross the start of a loss span
    "window": pl.Struct(dict.fromkeys(("number", "of", "first", "last", "total_tokens"), pl.Int32)),  # `windows.WINDOW`
}
"""Columns of a rendered frame."""

Offsets = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Where each list starts in a flat array of values, and where the last one ends."""


def encode_renderings(ids: pl.Series, renderings: Sequence[Rendering], tokenizer: Tokenizer) -> pl.DataFrame:
    """The rendered frame of conversations with these ids, in the same order: the columns of `RENDERED`."""
    encodings = iter(tokenizer.encode([r.text for r in renderings if r.problem is None]))
    rows = [
        _Row(problem=r.problem) if r.problem is not None else _row(r, next(encodings), tokenizer) for r in renderings
    ]
    return _frame(ids, rows)


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int] | None = None
    labels: list[int] | None = None
    problem: str | None = None
    stops: list[int] = field(default_factory=list)
    context_specials: str | None = None
    loss_specials: str | None = None
    omitted_turns: list[int] = field(default_factory=list)
    crossing: int = 0


def _row(rendering: Rendering, encoding: Encoding, tokenizer: Tokenizer) -> _Row:
    ids = encoding.ids
    labels, stops, crossing = [IGNORE_INDEX] * len(ids), [], 0
    for span in rendering.loss_spans:
        start, end, crosses = token_range(encoding, span.start, span.end)
        labels[start:end] = ids[start:end]
        crossing += crosses
        if span.stop is not None:
            stops.append(end)
            if ids[end - 1] != tokenizer.id_of(span.stop):
                problem = f"The tokenizer does not encode {span.stop} after turn {span.turn + 1} as one token."
                return _Row(problem=problem)
    labels[:1] = [IGNORE_INDEX]  # the first token of a raw text: there is no context to predict it from
    context, loss = _typed_specials(rendering, tokenizer)
    omitted_turns = [turn + 1 for turn in rendering.omitted_turns]
    return _Row(ids, labels, _repeated_bos(ids, tokenizer), stops, context, loss, omitted_turns, crossing)


def token_range(encoding: Encoding, start: int, end: int) -> tuple[int, int, bool]:
    """The tokens of the characters `start` to `end`: the first, the last + 1, and whether the first crosses `start`.

    A token that crosses the start is included; otherwise a part of the answer would never be trained on.
    """
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None or last is None:
        return 0, 0, False
    while last + 1 < len(encoding) and _characters(encoding, last + 1)[0] < end:
        last += 1  # one character can be several tokens
    return first, last + 1, _characters(encoding, first)[0] < start


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    """The character range of a token; `encoding.offsets` would build the list of all tokens each time."""
    characters = encoding.token_to_chars(token)
    assert characters is not None, "every token has characters, since no token was added to the text"
    return characters[0], characters[1]


def _typed_specials(rendering: Rendering, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The special tokens that occur as text in turns outside the loss, and in turns inside the loss.

    The tokenizer, and later the server, encodes such text as the special token.
    """
    loss_turns = {span.turn for span in rendering.loss_spans}
    typed: tuple[set[str], set[str]] = (set(), set())
    for span in rendering.turn_spans:
        specials = tokenizer.special_text.findall(rendering.text, span.start, span.end)
        typed[span.turn in loss_turns].update(specials)
    context, loss = (" ".join(sorted(texts)) or None for texts in typed)
    return context, loss


def _repeated_bos(ids: Sequence[int], tokenizer: Tokenizer) -> str | None:
    bos = tokenizer.named.get("bos_token")
    if bos is None or list(ids[:2]) != [tokenizer.id_of(bos)] * 2:
        return None
    return f"It begins with {bos} twice."


def _frame(ids: pl.Series, rows: Sequence[_Row]) -> pl.DataFrame:
    columns = pl.DataFrame(
        [
            ids.alias("id"),
            _lists("input_ids", [row.ids for row in rows]),
            _lists("labels", [row.labels for row in rows]),
            pl.Series("problem", [row.problem for row in rows], pl.String),
            _lists("stops", [row.stops if row.ids is not None else None for row in rows]),
            pl.Series("context_specials", [row.context_specials for row in rows], pl.String),
            pl.Series("loss_specials", [row.loss_specials for row in rows], pl.String),
            _lists("omitted_turns", [row.omitted_turns for row in rows]),
            pl.Series("crossing", [row.crossing for row in rows], pl.Int32),
            pl.Series("window", [None] * len(rows), RENDERED["window"]),
        ]
    )
    return columns.match_to_schema(RENDERED)


def _lists(name: str, values: Sequence[list[int] | None]) -> pl.Series:
    """A column of lists, built from one flat array: twice as fast as from Python lists."""
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    flat = np.fromiter(chain.from_iterable(value or () for value in values), np.int32, int(offsets[-1]))
    missing = np.fromiter((value is None for value in values), np.bool_, len(values))
    column = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array(missing)))
    assert isinstance(column, pl.Series)
    return column.alias(name)


def split_at(values: pl.Series, offsets: Offsets) -> pl.Series:
    """A column of lists: the values in the same order, split at `offsets`, without a copy."""
    return pl.Series(pa.LargeListArray.from_arrays(offsets, values.to_arrow()))
