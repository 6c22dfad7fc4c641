"""What every engine does with TRL's trainer: its arguments, the proof of its tokens, the size of a pass, the fit.

Imported by an engine after its own libraries, since the order of imports matters to them.
"""

from __future__ import annotations

import difflib
import gc
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines import Fit, Job
from train.engines.batch_probe import enough_rows, measure
from train.engines.batch_size import (
    Checkpointing,
    Measured,
    MemoryFullError,
    Size,
    fastest,
    measure_sizes,
    recall,
    remember,
    written_size,
)
from train.engines.callbacks import Watch, stopping_gently
from train.engines.distributed import is_sharded, rank, world
from train.engines.embeddings import embedding_facts, embedding_of_base, keep_in_32_bits, set_embedding_rate
from train.engines.epoch_counts import steps_of_epoch, times_seen
from train.engines.evaluation import held_out_loss, take_best
from train.model.checkpoints import mark_complete, step_of
from train.tokens.labels import IGNORE_INDEX
from train.tokens.template_parity import check_samples

logger = logging.getLogger(__name__)

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_KEYS = (
    *("target_modules", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias"),
    *("init_lora_weights", "layers_to_transform"),
)
CHANGING = ("loftq", "pissa", "olora", "corda", "lora_ga")
"""Beginnings that take a part out of the base model and put it into the adapter."""

OURS = (*LORA_KEYS, "gradient_checkpointing")
"""Keys of `train.extra` that are not the trainer's: the adapter's, and one that the size of a pass decides."""

KEPT = (
    *("dataloader_drop_last", "dataloader_in_order", "shuffle_dataset", "train_sampling_strategy", "padding_free"),
    *("auto_find_batch_size", "average_tokens_across_devices", "accelerator_config", "parallelism_config"),
    *("deepspeed", "fsdp", "fsdp_config", "full_determinism", "logging_strategy"),
    *("save_only_model", "ignore_data_skip", "resume_from_checkpoint", "restore_callback_states_from_checkpoint"),
    *("eval_strategy", "eval_on_start", "load_best_model_at_end"),
)
"""Keys of the trainer that stay as they are: which packs are trained, how many a step, and where a run goes on."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its adapter, as an engine hands it over.

    `kinds` are the kinds of checkpointing to try, the fastest first and the one that needs least memory last; `switch`
    puts the model into one of them. `settings` are the engine's own arguments of the trainer, `facts` go into the
    manifest.
    """

    model: Any
    tokenizer: Any
    kinds: Sequence[Checkpointing]
    switch: Callable[[Checkpointing], None]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    may_unpack: bool


def limit_memory(recipe: TrainSection) -> None:
    """Keep this process within the recipe's share of the GPU. Raises `TrainError` where there is not so much."""
    if recipe.max_memory is None or not torch.cuda.is_available():
        return
    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
    if recipe.max_memory > there:
        raise TrainError(
            f"max_memory is {recipe.max_memory:g} GiB, the GPU has {there:.1f}.", "Leave train.max_memory out."
        )
    torch.cuda.set_per_process_memory_fraction(recipe.max_memory / there)


def repeat_bit_for_bit(recipe: TrainSection) -> None:
    """With `deterministic`, let torch take only kernels that add up in a fixed order. Before the first use of CUDA."""
    if not recipe.deterministic:
        return
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over every new tensor, changes no bit
    torch.backends.cudnn.benchmark = False


def lora_arguments(recipe: TrainSection) -> dict[str, Any]:
    """The adapter's own arguments: rank, alpha, every linear layer, and what `train.extra` says of them.

    Raises `TrainError` for a beginning that changes the base model's weights too.
    """
    beginning = str(recipe.extra.get("init_lora_weights", True)).lower()
    if beginning.startswith(CHANGING):
        raise TrainError(
            f"train.extra.init_lora_weights = {beginning!r} changes the base model's own weights as it begins.",
            "The adapter would not fit the model that its manifest names. Leave it out; use_rslora and use_dora do.",
        )
    named = {"r": recipe.rank, "lora_alpha": recipe.alpha}
    free = {"target_modules": list(LINEAR_LAYERS), "lora_dropout": 0.0}
    return named | free | {key: recipe.extra[key] for key in LORA_KEYS if key in recipe.extra}


def arguments(job: Job, engine: Mapping[str, Any], size: Size | None = None) -> SFTConfig:
    """The trainer's arguments: the recipe's knobs, the engine's own over them, then `train.extra`.

    Raises `TrainError` for a key of `train.extra` that is unknown, or that would undo what the run promises.
    """
    recipe, size = job.recipe, size or written_size(job.recipe, world(), checkpointing=False)
    named = {
        "output_dir": str(job.checkpoints),
        "max_length": recipe.max_length,
        "packing": recipe.packing,
        "eval_packing": False,
        "per_device_train_batch_size": size.batch,
        "gradient_accumulation_steps": size.accumulate,
        "learning_rate": recipe.learning_rate,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.steps or -1,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": 1,
        "report_to": trackers(recipe) or "none",
        "run_name": job.board.name if job.board else None,
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "fp16": torch.cuda.is_available() and not torch.cuda.is_bf16_supported(),
    }
    free = {"lr_scheduler_type": "linear", "warmup_steps": 0.03, "optim": "adamw_torch_fused", **engine}
    extra = {key: value for key, value in recipe.extra.items() if key not in OURS}
    _check_extra(extra, named)
    _check_adapter_keys(job)
    return SFTConfig(**named, **(free | extra))


def trackers(recipe: TrainSection) -> list[str]:
    """Where losses are shown besides our own lines: what the recipe names, else TensorBoard if it is installed.

    The others send to a server, so they are never switched on by being installed. Raises `TrainError` for one that is
    unknown or missing.
    """
    if recipe.track is None:
        return ["tensorboard"] if find_spec("tensorboard") else []
    for name in recipe.track:
        if name not in TRACKERS:
            raise TrainError(f"There is no tracker called {name!r}.", f"Known: {', '.join(TRACKERS)} (train.track).")
        if not find_spec(name):
            raise TrainError(f"The tracker {name} is not installed.", f"pip install {name}")
    return list(recipe.track)


def _check_extra(extra: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    known = set(inspect.signature(SFTConfig).parameters)
    for key in extra:
        if key in named or key in KEPT:
            raise TrainError(
                f"train.extra.{key} is set by curate itself.", "Use the key of [train] that stands for it, or leave it."
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "It is none of TRL's SFTConfig."
            raise TrainError(f"train.extra.{key} is no argument of the trainer.", hint)


def _check_adapter_keys(job: Job) -> None:
    named = [key for key in LORA_KEYS if key in job.recipe.extra]
    if named and job.method == "full":
        raise TrainError(f"train.extra.{named[0]} is of an adapter, and method full has none.", "Leave it out.")


def train(job: Job, loaded: Loaded) -> Fit:
    """Settle the size of a pass, train from the start or from `job.resume`, save the adapter, measure. The one way."""
    if job.samples is not None:
        check_samples(job.samples, loaded.tokenizer)
    untouched = _untouched_loss(job, loaded) if job.method == "full" else None
    trial = _trial(job, loaded)
    size = job.size or (fastest(trial) if trial else written_size(job.recipe, world(), loaded.kinds[-1]))
    measured = [found.as_json() for found in trial]
    job.settled(size, None, measured)
    while True:
        fitted = _run(job, loaded, size)
        if not isinstance(fitted, _Full):
            break
        size, job = _step_down(job, loaded, size, fitted)
        job.settled(size, {"step": fitted.step, "batch": size.batch, "accumulate": size.accumulate}, ())
    facts = _facts(job, loaded, fitted, size) | {"gpus": world()}
    metrics = _settle(job, fitted, untouched)
    epochs, seen = _seen(job, fitted, size, int(metrics.get("best_step", fitted.trainer.state.global_step)))
    return Fit(metrics | {"epochs": epochs}, facts, seen)


def _untouched_loss(job: Job, loaded: Loaded) -> float:
    """The held-out loss before anything is trained; several processes meet where the trainer's arguments are made."""
    arguments(job, loaded.settings)
    return held_out_loss(loaded.model, job.held_out)


@dataclass(frozen=True, slots=True)
class _Full:
    """A run that ended because the GPU's memory was full: the last step that was done, and the losses up to it."""

    step: int
    checkpoint: Path | None
    evaluations: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class _Done:
    """A run that came to its end; `sequences` is how many it went through in an epoch."""

    trainer: SFTTrainer
    watch: Watch
    sequences: int


def _trial(job: Job, loaded: Loaded) -> list[Measured]:
    """What the sizes measured here or remembered from before; nothing where the recipe or a repeated run says one."""
    if job.recipe.batch != "auto" or job.size is not None or not torch.cuda.is_available() or is_sharded():
        return []
    known = recall(job.trial) if job.trial else None
    if known is not None:
        return known
    logger.info("Measuring how large a pass is the fastest …")
    smallest = written_size(job.recipe, world(), loaded.kinds[-1])
    trainer, _ = make_trainer(job, loaded, smallest, enough_rows(job.rows, job.recipe))
    measured = measure_sizes(
        job.recipe, world(), loaded.kinds, lambda size: _agreed(measure(trainer, size, loaded.switch))
    )
    if job.trial and rank() == 0:
        remember(job.trial, measured)
    return measured


def _agreed(measured: Measured) -> Measured:
    """What the first process measured: all of them have to go on alike."""
    if world() > 1:
        box = [measured]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]
    return measured


def _run(job: Job, loaded: Loaded, size: Size) -> _Done | _Full:
    """Train with one size. Running out of memory is an answer; being stopped is a KeyboardInterrupt."""
    loaded.switch(size.checkpointing)
    trainer, watch = make_trainer(job, loaded, size, job.rows)
    _check_tokens(job.rows, trainer.train_dataset)
    sequences = len(trainer.train_dataset)
    share_evenly(trainer, job, size)
    try:
        with stopping_gently(watch):
            trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    except torch.OutOfMemoryError as error:
        if world() > 1:  # the others wait for this one: all end, and are started again from the last checkpoint
            step = trainer.state.global_step
            raise MemoryFullError(size, _smaller(loaded, size), step, job.recipe.max_length) from error
    else:
        if watch.stopped:
            raise KeyboardInterrupt
        return _Done(trainer, watch, sequences)
    return _Full(trainer.state.global_step, _saved_at_last_step(trainer, job), watch.evaluations)


def _saved_at_last_step(trainer: SFTTrainer, job: Job) -> Path | None:
    """The checkpoint of the last step that was done; memory filled up within the step after it."""
    step = trainer.state.global_step
    checkpoint = job.checkpoints / f"checkpoint-{step}"
    if not step or checkpoint.exists():
        return checkpoint if step else None
    trainer.model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    trainer._save_checkpoint(trainer.model, trial=None)
    mark_complete(checkpoint)
    return checkpoint


def _step_down(job: Job, loaded: Loaded, size: Size, full: _Full) -> tuple[Size, Job]:
    """The same steps in smaller passes, from the last step on. Raises `TrainError` where nothing is left to give."""
    gc.collect()
    torch.cuda.empty_cache()
    error = MemoryFullError(size, _smaller(loaded, size), full.step, job.recipe.max_length)
    if error.smaller is None:
        raise error
    logger.info("%s", error.sentence)
    return error.smaller, replace(job, resume=full.checkpoint or job.resume, evaluations=full.evaluations)


def _smaller(loaded: Loaded, size: Size) -> Size | None:
    """The same step in less memory, as far as this engine can give some; None where nothing is left."""
    smaller = size.halved()
    if smaller is not None and smaller.checkpointing and not size.checkpointing:
        return replace(smaller, checkpointing=loaded.kinds[-1]) if loaded.kinds[-1] else None
    return smaller


def make_trainer(job: Job, loaded: Loaded, size: Size, rows: pl.DataFrame) -> tuple[SFTTrainer, Watch]:
    """TRL's trainer on these rows, packed as the recipe says, and what watches over it."""
    if job.board is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(job.board)
    watch = Watch(job, tokens=_weigh(rows).tokens, save=lambda folder: save(loaded.model, folder))
    settings = arguments(job, {**loaded.settings, "gradient_checkpointing": bool(size.checkpointing)}, size)
    trainer = SFTTrainer(
        model=loaded.model,
        args=settings,
        train_dataset=_dataset(rows),
        processing_class=loaded.tokenizer,
        callbacks=[watch],
    )
    if job.recipe.embedding_learning_rate is not None:
        if job.method != "full":
            keep_in_32_bits(trainer.model)
        set_embedding_rate(trainer, job.recipe.embedding_learning_rate)
    watch.log = trainer.log
    trainer.remove_callback(PrinterCallback)
    check_packing(trainer, wanted=job.recipe.packing, may_unpack=loaded.may_unpack)
    return trainer, watch


def share_evenly(trainer: SFTTrainer, job: Job, size: Size) -> None:
    """Let several processes go through the sequences in the order of one, each sequence once.

    Accelerate would give the last ones to two processes. Here filler takes their place behind the last: two tokens
    that are not learned, which add nothing to the sums of a step.
    """
    if world() == 1:
        return
    count = len(trainer.train_dataset)
    filler = -count % (size.batch * world())
    order = SeedableRandomSampler(range(count), data_seed=job.recipe.seed)
    if job.resume is not None:  # the trainer says it through two wrappers, and resuming puts on a third
        order.set_epoch(step_of(job.resume) // -(-count // (size.batch * size.accumulate * world())))
    if filler:
        row = {name: [2] if name == "seq_lengths" else [0, 0] for name in trainer.train_dataset.column_names}
        rows = Dataset.from_list(
            [row | {"labels": [IGNORE_INDEX] * 2}] * filler, features=trainer.train_dataset.features
        )
        trainer.train_dataset = concatenate_datasets([trainer.train_dataset, rows])
    sampler = InOrder(order, filler)
    trainer._get_train_sampler = lambda *_: sampler  # a RandomSampler would be replaced by one without filler


class InOrder(torch.utils.data.Sampler):  # type: ignore[misc]
    """The order of a sampler, then the numbers that follow, in every epoch."""

    def __init__(self, order: SeedableRandomSampler, filler: int) -> None:
        self.order, self.filler = order, filler

    def __len__(self) -> int:
        return len(self.order) + self.filler

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from range(len(self.order), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew, as Accelerate asks for before each epoch."""
        self.order.set_epoch(epoch)


def save(model: Any, folder: Path) -> None:
    """Write the adapter as safetensors: the first process alone where each has all of it, else all together."""
    if rank() == 0 or is_sharded():
        model.save_pretrained(folder, safe_serialization=True)


def _settle(job: Job, done: _Done, untouched: float | None) -> dict[str, float]:
    """Save the adapter, the best one where held-out losses were taken on the way, and say what was measured."""
    model = done.trainer.model
    save(model, job.adapter)  # first: weights that were sharded no longer say that they train once the adapter was off
    losses = _losses(model, job.held_out, untouched)
    best = take_best(done.watch.best, job.adapter, losses["eval_loss"]) if done.watch.evaluations else None
    if best is None:
        return losses
    return losses | {"eval_loss": best[1], "best_step": float(best[0]), "last_eval_loss": losses["eval_loss"]}


def _seen(job: Job, done: _Done, size: Size, steps: int) -> tuple[float, list[int]]:
    """The epochs that so many steps make, and how often they saw each of the job's rows."""
    a_step = size.batch * size.accumulate * world()
    sequences = done.trainer.train_dataset.select(range(done.sequences)).to_polars()  # without filler
    seen = times_seen(job.rows, sequences, a_step, steps, job.recipe.seed)
    return steps / steps_of_epoch(done.sequences, a_step), seen.to_list()


def _facts(job: Job, loaded: Loaded, done: _Done, size: Size) -> dict[str, Any]:
    """What was really done, where the recipe leaves it open or the engine decides otherwise."""
    trainer = done.trainer
    trained = [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    adapter = [parameter for name, parameter in trained if "lora_" in name] or [parameter for _, parameter in trained]
    return {
        "method": job.method,
        "packing": is_packed(trainer),
        "sequences": done.sequences,
        "trainable_parameters": sum(parameter.numel() for _, parameter in trained),
        "adapter_dtype": str(adapter[0].dtype).removeprefix("torch."),
        "base_dtype": str(embedding_of_base(trainer.model).weight.dtype).removeprefix("torch."),
        "optimizer": str(trainer.args.optim).rsplit(".", 1)[-1].lower(),
        "schedule": str(trainer.args.lr_scheduler_type).rsplit(".", 1)[-1].lower(),
        "target_modules": [] if job.method == "full" else sorted(trainer.model.peft_config["default"].target_modules),
        "batch": size.batch,
        "accumulate": size.accumulate,
        "checkpointing": size.checkpointing,
        **({"embedding": embedding_facts(trainer)} if job.recipe.embedding_learning_rate is not None else {}),
        **loaded.facts,
    }


def _dataset(rows: pl.DataFrame) -> Dataset:
    """One conversation per row as `input_ids` and `labels`: the form in which TRL keeps their boundaries."""
    kinds = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_polars(rows.select("input_ids", "labels")).cast(kinds)


def is_packed(trainer: SFTTrainer) -> bool:
    """Whether several conversations share a sequence, and their lengths are known."""
    return bool(trainer.args.packing) and "seq_lengths" in trainer.train_dataset.column_names


def check_packing(trainer: SFTTrainer, *, wanted: bool, may_unpack: bool) -> None:
    """Raises `TrainError` when packing was wanted, is off, and the engine has no reason for that."""
    if wanted and not may_unpack and not is_packed(trainer):
        raise TrainError(
            "Packing was switched off by the trainer without a word.",
            "Look at train.extra for a data collator or metrics; or set train.packing=false.",
        )


@dataclass(frozen=True, slots=True)
class _Weight:
    """What must be the same on both sides of the trainer: how much there is, sums of ids, and of squared lengths.

    The last is another one as soon as two conversations are taken for one, or one for two.
    """

    conversations: int
    tokens: int
    learned: int
    ids: int
    learned_ids: int
    squares: int


def _weigh(rows: pl.DataFrame) -> _Weight:
    learned = pl.col("labels").filter(pl.col("labels") != IGNORE_INDEX)
    sums = rows.select(pl.col("input_ids", "labels").explode().cast(pl.Int64)).select(
        pl.len().alias("tokens"),
        learned.len().alias("learned"),
        pl.col("input_ids").sum().alias("ids"),
        learned.sum().alias("learned_ids"),
    )
    packed = "seq_lengths" in rows.columns
    lengths = (rows["seq_lengths"].explode() if packed else rows["input_ids"].list.len()).cast(pl.Int64)
    return _Weight(conversations=len(lengths), squares=int((lengths * lengths).sum()), **sums.row(0, named=True))


def _check_tokens(handed_over: pl.DataFrame, dataset: Dataset) -> None:
    """Raises `TrainError` when the trainer's dataset has other tokens, labels or borders than it was given."""
    given, taken = _weigh(handed_over), _weigh(dataset.to_polars())
    if given != taken:
        raise TrainError(
            f"The trainer would not train on what it was given: {given.conversations:,} conversations of "
            f"{given.tokens:,} tokens with {given.learned:,} learned went in, {taken.conversations:,} of "
            f"{taken.tokens:,} with {taken.learned:,} arrived.",
            "Something of the trainer truncates, drops or joins conversations; look at train.extra and max_length.",
        )


def _losses(model: Any, held_out: pl.DataFrame, untouched: float | None) -> dict[str, float]:
    """The held-out loss with the adapter and without it; empty when nothing was held out.

    `untouched` is the latter where all weights were trained, so that it had to be taken before.
    """
    if held_out.is_empty():
        return {}
    logger.info("Measuring the loss on %s held-out rows …", f"{held_out.height:,}")
    before = untouched
    if before is None:
        with model.disable_adapter():
            before = held_out_loss(model, held_out)
    return {"eval_loss": held_out_loss(model, held_out), "eval_loss_base": before}
