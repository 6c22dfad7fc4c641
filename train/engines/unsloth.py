"""The engine `unsloth`: loads a base model with Unsloth, whose fused kernels need a GPU; otherwise its CPU backend.

Unsloth patches transformers, TRL and PEFT for the process, so it is imported first and no other engine is used after
it. Without a GPU it trains unpacked: in its CPU attention packed conversations would attend to each other.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from schemas.environment import install_command
from schemas.errors import TrainError
from train.model.base_model import keep_trainable
from train.model.load_errors import wrap_load_errors

if TYPE_CHECKING:
    from train.engines import Job, Loaded
    from train.engines.batch_size import CheckpointingMode

DISABLED = {
    "UNSLOTH_AUTO_INSTALL": "0",  # otherwise exporting runs apt-get and clones llama.cpp without asking
    "UNSLOTH_DISABLE_STATISTICS": "1",  # otherwise the import sends usage statistics
}

DETERMINISTIC = {
    "UNSLOTH_COMPILE_DISABLE": "1",  # compiled reductions are split by measured time, which changes the order of sums
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # for the code that is compiled nevertheless
}
"""Needed for bit-identical runs in addition to torch's own switch; read when Unsloth is imported."""


def load(job: Job) -> Loaded:
    """The base model with a new adapter.

    Raises `TrainError` if Unsloth is not installed, or if trl or peft were imported before it in this process.
    """
    unsloth = import_unsloth(deterministic=job.recipe.deterministic)
    import torch

    from train.engines import Loaded
    from train.engines.arguments import lora_arguments
    from train.engines.embeddings import embedding_arguments
    from train.engines.torch_settings import apply_torch_settings

    apply_torch_settings(job.recipe)
    on_gpu = bool(torch.cuda.is_available())
    modes = checkpointing_modes(job, on_gpu=on_gpu)
    with wrap_load_errors(job.model):
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            str(job.model),
            max_seq_length=job.recipe.max_length,
            dtype=None if on_gpu else torch.float32,  # 16-bit results differ between CPUs, fp32 is the same on all
            load_in_4bit=job.method == "qlora",
            full_finetuning=job.method == "full",
            trust_remote_code=job.recipe.trust_remote_code,
            use_gradient_checkpointing=modes[-1],
        )
    keep_trainable(model)
    if job.method != "full":
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            random_state=job.recipe.seed,
            use_gradient_checkpointing=modes[-1],
            max_seq_length=job.recipe.max_length,
            **(lora_arguments(job.recipe) | embedding_arguments(job.recipe, model)),
        )

    def set_checkpointing(mode: CheckpointingMode) -> None:
        if on_gpu:  # Unsloth reads the attribute each time that it prepares the model for training
            model._unsloth_gradient_checkpointing = mode
            model.for_training(use_gradient_checkpointing=mode)

    return Loaded(model, tokenizer, modes, set_checkpointing, {"attention": _attention()} if on_gpu else {})


def import_unsloth(*, deterministic: bool = False) -> Any:
    """The module `unsloth`, imported without its installer and its statistics. Raises `TrainError` as `load` does."""
    os.environ.update(DISABLED)
    if deterministic:
        os.environ.update(DETERMINISTIC)
    if "unsloth" not in sys.modules and {"trl", "peft"} & sys.modules.keys():
        raise TrainError(
            "Unsloth must be imported before trl and peft, which are already loaded in this process.",
            "Run `curate train` in its own process.",
        )
    try:
        _enable_varlen_attention()
        import unsloth
    except ImportError as error:
        raise TrainError(
            f"The engine unsloth cannot be imported: {error}.",
            f"{install_command('train')} and then unsloth, or use --engine transformers; see curate doctor.",
        ) from error
    return unsloth


def checkpointing_modes(job: Job, *, on_gpu: bool) -> tuple[CheckpointingMode, ...]:
    """The gradient checkpointing modes to try: the recipe's, else none and then Unsloth's on a GPU, none on a CPU.

    If the embedding is trained, plain checkpointing replaces Unsloth's, which moves the embedding to a pickle in the
    current folder, so that the base model's loss could not be computed. Raises `TrainError` if the recipe sets it.
    """
    embedding = job.recipe.embedding_learning_rate is not None and job.method != "full"
    configured = job.recipe.extra.get("gradient_checkpointing")
    if embedding and configured == "unsloth":
        raise TrainError(
            'gradient_checkpointing = "unsloth" moves the embedding away, but embedding_learning_rate trains it.',
            "Remove train.extra.gradient_checkpointing.",
        )
    if configured is not None:
        return (configured,)
    return (False, True if embedding else "unsloth") if on_gpu else (False,)


def _enable_varlen_attention() -> None:
    """Let Unsloth use torch 2.11's attention over whole packs, whose function lacks only an argument name.

    Unsloth uses torch's varlen attention if it has the argument `enable_gqa`, added in torch 2.12. The kernel in 2.11
    shares keys and values between heads as well, but needs no argument for it, so the argument is added here.
    """
    from torch.nn.attention import varlen

    original = varlen.varlen_attn
    parameters = inspect.signature(original).parameters
    if "window_size" not in parameters or "enable_gqa" in parameters:
        return

    def varlen_attn(*args: Any, window_size: Any = (-1, -1), enable_gqa: bool = False, **kwargs: Any) -> Any:  # noqa: ARG001
        return original(*args, window_size=window_size, **kwargs)

    varlen.varlen_attn = varlen_attn


def _attention() -> str:
    """How Unsloth computes attention within a pack here: in one call per pack, or in one per conversation."""
    import torch
    from unsloth.utils import attention_dispatch as dispatch

    if torch.are_deterministic_algorithms_enabled():
        return "one call a conversation"
    if dispatch.HAS_FLASH_ATTENTION or dispatch.HAS_XFORMERS:
        return "flash-attn" if dispatch.HAS_FLASH_ATTENTION else "xformers"
    return "one call a conversation" if dispatch._TORCH_VARLEN_ATTN is None else "torch varlen"
