"""A chat template and a tokenizer → a report: equality with transformers, token by token, on eight test conversations.

The ids are compared with those of `apply_chat_template`, each answer must contain its stop token exactly once in the
loss, and the token that begins a text may occur at most once. The report also states whether the generation prompt is a
prefix of the training text, and how system messages, tools, reasoning and white space are rendered.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from schemas.control_tokens import CONTROL_TOKENS
from schemas.conversation import Conversation, Turn
from schemas.errors import TrainError
from schemas.timing import timed
from train.tokens.chat_template import Template, bundled_names, find_template, unsloth_templates
from train.tokens.labels import IGNORE_INDEX, encode_renderings
from train.tokens.loss_mask import TEMPLATE_FAILURES, ChatRenderer, Rendering
from train.tokens.messages import to_messages, to_tools
from train.tokens.template_check import Reference, describe_difference
from train.tokens.tokenizer import Tokenizer

_TOOLS = '[{"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}]'
_THOUGHTS = ("<think>\nfirst\n</think>\n\nHello.", "<think>\nsecond\n</think>\n\nBye.")


def _chat(*texts: str, system: str | None = None) -> Conversation:
    turns = [Turn("human" if number % 2 == 0 else "gpt", text) for number, text in enumerate(texts)]
    return Conversation((*([Turn("system", system)] if system else []), *turns))


PROBES: Mapping[str, Conversation] = {
    "plain": _chat("What is it?", "A lamp."),
    "turns": _chat("What is it?", "A lamp.", "And this?", "A tent.", "And that?", "Nothing."),
    "system": _chat("What is it?", "A lamp.", system="Name things."),
    "spaces": _chat("  What is it? \n", "\n\n A lamp. \n"),
    "quoted": _chat("Say <|im_start|>assistant\nno<|im_end|> or [/INST] or ### Response:\n", "No."),
    "scripts": _chat("你好，世界", "Grüße 🎉👩‍👩‍👧", "مرحبا", "สวัสดี"),
    "reasoning": _chat("Hi", _THOUGHTS[0], "And now?", _THOUGHTS[1]),
    "calls": Conversation(
        (
            Turn("human", "The weather?"),
            Turn("function_call", '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}'),
            Turn("observation", '{"sky": "grey"}'),
            Turn("gpt", "It is grey."),
        ),
        _TOOLS,
    ),
}
"""The conversations that every template is checked with."""


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """The result for one template, which may have several names. It passed if `problem` is None."""

    names: tuple[str, ...]
    rendered: int  # probes that the template renders completely
    identical: int | None  # of these, with the ids of apply_chat_template; None without transformers
    stop: str  # the tokens that end trained answers
    bos_count: str  # how many times the token that begins a text occurs
    prefix: str  # whether the generation prompt is a prefix of the training text
    system: str
    tools: str
    reasoning: str
    whitespace: str
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {**asdict(self), "passed": self.problem is None}


@timed("checking templates")
def check_templates(model: Path | None = None, names: Sequence[str] = ()) -> list[TemplateReport]:
    """The reports of the templates called `names` (default: all known chat templates), one per distinct text.

    Uses the tokenizer in the folder `model` and includes its own template; without a model, a tokenizer with all common
    control tokens. Raises `TrainError` for an unknown name.
    """
    with _neutral_tokenizer() if model is None else nullcontext(Tokenizer.load(model)) as tokenizer:
        names = names or [*bundled_names(), *unsloth_templates(), *(["tokenizer"] if model else [])]
        by_text: dict[str, list[str]] = {}
        for name in names:
            by_text.setdefault(find_template(name, tokenizer.folder).text, []).append(name)
        return [check_template(sorted(set(same)), text, tokenizer) for text, same in by_text.items()]


def check_template(names: Sequence[str], text: str, tokenizer: Tokenizer) -> TemplateReport:
    """The report of the template with this text, for this tokenizer."""
    template = Template(names[0], text)
    renderer = ChatRenderer(template, tokenizer)
    renderings = {name: renderer.render(_row(probe)) for name, probe in PROBES.items()}
    complete = {name: rendering for name, rendering in renderings.items() if rendering.problem is None}
    encoded = encode_renderings(pl.Series(list(complete)), list(complete.values()), tokenizer)
    rows = {row["id"]: row for row in encoded.iter_rows(named=True)}
    identical, difference = _compare(template, tokenizer, rows)
    return TemplateReport(
        names=tuple(names),
        rendered=len(complete),
        identical=identical,
        stop=" ".join(sorted({span.stop for r in complete.values() for span in r.loss_spans if span.stop})),
        bos_count=_bos_count(rows, tokenizer),
        prefix=_prefix(renderer, complete),
        system=_system(renderings["system"]),
        tools=_tools(renderings["calls"]),
        reasoning=_reasoning(rows.get("reasoning"), tokenizer),
        whitespace=_whitespace(renderings["spaces"]),
        problem=renderings["plain"].problem or difference or _check_stops(rows, complete, tokenizer),
    )


def _row(probe: Conversation) -> dict[str, Any]:
    return {"conversations": [turn.as_row() for turn in probe.turns], "tools": probe.tools}


def _messages(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    return to_messages(_row(PROBES[name])["conversations"]), to_tools(PROBES[name].tools)


def _compare(
    template: Template, tokenizer: Tokenizer, rows: Mapping[str, Mapping[str, Any]]
) -> tuple[int | None, str | None]:
    """How many probes have the ids of transformers, and the first difference."""
    try:
        reference = Reference(_load_reference(tokenizer.folder), template.text)
    except ModuleNotFoundError:
        return None, None
    token_of = tokenizer.backend.id_to_token
    ids = {name: row["input_ids"] for name, row in rows.items() if row["problem"] is None}
    compared = {name: describe_difference(ids[name], reference.ids(*_messages(name)), token_of) for name in ids}
    differences = [f"{name}: {difference}" for name, difference in compared.items() if difference]
    return len(compared) - len(differences), next(iter(differences), None)


def _load_reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many types for a tokenizer that it cannot load
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainError(f"transformers cannot load the tokenizer in {folder}: {reason}", "Save it again.") from error


def _check_stops(
    rows: Mapping[str, Mapping[str, Any]], renderings: Mapping[str, Rendering], tokenizer: Tokenizer
) -> str | None:
    """The first probe in which not every answer has exactly one stop token in the loss."""
    for name, row in rows.items():
        if row["problem"] is not None:
            return str(row["problem"])
        spans = renderings[name].loss_spans
        texts = map(tokenizer.backend.id_to_token, _loss_ids(row))
        stops = sum(text in {span.stop for span in spans} for text in texts)
        answers = sum(span.stop is not None for span in spans)
        if stops != answers:
            return f"{name}: {answers} answers, but {stops} stop tokens in the loss"
    return None


def _loss_ids(row: Mapping[str, Any]) -> list[int]:
    return [token for token in row["labels"] or () if token != IGNORE_INDEX]


def _bos_count(rows: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer) -> str:
    """How many times the token that begins a text occurs: a number, or once for each question."""
    bos = tokenizer.id_of(tokenizer.named.get("bos_token", ""))
    counts = [(row["input_ids"] or []).count(bos) for name, row in rows.items() if name in ("plain", "turns")]
    return "each question" if len(counts) == 2 and counts[0] == 1 < counts[1] else str(max(counts, default=0))


def _prefix(renderer: ChatRenderer, renderings: Mapping[str, Rendering]) -> str:
    """Whether the prompt for each answer is a prefix of the training text, token by token; the probes where not."""
    names = [name for name in ("turns", "system", "reasoning", "calls") if name in renderings]
    broken = [name for name in names if not _has_prefixes(renderer, name, renderings[name].text)]
    return "holds" if not broken else "no" if "turns" in broken else f"not with {', '.join(broken)}"


def _has_prefixes(renderer: ChatRenderer, name: str, text: str) -> bool:
    messages, tools = _messages(name)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        prompts = [renderer.apply_template(messages[:n], tools, add_generation_prompt=True) for n in answers]
    except TEMPLATE_FAILURES:
        return False
    ids, *prefixes = (encoding.ids for encoding in renderer.tokenizer.encode([text, *prompts]))
    return all(map(text.startswith, prompts)) and all(ids[: len(prefix)] == prefix for prefix in prefixes)


def _system(rendering: Rendering) -> str:
    if rendering.problem is not None:
        return "refused"
    return "kept" if PROBES["system"].turns[0].value in rendering.text else "left out"


def _tools(rendering: Rendering) -> str:
    if rendering.problem is not None:
        return "calls left out" if "does not render the tool call" in rendering.problem else "refused"
    return "tools and calls" if "Of a city." in rendering.text else "calls only"


def _reasoning(row: Mapping[str, Any] | None, tokenizer: Tokenizer) -> str:
    """The answers whose reasoning contributes to the loss."""
    if row is None:
        return "refused"
    text = tokenizer.backend.decode(_loss_ids(row), skip_special_tokens=False)
    earlier, last = ("first" in text, "second" in text)
    return "all" if earlier and last else "the last answer's" if last else "none" if not earlier else "earlier answers'"


def _whitespace(rendering: Rendering) -> str:
    if rendering.problem is not None:
        return "refused"
    return "kept" if PROBES["spaces"].turns[1].value in rendering.text else "trimmed"


@contextmanager
def _neutral_tokenizer() -> Iterator[Tokenizer]:
    """A byte-level tokenizer with all control tokens, in a folder that transformers can load."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [*CONTROL_TOKENS, named["pad_token"]]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    with tempfile.TemporaryDirectory() as name:
        backend.save(str(Path(name) / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        yield Tokenizer.load(Path(name))
