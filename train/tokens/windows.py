"""In: conversations, some longer than a sequence. Out: their rendering, the long ones as windows that fit.

A window keeps the system turn and goes on with whole exchanges: a question, what leads to its answer, the answer.
Each exchange is in exactly one window, each window is rendered as the conversation that it is, so its labels are
proven like any other's. An exchange that is too long by itself stays a window of its own, and the ledger drops it.
A text has no exchanges: its windows are its tokens in a row, `max_length` at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from schemas.conversation import TURN
from schemas.recipe import TrainSection
from train.tokens.chat_template import Template
from train.tokens.labels import IGNORE_INDEX, RENDERED, Offsets, split_at
from train.tokens.render import Progress, render
from train.tokens.tokenizer import Tokenizer

WINDOW = ("number", "of", "first", "last", "total_tokens")
"""Of a window: which one of how many, its turns (from 1), and the tokens of the whole conversation or text."""

PIECES = 2
"""Revision of what a piece of a text says; it goes into the cache key. Since 2 each has its own special tokens."""

ANSWERING = ("gpt", "function_call", "observation")
"""Behind a turn of these roles the next question begins an exchange of its own."""

Turns = Sequence[Mapping[str, Any]]


def render_members(
    recipe: TrainSection,
    members: pl.DataFrame,
    template: Template,
    tokenizer: Tokenizer,
    progress: Progress = lambda *_: None,
) -> pl.DataFrame:
    """The rendered frame of a version's members as the recipe wants it, with `split` where the members have it.

    One row each, in their order; with `long = "split"` a longer one has a row for each of its windows.
    """
    rendered = render(members, template, tokenizer, recipe.reasoning, progress)
    if recipe.long == "split" and template.raw:
        rendered = _with_pieces(rendered, recipe.max_length, tokenizer)
    elif recipe.long == "split":
        rendered = _with_windows(rendered, members, template, tokenizer, recipe)
    if "split" not in members.columns:
        return rendered
    return rendered.join(members.select("id", "split"), on="id", how="left", maintain_order="left")


def is_text_window(window: pl.Expr) -> pl.Expr:
    """Whether a window is cut from a text, which is one turn; one of a conversation has a question and its answer."""
    return window.struct.field("first") == window.struct.field("last")


def _with_pieces(rendered: pl.DataFrame, room: int, tokenizer: Tokenizer) -> pl.DataFrame:
    """The rendered frame with each text that is too long replaced by its tokens, `room` at a time.

    Every token is in one of them. The first of each is only seen, since nothing comes before it there; so a last
    piece of one token would learn nothing, and takes one from the piece before.
    """
    tokens = pl.col("input_ids").list.len().fill_null(0).cast(pl.Int64)
    counted = rendered.with_row_index("row").with_columns(total_tokens=tokens)
    long = (pl.col("total_tokens") > room) & pl.col("problem").is_null()
    texts = counted.filter(long)
    if texts.is_empty():
        return rendered
    made = _made(texts, _pieces(texts["total_tokens"], room), tokenizer)
    columns = pl.Schema({"row": counted.schema["row"], **RENDERED})
    both = pl.concat([frame.select(columns.names()).cast(columns) for frame in (counted.filter(~long), made)])
    return both.sort("row", maintain_order=True).drop("row")


def _pieces(whole: pl.Series, room: int) -> pl.DataFrame:
    """A row for each piece of texts of `whole` tokens: which text it is cut from, from where to where, and `WINDOW`."""
    start = pl.col("start") - ((pl.col("start") + 1 == pl.col("total_tokens")) & (pl.col("start") > 0)).cast(pl.Int64)
    return (
        pl.DataFrame({"total_tokens": whole})
        .with_row_index("text")
        .with_columns(start=pl.int_ranges(0, "total_tokens", room))
        .explode("start")
        .with_columns(start=start)
        .with_columns(end=pl.col("start").shift(-1).over("text").fill_null(pl.col("total_tokens")))
        .with_columns(number=pl.int_range(1, pl.len() + 1).over("text"), of=pl.len().over("text"))
        .with_columns(first=pl.lit(1), last=pl.lit(1))
    )


def _made(texts: pl.DataFrame, pieces: pl.DataFrame, tokenizer: Tokenizer) -> pl.DataFrame:
    """The rendered rows of the pieces: the tokens of the texts in a row, under new borders.

    A copy of its text for each piece would take memory by the square of a text's length.
    """
    borders = np.concatenate([[0], (pieces["end"] - pieces["start"]).cum_sum().to_numpy()])
    ids = texts["input_ids"].explode()
    labels = texts["labels"].explode().scatter(borders[:-1], IGNORE_INDEX)
    length = pl.col("end") - pl.col("start")
    is_last = pl.col("end") == pl.col("total_tokens")
    stops = pl.when(is_last).then(pl.concat_list(length)).otherwise(pl.lit([], pl.List(pl.Int64)))
    return texts.drop("input_ids", "labels")[pieces["text"]].with_columns(
        *pieces.select(stops.alias("stops"), pl.struct(*WINDOW).alias("window")),
        _typed_specials(texts, pieces, ids, borders, tokenizer),
        pl.when(pieces["number"] == 1).then("crossing").otherwise(0).alias("crossing"),
        input_ids=split_at(ids, borders),
        labels=split_at(labels, borders),
    )


def _typed_specials(
    texts: pl.DataFrame, pieces: pl.DataFrame, ids: pl.Series, borders: Offsets, tokenizer: Tokenizer
) -> pl.Series:
    """`loss_specials` of the pieces, each with its own: one in a book takes no more than the part that it is in.

    Where none of a text's tokens is what was typed (some count only as a word of their own), it is said of each piece.
    """
    specials = _specials_of(texts, tokenizer)
    at = ids.is_in(specials["id"].implode()).arg_true().cast(pl.Int64)
    typed = (
        pl.DataFrame({"piece": np.searchsorted(borders, at, "right") - 1, "at": at, "id": ids.gather(at)})
        .filter(~pl.col("at").is_in(_own_specials(pieces, borders, tokenizer).implode()))
        .join(specials, on="id")
        .group_by("piece")
        .agg(typed=pl.col("special").unique().sort().str.join(" "))
    )
    copied = texts["loss_specials"].gather(pieces["text"]).alias("loss_specials")
    each = pieces.select("text", copied, piece=pl.int_range(pl.len())).join(
        typed, on="piece", how="left", maintain_order="left"
    )
    is_found = pl.col("typed").is_not_null().any().over("text")
    return each.select(pl.when(is_found).then("typed").otherwise(copied.name).alias(copied.name)).to_series()


def _specials_of(texts: pl.DataFrame, tokenizer: Tokenizer) -> pl.DataFrame:
    """The special tokens that somebody typed into any of the texts, with their ids."""
    typed = sorted(set(tokenizer.special_text.findall(" ".join(texts["loss_specials"].drop_nulls()))))
    ids = [tokenizer.id_of(text) for text in typed]
    return pl.DataFrame({"id": ids, "special": typed}, {"id": pl.Int32, "special": pl.String})


def _own_specials(pieces: pl.DataFrame, borders: Offsets, tokenizer: Tokenizer) -> pl.Series:
    """Where the tokens are with which the template begins and ends a text."""
    begins = (pieces["start"] == 0) & ("bos_token" in tokenizer.named)
    ends = pieces["end"] == pieces["total_tokens"]
    return pl.concat([pl.Series(borders[:-1]).filter(begins), pl.Series(borders[1:] - 1).filter(ends)])


def window_turns(turns: Turns, window: Mapping[str, int] | None) -> tuple[list[int], Turns]:
    """The numbers (from 0) of the turns that a window of a conversation has, and these turns; all without a window.

    >>> turns = [{"from": role} for role in ("system", "human", "gpt", "human", "gpt")]
    >>> window_turns(turns, {"first": 4, "last": 5})[0]
    [0, 3, 4]
    """
    numbers = [*range(len(turns))]
    if window is not None:
        numbers = [*range(_opening(turns)), *range(window["first"] - 1, window["last"])]
    return numbers, [turns[number] for number in numbers]


@dataclass(frozen=True, slots=True)
class _Window:
    """Some exchanges in a row of conversation number `row`, and the turns at which each begins and the last ends."""

    row: int
    borders: tuple[int, ...]

    def parts(self, weights: Sequence[float], room: float) -> Iterator[_Window]:
        """Windows whose exchanges weigh up to `room` together, at least two; `weights` has one for each exchange."""
        first, filled = 0, 0.0
        for place, weight in enumerate(weights):
            if place > first and filled + weight > room:
                yield _Window(self.row, self.borders[first : place + 1])
                first, filled = place, 0.0
            filled += weight
        if first == 0 and len(weights) > 1:  # it was said to be too long, so what it was weighed by is wrong
            half = len(weights) // 2
            yield from (_Window(self.row, self.borders[: half + 1]), _Window(self.row, self.borders[half:]))
        else:
            yield _Window(self.row, self.borders[first:])


def _with_windows(
    rendered: pl.DataFrame, members: pl.DataFrame, template: Template, tokenizer: Tokenizer, recipe: TrainSection
) -> pl.DataFrame:
    """The rendered frame with each conversation that is too long replaced by its windows.

    Windows are cut by the share of characters, rendered, and cut again where they are still too long. Conversations
    are taken one by one: how one is cut depends on what was found before.
    """
    tokens = rendered["input_ids"].list.len().fill_null(0)
    chosen = rendered.with_row_index("row").filter((tokens > recipe.max_length) & rendered["problem"].is_null())["row"]
    turns = {row: members["conversations"][row].to_list() for row in chosen}
    pending = [_Window(row, borders) for row in chosen if len(borders := _borders(turns[row])) > 2]
    sizes = [int(tokens[window.row]) for window in pending]
    done: list[tuple[_Window, pl.DataFrame]] = []
    while pending:
        cut = [part for window, size in zip(pending, sizes, strict=True) for part in _cut(window, turns, size, recipe)]
        made = render(_frame(cut, turns, members), template, tokenizer, recipe.reasoning)
        lengths = made["input_ids"].list.len().fill_null(0).to_list()
        again = [size > recipe.max_length and len(w.borders) > 2 for w, size in zip(cut, lengths, strict=True)]
        done += [(w, made[place]) for place, w in enumerate(cut) if not again[place]]
        pending = [w for w, more in zip(cut, again, strict=True) if more]
        sizes = [size for size, more in zip(lengths, again, strict=True) if more]
    return _put_in(rendered, done)


def _opening(turns: Turns) -> int:
    """How many turns at the beginning are the system's."""
    return next((number for number, turn in enumerate(turns) if turn["from"] != "system"), len(turns))


