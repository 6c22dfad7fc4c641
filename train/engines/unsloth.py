"""Fits with Unsloth: on a GPU its fused kernels, on any other machine its own CPU backend. In: a `Job`. Out: a `Fit`.

Unsloth patches transformers, TRL and PEFT for the whole process, so it is imported first and meets nobody else's
engine there. Without a GPU it trains unpacked: its CPU attention would let packed conversations see each other.
"""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from schemas.environment import install_command
from schemas.errors import TrainError
from train.model.base_model import keep_trainable

if TYPE_CHECKING:
    from train.engines import Fit, Job
    from train.engines.batch_size import Checkpointing
    from train.engines.trainer import Loaded

QUIET = {
    "UNSLOTH_AUTO_INSTALL": "0",  # or exporting runs apt-get and clones llama.cpp without asking
    "UNSLOTH_DISABLE_STATISTICS": "1",  # or the import reports to its makers
}

FIXED = {
    "UNSLOTH_COMPILE_DISABLE": "1",  # compiled reductions are cut as the clock says, and then add up in another order
    "TORCHINDUCTOR_DETERMINISTIC": "1",  # where something is compiled all the same
}
"""What repeats bit for bit wants besides torch's own switch; read when Unsloth is imported."""


def fit(job: Job) -> Fit:
    """Train an adapter as `job` says and save it in `job.adapter`.

    Raises `TrainError` when Unsloth is missing, transformers was imported before it, or it would train on other
    tokens than it was given.
    """
    loaded = load(job)
    from train.engines.trainer import train

    return train(job, loaded)


def load(job: Job) -> Loaded:
    """The model with a fresh adapter, as it is trained. Raises `TrainError` as `fit` does."""
    unsloth = _import(deterministic=job.recipe.deterministic)
    from train.engines.trainer import Loaded, limit_memory, repeat_bit_for_bit

    limit_memory(job.recipe)
    repeat_bit_for_bit(job.recipe)
    model, tokenizer = _load(unsloth, job)
    on_gpu = _on_gpu()

    def switch(kind: Checkpointing) -> None:
        if on_gpu:  # where Unsloth itself looks, each time that it makes the model ready for training
            model._unsloth_gradient_checkpointing = kind
            model.for_training(use_gradient_checkpointing=kind)

    return Loaded(
        model=model,
        tokenizer=tokenizer,
        kinds=_kinds(job, on_gpu=on_gpu),
        switch=switch,
        settings={},
        facts={"attention": _attention()} if on_gpu else {},
        may_unpack=not on_gpu,
    )


def _load(unsloth: Any, job: Job) -> tuple[Any, Any]:
    """The base model with a fresh adapter, and its tokenizer."""
    import torch

    from train.engines.embeddings import embedding_arguments
    from train.engines.trainer import lora_arguments

    kind = _kinds(job, on_gpu=_on_gpu())[-1]
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(job.model),
        max_seq_length=job.recipe.max_length,
        dtype=None if _on_gpu() else torch.float32,  # 16 bits differ between CPUs, fp32 is the same on all
        load_in_4bit=job.method == "qlora",
        full_finetuning=job.method == "full",
        trust_remote_code=job.recipe.trust_remote_code,
        use_gradient_checkpointing=kind,
    )
    keep_trainable(model)
    if job.method == "full":
        return model, tokenizer
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        random_state=job.recipe.seed,
        use_gradient_checkpointing=kind,
        max_seq_length=job.recipe.max_length,
        **(lora_arguments(job.recipe) | embedding_arguments(job.recipe, model)),
    )
    return model, tokenizer


def _import(*, deterministic: bool = False) -> Any:
    os.environ.update(QUIET)
    if deterministic:
        os.environ.update(FIXED)
    if "unsloth" not in sys.modules and {"trl", "peft"} & sys.modules.keys():
        raise TrainError(
            "Unsloth has to be imported before trl and peft, and they are loaded in this process.",
            "Start `curate train` in a process of its own.",
        )
    try:
        _let_varlen_in()
        import unsloth
    except ImportError as error:
        raise TrainError(
            f"The engine unsloth cannot be imported: {error}.",
            f"{install_command('train')} and then unsloth, or use --engine transformers; curate doctor says more.",
        ) from error
    return unsloth


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _kinds(job: Job, *, on_gpu: bool) -> tuple[Checkpointing, ...]:
    """What the recipe says; else none or Unsloth's own on a GPU, and none where memory is the machine's own.

    Where the embedding is trained, plain checkpointing instead of its own: that moves the embedding to a pickle in the
    current folder, and what it was before could not be asked any more. Raises `TrainError` where the recipe says so.
    """
    embedding = job.recipe.embedding_learning_rate is not None and job.method != "full"
    written = job.recipe.extra.get("gradient_checkpointing")
    if embedding and written == "unsloth":
        raise TrainError(
            'gradient_checkpointing = "unsloth" moves the embedding away, and embedding_learning_rate trains it.',
            "Leave train.extra.gradient_checkpointing out.",
        )
    if written is not None:
        return (written,)
    return (False, True if embedding else "unsloth") if on_gpu else (False,)


def _let_varlen_in() -> None:
    """Make one attention call a pack, where torch has the kernel and only its front door looks different.

    Unsloth takes torch's varlen attention when that has the argument `enable_gqa`, new in torch 2.12. In 2.11 the
    kernel below shares keys and values between heads as well, and nothing asks for it; so there it is given the name.
    """
    from torch.nn.attention import varlen

    plain = varlen.varlen_attn
    named = inspect.signature(plain).parameters
    if "window_size" not in named or "enable_gqa" in named:
        return

    def varlen_attn(*given: Any, window_size: Any = (-1, -1), enable_gqa: bool = False, **rest: Any) -> Any:  # noqa: ARG001
        return plain(*given, window_size=window_size, **rest)

    varlen.varlen_attn = varlen_attn


def _attention() -> str:
    """How Unsloth attends within packs here: in one call a pack, or in one a conversation."""
    import torch
    from unsloth.utils import attention_dispatch as dispatch

    if torch.are_deterministic_algorithms_enabled():
        return "one call a conversation"
    if dispatch.HAS_FLASH_ATTENTION or dispatch.HAS_XFORMERS:
        return "flash-attn" if dispatch.HAS_FLASH_ATTENTION else "xformers"
    return "one call a conversation" if dispatch._TORCH_VARLEN_ATTN is None else "torch varlen"
