"""What every engine does with TRL's trainer: its arguments, the proof of its tokens, checkpoints, the held-out loss.

Imported by an engine after its own libraries, since the order of imports matters to them.
"""

from __future__ import annotations

import difflib
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset, Features, List, Value
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.checkpointing import mark_complete
from train.engines import Fit, Job, Step

UNLEARNED = -100
"""The label of a token that is seen and not learned, by the convention of torch's cross entropy."""

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_KEYS = ("target_modules", "lora_dropout", "use_rslora", "modules_to_save", "bias")


def lora_arguments(recipe: TrainSection) -> dict[str, Any]:
    """The adapter's own arguments: rank, alpha, every linear layer, and what `train.extra` says of them."""
    named = {"r": recipe.rank, "lora_alpha": recipe.alpha}
    free = {"target_modules": list(LINEAR_LAYERS), "lora_dropout": 0.0}
    return named | free | {key: recipe.extra[key] for key in LORA_KEYS if key in recipe.extra}


def arguments(job: Job, engine: Mapping[str, Any]) -> SFTConfig:
    """The trainer's arguments: the recipe's knobs, the engine's own over them, then `train.extra`.

    Raises `TrainError` for a key of `train.extra` that is unknown, or that would undo what the run promises.
    """
    recipe = job.recipe
    named = {
        "output_dir": str(job.checkpoints),
        "max_length": recipe.max_length,
        "packing": recipe.packing,
        "eval_packing": False,
        "per_device_train_batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulate,
        "learning_rate": recipe.learning_rate,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.steps or -1,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "fp16": torch.cuda.is_available() and not torch.cuda.is_bf16_supported(),
    }
    free = {"lr_scheduler_type": "linear", "warmup_steps": 0.03, "optim": "adamw_torch_fused", **engine}
    extra = {key: value for key, value in recipe.extra.items() if key not in (*LORA_KEYS, "gradient_checkpointing")}
    _check_extra(extra, named)
    return SFTConfig(**named, **(free | extra))


def _check_extra(extra: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    known = set(inspect.signature(SFTConfig).parameters)
    for key in extra:
        if key in named:
            raise TrainError(
                f"train.extra.{key} is set by curate itself.", "Use the key of [train] that stands for it, or leave it."
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "It is none of TRL's SFTConfig."
            raise TrainError(f"train.extra.{key} is no argument of the trainer.", hint)


def train(job: Job, model: Any, tokenizer: Any, settings: SFTConfig, *, may_unpack: bool) -> Fit:
    """Run the trainer from the start or from `job.resume`, save the adapter, measure. The one way through."""
    watch = _Watch(job, tokens=_weigh(job.rows).tokens)
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=_dataset(job.rows), processing_class=tokenizer, callbacks=[watch]
    )
    trainer.remove_callback(PrinterCallback)
    packed = _check_packing(trainer, wanted=job.recipe.packing, may_unpack=may_unpack)
    _check_tokens(job.rows, trainer.train_dataset)
    try:
        trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"The GPU's memory is full at batch {job.recipe.batch} and max_length {job.recipe.max_length}.",
            f"--set train.batch={max(1, job.recipe.batch // 2)} --set train.accumulate={job.recipe.accumulate * 2}",
        ) from error
    trainer.model.save_pretrained(job.adapter, safe_serialization=True)
    return Fit(metrics=_losses(trainer.model, job.held_out), facts=_facts(job, trainer, packed=packed))


