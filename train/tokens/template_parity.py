"""In: a chat template and a tokenizer. Out: what is proven of the template, on conversations made for that.

The ids are compared with `apply_chat_template` of transformers, token for token. The stop token has to be learned once
for each answer, the beginning stand at most once. Whether what a server sends for an answer is the beginning of what
is trained (the prefix property), and what becomes of systems, tools, reasoning and white space, is stated.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from schemas.conversation import Conversation, Turn
from schemas.errors import TrainError
from train.model.log_capture import quiet
from train.plan.plan import Prepared
from train.tokens.chat_template import Template, bundled_names, find_template, unsloth_templates
from train.tokens.labels import IGNORE_INDEX, encode_renderings
from train.tokens.loss_mask import TEMPLATE_FAILURES, ChatRenderer, Rendering
from train.tokens.messages import to_messages, to_tools
from train.tokens.reasoning import strip_reasoning
from train.tokens.tokenizer import NAMED_TOKENS, Tokenizer
from train.tokens.windows import window_turns

CONTROL_TOKENS = (
    *(
        "<s>",
        "</s>",
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_sep|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
    ),
    *("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<start_of_turn>", "<end_of_turn>", "<|user|>"),
    *(
        "<|assistant|>",
        "<|system|>",
        "<|end|>",
        "<|turn>",
        "<turn|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
    ),
    *(
        "<tool_response|>",
        "<|channel>",
        "<channel|>",
        "<|start|>",
        "<|message|>",
        "<|channel|>",
        "<|return|>",
        "<|call|>",
    ),
    *("<|end_of_turn|>", "<|endoftext|>"),
)
"""The special tokens that common templates begin and end turns with, for a tokenizer of no model in particular."""

SAMPLE = 32
"""Conversations of a version that are compared with transformers before it is trained: under a second."""

_TOOLS = '[{"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}]'
_THOUGHTS = ("<think>\nfirst\n</think>\n\nHello.", "<think>\nsecond\n</think>\n\nBye.")


def _chat(*words: str, system: str | None = None) -> Conversation:
    turns = [Turn("human" if number % 2 == 0 else "gpt", text) for number, text in enumerate(words)]
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
"""What every template is tried on."""


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """What was found of one template, which may have several names. It is proven when `problem` is None."""

    names: tuple[str, ...]
    rendered: int  # probes that the template renders; the others it refuses, or leaves a call out
    identical: int | None  # of these, with the ids of apply_chat_template; None where transformers is not installed
    stop: str  # the tokens that end the learned answers
    bos_count: str  # how often the token that begins a text stands there
    prefix: str
    system: str
    tools: str
    reasoning: str
    whitespace: str
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {**asdict(self), "passed": self.problem is None}


def check_template(names: Sequence[str], text: str, tokenizer: Tokenizer) -> TemplateReport:
    """What is proven of the template with this text, for this tokenizer."""
    template = Template(names[0], text)
    renderer = ChatRenderer(template, tokenizer)
    renderings = {name: renderer.render(_row(probe)) for name, probe in PROBES.items()}
    taken = {name: rendering for name, rendering in renderings.items() if rendering.problem is None}
    rows = dict(
        zip(
            taken,
            encode_renderings(pl.Series(list(taken)), list(taken.values()), tokenizer).iter_rows(named=True),
            strict=True,
        )
    )
    equal, different = _compare(
        template, tokenizer, {name: row["input_ids"] for name, row in rows.items() if row["problem"] is None}
    )
    learned = {name: _learned(row, tokenizer) for name, row in rows.items()}
    return TemplateReport(
        names=tuple(names),
        rendered=len(taken),
        identical=equal,
        stop=" ".join(sorted({region.stop for r in taken.values() for region in r.loss_spans if region.stop})),
        bos_count=_bos_count(rows, tokenizer),
        prefix=_prefix(renderer, taken),
        system=_said(renderings["system"], "Name things."),
        tools=_tools(renderings["calls"]),
        reasoning=_reasoning(learned.get("reasoning")),
        whitespace=_whitespace(renderings["spaces"]),
        problem=renderings["plain"].problem or different or _unlearned_stop(rows, taken, tokenizer),
    )


def check_templates(model: Path | None = None, names: Sequence[str] = ()) -> list[TemplateReport]:
    """The reports of the templates called `names` (default: all chat templates that are known), one for each text.

    With the tokenizer in `model`, its own template among them; else with one that has every control token.
    Raises `TrainError` for a name that nobody knows.
    """
    with _neutral() if model is None else _of(model) as tokenizer:
        wanted = names or [*bundled_names(), *unsloth_templates(), *(["tokenizer"] if model else [])]
        by_text: dict[str, list[str]] = {}
        for name in wanted:
            by_text.setdefault(find_template(name, tokenizer.folder).text, []).append(name)
        with quiet():
            return [check_template(sorted(set(called)), text, tokenizer) for text, called in by_text.items()]


def samples_of(prepared: Prepared) -> dict[str, Any]:
    """Some conversations of a version as messages, with the ids that they have here, as plain values.

    Raises `TrainError` when a server would send other tokens than stand before the answers here.
    """
    check_prompts(prepared)
    return {"template": prepared.template.name, "text": prepared.template.text, "rows": _sample(prepared)}


def _sample(prepared: Prepared) -> list[dict[str, Any]]:
    """The first conversations, or windows, as they are handed to a template: `id`, `messages`, `tools`, `ids`."""
    chosen = _whole(prepared).head(SAMPLE)
    members = prepared.members.join(chosen, on="id", how="semi")
    known = {name: (turns, tools) for name, turns, tools in members.select("id", "conversations", "tools").iter_rows()}
    rows = []
    for row in chosen.select("id", "window", "input_ids").iter_rows(named=True):
        turns, tools = known[row["id"]]
        _, said = window_turns(turns, row["window"])
        said = strip_reasoning(said) if prepared.section.reasoning == "strip" else said
        rows.append({"id": row["id"], "messages": to_messages(said), "tools": to_tools(tools), "ids": row["input_ids"]})
    return rows


def check_prompts(prepared: Prepared) -> None:
    """Raise `TrainError` when the tokenizer joins or parts what a prompt ends with, in front of every answer.

    White space that an answer begins with is left out here: it is the data's, and the plan tells it (`crossing`).
    Where already the text of the prompt is another, as in templates that think, it is no matter of the tokenizer;
    `curate templates` and the contract say so.
    """
    if prepared.template.raw:
        return  # nobody asks
    renderer = ChatRenderer(prepared.template, prepared.tokenizer)
    pairs = [pair for row in _sample(prepared) if (pair := _prompt_and_whole(row, renderer)) is not None]
    different = [
        _difference(whole[: len(prompt)], prompt, renderer.tokenizer.backend.id_to_token) for prompt, whole in pairs
    ]
    if pairs and all(different):
        raise TrainError(
            f"The generation prompt of template {renderer.template.name} tokenizes differently at inference than in "
            f"training: {different[0]}. The model would be trained on tokens that it never receives.",
            "Choose another template with --template, such as chatml; curate templates lists them.",
        )


def _prompt_and_whole(row: Mapping[str, Any], renderer: ChatRenderer) -> tuple[list[int], list[int]] | None:
    """The ids of what is sent for a row's last answer, and of the row with that answer's beginning stripped.

    Nothing where the text that is sent is not the beginning of the row's.
    """
    last = max((n for n, message in enumerate(row["messages"]) if message["role"] == "assistant"), default=0)
    try:
        prompt = renderer.apply_template(row["messages"][:last], row["tools"], add_generation_prompt=True)
    except TEMPLATE_FAILURES:
        return None
    whole = renderer.apply_template(row["messages"], row["tools"])
    if not last or not whole.startswith(prompt):
        return None
    sent, learned = renderer.tokenizer.encode([prompt, prompt + whole[len(prompt) :].lstrip()])
    return sent.ids, learned.ids


def _whole(prepared: Prepared) -> pl.DataFrame:
    """What can be rendered by itself: conversations and windows of them, but texts only as a whole."""
    rendered = prepared.rendered.filter(pl.col("problem").is_null()).select("id", "window", "input_ids")
    if not prepared.template.raw:
        return rendered
    parts = rendered.group_by("id", maintain_order=True).agg(pl.first("window"), pl.col("input_ids").explode())
    return parts.with_columns(window=pl.lit(None, rendered.schema["window"]))


def check_samples(samples: Mapping[str, Any], tokenizer: Any) -> int:
    """How many conversations were compared with what transformers' `tokenizer` makes of them: all had its ids.

    Raises `TrainError` with the first token that differs: what would be trained is not what will be served.
    """
    reference = _Reference(tokenizer, samples["text"])
    for row in samples["rows"]:
        theirs = reference.ids(row["messages"], row["tools"])
        different = _difference(row["ids"], theirs, tokenizer.convert_ids_to_tokens)
        if different is not None:
            raise TrainError(
                f"The template {samples['template']} gives conversation {row['id'][:12]} other tokens here than "
                f"transformers' apply_chat_template: {different}.",
                "Nothing is trained that is not proven. Take another template: curate templates --model MODEL.",
            )
    return len(samples["rows"])


# ------------------------------------------------------------------------------------------------- apply_chat_template


@dataclass(frozen=True, slots=True)
class _Reference:
    """transformers' own way."""

    tokenizer: Any
    text: str

    def ids(self, messages: Sequence[Mapping[str, Any]], tools: object) -> list[int]:
        made: list[int] = self.tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=self.text,
            tokenize=True,
            return_dict=False,
        )
        return made


