"""A prepared version and the id of a conversation → its tokens and loss mask as they are trained.

`preview` divides a rendering into segments inside and outside the loss; `trace_token` finds the turn, its characters,
and the line of a source file that a token comes from.
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
from train.plan.prepare import PreparedConversations, PreparedVersion
from train.tokens.labels import IGNORE_INDEX, token_range
from train.tokens.loss_mask import ChatRenderer, Rendering, TurnSpan
from train.tokens.windows import window_turns


@dataclass(frozen=True, slots=True)
class Segment:
    """The text of consecutive tokens that are all inside or outside the loss, and all trained on or cut."""

    text: str
    in_loss: bool
    trained: bool


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token: its number, id, text and label (-100: not in the loss)."""

    token: int
    id: int
    text: str
    label: int
    trained: bool


@dataclass(frozen=True, slots=True)
class TurnView:
    """One turn and the range of its tokens, end excluded; None if the template omits it."""

    turn: int  # from 1
    role: str
    first: int | None
    end: int | None


@dataclass(frozen=True)
class Preview:
    """One conversation or window as it is trained."""

    id: str
    split: str
    window: int | None  # number of the window (from 1), None if the conversation is not split
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
        """The preview as plain values, including single tokens if `tokens`."""
        plain = asdict(self)
        views = plain.pop("token_views")
        return {**plain, "token_views": views} if tokens else plain


@dataclass(frozen=True)
class TokenOrigin:
    """Where a token comes from. `characters` is a range of the turn's value, or None if the template changed it."""

    conversation: str
    token: int
    id: int
    text: str
    label: int
    part: str  # words (of a turn), answer, end of turn, or template
    turn: int | None  # from 1
    role: str | None
    characters: tuple[int, int] | None  # end excluded
    origins: list[dict[str, Any]]  # path, row, line of every source row with this conversation


def find_ids(prepared: PreparedVersion, prefix: str, limit: int) -> list[str]:
    """The first `limit` ids that begin with `prefix`. Raises `VersionError` if there is none."""
    ids = first_members(prepared.members, prefix, limit)["id"].to_list()
    if prefix and not ids:
        raise VersionError(
            f"No conversation of {prepared.version.label} has an id that begins with {prefix}.",
            f"curate preview {prepared.version.label} shows some.",
        )
    return ids


def first_members(members: pl.DataFrame, prefix: str, limit: int) -> pl.DataFrame:
    """The first `limit` members whose id begins with `prefix`."""
    return members.filter(pl.col("id").str.starts_with(prefix)).head(limit)


def find_windows(
    prepared: PreparedConversations, conversations: list[str], window: int | None
) -> list[tuple[str, int | None]]:
    """The conversations with the numbers of all their windows (None: not split), or with window number `window` only.

    Raises `TrainError` if there is no such window.
    """
    rows = prepared.ledger.filter(pl.col("conversation").is_in(conversations))
    if window is not None:
        rows = rows.filter(pl.col("window") == window)
    if conversations and rows.is_empty():
        raise TrainError(
            f"None of these conversations has a window {window}.",
            "Omit --window to show all; --set train.long=split splits conversations that are too long.",
        )
    return rows.select("conversation", "window").rows()


def preview(prepared: PreparedConversations, conversation: str, window: int | None = None) -> Preview:
    """The conversation with this id, or one of its windows (from 1), as it is trained."""
    numbers, member, row, entry = _find_rows(prepared, conversation, window)
    rendering, encoding = _render_and_encode(prepared, member, row)
    views = _token_views(rendering, encoding, row["labels"] or [], entry["tokens"] - entry["cut"])
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
        segments=_segments(rendering, encoding, views, complete=not (prepared.template.raw and window)),
        turns=_turn_views(numbers, member["conversations"], rendering, encoding),
        token_views=views,
    )


def trace_token(
    prepared: PreparedVersion, store: Path, conversation: str, token: int, window: int | None = None
) -> TokenOrigin:
    """The origin of token number `token` (from 0) of a conversation or window. Raises `TrainError` if there is none."""
    numbers, member, row, entry = _find_rows(prepared, conversation, window)
    if not 0 <= token < entry["tokens"]:
        raise TrainError(
            f"{conversation} has {plural(entry['tokens'], 'token')}, there is no token {token}.",
            "The first is 0; curate preview --id … --tokens lists them.",
        )
    rendering, encoding = _render_and_encode(prepared, member, row)
    assert encoding is not None
    start, end = encoding.token_to_chars(token) or (0, 0)
    part, turn, characters = _locate(rendering, member["conversations"], start, end)
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
        origins=_read_origins(store, conversation),
    )


_Row = dict[str, Any]


