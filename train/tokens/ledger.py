"""In: rendered conversations and what the recipe allows. Out: the ledger, one row each: kept, truncated or dropped.

The fates:
- kept: trained as rendered;
- split: a window of a conversation that is longer than `max_length`, with `long = "split"`: one row for each window;
- truncated: longer than `max_length` with `long = "truncate"`: cut behind the last learned answer that fits whole,
  its end-of-turn token included, so never half an answer is learned;
- dropped: with the reason: it cannot be rendered, has nothing to learn, is too long, or an answer holds the text of
  a special token that the tokenizer would read as the token (`special_text = "keep"` in the recipe lets those in).

Nothing is dropped or truncated without being told so: `check_limits` refuses above what the recipe allows, and it
allows nothing by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import TrainError
from schemas.manifest import CONVERSATIONS_SEEN, WINDOWS, WINDOWS_SEEN
from schemas.recipe import TrainSection
from train.tokens.labels import IGNORE_INDEX
from train.tokens.windows import is_text_window

LEDGER: dict[str, pl.DataType | type[pl.DataType]] = {
    "conversation": pl.String,
    "split": pl.String,
    "window": pl.Int32,  # which one of its windows (from 1); null where it is whole
    "fate": pl.String,  # kept, split, truncated or dropped
    "code": pl.String,  # unrendered, nothing-learned, special-text, too-long or windowed; null where kept
    "reason": pl.String,  # a sentence; null where kept
    "tokens": pl.Int64,  # as rendered; 0 where it cannot be
    "cut": pl.Int64,  # of these, not trained: all of a dropped one
    "learned": pl.Int64,  # of those trained, with a label
    "learned_cut": pl.Int64,  # with a label, but not trained
}
"""Columns of the ledger; trained tokens are `tokens - cut`. Once a training is over it also has `seen`."""

BuildLedger = Callable[[TrainSection], pl.DataFrame]
"""The ledger of the same conversations under another recipe."""

FATES_TO_ALLOW = ("dropped", "truncated")

LEDGER_FILE = "ledger.parquet"
SHOWN = 5


def build_ledger(rendered: pl.DataFrame, section: TrainSection) -> pl.DataFrame:
    """The ledger of a rendered frame: the columns of `LEDGER`, in its order. The sums are checked.

    `rendered` has the columns of `train.tokens.labels.RENDERED` and may have `split` (else all is `train`).
    """
    split = pl.col("split") if "split" in rendered.columns else pl.lit("train").alias("split")
    measured = rendered.select(
        pl.col("id").alias("conversation"),
        split,
        pl.col("window").struct.field("number").alias("window"),
        pl.col("window").alias("place"),
        pl.col("input_ids").list.len().fill_null(0).cast(pl.Int64).alias("tokens"),
        _learned(pl.col("labels")).alias("all_learned"),
        _fitting(section.max_length).alias("fits"),
        "labels",
        "problem",
        "loss_specials",
    )
    decided = measured.with_columns(code=_code(section)).with_columns(fate=_fate(section), reason=_reason(section))
    ledger = _counted(decided)
    _check_sums(ledger, rendered)
    return ledger


def trainable(rendered: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """What is trained: `id`, `split`, `input_ids`, `labels` of what is kept and, cut, of what is truncated.

    `ledger` is what `build_ledger` made of `rendered`: a row for each of its rows, in their order.
    """
    assert rendered["id"].equals(ledger["conversation"], check_names=False), "the ledger is of other conversations"
    left = pl.col("tokens") - pl.col("cut")
    both = rendered.select("id", "input_ids", "labels").with_columns(ledger.select("split", "fate", left.alias("left")))
    return both.filter(pl.col("fate") != "dropped").select(
        "id", "split", pl.col("input_ids").list.head(pl.col("left")), pl.col("labels").list.head(pl.col("left"))
    )


def check_limits(ledger: pl.DataFrame, section: TrainSection, settled: BuildLedger) -> None:
    """Raise `TrainError` when more is dropped or truncated than the recipe allows: how many, which, what to type.

    `settled` is asked for the ledger under other recipes, so that whatever the error says to type passes here.
    """
    too_long = ledger.filter(pl.col("code") == "too-long")
    if section.long == "refuse" and too_long.height:
        raise TrainError(
            f"{too_long.height:,} of {ledger.height:,} conversations are longer than max_length {section.max_length:,}"
            f" tokens: {_longest(too_long)}.",
            _ways_out(section, int(too_long.select(pl.max("tokens")).item()), settled),
        )
    needed = _needed(ledger, section)
    for fate in FATES_TO_ALLOW:
        if f"max_{fate}" in needed:
            what = _too_many(ledger, fate, getattr(section, f"max_{fate}"))
            raise TrainError(what, f"Repair the data, or allow it: {_typed(needed)}; curate plan says more.")


def add_epoch_counts(ledger: pl.DataFrame, seen: Sequence[int]) -> pl.DataFrame:
    """The ledger of a training that is over, with how often its steps saw what was handed over, as `seen`.

    `seen` has a number for each row that was trained on, in the ledger's order; held out and dropped ones have none.
    """
    handed = ledger.select((pl.col("split") == "train") & (pl.col("fate") != "dropped")).to_series()
    places = handed.cum_sum().cast(pl.Int64) - 1
    counts = pl.Series("seen", seen, dtype=pl.Int64)
    assert counts.len() == handed.sum(), "the steps saw other conversations than were handed over"
    return ledger.with_columns(seen=counts.gather(places.clip(0)).set(~handed, None))


def count_covered(ledger: pl.DataFrame) -> int:
    """Of how many conversations the steps saw all that was handed over; of one that was split, each window."""
    least = ledger.drop_nulls("seen").group_by("conversation").agg(pl.min("seen"))
    return int((least["seen"] > 0).sum())


def coverage_metrics(ledger: pl.DataFrame) -> dict[str, float]:
    """What the steps saw, as metrics: whole conversations and, where some were split, the parts of all."""
    handed = ledger.drop_nulls("seen")
    counts = {CONVERSATIONS_SEEN: float(count_covered(ledger))}
    if handed["conversation"].is_unique().all():
        return counts
    return counts | {WINDOWS_SEEN: float((handed["seen"] > 0).sum()), WINDOWS: float(handed.height)}


def write_ledger(ledger: pl.DataFrame, folder: Path) -> Path:
    """Write the ledger as `ledger.parquet` into `folder` and return its path; never a half-written one."""
    path = folder / LEDGER_FILE
    unfinished = folder / f"{LEDGER_FILE}.{os.getpid()}"
    ledger.write_parquet(unfinished)
    unfinished.replace(path)
    return path


def _learned(labels: pl.Expr) -> pl.Expr:
    """How many labels are not ignored."""
    ignored = labels.list.count_matches(IGNORE_INDEX)
    return (labels.list.len().cast(pl.Int64) - ignored.cast(pl.Int64)).fill_null(0)


def _fitting(max_length: int) -> pl.Expr:
    """Tokens up to the end of the last learned answer that ends within `max_length`; null where none does."""
    ends = pl.col("stops").list.eval(pl.element().filter(pl.element() <= max_length))
    return ends.list.max().cast(pl.Int64)


def _code(section: TrainSection) -> pl.Expr:
    """Why a conversation is not trained as it is, the first of the reasons that hold; null where it is."""
    typed = pl.col("loss_specials").is_not_null() & pl.lit(section.special_text == "drop")
    return (
        pl.when(pl.col("problem").is_not_null())
        .then(pl.lit("unrendered"))
        .when(pl.col("all_learned") == 0)
        .then(pl.lit("nothing-learned"))
        .when(typed)
        .then(pl.lit("special-text"))
        .when(pl.col("tokens") > section.max_length)
        .then(pl.lit("too-long"))
        .when(pl.col("window").is_not_null())
        .then(pl.lit("windowed"))
    )


def _fate(section: TrainSection) -> pl.Expr:
    can_be_cut = pl.lit(section.long == "truncate") & (pl.col("code") == "too-long") & pl.col("fits").is_not_null()
    return (
        pl.when(pl.col("code").is_null())
        .then(pl.lit("kept"))
        .when(pl.col("code") == "windowed")
        .then(pl.lit("split"))
        .when(can_be_cut)
        .then(pl.lit("truncated"))
        .otherwise(pl.lit("dropped"))
    )


def _reason(section: TrainSection) -> pl.Expr:
    endings = {
        "truncate": ", and not even its first learned answer fits.",
        "split": ", and it is one exchange, which is not split.",
    }
    ending = endings.get(section.long, ".")
    place = {name: pl.col("place").struct.field(name) for name in ("number", "of", "first", "last", "whole")}
    window = pl.format("Window {} of {}, turns {} to {} of a conversation of {} tokens", *place.values())
    piece = pl.format("Part {} of {} of a text of {} tokens", *(place[name] for name in ("number", "of", "whole")))
    of_text = is_text_window(pl.col("place"))
    holding = pl.when(of_text).then(piece).otherwise(pl.lit("An answer"))
    size = pl.format("It has {} tokens, {} are allowed", "tokens", pl.lit(section.max_length))
    sentences = {
        "unrendered": pl.col("problem"),
        "nothing-learned": pl.lit("It has nothing to learn: no answer of it is trained."),
        "special-text": pl.format("{} holds text that is read as a special token: {}.", holding, "loss_specials"),
        "too-long": pl.concat_str(size, pl.when(_is_lost(section)).then(pl.lit(ending)).otherwise(pl.lit("."))),
        "windowed": pl.concat_str(pl.when(of_text).then(piece).otherwise(window), pl.lit(".")),
    }
    return pl.coalesce([pl.when(pl.col("code") == code).then(sentence) for code, sentence in sentences.items()])


def _is_lost(section: TrainSection) -> pl.Expr:
    """Whether nothing of a conversation that is too long can be trained."""
    return pl.col("fits").is_null() | pl.lit(section.long == "split")


def _counted(decided: pl.DataFrame) -> pl.DataFrame:
    left = (
        pl.when(pl.col("fate").is_in(["kept", "split"]))
        .then("tokens")
        .when(pl.col("fate") == "truncated")
        .then("fits")
        .otherwise(pl.lit(0, pl.Int64))
    )
    return (
        decided.with_columns(left=left)
        .with_columns(learned=_learned(pl.col("labels").list.head(pl.col("left"))))
        .with_columns(cut=pl.col("tokens") - pl.col("left"), learned_cut=pl.col("all_learned") - pl.col("learned"))
        .select(*LEDGER)
    )


def _check_sums(ledger: pl.DataFrame, rendered: pl.DataFrame) -> None:
    """Every conversation has one fate, every token was trained or cut, and whoever lost one was given a reason."""
    rendered_tokens = int(rendered["input_ids"].list.len().sum())
    tokens, cut = (int(ledger[column].sum()) for column in ("tokens", "cut"))
    trained = int(_trained_tokens(ledger))
    lost = pl.col("fate") != "kept"
    assert ledger.height == rendered.height, "a conversation is missing in the ledger"
    assert ledger["fate"].is_in(["kept", "split", "truncated", "dropped"]).all(), "a conversation has no fate"
    assert rendered_tokens == tokens == trained + cut, "the ledger's tokens are not the rendered ones"
    assert ledger.filter(lost != pl.col("reason").is_not_null()).is_empty(), "a fate and its reason differ"


def _trained_tokens(ledger: pl.DataFrame) -> int:
    trained = pl.col("tokens") - pl.col("cut")
    return int(ledger.filter(pl.col("fate") != "dropped").select(trained.sum()).item())


def _needed(ledger: pl.DataFrame, section: TrainSection) -> dict[str, str]:
    """The limits that are exceeded, each with the share that would be enough."""
    all_of_them = _conversations(ledger)
    counts = {f"max_{fate}": _conversations(ledger.filter(pl.col("fate") == fate)) for fate in FATES_TO_ALLOW}
    return {
        limit: _share(count, all_of_them)
        for limit, count in counts.items()
        if count and count / all_of_them > getattr(section, limit)
    }


def _too_many(ledger: pl.DataFrame, fate: str, allowed: float) -> str:
    hit = ledger.filter(pl.col("fate") == fate)
    part = " in part" if hit["window"].is_not_null().any() else ""
    return (
        f"{_conversations(hit):,} of {_conversations(ledger):,} conversations would be {fate}{part}, "
        f"max_{fate} allows {allowed:g}: {_by_code(hit)}."
    )


def _conversations(ledger: pl.DataFrame) -> int:
    """How many conversations the rows are of: one each, but for windows."""
    whole = pl.col("window").is_null()
    return ledger.filter(whole).height + int(ledger.filter(~whole)["conversation"].n_unique())


def _by_code(hit: pl.DataFrame) -> str:
    first = hit.sort("tokens", descending=True).group_by("code", maintain_order=True)
    windows = pl.col("conversation").filter(pl.col("window").is_not_null()).n_unique()
    counted = first.agg(
        (pl.col("window").is_null().sum() + windows).alias("len"), pl.first("conversation"), pl.first("reason")
    )
    counted = counted.sort("len", descending=True, maintain_order=True)
    return "; ".join(
        f"{count:,} {code}, such as {conversation[:12]}: {reason.rstrip('.')}"
        for code, count, conversation, reason in counted.iter_rows()
    )


def _longest(too_long: pl.DataFrame) -> str:
    worst = too_long.sort("tokens", descending=True).head(SHOWN)
    return ", ".join(f"{name[:12]} has {tokens:,}" for name, tokens in worst.select("conversation", "tokens").rows())


def _ways_out(section: TrainSection, longest: int, settled: BuildLedger) -> str:
    """What to type, each way with the limits that it takes; one that would leave nothing to train on is left out."""
    ways: list[dict[str, Any]] = [{"max_length": longest}, *({"long": long} for long in ("truncate", "drop", "split"))]
    lines = []
    for way in ways:
        other = section.model_copy(update=way)
        ledger = settled(other)
        if not ledger.filter((pl.col("split") == "train") & (pl.col("fate") != "dropped")).is_empty():
            lines.append(_typed(way | _needed(ledger, other)))
    return f"Type {', or '.join(lines)}."


def _typed(settings: Mapping[str, Any]) -> str:
    return " ".join(f"--set train.{key}={value}" for key, value in settings.items())


def _share(part: int, whole: int) -> str:
    """A share that is just large enough, short to type.

    >>> _share(3, 1000), _share(1, 3)
    ('0.003', '0.3334')
    """
    rounded = -(-part * 10_000 // whole) / 10_000
    return f"{rounded:g}"