def _reference(folder: Path, text: str) -> _Reference:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever transformers has against a tokenizer is one sentence here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainError(f"transformers cannot load the tokenizer in {folder}: {reason}", "Save it again.") from error
    return _Reference(tokenizer, text)


def _compare(template: Template, tokenizer: Tokenizer, made: Mapping[str, list[int]]) -> tuple[int | None, str | None]:
    """How many probes have transformers' ids, and the first difference in one that has not."""
    try:
        reference = _reference(tokenizer.folder, template.text)
    except ModuleNotFoundError:
        return None, None
    found = {}
    for name, ids in made.items():
        theirs = reference.ids(to_messages(_row(PROBES[name])["conversations"]), to_tools(PROBES[name].tools))
        found[name] = _difference(ids, theirs, tokenizer.backend.id_to_token)
    different = [f"{name}: {where}" for name, where in found.items() if where]
    return len(found) - len(different), different[0] if different else None


def _difference(ours: Sequence[int], theirs: Sequence[int], text_of: Callable[[int], str | None]) -> str | None:
    """The first token in which two rows of ids differ, in words; nothing where they are the same."""
    if list(ours) == list(theirs):
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((number for number, pair in pairs if pair[0] != pair[1]), min(len(ours), len(theirs)))
    ids = (row[place] if place < len(row) else None for row in (ours, theirs))
    mine, other = ("nothing" if n is None else f"{n} {text_of(n)!r}" for n in ids)
    return f"token {place} is {mine} here and {other} there"


