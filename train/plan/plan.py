"""A prepared version → the plan of its training: tokens, packs, steps, dropped and cut conversations."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from schemas.recipe import TrainSection
from schemas.timing import timed
from train.engines import ENGINES
from train.plan.pack_count import count_packs
from train.plan.preflight import find_refusal
from train.plan.prepare import PreparedVersion
from train.tokens.chat_template import PINNED_DATE
from train.tokens.ledger import order_epoch
from train.tokens.loss_mask import ChatRenderer
from train.tokens.render import MASK_POLICY

SHOWN = 10


@dataclass(frozen=True)
class Plan:
    """The size of a training run. Tokens and lengths are of the train split."""

    version: str
    version_digest: str
    model: str
    template: str
    template_digest: str
    tokenizer_digest: str
    mask_policy: str
    date: str  # the date in templates that print it
    generation_prompt: str
    end_of_turn: list[str]  # the tokens that end trained answers
    conversations: dict[str, int]  # by split
    split_conversations: int  # of these, those divided into windows
    outcomes: dict[str, int]  # rows of the ledger that are kept, split (with long = "split"), truncated, dropped
    repeats: (
        int  # rows of an epoch besides the first use of each, by the version's mix; tokens, packs and steps count them
    )
    tokens: int  # trained on in an epoch
    loss_tokens: int
    tokens_cut: int
    lengths: list[dict[str, Any]]  # histogram: up_to, conversations (a window counts as one)
    longest: int
    max_length: int
    packing: bool  # whether the run will pack; packs and fill are those with packing in any case
    packs: int
    fill: float  # share of the packs that contains tokens
    steps_per_epoch: int
    steps: int
    steps_unpacked: int  # without packing, as Unsloth trains on a CPU
    problems: list[dict[str, Any]]  # rows that are not kept, by code: code, conversations, example, reason
    too_long: list[dict[str, Any]]  # the longest of them: conversation, tokens, outcome
    warnings: dict[str, int]  # conversations that are trained on but have a peculiarity, by its name
    refusal: str | None  # why `curate train` would refuse
    hint: str | None


@timed("planning")
def plan(prepared: PreparedVersion, *, on_gpu: bool = True) -> Plan:
    """The plan for a machine with or without a GPU: some engines do not pack on a CPU."""
    section, ledger = prepared.section, prepared.ledger
    train = ledger.filter((pl.col("split") == "train") & (pl.col("outcome") != "dropped"))
    order = order_epoch(train["per_epoch"])
    lengths = train.select(pl.col("tokens") - pl.col("cut")).to_series()[order].to_list()
    packs = count_packs(lengths, section.max_length)
    engine = ENGINES.get(section.engine)
    packing = section.packing and (on_gpu or engine is None or engine.packs_on_cpu)
    per_epoch = _count_steps(packs if packing else len(lengths), section)
    refusal = find_refusal(prepared)
    return Plan(
        version=prepared.version.label,
        version_digest=prepared.version.digest,
        model=section.model,
        template=prepared.template.name,
        template_digest=prepared.template.digest,
        tokenizer_digest=prepared.tokenizer.digest,
        mask_policy=MASK_POLICY,
        date=f"{PINNED_DATE:%Y-%m-%d}",
        generation_prompt=ChatRenderer(prepared.template, prepared.tokenizer).generation_prompt,
        end_of_turn=_end_of_turn(prepared),
        conversations=dict(ledger.group_by("split").agg(pl.n_unique("conversation")).sort("split").rows()),
        split_conversations=ledger.filter(pl.col("window").is_not_null())["conversation"].n_unique(),
        outcomes={outcome: int((ledger["outcome"] == outcome).sum()) for outcome in _outcomes(section)},
        repeats=len(lengths) - train.height,
        tokens=sum(lengths),
        loss_tokens=int((train["loss_tokens"] * train["per_epoch"]).sum()),
        tokens_cut=int(ledger["cut"].sum()),
        lengths=_histogram(ledger.filter(pl.col("split") == "train")["tokens"], section.max_length),
        longest=int(ledger.select(pl.col("tokens").max().fill_null(0)).item()),
        max_length=section.max_length,
        packing=packing,
        packs=packs,
        fill=sum(lengths) / (packs * section.max_length) if packs else 0.0,
        steps_per_epoch=per_epoch,
        steps=section.steps or math.ceil(per_epoch * section.epochs),
        steps_unpacked=section.steps or math.ceil(_count_steps(len(lengths), section) * section.epochs),
        problems=_problems(ledger),
        too_long=_too_long(ledger),
        warnings=_warnings(prepared),
        refusal=refusal.what if refusal else None,
        hint=refusal.hint if refusal else None,
    )


def has_gpu() -> bool:
    """Whether torch would find a GPU, according to the driver: importing torch takes seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _outcomes(section: TrainSection) -> tuple[str, ...]:
    return ("kept", *(["split"] if section.long == "split" else []), "truncated", "dropped")


