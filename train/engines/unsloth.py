"""Fits with Unsloth: on a GPU its fused kernels, on any other machine its own CPU backend. In: a `Job`. Out: a `Fit`.

Unsloth patches transformers, TRL and PEFT for the whole process, so it is imported first and meets nobody else's
engine there. Without a GPU it trains unpacked: its CPU attention would let packed conversations see each other.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from schemas.errors import TrainError

if TYPE_CHECKING:
    from train.engines import Fit, Job

QUIET = {
    "UNSLOTH_AUTO_INSTALL": "0",  # or exporting runs apt-get and clones llama.cpp without asking
    "UNSLOTH_DISABLE_STATISTICS": "1",  # or the import reports to its makers
}


def fit(job: Job) -> Fit:
    """Train an adapter as `job` says and save it in `job.adapter`.

    Raises `TrainError` when Unsloth is missing, transformers was imported before it, or it would train on other
    tokens than it was given.
    """
    unsloth = _import()
    import torch

    from train.engines.trainer import arguments, lora_arguments, train

    on_gpu = torch.cuda.is_available()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(job.model),
        max_seq_length=job.recipe.max_length,
        dtype=None if on_gpu else torch.float32,  # 16 bits differ between CPUs, fp32 is the same on all
        load_in_4bit=job.method == "qlora",
        trust_remote_code=job.recipe.trust_remote_code,
        use_gradient_checkpointing=_checkpointing(job, on_gpu=on_gpu),
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        random_state=job.recipe.seed,
        use_gradient_checkpointing=_checkpointing(job, on_gpu=on_gpu),
        max_seq_length=job.recipe.max_length,
        **lora_arguments(job.recipe),
    )
    # The model is checkpointed already; TRL's own switch would put plain checkpointing in its place.
    settings = arguments(job, {} if on_gpu else {"gradient_checkpointing": False})
    return train(job, model, tokenizer, settings, may_unpack=not on_gpu)


def _import() -> Any:
    os.environ.update(QUIET)
    if "unsloth" not in sys.modules and {"trl", "peft"} & sys.modules.keys():
        raise TrainError(
            "Unsloth has to be imported before trl and peft, and they are loaded in this process.",
            "Start `curate train` in a process of its own.",
        )
    try:
        import unsloth
    except ImportError as error:
        raise TrainError(
            f"The engine unsloth cannot be imported: {error}.",
            "pip install 'curate-sft[train]' and then unsloth, or use --engine transformers; curate doctor says more.",
        ) from error
    return unsloth


def _checkpointing(job: Job, *, on_gpu: bool) -> bool | str:
    """What the recipe says; else Unsloth's own kind on a GPU, and none where memory is the machine's own."""
    wanted: bool | str = job.recipe.extra.get("gradient_checkpointing", "unsloth" if on_gpu else False)
    return wanted