def _borders(turns: Turns) -> tuple[int, ...]:
    """Where each exchange begins, and where the last one ends."""
    start = _opening(turns)
    later = (
        number
        for number in range(start + 1, len(turns))
        if turns[number]["from"] == "human"
        and turns[number - 1]["from"] in ANSWERING
        and any(turn["from"] == "human" for turn in turns[start:number])  # a greeting belongs to the first question
    )
    return (start, *later, len(turns))


def _cut(window: _Window, turns: Mapping[int, Turns], size: int, recipe: TrainSection) -> Iterator[_Window]:
    """The window in parts that fit, as far as characters tell: the system turn is in each of them."""
    said = turns[window.row]
    spans = zip(window.borders, window.borders[1:], strict=False)
    weights = [sum(len(turn["value"]) + 1 for turn in said[start:end]) for start, end in spans]
    opening = sum(len(turn["value"]) + 1 for turn in said[: _opening(said)])
    return window.parts(weights, (opening + sum(weights)) * recipe.max_length / size - opening)


def _frame(windows: Sequence[_Window], turns: Mapping[int, Turns], members: pl.DataFrame) -> pl.DataFrame:
    """The windows as a conversations frame, under the ids of the conversations that they are cut from."""
    shown = [[*turns[w.row][: _opening(turns[w.row])], *turns[w.row][w.borders[0] : w.borders[-1]]] for w in windows]
    rows = members[[window.row for window in windows]] if windows else members.head(0)
    columns = {"id": rows["id"], "conversations": shown, "tools": rows["tools"]}
    return pl.DataFrame(columns, schema_overrides={"conversations": pl.List(TURN)})