def _count_steps(sequences: int, section: TrainSection) -> int:
    """Optimizer steps per epoch; the last one may be smaller, as in transformers' Trainer."""
    return math.ceil(sequences / section.packs_per_step)


def _end_of_turn(prepared: PreparedVersion) -> list[str]:
    last = prepared.rendered.select(pl.col("input_ids").list.gather(pl.col("stops").cast(pl.List(pl.Int64)) - 1))
    ids = last.explode("input_ids").drop_nulls().to_series().unique().sort()
    return [prepared.tokenizer.backend.id_to_token(number) or "" for number in ids]


def _histogram(tokens: pl.Series, max_length: int) -> list[dict[str, Any]]:
    """The number of conversations by length, with limits that double; one more limit is `max_length`."""
    longest = int(tokens.max() or 0)  # type: ignore[arg-type]
    limits = sorted({2**power for power in range(5, max(longest, 1).bit_length() + 1)} | {max_length})
    bins, below = [], 0
    for limit in limits:
        up_to = int((tokens <= limit).sum())
        bins.append({"up_to": limit, "conversations": up_to - below})
        below = up_to
    return [entry for entry in bins if entry["conversations"]]


def _problems(ledger: pl.DataFrame) -> list[dict[str, Any]]:
    not_kept = ledger.filter(pl.col("outcome") != "kept").sort("tokens", descending=True)
    grouped = not_kept.group_by("outcome", "code", maintain_order=True).agg(
        pl.n_unique("conversation").alias("conversations"),
        pl.col("cut").sum().alias("tokens_cut"),
        pl.first("conversation").alias("example"),
        pl.first("reason"),
    )
    return grouped.sort("conversations", descending=True, maintain_order=True).to_dicts()


def _too_long(ledger: pl.DataFrame) -> list[dict[str, Any]]:
    longest = ledger.filter(pl.col("code") == "too-long").sort("tokens", descending=True).head(SHOWN)
    return longest.select("conversation", "tokens", "outcome", "cut").to_dicts()


def _warnings(prepared: PreparedVersion) -> dict[str, int]:
    trained = prepared.ledger.filter(pl.col("outcome") != "dropped").select(pl.col("conversation").alias("id"))
    rows = prepared.rendered.join(trained, on="id", how="semi")
    with_tools = prepared.members.filter(pl.col("tools").is_not_null()).join(trained, on="id", how="semi").height
    conditions = {
        "special tokens typed by a user": pl.col("context_specials").is_not_null(),
        "special tokens typed in an answer": pl.col("loss_specials").is_not_null(),
        "turns that the template omits": pl.col("omitted_turns").list.len() > 0,
        "tokens across the start of an answer": pl.col("crossing") > 0,
    }
    counts = {name: rows.filter(condition)["id"].n_unique() for name, condition in conditions.items()}
    if "tools" not in prepared.template.text:
        counts["tools that the template does not list"] = with_tools
    return {name: count for name, count in counts.items() if count}
