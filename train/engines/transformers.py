"""Fits with TRL and PEFT alone: the reference that the fast engine is compared with. In: a `Job`. Out: a `Fit`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from schemas.errors import TrainError

if TYPE_CHECKING:
    from train.engines import Fit, Job


def fit(job: Job) -> Fit:
    """Train an adapter as `job` says and save it in `job.adapter`.

    Raises `TrainError` when Unsloth has patched this process, or TRL would train on other tokens than it was given.
    """
    if "unsloth" in sys.modules:
        raise TrainError(
            "Unsloth has changed transformers and TRL in this process, so they are no reference any more.",
            "Start `curate train --engine transformers` in a process of its own.",
        )
    try:
        import peft
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    except ImportError as error:
        raise TrainError(
            f"The engine transformers cannot be imported: {error}.", "pip install 'curate-sft[train]'"
        ) from error

    from train.engines.trainer import arguments, lora_arguments, train

    trusted = job.recipe.trust_remote_code
    dtype = _dtype(torch)
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=dtype,
        quantization_config=_four_bits(dtype) if job.method == "qlora" else None,
        trust_remote_code=trusted,
        use_safetensors=True,
        device_map={"": 0} if torch.cuda.is_available() else None,
    )
    model.config.use_cache = False  # with a cache, packed conversations attend to each other
    set_seed(job.recipe.seed)  # TRL seeds only after the adapter's first values are drawn
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora_arguments(job.recipe)))
    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=trusted)
    checkpointing = {"gradient_checkpointing": torch.cuda.is_available()}
    return train(job, model, tokenizer, arguments(job, checkpointing), may_unpack=False)


def _dtype(torch: Any) -> Any:
    """16 bits where a GPU computes in them, fp32 on any CPU: there they would be slow, and differ between machines."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _four_bits(dtype: Any) -> Any:
    """NF4 with double quantisation, as QLoRA (arXiv 2305.14314) uses it."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
