"""Rendered conversations and the recipe → the ledger: one row per conversation or window, with its outcome.

Outcomes:
- kept: trained as rendered;
- split: a window of a conversation longer than `max_length`, with `long = "split"`;
- truncated: longer than `max_length`, with `long = "truncate"`: cut after the last answer that fits completely,
  including its end-of-turn token, so no answer is trained in part;
- dropped: it cannot be rendered, no token contributes to the loss, it is too long, or an answer contains the text of a
  special token that the tokenizer would read as the token (allowed by `special_text = "keep"` in the recipe).

`check_limits` refuses to drop or truncate more conversations than the recipe allows; by default it allows none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from schemas.errors import TrainError
from schemas.ledger import LEDGER
from schemas.manifest import CONVERSATIONS_SEEN, WINDOWS, WINDOWS_SEEN
from schemas.recipe import TrainSection
from train.tokens.labels import IGNORE_INDEX
from train.tokens.windows import is_text_window

LedgerBuilder = Callable[[TrainSection], pl.DataFrame]
"""The ledger of the same conversations under another recipe."""

LIMITED_OUTCOMES = ("dropped", "truncated")
"""Outcomes that the recipe limits, by `max_dropped` and `max_truncated`."""

SHOWN = 5


def build_ledger(rendered: pl.DataFrame, section: TrainSection) -> pl.DataFrame:
    """The ledger of a rendered frame: the columns of `LEDGER`, one row for each of its rows, in the same order.

    `rendered` has the columns of `train.tokens.labels.RENDERED` and optionally `split` (default: all `train`) and
    `per_epoch` (default: 1).
    """
    split = pl.col("split") if "split" in rendered.columns else pl.lit("train").alias("split")
    per_epoch = pl.col("per_epoch") if "per_epoch" in rendered.columns else pl.lit(1).alias("per_epoch")
    measured = rendered.select(
        pl.col("id").alias("conversation"),
        split,
        pl.col("window").struct.field("number").alias("window"),
        pl.col("window").alias("place"),
        pl.col("input_ids").list.len().fill_null(0).cast(pl.Int64).alias("tokens"),
        _count_loss_tokens(pl.col("labels")).alias("all_loss_tokens"),
        _fitting_tokens(section.max_length).alias("fitting"),
        "labels",
        "problem",
        "loss_specials",
        per_epoch.cast(pl.Int64),
    )
    coded = measured.with_columns(code=_code(section))
    ledger = _with_counts(coded.with_columns(outcome=_outcome(section), reason=_reason(section)))
    _check_sums(ledger, rendered)
    return ledger


def trainable(rendered: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """The rows to train on in an epoch: `id`, `split`, `input_ids`, `labels` of those not dropped, truncated ones cut.

    `ledger` is `build_ledger` of `rendered`: one row for each of its rows, in the same order. A row occurs as often as
    an epoch uses it, in the order of `order_epoch`.
    """
    assert rendered["id"].equals(ledger["conversation"], check_names=False), "the ledger is of other conversations"
    left = pl.col("tokens") - pl.col("cut")
    columns = ledger.select("split", "outcome", "per_epoch", left.alias("left"))
    both = rendered.select("id", "input_ids", "labels").with_columns(columns)
    rows = both.filter(pl.col("outcome") != "dropped").select(
        *("id", "split", pl.col("input_ids").list.head(pl.col("left")), pl.col("labels").list.head(pl.col("left"))),
        "per_epoch",
    )
    order = order_epoch(rows["per_epoch"])
    return (rows if len(order) == rows.height else rows[order]).drop("per_epoch")


def order_epoch(per_epoch: pl.Series) -> pl.Series:
    """The places of the rows of an epoch: each row once, then those that are used again, and so on.

    The uses of a conversation are far apart, so that they are rarely in the same pack.

    >>> order_epoch(pl.Series([1, 3, 2])).to_list()
    [0, 1, 2, 1, 2, 1]
    """
    uses = pl.DataFrame(
        {"place": pl.int_range(len(per_epoch), eager=True), "use": pl.int_ranges(0, per_epoch, eager=True)}
    )
    return uses.explode("use").sort("use", "place")["place"]


def check_limits(ledger: pl.DataFrame, section: TrainSection, rebuild: LedgerBuilder) -> None:
    """Raise `TrainError` if more conversations are dropped or truncated than the recipe allows.

    The error gives their number, examples, and settings that would pass. `rebuild` computes the ledger under other
    recipes to find these settings.
    """
    too_long = ledger.filter(pl.col("code") == "too-long")
    if section.long == "refuse" and too_long.height:
        raise TrainError(
            f"{too_long.height:,} of {ledger.height:,} conversations are longer than max_length {section.max_length:,}"
            f" tokens: {_longest(too_long)}.",
            _suggest_settings(section, int(too_long.select(pl.max("tokens")).item()), rebuild),
        )
    exceeded = _exceeded_limits(ledger, section)
    for outcome in LIMITED_OUTCOMES:
        if f"max_{outcome}" in exceeded:
            what = _limit_message(ledger, outcome, getattr(section, f"max_{outcome}"))
            raise TrainError(what, f"Fix the data, or allow it: {_set_options(exceeded)}; curate plan shows details.")


def add_epoch_counts(ledger: pl.DataFrame, counts: Sequence[int]) -> pl.DataFrame:
    """The ledger after training, with `epoch_count`: how many times the steps trained on each row.

    `counts` has one number per row of `trainable`, whose uses are added; rows that were not trained on get null.
    """
    is_trained = ledger.select((pl.col("split") == "train") & (pl.col("outcome") != "dropped")).to_series()
    places = is_trained.cum_sum().cast(pl.Int64) - 1
    order = order_epoch(ledger.filter(is_trained)["per_epoch"])
    assert len(counts) == len(order), "the counts are of other conversations than those trained on"
    uses = pl.DataFrame({"place": order, "epoch_count": pl.Series(counts, dtype=pl.Int64)})
    values = uses.group_by("place").agg(pl.sum("epoch_count")).sort("place")["epoch_count"]
    return ledger.with_columns(epoch_count=values.gather(places.clip(0)).set(~is_trained, None))


def count_covered(ledger: pl.DataFrame) -> int:
    """The number of conversations that were trained on completely, in every window if split."""
    least = ledger.drop_nulls("epoch_count").group_by("conversation").agg(pl.min("epoch_count"))
    return int((least["epoch_count"] > 0).sum())


def coverage_metrics(ledger: pl.DataFrame) -> dict[str, float]:
    """Metrics of the manifest: conversations trained on completely and, if some were split, windows trained on."""
    trained = ledger.drop_nulls("epoch_count")
    counts = {CONVERSATIONS_SEEN: float(count_covered(ledger))}
    if trained["conversation"].is_unique().all():
        return counts
    return counts | {WINDOWS_SEEN: float((trained["epoch_count"] > 0).sum()), WINDOWS: float(trained.height)}


def _count_loss_tokens(labels: pl.Expr) -> pl.Expr:
    ignored = labels.list.count_matches(IGNORE_INDEX)
    return (labels.list.len().cast(pl.Int64) - ignored.cast(pl.Int64)).fill_null(0)


def _fitting_tokens(max_length: int) -> pl.Expr:
    """Tokens up to the end of the last trained answer that ends within `max_length`; null if none does."""
    ends = pl.col("stops").list.eval(pl.element().filter(pl.element() <= max_length))
    return ends.list.max().cast(pl.Int64)


def _code(section: TrainSection) -> pl.Expr:
    """Why a row is not trained as rendered: the first reason that applies, or null."""
    is_typed = pl.col("loss_specials").is_not_null() & pl.lit(section.special_text == "drop")
    return (
        pl.when(pl.col("problem").is_not_null())
        .then(pl.lit("unrendered"))
        .when(pl.col("all_loss_tokens") == 0)
        .then(pl.lit("no-loss-tokens"))
        .when(is_typed)
        .then(pl.lit("special-text"))
        .when(pl.col("tokens") > section.max_length)
        .then(pl.lit("too-long"))
        .when(pl.col("window").is_not_null())
        .then(pl.lit("windowed"))
    )


def _outcome(section: TrainSection) -> pl.Expr:
    is_too_long = pl.col("code") == "too-long"
    can_be_cut = pl.lit(section.long == "truncate") & is_too_long & pl.col("fitting").is_not_null()
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
    endings = {"truncate": ", and the first answer does not fit.", "split": ", and a single exchange is not split."}
    is_untrainable = pl.col("fitting").is_null() | pl.lit(section.long == "split")
    ending = pl.when(is_untrainable).then(pl.lit(endings.get(section.long, "."))).otherwise(pl.lit("."))
    place = {name: pl.col("place").struct.field(name) for name in ("number", "of", "first", "last", "total_tokens")}
    window = pl.format("Window {} of {}, turns {} to {} of a conversation of {} tokens", *place.values())
    part = pl.format(
        "Part {} of {} of a text of {} tokens", *(place[name] for name in ("number", "of", "total_tokens"))
    )
    is_text = is_text_window(pl.col("place"))
    container = pl.when(is_text).then(part).otherwise(pl.lit("An answer"))
    size = pl.format("It has {} tokens, max_length is {}", "tokens", pl.lit(section.max_length))
    sentences = {
        "unrendered": pl.col("problem"),
        "no-loss-tokens": pl.lit("No token contributes to the loss: no answer is trained."),
        "special-text": pl.format("{} contains text that is read as a special token: {}.", container, "loss_specials"),
        "too-long": pl.concat_str(size, ending),
        "windowed": pl.concat_str(pl.when(is_text).then(part).otherwise(window), pl.lit(".")),
    }
    return pl.coalesce([pl.when(pl.col("code") == code).then(sentence) for code, sentence in sentences.items()])


def _with_counts(rows: pl.DataFrame) -> pl.DataFrame:
    trained = (
        pl.when(pl.col("outcome").is_in(["kept", "split"]))
        .then("tokens")
        .when(pl.col("outcome") == "truncated")
        .then("fitting")
        .otherwise(pl.lit(0, pl.Int64))
    )
    counted = rows.with_columns(trained=trained)
    counted = counted.with_columns(loss_tokens=_count_loss_tokens(pl.col("labels").list.head(pl.col("trained"))))
    return counted.with_columns(
        cut=pl.col("tokens") - pl.col("trained"), loss_tokens_cut=pl.col("all_loss_tokens") - pl.col("loss_tokens")
    ).select(*LEDGER)


def _check_sums(ledger: pl.DataFrame, rendered: pl.DataFrame) -> None:
    """Assert that every row has an outcome, every token is trained or cut, and every loss has a reason."""
    rendered_tokens = int(rendered["input_ids"].list.len().sum())
    tokens, cut = (int(ledger[column].sum()) for column in ("tokens", "cut"))
    trained = int(ledger.filter(pl.col("outcome") != "dropped").select((pl.col("tokens") - pl.col("cut")).sum()).item())
    is_changed = pl.col("outcome") != "kept"
    assert ledger.height == rendered.height, "a conversation is missing in the ledger"
    assert ledger["outcome"].is_in(["kept", "split", "truncated", "dropped"]).all(), "a conversation has no outcome"
    assert rendered_tokens == tokens == trained + cut, "the ledger's tokens are not the rendered ones"
    assert ledger.filter(is_changed != pl.col("reason").is_not_null()).is_empty(), "an outcome and its reason differ"


def _exceeded_limits(ledger: pl.DataFrame, section: TrainSection) -> dict[str, str]:
    """The limits that are exceeded, each with the smallest share that passes."""
    total = _count_conversations(ledger)
    outcome = pl.col("outcome")
    counts = {f"max_{name}": _count_conversations(ledger.filter(outcome == name)) for name in LIMITED_OUTCOMES}
    return {
        limit: _share(count, total)
        for limit, count in counts.items()
        if count and count / total > getattr(section, limit)
    }


def _limit_message(ledger: pl.DataFrame, outcome: str, allowed: float) -> str:
    rows = ledger.filter(pl.col("outcome") == outcome)
    part = " in part" if rows["window"].is_not_null().any() else ""
    return (
        f"{_count_conversations(rows):,} of {_count_conversations(ledger):,} conversations would be {outcome}{part}, "
        f"max_{outcome} allows {allowed:g}: {_count_by_code(rows)}."
    )


def _count_conversations(ledger: pl.DataFrame) -> int:
    """The number of conversations: one per row, except for windows."""
    is_complete = pl.col("window").is_null()
    return ledger.filter(is_complete).height + int(ledger.filter(~is_complete)["conversation"].n_unique())


def _count_by_code(rows: pl.DataFrame) -> str:
    by_code = rows.sort("tokens", descending=True).group_by("code", maintain_order=True)
    split = pl.col("conversation").filter(pl.col("window").is_not_null()).n_unique()
    count = (pl.col("window").is_null().sum() + split).alias("count")
    counted = by_code.agg(count, pl.first("conversation"), pl.first("reason"))
    return "; ".join(
        f"{count:,} {code}, such as {conversation[:12]}: {reason.rstrip('.')}"
        for code, count, conversation, reason in counted.sort("count", descending=True, maintain_order=True).iter_rows()
    )


def _longest(too_long: pl.DataFrame) -> str:
    worst = too_long.sort("tokens", descending=True).head(SHOWN)
    return ", ".join(f"{name[:12]} has {tokens:,}" for name, tokens in worst.select("conversation", "tokens").rows())


def _suggest_settings(section: TrainSection, longest: int, rebuild: LedgerBuilder) -> str:
    """The settings that pass, each with the limits it needs; one that leaves nothing to train on is not listed."""
    settings: list[dict[str, Any]] = [
        {"max_length": longest},
        *({"long": long} for long in ("truncate", "drop", "split")),
    ]
    options = []
    for setting in settings:
        changed = section.model_copy(update=setting)
        ledger = rebuild(changed)
        if not ledger.filter((pl.col("split") == "train") & (pl.col("outcome") != "dropped")).is_empty():
            options.append(_set_options(setting | _exceeded_limits(ledger, changed)))
    return f"Use {', or '.join(options)}."


def _set_options(settings: Mapping[str, Any]) -> str:
    return " ".join(f"--set train.{key}={value}" for key, value in settings.items())


def _share(part: int, total: int) -> str:
    """The smallest share with four decimals that is at least `part / total`.

    >>> _share(3, 1000), _share(1, 3)
    ('0.003', '0.3334')
    """
    rounded = -(-part * 10_000 // total) / 10_000
    return f"{rounded:g}"
