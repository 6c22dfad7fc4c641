"""In: a prepared version and the id of a conversation. Out: what the model sees of it and what it learns.

`preview` cuts a rendering into segments that are learned or only seen; `trace_token` says for one token which
turn, which characters of it, and which line of which file it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
from tokenizers import Encoding

from schemas.errors import TrainError, VersionError
from schemas.store import reading
from schemas.text import plural
from train.plan.prepare import PreparedVersion
from train.tokens.labels import IGNORE_INDEX, token_range
from train.tokens.loss_mask import ChatRenderer, Rendering, TurnSpan
from train.tokens.windows import window_turns


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of some tokens in a row with the same lot: learned or only seen, trained or cut off."""

    text: str
    in_loss: bool
    trained: bool


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token: its place, id, text, and its label (-100: seen, not learned)."""

    token: int
    id: int
    text: str
    label: int
    trained: bool


@dataclass(frozen=True, slots=True)
class TurnView:
    """One turn and the tokens that its words became, end excluded; none where the template left it out."""

    turn: int  # from 1
    role: str
    first: int | None
    end: int | None


@dataclass(frozen=True)
class Preview:
    """One conversation as it is trained."""

    id: str
    split: str
    window: int | None  # which one of its windows (from 1), where it is split
    outcome: str
    reason: str | None
    tokens: int
    cut: int
    loss_tokens: int
    context_specials: str | None
    loss_specials: str | None
    omitted_turns: list[int]
    segments: list[Segment]
    turns: list[TurnView]
    token_views: list[TokenView]

    def as_json(self, *, tokens: bool = False) -> dict[str, Any]:
        """The preview as plain values; each token only when asked for."""
        plain = asdict(self)
        views = plain.pop("token_views")
        return {**plain, "token_views": views} if tokens else plain


@dataclass(frozen=True)
class TokenOrigin:
    """Where a token comes from. `characters` are those of the turn's value, end excluded, where it has them as is."""

    conversation: str
    token: int
    id: int
    text: str
    label: int
    part: str  # words of a turn, end of a turn, or template
    turn: int | None  # from 1
    role: str | None
    characters: tuple[int, int] | None
    origins: list[dict[str, Any]]  # path, row, line: every row of a source that is this conversation


def find_ids(prepared: PreparedVersion, prefix: str, limit: int) -> list[str]:
    """The ids of the first `limit` conversations whose id begins with `prefix`.

    Raises `VersionError` where there is none.
    """
    found = first_members(prepared.members, prefix, limit)["id"].to_list()
    if prefix and not found:
        raise VersionError(
            f"No conversation of {prepared.version.label} has an id that begins with {prefix}.",
            f"curate preview {prepared.version.label} shows some.",
        )
    return found


def first_members(members: pl.DataFrame, prefix: str, limit: int) -> pl.DataFrame:
    """The first `limit` members whose id begins with `prefix`."""
    return members.filter(pl.col("id").str.starts_with(prefix)).head(limit)


def find_windows(
    prepared: PreparedVersion, conversations: list[str], window: int | None
) -> list[tuple[str, int | None]]:
    """Each conversation with each of its windows, None where it is whole; or with `window` alone.

    Raises `TrainError` where there is no such window.
    """
    entries = prepared.ledger.filter(pl.col("conversation").is_in(conversations))
    found = entries if window is None else entries.filter(pl.col("window") == window)
    if conversations and found.is_empty():
        raise TrainError(
            f"No conversation that is shown has a window {window}.",
            "Leave --window out to see all; --set train.long=split makes windows of what is too long.",
        )
    return found.select("conversation", "window").rows()


def preview(prepared: PreparedVersion, conversation: str, window: int | None = None) -> Preview:
    """The conversation with this id as it is trained, or the window (from 1) of one that is split."""
    numbers, member, row, entry = _rows(prepared, conversation, window)
    rendering, encoding = _encoded(prepared, member, row)
    views = _views(rendering, encoding, row["labels"] or [], entry["tokens"] - entry["cut"])
    return Preview(
        id=conversation,
        split=entry["split"],
        window=entry["window"],
        outcome=entry["outcome"],
        reason=entry["reason"],
        tokens=entry["tokens"],
        cut=entry["cut"],
        loss_tokens=entry["loss_tokens"],
        context_specials=row["context_specials"],
        loss_specials=row["loss_specials"],
        omitted_turns=row["omitted_turns"] or [],
        segments=_segments(rendering, encoding, views, whole=not (prepared.template.raw and window)),
        turns=_turns(numbers, member["conversations"], rendering, encoding),
        token_views=views,
    )


def trace_token(
    prepared: PreparedVersion, store: Path, conversation: str, token: int, window: int | None = None
) -> TokenOrigin:
    """Where token number `token` (from 0) of a conversation comes from, or of a window of one that is split.

    Raises `TrainError` when it has none such.
    """
    numbers, member, row, entry = _rows(prepared, conversation, window)
    if not 0 <= token < entry["tokens"]:
        raise TrainError(
            f"{conversation} has {plural(entry['tokens'], 'token')}, there is no token {token}.",
            "The first is 0; curate preview --id … --tokens lists them.",
        )
    rendering, encoding = _encoded(prepared, member, row)
    assert encoding is not None
    start, end = encoding.token_to_chars(token) or (0, 0)
    part, turn, characters = _place(rendering, member["conversations"], start, end)
    return TokenOrigin(
        conversation=conversation,
        token=token,
        id=row["input_ids"][token],
        text=rendering.text[start:end],
        label=row["labels"][token],
        part=part,
        turn=None if turn is None else numbers[turn] + 1,
        role=None if turn is None else member["conversations"][turn]["from"],
        characters=characters,
        origins=_origins(store, conversation),
    )


