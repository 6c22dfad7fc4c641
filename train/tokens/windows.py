"""Conversations and a recipe → rendered rows; with `long = "split"`, long conversations become windows that fit.

A window has the system turn and then complete exchanges: a question, everything that leads to its answer, the answer.
Each exchange is in exactly one window, and each window is rendered as a conversation, so its loss mask is verified like
any other. An exchange that is too long alone remains a window, which the ledger drops. A raw text has no exchanges: its
windows are its tokens in order, `max_length` at a time.
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
"""Fields of a window: its number (from 1), the number of windows, its first and last turn (from 1; 1 for a raw text),
and the tokens of the complete conversation or text."""

DECIDED = ("split", "per_epoch")
"""Columns of members that the version decides: they are kept with the rendering."""

TEXT_WINDOWS_REVISION = 2
"""A part of the cache key. Since 2, each window of a raw text has its own special tokens."""

ANSWERING = ("gpt", "function_call", "observation")
"""After a turn with one of these roles, the next question starts a new exchange."""

Turns = Sequence[Mapping[str, Any]]


def render_members(
    recipe: TrainSection,
    members: pl.DataFrame,
    template: Template,
    tokenizer: Tokenizer,
    progress: Progress = lambda *_: None,
) -> pl.DataFrame:
    """The rendered frame of a version's members under a recipe, in the same order, with those of `DECIDED` they have.

    One row per conversation; with `long = "split"` one row per window of a conversation longer than `max_length`.
    """
    rendered = render(members, template, tokenizer, recipe.reasoning, progress)
    if recipe.long == "split" and template.raw:
        rendered = _split_texts(rendered, recipe.max_length, tokenizer)
    elif recipe.long == "split":
        rendered = _split_conversations(rendered, members, template, tokenizer, recipe)
    decided = [name for name in DECIDED if name in members.columns]
    if not decided:
        return rendered
    return rendered.join(members.select("id", *decided), on="id", how="left", maintain_order="left")


def is_text_window(window: pl.Expr) -> pl.Expr:
    """Whether a window is of a raw text, which has one turn; a window of a conversation has at least two."""
    return window.struct.field("first") == window.struct.field("last")


def window_turns(turns: Turns, window: Mapping[str, int] | None) -> tuple[list[int], Turns]:
    """The numbers (from 0) of a window's turns, and these turns; without a window those of the conversation.

    >>> turns = [{"from": role} for role in ("system", "human", "gpt", "human", "gpt")]
    >>> window_turns(turns, {"first": 4, "last": 5})[0]
    [0, 3, 4]
    """
    numbers = [*range(len(turns))]
    if window is not None:
        numbers = [*range(_count_system_turns(turns)), *range(window["first"] - 1, window["last"])]
    return numbers, [turns[number] for number in numbers]


# ------------------------------------------------------------------------------------------------------ raw texts


def _split_texts(rendered: pl.DataFrame, max_length: int, tokenizer: Tokenizer) -> pl.DataFrame:
    """The rendered frame with windows of `max_length` tokens in place of each longer text.

    Every token is in one window. The first token of a window has no context and no loss, so a last window of one token
    would train nothing: it takes one token from the window before.
    """
    tokens = pl.col("input_ids").list.len().fill_null(0).cast(pl.Int64)
    counted = rendered.with_row_index("row").with_columns(total_tokens=tokens)
    is_long = (pl.col("total_tokens") > max_length) & pl.col("problem").is_null()
    texts = counted.filter(is_long)
    if texts.is_empty():
        return rendered
    split = _split_tokens(texts, _text_windows(texts["total_tokens"], max_length), tokenizer)
    columns = pl.Schema({"row": counted.schema["row"], **RENDERED})
    both = pl.concat([frame.select(columns.names()).cast(columns) for frame in (counted.filter(~is_long), split)])
    return both.sort("row", maintain_order=True).drop("row")


def _text_windows(total_tokens: pl.Series, max_length: int) -> pl.DataFrame:
    """One row per window of texts with these lengths: `text` (index), `start`, `end` and the columns of `WINDOW`."""
    is_single = (pl.col("start") + 1 == pl.col("total_tokens")) & (pl.col("start") > 0)
    return (
        pl.DataFrame({"total_tokens": total_tokens})
        .with_row_index("text")
        .with_columns(start=pl.int_ranges(0, "total_tokens", max_length))
        .explode("start")
        .with_columns(start=pl.col("start") - is_single.cast(pl.Int64))
        .with_columns(end=pl.col("start").shift(-1).over("text").fill_null(pl.col("total_tokens")))
        .with_columns(number=pl.int_range(1, pl.len() + 1).over("text"), of=pl.len().over("text"))
        .with_columns(first=pl.lit(1), last=pl.lit(1))
    )


def _split_tokens(texts: pl.DataFrame, windows: pl.DataFrame, tokenizer: Tokenizer) -> pl.DataFrame:
    """The rendered rows of windows: the tokens of all texts, split at new offsets.

    One copy of its text per window would take memory quadratic in the length of a text.
    """
    offsets = np.concatenate([[0], (windows["end"] - windows["start"]).cum_sum().to_numpy()])
    ids = texts["input_ids"].explode()
    labels = texts["labels"].explode().scatter(offsets[:-1], IGNORE_INDEX)
    length = pl.col("end") - pl.col("start")
    is_last = pl.col("end") == pl.col("total_tokens")
    stops = pl.when(is_last).then(pl.concat_list(length)).otherwise(pl.lit([], pl.List(pl.Int64)))
    return texts.drop("input_ids", "labels")[windows["text"]].with_columns(
        *windows.select(stops.alias("stops"), pl.struct(*WINDOW).alias("window")),
        _loss_specials(texts, windows, ids, offsets, tokenizer),
        pl.when(windows["number"] == 1).then("crossing").otherwise(0).alias("crossing"),
        input_ids=split_at(ids, offsets),
        labels=split_at(labels, offsets),
    )


def _loss_specials(
    texts: pl.DataFrame, windows: pl.DataFrame, ids: pl.Series, offsets: Offsets, tokenizer: Tokenizer
) -> pl.Series:
    """`loss_specials` of each window: one typed in a book must drop only the window that contains it.

    If no token of a text is a typed special (some match only as a separate word), all its windows keep the text's.
    """
    specials = _special_ids(texts, tokenizer)
    at = ids.is_in(specials["id"].implode()).arg_true().cast(pl.Int64)
    typed = (
        pl.DataFrame({"place": np.searchsorted(offsets, at, "right") - 1, "at": at, "id": ids.gather(at)})
        .filter(~pl.col("at").is_in(_template_tokens(windows, offsets, tokenizer).implode()))
        .join(specials, on="id")
        .group_by("place")
        .agg(typed=pl.col("special").unique().sort().str.join(" "))
    )
    of_text = texts["loss_specials"].gather(windows["text"]).alias("loss_specials")
    each = windows.select("text", of_text, place=pl.int_range(pl.len())).join(
        typed, on="place", how="left", maintain_order="left"
    )
    is_found = pl.col("typed").is_not_null().any().over("text")
    return each.select(pl.when(is_found).then("typed").otherwise(of_text.name).alias(of_text.name)).to_series()


def _special_ids(texts: pl.DataFrame, tokenizer: Tokenizer) -> pl.DataFrame:
    """The special tokens typed in any of the texts, with their ids."""
    typed = sorted(set(tokenizer.special_text.findall(" ".join(texts["loss_specials"].drop_nulls()))))
    ids = [tokenizer.id_of(text) for text in typed]
    return pl.DataFrame({"id": ids, "special": typed}, {"id": pl.Int32, "special": pl.String})


def _template_tokens(windows: pl.DataFrame, offsets: Offsets, tokenizer: Tokenizer) -> pl.Series:
    """The positions of the tokens with which the template begins and ends texts."""
    begins = (windows["start"] == 0) & ("bos_token" in tokenizer.named)
    ends = windows["end"] == windows["total_tokens"]
    return pl.concat([pl.Series(offsets[:-1]).filter(begins), pl.Series(offsets[1:] - 1).filter(ends)])


# -------------------------------------------------------------------------------------------------- conversations


@dataclass(frozen=True, slots=True)
class _Window:
    """Consecutive exchanges of conversation number `row`: the turns where each starts, and where the last ends."""

    row: int
    borders: tuple[int, ...]

    def divide(self, weights: Sequence[float], limit: float) -> Iterator[_Window]:
        """At least two windows whose exchanges weigh up to `limit` together; `weights` has one value per exchange."""
        first, total = 0, 0.0
        for place, weight in enumerate(weights):
            if place > first and total + weight > limit:
                yield _Window(self.row, self.borders[first : place + 1])
                first, total = place, 0.0
            total += weight
        if first == 0 and len(weights) > 1:  # it is too long, so the weights are wrong
            half = len(weights) // 2
            yield from (_Window(self.row, self.borders[: half + 1]), _Window(self.row, self.borders[half:]))
        else:
            yield _Window(self.row, self.borders[first:])


def _split_conversations(
    rendered: pl.DataFrame, members: pl.DataFrame, template: Template, tokenizer: Tokenizer, recipe: TrainSection
) -> pl.DataFrame:
    """The rendered frame with windows in place of each conversation that is too long.

    Windows are divided by number of characters, rendered, and divided again if they are still too long. Loops over
    conversations, since each division depends on the result of the one before.
    """
    tokens = rendered["input_ids"].list.len().fill_null(0)
    is_long = (tokens > recipe.max_length) & rendered["problem"].is_null()
    long = rendered.with_row_index("row").filter(is_long)["row"]
    turns = {row: members["conversations"][row].to_list() for row in long}
    pending = [_Window(row, borders) for row in long if len(borders := _borders(turns[row])) > 2]
    sizes = [int(tokens[window.row]) for window in pending]
    done: list[tuple[_Window, pl.DataFrame]] = []
    while pending:
        divided = [w for window, size in zip(pending, sizes, strict=True) for w in _divide(window, turns, size, recipe)]
        frame = render(_frame(divided, turns, members), template, tokenizer, recipe.reasoning)
        lengths = frame["input_ids"].list.len().fill_null(0).to_list()
        again = [size > recipe.max_length and len(w.borders) > 2 for w, size in zip(divided, lengths, strict=True)]
        done += [(w, frame[place]) for place, w in enumerate(divided) if not again[place]]
        pending = [w for w, more in zip(divided, again, strict=True) if more]
        sizes = [size for size, more in zip(lengths, again, strict=True) if more]
    return _replace_with_windows(rendered, done)


def _count_system_turns(turns: Turns) -> int:
    """The number of system turns at the beginning."""
    return next((number for number, turn in enumerate(turns) if turn["from"] != "system"), len(turns))


def _borders(turns: Turns) -> tuple[int, ...]:
    """The turns where each exchange starts, and where the last one ends."""
    start = _count_system_turns(turns)
    later = (
        number
        for number in range(start + 1, len(turns))
        if turns[number]["from"] == "human"
        and turns[number - 1]["from"] in ANSWERING
        and any(turn["from"] == "human" for turn in turns[start:number])  # a greeting belongs to the first question
    )
    return (start, *later, len(turns))


def _divide(window: _Window, turns: Mapping[int, Turns], size: int, recipe: TrainSection) -> Iterator[_Window]:
    """Windows that fit, estimated from characters; each contains the system turn."""
    conversation = turns[window.row]
    exchanges = zip(window.borders, window.borders[1:], strict=False)
    weights = [sum(len(turn["value"]) + 1 for turn in conversation[start:end]) for start, end in exchanges]
    system = sum(len(turn["value"]) + 1 for turn in conversation[: _count_system_turns(conversation)])
    return window.divide(weights, (system + sum(weights)) * recipe.max_length / size - system)


def _frame(windows: Sequence[_Window], turns: Mapping[int, Turns], members: pl.DataFrame) -> pl.DataFrame:
    """The windows as a conversations frame, with the ids of the conversations they are part of."""
    conversations = [
        [*turns[w.row][: _count_system_turns(turns[w.row])], *turns[w.row][w.borders[0] : w.borders[-1]]]
        for w in windows
    ]
    rows = members[[window.row for window in windows]] if windows else members.head(0)
    columns = {"id": rows["id"], "conversations": conversations, "tools": rows["tools"]}
    return pl.DataFrame(columns, schema_overrides={"conversations": pl.List(TURN)})


def _replace_with_windows(rendered: pl.DataFrame, windows: Sequence[tuple[_Window, pl.DataFrame]]) -> pl.DataFrame:
    """The rendered frame with numbered windows in place of their conversations."""
    if not windows:
        return rendered
    ordered = sorted(windows, key=lambda entry: (entry[0].row, entry[0].borders))
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
    frame = pl.concat([frame for _, frame in ordered])
    numbered = frame.with_columns(facts.select(*WINDOW).to_struct("window"), facts["row"].alias("row"))
    others = rendered.with_columns(pl.int_range(pl.len()).alias("row")).filter(
        ~pl.col("row").is_in(facts["row"].implode())
    )
    both = pl.concat([others.cast({"row": pl.Int64}), numbered.cast({"row": pl.Int64, "window": RENDERED["window"]})])
    return both.sort("row", maintain_order=True).drop("row")
