"""In: renderings, a tokenizer. Out: token ids, and beside each the id again where it is learned: rows, then a frame."""

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
"""The label of a token that is seen and not learned; torch's cross entropy leaves it out."""

RENDERED: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "input_ids": pl.List(pl.Int32),
    "labels": pl.List(pl.Int32),
    "problem": pl.String,  # why there are no ids, or why they must not be trained
    "stops": pl.List(pl.Int32),  # how many tokens there are up to the end of each learned answer
    "context_specials": pl.String,  # texts of special tokens that somebody typed, outside of what is learned
    "loss_specials": pl.String,  # the same inside of what is learned
    "omitted_turns": pl.List(pl.Int32),  # turns (from 1) with words of which the template renders or lets learn none
    "crossing": pl.Int32,  # tokens that lie across the start of what is learned
    "window": pl.Struct(
        dict.fromkeys(("number", "of", "first", "last", "total_tokens"), pl.Int32)
    ),  # see train.tokens.windows
}
"""Columns of a rendered frame."""

Offsets = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Where each list begins in the values of all of them, and where the last one ends."""


def encode_renderings(ids: pl.Series, renderings: Sequence[Rendering], tokenizer: Tokenizer) -> pl.DataFrame:
    """The rendered frame of conversations with these ids, in the order given: the columns of `RENDERED`."""
    spelt = [_spelt(rendering, tokenizer) for rendering in renderings]
    others = [r.text for r, known in zip(renderings, spelt, strict=True) if known is None and r.problem is None]
    encodings = iter(tokenizer.encode(others))
    tokens = (
        None if r.problem is not None else known or _encoded(r, next(encodings))
        for r, known in zip(renderings, spelt, strict=True)
    )
    return _frame(ids, [_row(r, t, tokenizer) for r, t in zip(renderings, tokens, strict=True)])


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A rendering's ids, and for each of its loss_spans the first token, the last + 1, and whether it begins before."""

    ids: list[int]
    token_spans: list[tuple[int, int, bool]]


def _spelt(rendering: Rendering, tokenizer: Tokenizer) -> _Tokens | None:
    """The tokens found word by word, where that is possible and every border lies between two words."""
    if tokenizer.words is None or rendering.problem is not None:
        return None
    found = tokenizer.words.spell(rendering.text, [b for r in rendering.loss_spans for b in (r.start, r.end)])
    if found is None:
        return None
    ids, borders = found
    return _Tokens(ids, [(start, end, False) for start, end in zip(borders[::2], borders[1::2], strict=True)])


def _encoded(rendering: Rendering, encoding: Encoding) -> _Tokens:
    return _Tokens(encoding.ids, [token_range(encoding, region.start, region.end) for region in rendering.loss_spans])


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


def _row(rendering: Rendering, tokens: _Tokens | None, tokenizer: Tokenizer) -> _Row:
    if tokens is None:
        return _Row(problem=rendering.problem)
    ids = tokens.ids
    labels, stops, crossing = [IGNORE_INDEX] * len(ids), [], 0
    for region, (start, end, across) in zip(rendering.loss_spans, tokens.token_spans, strict=True):
        labels[start:end] = ids[start:end]
        crossing += across
        if region.stop is not None:
            stops.append(end)
            if ids[end - 1] != tokenizer.id_of(region.stop):
                return _Row(problem=f"The tokenizer does not read {region.stop} behind turn {region.turn + 1} as one.")
    seen, learned = _typed_specials(rendering, tokenizer)
    labels[:1] = [IGNORE_INDEX]  # the first token of a raw text: nothing comes before it
    omitted_turns = [turn + 1 for turn in rendering.omitted_turns]
    return _Row(ids, labels, _doubled_start(ids, tokenizer), stops, seen, learned, omitted_turns, crossing)


def token_range(encoding: Encoding, start: int, end: int) -> tuple[int, int, bool]:
    """The tokens that hold characters `start` to `end`: the first, the last + 1, and whether the first begins before.

    A token that lies across the start counts as in: without it a part of the answer would never be learned.
    """
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    last = next((t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None or last is None:
        return 0, 0, False
    while last + 1 < len(encoding) and _characters(encoding, last + 1)[0] < end:
        last += 1  # one character can be several tokens
    return first, last + 1, _characters(encoding, first)[0] < start


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    """Where the characters of a token stand; `encoding.offsets` would build the whole list each time."""
    found = encoding.token_to_chars(token)
    assert found is not None, "a token of the encoding has characters, for nothing was added to the text"
    return found[0], found[1]


def _typed_specials(rendering: Rendering, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The special tokens whose text stands in what turns say: outside of what is learned, and inside.

    A chat tokenizer, and the server later, reads such text as the token itself.
    """
    learned_turns = {region.turn for region in rendering.loss_spans}
    typed: tuple[set[str], set[str]] = (set(), set())
    for piece in rendering.turn_spans:
        found = tokenizer.special_text.findall(rendering.text, piece.start, piece.end)
        typed[piece.turn in learned_turns].update(found)
    seen, learned = (" ".join(sorted(texts)) or None for texts in typed)
    return seen, learned


def _doubled_start(ids: Sequence[int], tokenizer: Tokenizer) -> str | None:
    start = tokenizer.named.get("bos_token")
    if start is None or list(ids[:2]) != [tokenizer.id_of(start)] * 2:
        return None
    return f"It begins with {start} twice."


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
    """A column of lists, laid over one flat array: twice as fast as handing the lists to Polars."""
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    flat = np.fromiter(chain.from_iterable(value or () for value in values), np.int32, int(offsets[-1]))
    missing = np.fromiter((value is None for value in values), np.bool_, len(values))
    column = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, flat, mask=pa.array(missing)))
    assert isinstance(column, pl.Series)
    return column.alias(name)


def split_at(values: pl.Series, borders: Offsets) -> pl.Series:
    """A column of lists: the same values in the same order, parted at `borders`; nothing is copied."""
    return pl.Series(pa.LargeListArray.from_arrays(borders, values.to_arrow()))
