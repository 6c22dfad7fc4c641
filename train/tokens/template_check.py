"""Rendered conversations → an error if their ids differ from those of transformers' `apply_chat_template`.

Used before every training, on the version that is trained; `train.tokens.template_parity` checks templates in general.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from schemas.errors import TrainError
from train.tokens.chat_template import Template
from train.tokens.loss_mask import TEMPLATE_FAILURES, ChatRenderer
from train.tokens.messages import to_messages, to_tools
from train.tokens.reasoning import Reasoning, strip_reasoning
from train.tokens.tokenizer import first_difference
from train.tokens.windows import window_turns

MAX_SAMPLES = 32
"""Rows of a version that are compared before training: takes less than a second."""


def sample_rows(
    members: pl.DataFrame, rendered: pl.DataFrame, template: Template, reasoning: Reasoning
) -> list[dict[str, Any]]:
    """The first conversations or windows of a rendered version: `id`, `messages`, `tools`, `ids`."""
    chosen = _complete_texts(rendered, template).head(MAX_SAMPLES)
    rows = members.join(chosen, on="id", how="semi").select("id", "conversations", "tools").iter_rows()
    known = {id_: (turns, tools) for id_, turns, tools in rows}
    samples = []
    for row in chosen.iter_rows(named=True):
        turns, tools = known[row["id"]]
        _, turns = window_turns(turns, row["window"])
        turns = strip_reasoning(turns) if reasoning == "strip" else turns
        messages = to_messages(turns)
        samples.append({"id": row["id"], "messages": messages, "tools": to_tools(tools), "ids": row["input_ids"]})
    return samples


def _complete_texts(rendered: pl.DataFrame, template: Template) -> pl.DataFrame:
    """The rows that a template can render alone: conversations and their windows, but raw texts only undivided."""
    rows = rendered.filter(pl.col("problem").is_null()).select("id", "window", "input_ids")
    if not template.raw:
        return rows
    texts = rows.group_by("id", maintain_order=True).agg(pl.first("window"), pl.col("input_ids").explode())
    return texts.with_columns(window=pl.lit(None, rows.schema["window"]))


def check_generation_prompt(renderer: ChatRenderer, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise `TrainError` if the generation prompt tokenizes differently before every answer than at inference.

    White space at the start of an answer is ignored: it belongs to the data, and the plan counts it. Prompts whose
    text differs, as in templates for reasoning, are not reported here but by `curate templates` and `check-serving`.
    """
    if renderer.template.raw:
        return
    pairs = [pair for row in rows if (pair := _encode_prompt(row, renderer)) is not None]
    token_of = renderer.tokenizer.backend.id_to_token
    differences = [describe_difference(ids[: len(prompt)], prompt, token_of) for prompt, ids in pairs]
    if pairs and all(differences):
        raise TrainError(
            f"The generation prompt of template {renderer.template.name} tokenizes differently at inference than in "
            f"training: {differences[0]}. The model would be trained on tokens that it never receives.",
            "Choose another template with --template, such as chatml; curate templates lists them.",
        )


def _encode_prompt(row: Mapping[str, Any], renderer: ChatRenderer) -> tuple[list[int], list[int]] | None:
    """The ids of the prompt for a row's last answer, and of the complete row without white space before that answer.

    None if the text of the prompt is not the beginning of the row's.
    """
    last = max((n for n, message in enumerate(row["messages"]) if message["role"] == "assistant"), default=0)
    try:
        prompt = renderer.apply_template(row["messages"][:last], row["tools"], add_generation_prompt=True)
    except TEMPLATE_FAILURES:
        return None
    text = renderer.apply_template(row["messages"], row["tools"])
    if not last or not text.startswith(prompt):
        return None
    at_inference, in_training = renderer.tokenizer.encode([prompt, prompt + text[len(prompt) :].lstrip()])
    return at_inference.ids, in_training.ids


def check_token_ids(samples: Mapping[str, Any], tokenizer: Any) -> int:
    """Compare samples with transformers' `tokenizer`; return the number of rows compared, all of which are equal.

    Raises `TrainError` with the first token that differs.
    """
    reference = Reference(tokenizer, samples["text"])
    for row in samples["rows"]:
        expected = reference.ids(row["messages"], row["tools"])
        difference = describe_difference(row["ids"], expected, tokenizer.convert_ids_to_tokens)
        if difference is not None:
            raise TrainError(
                f"Template {samples['template']} gives other tokens for conversation {row['id'][:12]} than "
                f"transformers' apply_chat_template: {difference}.",
                "Choose another template: curate templates --model MODEL checks all of them.",
            )
    return len(samples["rows"])


@dataclass(frozen=True, slots=True)
class Reference:
    """The ids that transformers computes with its own tokenizer and a template's text."""

    tokenizer: Any
    text: str

    def ids(self, messages: Sequence[Mapping[str, Any]], tools: object) -> list[int]:
        """The ids of `apply_chat_template`."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            list(messages), tools=tools, chat_template=self.text, tokenize=True, return_dict=False
        )
        return ids


def describe_difference(
    ours: Sequence[int], expected: Sequence[int], token_of: Callable[[int], str | None]
) -> str | None:
    """The first token that differs, such as `token 4 is 5 'a' instead of 6 'b'`; None if the ids are equal."""
    if list(ours) == list(expected):
        return None
    place = first_difference(ours, expected)
    ids = (row[place] if place < len(row) else None for row in (ours, expected))
    found, other = ("missing" if id_ is None else f"{id_} {token_of(id_)!r}" for id_ in ids)
    return f"token {place} is {found} instead of {other}"
