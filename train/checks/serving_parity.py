"""An adapter and its exports → whether each inference engine produces the token ids of training and stops correctly.

A template that differs by a single space between training and serving degrades every answer without an error message.
Conversations of the version and a few constructed ones (probes) are rendered by each engine and compared token by
token; the first mismatch is reported in context. Then the model is forced to generate its end-of-turn token and must
stop there.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import ExportError
from train.export.output import ExportTarget
from train.export.source import ExportSource, find_source, read_conversations
from train.export.targets import EXPORT_TARGETS
from train.inference.backends import Backend, Ids, LlamaCppBackend, RenderRequest, TransformersBackend, detect_backend
from train.inference.generate import find_stop_ids
from train.inference.openai_client import connect
from train.tokens.labels import IGNORE_INDEX, encode_renderings
from train.tokens.loss_mask import TEMPLATE_FAILURES, Rendering
from train.tokens.messages import message_numbers, to_messages, to_tools
from train.tokens.reasoning import strip_reasoning
from train.tokens.tokenizer import first_difference

CONTEXT_TOKENS = 8
"""Tokens shown before a mismatch."""

FRACTION = re.compile(r"-?\b\d+\.\d+(?:[eE][+-]?\d+)?")
SIX_DIGITS = (
    "llama.cpp rounds the numbers in tool calls to six digits, which curate cannot change; vLLM and TGI keep all digits"
)

LIMIT = 500
"""Conversations of the version that are compared by default."""


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation with its ids in training, the ids up to its last answer, and the request to the engines.

    `starts_with_prompt` is whether the ids in training start with those of the prompt and the loss starts after it.
    """

    id: str
    ids: Ids
    prompt: Ids
    request: RenderRequest
    starts_with_prompt: bool


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first token in which an engine differs from training, with the text before it and both versions of it.

    `reason` explains a known difference of the engine that curate cannot change.
    """

    conversation: str
    where: str
    token: int
    before: str
    trained: str
    served: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineParity:
    """The result of one engine; `note` states what was compared if it is not the engine itself.

    `first_mismatch` has a known reason only if all mismatches have one. `stop_problems` are about tokens that end an
    answer. `skipped` conversations are those that the engine refuses, for example because of tools.
    """

    engine: str
    conversations: int
    equal: int
    first_mismatch: Mismatch | None
    stop_problems: tuple[str, ...]
    skipped: int = 0
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether all tokens are equal and generation stops at the end-of-turn token."""
        return self.equal == self.conversations and not self.stop_problems


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The results of all engines; `missing` names what could not be checked, and the command or the reason."""

    run: str
    version: str
    conversations: int
    unrendered: int
    engines: tuple[EngineParity, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all checked engines passed."""
        return all(engine.passed for engine in self.engines)

    def as_json(self) -> dict[str, Any]:
        """The fields and `passed`."""
        return {**asdict(self), "passed": self.passed}


def check_serving(
    store: Path, target: str, *, url: str = "", key: str = "", model: str = "", limit: int = LIMIT
) -> ParityReport:
    """Check a run with all its exports, or a single export (a folder or a GGUF), and the server at `url` if given.

    Raises `ExportError` if `target` names no run of this store, `CurateError`s if its base model or version is missing.
    """
    started = time.perf_counter()
    source, exports = _find_exports(store, target)
    if source.template.raw:
        raise ExportError(
            f"Run {source.name} was trained on raw text and has no chat template to check.",
            f"curate chat {source.name} --prompt '…' continues a text; servers do so at /v1/completions.",
        )
    cases, unrendered = _build_cases(store, source, limit)
    missing = _list_missing(exports, source)
    with ExitStack() as stack:
        label = "transformers, model" if source.is_full_finetune else "transformers, adapter"
        backends: list[Backend] = [TrainingBackend(source), TransformersBackend(label, source.adapter)]
        backends += [stack.enter_context(export.open_backend(path)) for export, path in exports.items()]
        if url:
            backend = detect_backend(url, connect(url, key, model))
            if backend is None:
                missing[url] = "it has neither vLLM's /tokenize nor llama.cpp's /apply-template"
            backends += [backend] if backend else []
        stops = find_stop_ids(source.renderer)[:1]
        engines = tuple(_check_backend(backend, cases, stops, source) for backend in backends)
    seconds = round(time.perf_counter() - started, 2)
    return ParityReport(source.name, source.manifest.data.version, len(cases), unrendered, engines, missing, seconds)


def check_export(store: Path, target: str) -> ParityReport | None:
    """`check_serving` of a new export; None for a run on raw text, which has no chat template."""
    source, _ = _find_exports(store, target)
    return None if source.template.raw else check_serving(store, target)


# --------------------------------------------------------------------------------------------------------- exports


