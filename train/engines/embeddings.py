"""A model and the recipe's `embedding_learning_rate` → embedding and head trained too, at their own learning rate.

They are the largest matrices of a model and affect every token, so they need a smaller learning rate than an adapter.
PEFT keeps a copy of each in addition to the base model's own (`modules_to_save`), and saves it with the adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper

from schemas.errors import TrainError
from schemas.recipe import TrainSection


def embedding_arguments(recipe: TrainSection, model: Any) -> dict[str, Any]:
    """PEFT's arguments for a base model's embedding and head; empty if the recipe has no learning rate for them.

    Tied matrices stay tied, because the merged model has only one. Raises `TrainError` if `train.extra` names one of
    them: the manifest would not show that it was trained.
    """
    others = recipe.extra.get("modules_to_save") or []
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}  # such as embed_tokens
    for name in others:
        if name.rpartition(".")[2] in (names[id(embedding)], names.get(id(head))):
            raise TrainError(
                f"train.extra.modules_to_save names {name}, which has its own recipe key.",
                "Remove it and set train.embedding_learning_rate.",
            )
    if recipe.embedding_learning_rate is None:
        return {}
    tied = head is None or head.weight is embedding.weight
    trained = {names[id(module)] for module in ([embedding] if tied else [embedding, head])}
    return {"modules_to_save": sorted({*trained, *others}), "ensure_weight_tying": tied}


def embedding_weights(model: Any) -> list[torch.nn.Parameter]:
    """The trained matrices of embedding and head, each once."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    trained = [weight for end in ends for weight in end.parameters() if weight.requires_grad]
    return list({id(weight): weight for weight in trained}.values())


def base_embedding(model: Any) -> torch.nn.Module:
    """The base model's own embedding, even if a copy of it is trained."""
    embedding: torch.nn.Module = model.get_input_embeddings()
    return embedding.original_module if isinstance(embedding, ModulesToSaveWrapper) else embedding


def cast_to_fp32(model: Any) -> None:
    """Convert the trained matrices to fp32: in 16 bits, updates as small as theirs would be rounded away."""
    for weight in embedding_weights(model):
        weight.data = weight.data.float()


def set_embedding_rate(trainer: Any, rate: float) -> None:
    """Give embedding and head an optimiser group with this learning rate, and the schedule and decay of the others."""
    own = {id(weight) for weight in embedding_weights(trainer.model)}
    optimizer = trainer.create_optimizer()
    for group in list(optimizer.param_groups):
        moved = [weight for weight in group["params"] if id(weight) in own]
        group["params"] = [weight for weight in group["params"] if id(weight) not in own]
        if moved:
            optimizer.add_param_group({**group, "params": moved, "lr": rate})


def embedding_facts(trainer: Any) -> dict[str, Any]:
    """The number of trained parameters in embedding and head, and the optimiser's peak learning rates for them."""
    weights = embedding_weights(trainer.model)
    own = {id(weight) for weight in weights}
    groups = [group for group in trainer.optimizer.param_groups if own & {id(weight) for weight in group["params"]}]
    rates = sorted({float(group["initial_lr"]) for group in groups})
    return {"parameters": sum(weight.numel() for weight in weights), "learning_rates": rates}
