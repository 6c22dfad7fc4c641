"""Fits with TRL and PEFT alone: the reference that the fast engine is compared with. In: a `Job`. Out: a `Fit`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from schemas.environment import install_command
from schemas.errors import TrainError
from train.model.base_model import load_model

if TYPE_CHECKING:
    from train.engines import Fit, Job
    from train.engines.batch_size import Checkpointing
    from train.engines.trainer import Loaded


def fit(job: Job) -> Fit:
    """Train an adapter as `job` says and save it in `job.adapter`.

    Raises `TrainError` when Unsloth has patched this process, or TRL would train on other tokens than it was given.
    """
    loaded = load(job)
    from train.engines.trainer import train

    return train(job, loaded)


def load(job: Job) -> Loaded:
    """The model with a fresh adapter, as it is trained. Raises `TrainError` as `fit` does."""
    if "unsloth" in sys.modules:
        raise TrainError(
            "Unsloth has changed transformers and TRL in this process, so they are no reference any more.",
            "Start `curate train --engine transformers` in a process of its own.",
        )
    try:
        import peft
        import torch
        from transformers import AutoTokenizer, set_seed
    except ImportError as error:
        raise TrainError(f"The engine transformers cannot be imported: {error}.", install_command("train")) from error

    from train.engines.embeddings import embedding_arguments
    from train.engines.trainer import Loaded, limit_memory, lora_arguments, repeat_bit_for_bit

    limit_memory(job.recipe)
    repeat_bit_for_bit(job.recipe)
    trusted = job.recipe.trust_remote_code
    model = load_model(job.model, job.method, trust_remote_code=trusted)
    model.config.use_cache = False  # with a cache, packed conversations attend to each other
    set_seed(job.recipe.seed)  # TRL seeds only after the adapter's first values are drawn
    if job.method != "full":
        adapter = lora_arguments(job.recipe) | embedding_arguments(job.recipe, model)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **adapter))

    def switch(kind: Checkpointing) -> None:
        model.gradient_checkpointing_enable(
            {"use_reentrant": False}
        ) if kind else model.gradient_checkpointing_disable()

    on_gpu = torch.cuda.is_available()
    written = job.recipe.extra.get("gradient_checkpointing")
    return Loaded(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(job.model, trust_remote_code=trusted),
        kinds=((False, True) if on_gpu else (False,)) if written is None else (bool(written),),
        switch=switch,
        settings={},
        facts={},
        may_unpack=False,
    )