def _find_rows(
    prepared: PreparedConversations, conversation: str, window: int | None
) -> tuple[Sequence[int], _Row, _Row, _Row]:
    """The numbers of the turns, and the rows of the member with only these turns, its rendering, and the ledger."""
    member = prepared.members.row(by_predicate=pl.col("id") == conversation, named=True)
    is_window = pl.col("window").struct.field("number").eq_missing(window)
    row = prepared.rendered.row(by_predicate=(pl.col("id") == conversation) & is_window, named=True)
    entry = prepared.ledger.row(
        by_predicate=(pl.col("conversation") == conversation) & pl.col("window").eq_missing(window), named=True
    )
    numbers, turns = window_turns(member["conversations"], row["window"])
    return numbers, {**member, "conversations": turns}, row, entry


def _render_and_encode(
    prepared: PreparedConversations, member: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[Rendering, Encoding | None]:
    """The rendering and its tokens; for a window of a raw text, the complete text and the window's tokens."""
    rendering = ChatRenderer(prepared.template, prepared.tokenizer, prepared.section.reasoning).render(member)
    if row["problem"] is not None:
        return replace(rendering, problem=row["problem"]), None
    (encoding,) = prepared.tokenizer.encode([rendering.text])
    if prepared.template.raw and row["window"] is not None:
        earlier = pl.col("window").struct.field("number") <= row["window"]["number"]
        windows = prepared.rendered.filter((pl.col("id") == row["id"]) & earlier)["input_ids"]
        encoding.truncate(int(windows.list.len().sum()))
        encoding.truncate(len(row["input_ids"]), direction="left")
    return rendering, encoding


def _token_views(
    rendering: Rendering, encoding: Encoding | None, labels: Sequence[int], trained: int
) -> list[TokenView]:
    if encoding is None:
        return []
    rows = zip(encoding.ids, encoding.offsets, labels, strict=True)
    return [
        TokenView(number, token, rendering.text[start:end], label, number < trained)
        for number, (token, (start, end), label) in enumerate(rows)
    ]


def _segments(
    rendering: Rendering, encoding: Encoding | None, views: Sequence[TokenView], *, complete: bool
) -> list[Segment]:
    """Consecutive tokens with the same state as one text.

    If `complete`, every character of the rendering is in exactly one segment, otherwise every character of the tokens.
    """
    if encoding is None:
        return [Segment(rendering.text, in_loss=False, trained=False)] if rendering.text else []
    states = groupby(views, lambda view: (view.label != IGNORE_INDEX, view.trained))
    groups = [(state, next(iter(group)).token) for state, group in states]
    starts = [encoding.offsets[first][0] for _, first in groups]
    ends = [*starts[1:], len(rendering.text) if complete else encoding.offsets[-1][1]]
    starts[:1] = [0 if complete else encoding.offsets[0][0]] if starts else []
    return [Segment(rendering.text[a:b], *state) for (state, _), a, b in zip(groups, starts, ends, strict=True)]


def _turn_views(
    numbers: Sequence[int], turns: Sequence[Mapping[str, Any]], rendering: Rendering, encoding: Encoding | None
) -> list[TurnView]:
    views = []
    for place, (number, turn) in enumerate(zip(numbers, turns, strict=True)):
        spans = [span for span in rendering.turn_spans if span.turn == place and span.end > span.start]
        first, end = None, None
        if encoding is not None and spans:
            ranges = [_with_whitespace(rendering, turn["value"], span) for span in spans]
            first, end, _ = token_range(encoding, min(ranges)[0], max(end for _, end in ranges))
        views.append(TurnView(number + 1, turn["from"], first, end))
    return views


def _locate(
    rendering: Rendering, turns: Sequence[Mapping[str, Any]], start: int, end: int
) -> tuple[str, int | None, tuple[int, int] | None]:
    """The part of the rendering with these characters, its turn, and their range in the turn's value."""
    for span in rendering.turn_spans:
        value = turns[span.turn]["value"]
        low, high = _with_whitespace(rendering, value, span)
        if start < high and end > low:
            unchanged = rendering.text[span.start : span.end] == value.strip()
            shift = len(value) - len(value.lstrip()) - span.start
            return "words", span.turn, (max(start, low) + shift, min(end, high) + shift) if unchanged else None
    for loss_span in rendering.loss_spans:
        if start < loss_span.end and end > loss_span.start:
            return "end of turn" if end >= loss_span.end and loss_span.stop else "answer", loss_span.turn, None
    return "template", None, None


def _with_whitespace(rendering: Rendering, value: str, span: TurnSpan) -> tuple[int, int]:
    """The span, extended by the white space around the turn's text unless the template trimmed it."""
    text, core = rendering.text, value.strip()
    if text[span.start : span.end] != core:
        return span.start, span.end
    head, _, tail = value.partition(core)
    low = span.start - len(head) if text.endswith(head, 0, span.start) else span.start
    high = span.end + len(tail) if text.startswith(tail, span.end) else span.end
    return low, high


def _read_origins(store: Path, conversation: str) -> list[dict[str, Any]]:
    query = """SELECT DISTINCT s.path, o.row, o.line FROM origins o JOIN sources s ON s.source = o.source
               WHERE o.conversation = ? ORDER BY s.path, o.row"""
    with reading(store) as connection:
        origins: pl.DataFrame = connection.sql(query, params=[conversation]).pl()
    return origins.to_dicts()