def _facts(job: Job, trainer: SFTTrainer, *, packed: bool) -> dict[str, Any]:
    """What was really done, where the recipe leaves it open or the engine decides otherwise."""
    trained = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    return {
        "method": job.method,
        "packing": packed,
        "sequences": len(trainer.train_dataset),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "adapter_dtype": str(trained.dtype).removeprefix("torch."),
        "base_dtype": str(trainer.model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "optimizer": str(trainer.args.optim).rsplit(".", 1)[-1].lower(),
        "schedule": str(trainer.args.lr_scheduler_type).rsplit(".", 1)[-1].lower(),
        "target_modules": sorted(trainer.model.peft_config["default"].target_modules),
        "batch": trainer.args.per_device_train_batch_size,
        "accumulate": trainer.args.gradient_accumulation_steps,
    }


def _dataset(rows: pl.DataFrame) -> Dataset:
    """One conversation per row as `input_ids` and `labels`: the form in which TRL keeps their boundaries."""
    kinds = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_polars(rows.select("input_ids", "labels")).cast(kinds)


def _check_packing(trainer: SFTTrainer, *, wanted: bool, may_unpack: bool) -> bool:
    """Whether packing is on. Raises `TrainError` when it was wanted, is off, and the engine has no reason for that."""
    packed = bool(trainer.args.packing) and "seq_lengths" in trainer.train_dataset.column_names
    if wanted and not packed and not may_unpack:
        raise TrainError(
            "Packing was switched off by the trainer without a word.",
            "Look at train.extra for a data collator or metrics; or set train.packing=false.",
        )
    return packed


@dataclass(frozen=True, slots=True)
class _Weight:
    """What must be the same on both sides of the trainer: tokens, learned tokens, and the sums of their ids."""

    tokens: int
    learned: int
    ids: int
    learned_ids: int


def _weigh(rows: pl.DataFrame) -> _Weight:
    flat = rows.select(pl.col("input_ids", "labels").explode().cast(pl.Int64))
    learned = pl.col("labels").filter(pl.col("labels") != UNLEARNED)
    sums = flat.select(
        pl.len(), learned.len().alias("learned"), pl.col("input_ids").sum(), learned.sum().alias("learned_ids")
    )
    return _Weight(*sums.row(0))


def _check_tokens(handed_over: pl.DataFrame, dataset: Dataset) -> None:
    """Raises `TrainError` when the trainer's dataset has other tokens or labels than it was given."""
    given, taken = _weigh(handed_over), _weigh(dataset.to_polars())
    if given != taken:
        raise TrainError(
            f"The trainer would not train on what it was given: {given.tokens:,} tokens with {given.learned:,} learned "
            f"went in, {taken.tokens:,} with {taken.learned:,} arrived.",
            "Something of the trainer truncates or drops conversations; look at train.extra and train.max_length.",
        )


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports every step, marks whole checkpoints, and leaves out the one after the last step."""

    def __init__(self, job: Job, tokens: int) -> None:
        self.job = job
        self.tokens = tokens
        self.started = 0.0
        self.epoch = 0.0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The clock starts here: what came before was loading, or another process."""
        self.started, self.epoch = time.monotonic(), state.epoch or 0.0

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint of the last step is of no use: resuming from it would train one step more."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Tell the caller how far the run is."""
        if "loss" not in logs:
            return
        self.job.report(
            Step(
                step=state.global_step,
                steps=state.max_steps,
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                gradient_norm=float(logs.get("grad_norm", 0.0)),
                tokens=round(self.tokens * (state.epoch - self.epoch)),
                seconds=time.monotonic() - self.started,
            )
        )

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """The checkpoint's files are all written: say so, in a file that appears at once or not at all."""
        mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _losses(model: Any, held_out: pl.DataFrame) -> dict[str, float]:
    """The held-out loss with the adapter and without it; empty when nothing was held out."""
    if held_out.is_empty():
        return {}
    model.eval()
    with model.disable_adapter():
        before = held_out_loss(model, held_out)
    return {"eval_loss": held_out_loss(model, held_out), "eval_loss_base": before}


def held_out_loss(model: Any, rows: pl.DataFrame) -> float:
    """The mean loss per learned token of `rows`, in nats; every token counts the same, long conversations or short.

    One conversation at a time, in a loop: each has a length of its own, and what is not padded cannot leak.
    """
    device = next(model.parameters()).device
    total, learned = 0.0, 0
    for ids, labels in rows.select("input_ids", "labels").iter_rows():
        tokens = sum(label != UNLEARNED for label in labels[1:])  # nothing comes before the first token
        if not tokens:
            continue
        batch = {"input_ids": torch.tensor([ids], device=device), "labels": torch.tensor([labels], device=device)}
        with torch.no_grad():
            total += model(**batch, use_cache=False).loss.item() * tokens
        learned += tokens
    return total / max(learned, 1)