_Values = dict[str, Any]


def _rows(
    prepared: PreparedVersion, conversation: str, window: int | None
) -> tuple[Sequence[int], _Values, _Values, _Values]:
    """The numbers of the turns that are shown, and the rows of them, of their rendering and of the ledger."""
    member = prepared.members.row(by_predicate=pl.col("id") == conversation, named=True)
    place = pl.col("window").struct.field("number").eq_missing(window)
    row = prepared.rendered.row(by_predicate=(pl.col("id") == conversation) & place, named=True)
    entry = prepared.ledger.row(
        by_predicate=(pl.col("conversation") == conversation) & pl.col("window").eq_missing(window), named=True
    )
    numbers, turns = window_turns(member["conversations"], row["window"])
    return numbers, {**member, "conversations": turns}, row, entry


def _encoded(
    prepared: PreparedVersion, member: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[Rendering, Encoding | None]:
    """The rendering and its tokens: of a text that is split, those of the piece that `row` is."""
    rendering = ChatRenderer(prepared.template, prepared.tokenizer, prepared.section.reasoning).render(member)
    if row["problem"] is not None:
        return replace(rendering, problem=row["problem"]), None
    (encoding,) = prepared.tokenizer.encode([rendering.text])
    if prepared.template.raw and row["window"] is not None:
        earlier = pl.col("window").struct.field("number") <= row["window"]["number"]
        pieces = prepared.rendered.filter((pl.col("id") == row["id"]) & earlier)["input_ids"]
        encoding.truncate(int(pieces.list.len().sum()))
        encoding.truncate(len(row["input_ids"]), direction="left")
    return rendering, encoding


def _views(rendering: Rendering, encoding: Encoding | None, labels: Sequence[int], trained: int) -> list[TokenView]:
    if encoding is None:
        return []
    rows = zip(encoding.ids, encoding.offsets, labels, strict=True)
    return [
        TokenView(number, token, rendering.text[start:end], label, number < trained)
        for number, (token, (start, end), label) in enumerate(rows)
    ]


def _segments(
    rendering: Rendering, encoding: Encoding | None, views: Sequence[TokenView], *, whole: bool
) -> list[Segment]:
    """Neighbouring tokens of one lot as one text; every character of the rendering is in exactly one of them.

    Not `whole`: every character of the tokens that there are.
    """
    if encoding is None:
        return [Segment(rendering.text, in_loss=False, trained=False)] if rendering.text else []
    groups = [
        (lot, next(iter(run)).token) for lot, run in groupby(views, lambda v: (v.label != IGNORE_INDEX, v.trained))
    ]
    starts = [encoding.offsets[first][0] for _, first in groups]
    ends = [*starts[1:], len(rendering.text) if whole else encoding.offsets[-1][1]]
    starts[:1] = [0 if whole else encoding.offsets[0][0]] if starts else []
    return [Segment(rendering.text[a:b], *lot) for (lot, _), a, b in zip(groups, starts, ends, strict=True)]


def _turns(
    numbers: Sequence[int], turns: Sequence[Mapping[str, Any]], rendering: Rendering, encoding: Encoding | None
) -> list[TurnView]:
    views = (_turn_view(place, turn, rendering, encoding) for place, turn in enumerate(turns))
    return [replace(view, turn=number + 1) for number, view in zip(numbers, views, strict=True)]


def _turn_view(number: int, turn: Mapping[str, Any], rendering: Rendering, encoding: Encoding | None) -> TurnView:
    pieces = [p for p in rendering.turn_spans if p.turn == number and p.end > p.start]
    if encoding is None or not pieces:
        return TurnView(number + 1, turn["from"], None, None)
    spans = [_with_spaces(rendering, turn["value"], piece) for piece in pieces]
    first, end, _ = token_range(encoding, min(spans)[0], max(end for _, end in spans))
    return TurnView(number + 1, turn["from"], first, end)


def _place(
    rendering: Rendering, turns: Sequence[Mapping[str, Any]], start: int, end: int
) -> tuple[str, int | None, tuple[int, int] | None]:
    """Which part of the rendering the characters are: the turn's words, the end of a learned turn, or the template."""
    for piece in rendering.turn_spans:
        value = turns[piece.turn]["value"]
        low, high = _with_spaces(rendering, value, piece)
        if start < high and end > low:
            as_is = rendering.text[piece.start : piece.end] == value.strip()
            shift = len(value) - len(value.lstrip()) - piece.start
            return "words", piece.turn, (max(start, low) + shift, min(end, high) + shift) if as_is else None
    for region in rendering.loss_spans:
        if start < region.end and end > region.start:
            return "end of turn" if end >= region.end and region.stop else "answer", region.turn, None
    return "template", None, None


def _with_spaces(rendering: Rendering, value: str, piece: TurnSpan) -> tuple[int, int]:
    """The piece and, where the template did not trim it, the white space around the turn's words."""
    text, core = rendering.text, value.strip()
    if text[piece.start : piece.end] != core:
        return piece.start, piece.end
    head, _, tail = value.partition(core)
    low = piece.start - len(head) if text.endswith(head, 0, piece.start) else piece.start
    high = piece.end + len(tail) if text.startswith(tail, piece.end) else piece.end
    return low, high


def _origins(store: Path, conversation: str) -> list[dict[str, Any]]:
    with reading(store) as connection:
        found: pl.DataFrame = connection.sql(
            """SELECT DISTINCT s.path, o.row, o.line FROM origins o JOIN sources s ON s.source = o.source
               WHERE o.conversation = ? ORDER BY s.path, o.row""",
            params=[conversation],
        ).pl()
    return found.to_dicts()
