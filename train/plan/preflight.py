"""A prepared version → the reasons why training on it would be refused, and the rows compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.errors import TrainError
from train.model.base_model import find_model
from train.plan.prepare import PreparedVersion
from train.tokens.ledger import check_limits
from train.tokens.loss_mask import ChatRenderer
from train.tokens.template_check import check_generation_prompt, sample_rows


def find_refusal(prepared: PreparedVersion) -> TrainError | None:
    """The error with which training would refuse: the model's files, a limit of the recipe, the generation prompt."""
    try:
        if Path(prepared.section.model).expanduser().is_dir():  # a model on the hub is downloaded by the training
            find_model(prepared.section.model, trust_remote_code=prepared.section.trust_remote_code)
        check_limits(prepared.ledger, prepared.section, prepared.build_ledger)
        collect_samples(prepared)
    except TrainError as error:
        return error
    return None


def collect_samples(prepared: PreparedVersion) -> dict[str, Any]:
    """Plain values for `template_check.check_token_ids`: the template and some rows as messages with their ids.

    Raises `TrainError` if the generation prompt tokenizes differently at inference than in training.
    """
    template = prepared.template
    rows = sample_rows(prepared.members, prepared.rendered, template, prepared.section.reasoning)
    check_generation_prompt(ChatRenderer(template, prepared.tokenizer), rows)
    return {"template": template.name, "text": template.text, "rows": rows}
