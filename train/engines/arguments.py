"""The recipe's training section → arguments of TRL's `SFTConfig` and PEFT's `LoraConfig`, `train.extra` included.

Imported by an engine after its own packages, since Unsloth must be imported before TRL.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from trl import SFTConfig

from schemas.errors import TrainError
from schemas.recipe import TrainSection
from train.engines import Job
from train.engines.batch_size import BatchConfig

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_KEYS = (
    *("target_modules", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias"),
    *("init_lora_weights", "layers_to_transform"),
)
"""Keys of `train.extra` that belong to the adapter."""

BASE_CHANGING_INITS = ("loftq", "pissa", "olora", "corda", "lora_ga")
"""Values of `init_lora_weights` that move a part of the base model's weights into the adapter."""

RESERVED_KEYS = (
    *("dataloader_drop_last", "dataloader_in_order", "shuffle_dataset", "train_sampling_strategy", "padding_free"),
    *("auto_find_batch_size", "average_tokens_across_devices", "accelerator_config", "parallelism_config"),
    *("deepspeed", "fsdp", "fsdp_config", "full_determinism", "logging_strategy"),
    *("save_only_model", "ignore_data_skip", "resume_from_checkpoint", "restore_callback_states_from_checkpoint"),
    *("eval_strategy", "eval_on_start", "load_best_model_at_end"),
)
"""Arguments that `train.extra` cannot set: they decide which packs are trained, the packs per step, and resuming."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def sft_arguments(job: Job, batch_config: BatchConfig) -> SFTConfig:
    """The trainer's arguments: keys of the recipe, then defaults, overridden by `train.extra`.

    Raises `TrainError` for a key of `train.extra` that is unknown or reserved.
    """
    recipe = job.recipe
    fixed = {
        "output_dir": str(job.checkpoints),
        "max_length": recipe.max_length,
        "packing": recipe.packing,
        "eval_packing": False,
        "per_device_train_batch_size": batch_config.batch,
        "gradient_accumulation_steps": batch_config.accumulate,
        "learning_rate": recipe.learning_rate,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.steps or -1,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": 1,
        "report_to": find_trackers(recipe) or "none",
        "run_name": job.tensorboard.name if job.tensorboard else None,
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "fp16": torch.cuda.is_available() and not torch.cuda.is_bf16_supported(),
    }
    defaults = {"lr_scheduler_type": "linear", "warmup_steps": 0.03, "optim": "adamw_torch_fused"}
    of_model = (*LORA_KEYS, "gradient_checkpointing")  # used where the model is loaded
    extra = {key: value for key, value in recipe.extra.items() if key not in of_model}
    _check_extra(extra, fixed)
    if job.method == "full":
        _check_no_lora_keys(recipe)
    return SFTConfig(**fixed, gradient_checkpointing=bool(batch_config.checkpointing), **(defaults | extra))


def lora_arguments(recipe: TrainSection) -> dict[str, Any]:
    """The adapter's arguments: rank, alpha, every linear layer, overridden by `train.extra`.

    Raises `TrainError` for an initialisation that changes the base model's weights.
    """
    init_method = str(recipe.extra.get("init_lora_weights", True)).lower()
    if init_method.startswith(BASE_CHANGING_INITS):
        raise TrainError(
            f"train.extra.init_lora_weights = {init_method!r} changes the weights of the base model.",
            "The adapter would not fit the model in its manifest. Remove the key; use_rslora and use_dora are allowed.",
        )
    fixed = {"r": recipe.rank, "lora_alpha": recipe.alpha}
    defaults = {"target_modules": list(LINEAR_LAYERS), "lora_dropout": 0.0}
    return fixed | defaults | {key: recipe.extra[key] for key in LORA_KEYS if key in recipe.extra}


def find_trackers(recipe: TrainSection) -> list[str]:
    """The experiment trackers of the recipe; by default TensorBoard if it is installed.

    The others send data to a server, so they are used only if the recipe names them. Raises `TrainError` for one that
    is unknown or not installed.
    """
    if recipe.track is None:
        return ["tensorboard"] if find_spec("tensorboard") else []
    for name in recipe.track:
        if name not in TRACKERS:
            raise TrainError(f"There is no tracker called {name!r}.", f"Known: {', '.join(TRACKERS)} (train.track).")
        if not find_spec(name):
            raise TrainError(f"The tracker {name} is not installed.", f"pip install {name}")
    return list(recipe.track)


def _check_extra(extra: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    known = set(inspect.signature(SFTConfig).parameters)
    for key in extra:
        if key in fixed or key in RESERVED_KEYS:
            raise TrainError(
                f"train.extra.{key} is set by curate itself.", "Use the corresponding key of [train], or remove it."
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "See the arguments of TRL's SFTConfig."
            raise TrainError(f"train.extra.{key} is not an argument of the trainer.", hint)


def _check_no_lora_keys(recipe: TrainSection) -> None:
    for key in LORA_KEYS:
        if key in recipe.extra:
            raise TrainError(f"train.extra.{key} belongs to an adapter, and method full has none.", "Remove the key.")
