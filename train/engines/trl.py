"""The engine `transformers`: loads a base model for TRL and PEFT alone, the reference that Unsloth is compared with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from schemas.environment import install_command
from schemas.errors import TrainError
from train.model.base_model import load_model

if TYPE_CHECKING:
    from train.engines import Job, Loaded
    from train.engines.batch_size import CheckpointingMode


def load(job: Job) -> Loaded:
    """The base model with a new adapter.

    Raises `TrainError` if TRL or PEFT cannot be imported, or Unsloth has patched them in this process.
    """
    if "unsloth" in sys.modules:
        raise TrainError(
            "Unsloth has patched transformers and TRL in this process, so they cannot serve as a reference.",
            "Run `curate train --engine transformers` in its own process.",
        )
    try:
        import peft
        import torch
        from transformers import AutoTokenizer, set_seed
    except ImportError as error:
        raise TrainError(f"The engine transformers cannot be imported: {error}.", install_command("train")) from error

    from train.engines import Loaded
    from train.engines.arguments import lora_arguments
    from train.engines.embeddings import embedding_arguments
    from train.engines.torch_settings import apply_torch_settings

    apply_torch_settings(job.recipe)
    trusted = job.recipe.trust_remote_code
    model = load_model(job.model, job.method, trust_remote_code=trusted)
    model.config.use_cache = False  # with a cache, packed conversations attend to each other
    set_seed(job.recipe.seed)  # TRL seeds only after the adapter is initialised
    if job.method != "full":
        adapter = lora_arguments(job.recipe) | embedding_arguments(job.recipe, model)
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **adapter))

    def set_checkpointing(mode: CheckpointingMode) -> None:
        if mode:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    configured = job.recipe.extra.get("gradient_checkpointing")
    modes = (False, True) if torch.cuda.is_available() else (False,)
    return Loaded(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(job.model, trust_remote_code=trusted),
        checkpointing_modes=modes if configured is None else (bool(configured),),
        set_checkpointing=set_checkpointing,
    )