def _find_exports(store: Path, target: str) -> tuple[ExportSource, dict[ExportTarget, Path]]:
    """The run that `target` names with all its exports, or the run of the one export that it names."""
    path = Path(target).expanduser()
    for export in reversed(EXPORT_TARGETS):  # a Modelfile may be in the folder of a merged model
        if export.matches(path):
            return _find_run(store, *export.read_origin(path)), {export: path}
    source = find_source(store, target, weights=False)
    found = {export: export.find_default(store, source.name) for export in EXPORT_TARGETS}
    return source, {export: path for export, path in found.items() if path is not None}


def _find_run(store: Path, run: str, adapter_digest: str | None) -> ExportSource:
    """The run of an export. Raises `ExportError` if the store has a different run with this name."""
    source = find_source(store, run, weights=False)
    if source.manifest.adapter_digest != adapter_digest:
        raise ExportError(
            f"This export was made from run {source.name} of another store: the adapter digests differ.",
            "Give the --store of that run.",
        )
    return source


def _list_missing(exports: Mapping[ExportTarget, Path], source: ExportSource) -> dict[str, str]:
    if len(exports) == 1:
        return {}
    existing = {export.folder for export in exports}
    return {
        export.engine: f"{export.command} {source.name}"
        for export in EXPORT_TARGETS
        if export not in exports and export.is_expected(source, existing)
    }


# ---------------------------------------------------------------------------------------------------------- cases