# ------------------------------------------------------------------------------------------------------- the facts


def _row(probe: Conversation) -> dict[str, Any]:
    return {"conversations": [turn.as_row() for turn in probe.turns], "tools": probe.tools}


def _learned(row: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    kept = [token for token in row["labels"] if token != IGNORE_INDEX]
    return str(tokenizer.backend.decode(kept, skip_special_tokens=False))


def _unlearned_stop(
    rows: Mapping[str, Mapping[str, Any]], renderings: Mapping[str, Rendering], tokenizer: Tokenizer
) -> str | None:
    """Says in which probe an answer does not end with one learned token that ends it."""
    for name, row in rows.items():
        stops = {region.stop for region in renderings[name].loss_spans}
        learned = sum(tokenizer.backend.id_to_token(token) in stops for token in row["labels"] if token != IGNORE_INDEX)
        answers = sum(region.stop is not None for region in renderings[name].loss_spans)
        if learned != answers or (row["problem"] is not None):
            return row["problem"] or f"{name}: {answers} answers, and {learned} learned tokens that end one"
    return None


def _bos_count(rows: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer) -> str:
    """How often the beginning stands: a number, or one for a single question and one for several."""
    start = tokenizer.id_of(tokenizer.named.get("bos_token", ""))
    counts = [row["input_ids"].count(start) for name, row in rows.items() if name in ("plain", "turns")]
    return "each question" if len(counts) == 2 and counts[0] == 1 < counts[1] else str(max(counts, default=0))


def _prefix(renderer: ChatRenderer, renderings: Mapping[str, Rendering]) -> str:
    """Whether what is sent for each answer is the beginning of the whole, token for token; for which probes not."""
    broken = [name for name in ("turns", "system", "reasoning", "calls") if name in renderings]
    broken = [name for name in broken if not _begins(renderer, PROBES[name], renderings[name].text)]
    return "holds" if not broken else "no" if "turns" in broken else f"not with {', '.join(broken)}"


def _begins(renderer: ChatRenderer, probe: Conversation, whole: str) -> bool:
    messages, tools = to_messages(_row(probe)["conversations"]), to_tools(probe.tools)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        prompts = [renderer.apply_template(messages[:number], tools, add_generation_prompt=True) for number in answers]
    except TEMPLATE_FAILURES:
        return False
    ids, *begun = (encoding.ids for encoding in renderer.tokenizer.encode([whole, *prompts]))
    return all(map(whole.startswith, prompts)) and all(ids[: len(start)] == start for start in begun)


def _said(rendering: Rendering, words: str) -> str:
    if rendering.problem is not None:
        return "refused"
    return "kept" if words in rendering.text else "left out"


def _tools(rendering: Rendering) -> str:
    """What becomes of tools and calls: both are rendered, or what of them is not."""
    if rendering.problem is not None:
        return "calls left out" if "does not render the tool call" in rendering.problem else "refused"
    return "tools and calls" if "Of a city." in rendering.text else "calls only"


def _reasoning(learned: str | None) -> str:
    """Of which answers the reasoning is learned."""
    if learned is None:
        return "refused"
    earlier, last = ("first" in learned, "second" in learned)
    return "all" if earlier and last else "the last answer's" if last else "none" if not earlier else "earlier answers'"


def _whitespace(rendering: Rendering) -> str:
    if rendering.problem is not None:
        return "refused"
    return "kept" if PROBES["spaces"].turns[1].value in rendering.text else "trimmed"


# ------------------------------------------------------------------------------------------------------- tokenizers


@contextmanager
def _of(model: Path) -> Iterator[Tokenizer]:
    yield Tokenizer.load(model)


@contextmanager
def _neutral() -> Iterator[Tokenizer]:
    """A tokenizer of single bytes and all control tokens, in a folder that transformers can load."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL_TOKENS])
    named = dict(zip((NAMED_TOKENS[0], NAMED_TOKENS[1], "pad_token"), CONTROL_TOKENS, strict=False))
    with tempfile.TemporaryDirectory() as name:
        backend.save(str(Path(name) / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        yield Tokenizer.load(Path(name))