def _put_in(rendered: pl.DataFrame, windows: Sequence[tuple[_Window, pl.DataFrame]]) -> pl.DataFrame:
    """The frame with windows in the place of their conversations, each numbered among those of its own."""
    if not windows:
        return rendered
    ordered = sorted(windows, key=lambda entry: (entry[0].row, entry[0].borders))
    made = pl.concat([row for _, row in ordered])
    facts = pl.DataFrame(
        {
            "row": [window.row for window, _ in ordered],
            "first": [window.borders[0] + 1 for window, _ in ordered],
            "last": [window.borders[-1] for window, _ in ordered],
        }
    ).with_columns(
        number=pl.int_range(1, pl.len() + 1).over("row"),
        of=pl.len().over("row"),
        total_tokens=rendered["input_ids"].list.len().gather([window.row for window, _ in ordered]),
    )
    numbered = made.with_columns(facts.select(*WINDOW).to_struct("window"), facts["row"].alias("row"))
    others = rendered.with_columns(pl.int_range(pl.len()).alias("row")).filter(
        ~pl.col("row").is_in(facts["row"].implode())
    )
    both = pl.concat([others.cast({"row": pl.Int64}), numbered.cast({"row": pl.Int64, "window": RENDERED["window"]})])
    return both.sort("row", maintain_order=True).drop("row")
