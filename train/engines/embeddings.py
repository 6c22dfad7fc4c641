"""In: a model, the recipe's rate for its embedding. Out: embedding and head trained too, each step of their own size.

They are the largest matrices of a model and move all words at once, so they want smaller steps than an adapter. PEFT
keeps a whole copy of each beside the base model's own (`modules_to_save`), and saves it with the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper

from schemas.errors import TrainError
from schemas.recipe import TrainSection


def embedding_arguments(recipe: TrainSection, model: Any) -> dict[str, Any]:
    """What PEFT is told of a base model's embedding and head; nothing where the recipe has no rate for them.

    Where both are one matrix they stay one: else the model that is merged could not hold what was learned. Raises
    `TrainError` where `train.extra` names one of them: without a rate nobody would know that it is trained.
    """
    others = recipe.extra.get("modules_to_save") or []
    _check_others(others, model)
    if recipe.embedding_learning_rate is None:
        return {}
    return {"modules_to_save": sorted({*embedding_names(model), *others}), "ensure_weight_tying": is_tied(model)}


def _check_others(others: Sequence[str], model: Any) -> None:
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if id(module) in ends}
    for name in others:
        if name.rpartition(".")[2] in names:
            raise TrainError(
                f"train.extra.modules_to_save names {name}, which is trained by a key of its own.",
                "Leave it out and set train.embedding_learning_rate, with its step size.",
            )


def embedding_names(model: Any) -> list[str]:
    """What a model calls its embedding and its head, such as embed_tokens and lm_head; the former where tied."""
    ends = [model.get_input_embeddings(), *([] if is_tied(model) else [model.get_output_embeddings()])]
    called = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return [called[id(end)] for end in ends]


def is_tied(model: Any) -> bool:
    """Whether embedding and head are one matrix."""
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def embedding_weights(model: Any) -> list[torch.nn.Parameter]:
    """The matrices of embedding and head that are trained, each once."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    trained = [weight for end in ends for weight in end.parameters() if weight.requires_grad]
    return list({id(weight): weight for weight in trained}.values())


def embedding_of_base(model: Any) -> torch.nn.Module:
    """The base model's own embedding, also where a copy of it is trained."""
    embedding: torch.nn.Module = model.get_input_embeddings()
    return embedding.original_module if isinstance(embedding, ModulesToSaveWrapper) else embedding


def keep_in_32_bits(model: Any) -> None:
    """Steps as small as those of embedding and head would be rounded away in 16."""
    for weight in embedding_weights(model):
        weight.data = weight.data.float()


def set_embedding_rate(trainer: Any, rate: float) -> None:
    """Give embedding and head an optimiser group with this rate; schedule and decay are those of the others."""
    own = {id(weight) for weight in embedding_weights(trainer.model)}
    optimizer = trainer.create_optimizer()
    for group in list(optimizer.param_groups):
        moved = [weight for weight in group["params"] if id(weight) in own]
        group["params"] = [weight for weight in group["params"] if id(weight) not in own]
        if moved:
            optimizer.add_param_group({**group, "params": moved, "lr": rate})


def embedding_facts(trainer: Any) -> dict[str, Any]:
    """What of embedding and head was trained, with the rate that the optimiser had for it at its peak."""
    weights = embedding_weights(trainer.model)
    own = {id(weight) for weight in weights}
    groups = [group for group in trainer.optimizer.param_groups if own & {id(weight) for weight in group["params"]}]
    rates = sorted({float(group["initial_lr"]) for group in groups})
    return {"parameters": sum(weight.numel() for weight in weights), "learning_rates": rates}