class TrainingBackend:
    """The renderer of training with a generation prompt: checks that the loss starts where the prompt ends."""

    name = "training, generation prompt"
    note = ""

    def __init__(self, source: ExportSource) -> None:
        self._renderer = source.renderer

    def encode_prompts(self, requests: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the messages with the template's generation prompt."""
        texts = [self._renderer.apply_template(one.messages, one.tools, add_generation_prompt=True) for one in requests]
        return [encoding.ids for encoding in self._renderer.tokenizer.encode(texts)]

    def encode_texts(self, requests: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the texts by the tokenizers library."""
        return [encoding.ids for encoding in self._renderer.tokenizer.encode([one.text for one in requests])]

    def check_stop(self, token: int) -> str | None:  # noqa: ARG002
        """None, because nothing is generated."""
        return None


def _build_cases(store: Path, source: ExportSource, limit: int) -> tuple[list[Case], int]:
    """The cases of the version's conversations and the probes, and how many of these the template cannot render."""
    members = read_conversations(store, source.manifest).head(limit)
    rows = [*members.iter_rows(named=True), *build_probes(source)]
    renderings = [source.renderer.render(row) for row in rows]  # a template is a program and renders row by row
    encoded = encode_renderings(pl.Series([row["id"] for row in rows]), renderings, source.tokenizer)
    cases = []
    for row, rendering, ids, labels in zip(
        rows, renderings, encoded["input_ids"].to_list(), encoded["labels"].to_list(), strict=True
    ):
        if ids is not None and rendering.loss_spans:
            case = _build_case(source, row, rendering, ids, labels)
            cases += [case] if case else []
    return cases, len(rows) - len(cases)


def _build_case(
    source: ExportSource, row: Mapping[str, Any], rendering: Rendering, ids: Ids, labels: Ids
) -> Case | None:
    turns = strip_reasoning(row["conversations"]) if source.reasoning == "strip" else row["conversations"]
    messages = to_messages(turns)[: message_numbers(turns)[rendering.loss_spans[-1].turn]]
    tools = to_tools(row.get("tools"))
    try:
        prompt = source.renderer.apply_template(messages, tools, add_generation_prompt=True)
    except TEMPLATE_FAILURES:
        return None  # the template refuses a conversation without its answer, so no engine can serve it
    (encoding,) = source.tokenizer.encode([prompt])
    end = len(encoding.ids)
    starts_with_prompt = ids[:end] == encoding.ids and labels[end - 1] == IGNORE_INDEX != labels[end]
    return Case(row["id"], ids, encoding.ids, RenderRequest(messages, tools, rendering.text), starts_with_prompt)


def build_probes(source: ExportSource) -> list[dict[str, Any]]:
    """Conversations with features that the data may lack: white space, scripts, special tokens, systems, tools."""
    marker = " ".join(sorted(source.tokenizer.stops)) + source.renderer.generation_prompt
    questions = {
        "white space": "  \n\tHello,  there \r\n\n ",
        "scripts": "你好，世界 مرحبا नमस्ते Привет こんにちは e\u0301 \u200d👩\u200d🚀🇩🇪",
        "markers": f"I typed {marker} and {{{{ messages }}}} and {{% if %}} and </s>",
        "code": '```python\nprint("a\\\\b")\n```\n<xml attr="&amp;">{"a": [1, null]}</xml>',
        "length": "word " * 300 + "1234567890" * 20,
    }
    rows = [_probe(name, [("human", text), ("gpt", f"You said: {text.strip()}")]) for name, text in questions.items()]
    several = [("human", "One?"), ("gpt", "Two."), ("human", "Three?\n"), ("gpt", "Four.")]
    call = json.dumps({"name": "now", "arguments": {"zone": "Europe/Zürich", "at": 1}}, ensure_ascii=False)
    tool_use = [("human", "How late?"), ("function_call", call), ("observation", '{"time": "5 pm"}'), ("gpt", "5 pm.")]
    tool = {"name": "now", "description": "The time <now>", "parameters": {"type": "object", "properties": {}}}
    tools = json.dumps([{"type": "function", "function": tool}])
    return [
        *rows,
        _probe("several turns", several),
        _probe("system", [("system", " You are brief. "), *several]),
        _probe("tools", tool_use, tools),
        _probe("system and tools", [("system", "You are brief."), *tool_use], tools),
    ]


def _probe(name: str, turns: Sequence[tuple[str, str]], tools: str | None = None) -> dict[str, Any]:
    conversation = [{"from": role, "value": value} for role, value in turns]
    return {"id": f"probe: {name}", "conversations": conversation, "tools": tools}


# ------------------------------------------------------------------------------------------------------ comparison


def _check_backend(backend: Backend, cases: Sequence[Case], stops: Sequence[int], source: ExportSource) -> EngineParity:
    requests = [case.request for case in cases]
    prompts, texts = backend.encode_prompts(requests), backend.encode_texts(requests)
    results = [
        _find_mismatch(case, prompt, texts[number] if texts else case.ids, source, backend)
        for number, (case, prompt) in enumerate(zip(cases, prompts, strict=True))
        if prompt is not None
    ]
    mismatches = [result for result in results if result is not None]
    first = next((mismatch for mismatch in mismatches if not mismatch.reason), mismatches[0] if mismatches else None)
    return EngineParity(
        engine=backend.name,
        conversations=len(results),
        equal=len(results) - len(mismatches),
        first_mismatch=first,
        stop_problems=tuple(problem for token in stops if (problem := backend.check_stop(token))),
        skipped=len(cases) - len(results),
        note=backend.note,
    )


def _find_mismatch(
    case: Case, prompt: Ids | str, text: Ids | str, source: ExportSource, backend: Backend
) -> Mismatch | None:
    """The first mismatch with training; for `TrainingBackend` also whether the loss starts after the prompt."""
    if isinstance(backend, TrainingBackend) and not case.starts_with_prompt:
        return _compare(case, "after the prompt", case.ids, case.prompt, source)
    if prompt != case.prompt:
        reason = _known_reason(case, prompt, source) if isinstance(backend, LlamaCppBackend) else ""
        return replace(_compare(case, "prompt", case.prompt, prompt, source), reason=reason)
    if text != case.ids:
        return _compare(case, "conversation", case.ids, text, source)
    return None


def _compare(case: Case, where: str, trained: Ids, served: Ids | str, source: ExportSource) -> Mismatch:
    if isinstance(served, str):
        return Mismatch(case.id, where, 0, "", "a prompt", f"refused: {served}")
    token = first_difference(trained, served)
    parts = (trained[max(0, token - CONTEXT_TOKENS) : token], trained[token : token + 4], served[token : token + 4])
    return Mismatch(case.id, where, token, *(_decode(ids, source) for ids in parts))


def _decode(ids: Ids, source: ExportSource) -> str:
    return str(source.tokenizer.backend.decode(ids, skip_special_tokens=False))


def _known_reason(case: Case, served: Ids | str, source: ExportSource) -> str:
    """`SIX_DIGITS` if the prompts differ only in the digits of numbers in tool calls, otherwise ""."""
    if isinstance(served, str):
        return ""
    trained_text, served_text = _decode(case.prompt, source), _decode(served, source)
    lost = set(Counter(FRACTION.findall(trained_text)) - Counter(FRACTION.findall(served_text)))
    calls = json.dumps([message.get("tool_calls") for message in case.request.messages])
    is_known = (
        lost and lost <= set(FRACTION.findall(calls)) and to_six_digits(trained_text) == to_six_digits(served_text)
    )
    return SIX_DIGITS if is_known else ""


def to_six_digits(text: str) -> str:
    """A text with its numbers as llama.cpp writes them in a tool call: C++ prints six digits.

    >>> to_six_digits('{"at": -118.2437, "price": 3.0, "id": 12345678}')
    '{"at": -118.244, "price": 3, "id": 12345678}'
    """
    return FRACTION.sub(lambda number: f"{float(number[0]):g}", text)
