"""In: what leaves the house. Out: whether the engines that will serve it see the same tokens as the training did.

A template that differs by a space between training and serving costs more than any setting of the training, and
nothing says so. Here conversations of the version, and some that are odd on purpose, go through each engine, token
for token; the first difference is shown in its context. Then the model is made to say the token that ends an answer,
and has to stop there.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import ExportError
from train.export.gguf import MANIFEST_KEY, read_metadata, threads
from train.export.llamacpp.server import serving
from train.export.modelfile import MODELFILE, Ollama, gguf_of
from train.export.source import Source, beside, find_source, members_of
from train.inference.backends import Backend, Ids, LlamaCppBackend, RenderRequest, TransformersBackend, detect_backend
from train.inference.generate import find_stop_ids
from train.inference.openai_client import connect
from train.tokens.labels import IGNORE_INDEX, encode_renderings
from train.tokens.loss_mask import TEMPLATE_FAILURES
from train.tokens.messages import message_numbers, to_messages, to_tools
from train.tokens.reasoning import strip_reasoning

AROUND = 8
"""Tokens shown before a difference."""

FRACTION = re.compile(r"-?\b\d+\.\d+(?:[eE][+-]?\d+)?")
SIX_DIGITS = (
    "llama.cpp writes the numbers of a tool call in six digits, which nothing here changes; vLLM and TGI write all"
)

LIMIT = 500
"""Conversations of the version that are compared."""


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation, the ids of its training, the ids up to its last answer, and what engines are asked."""

    id: str
    ids: Ids
    prompt: Ids
    asked: RenderRequest
    prefix: bool  # whether the training's ids begin with the prompt's, and learning begins right behind


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first token in which an engine differs from the training: where, and both with what stands before.

    `why` is the reason, where it is a known one of the engine's that nothing here can change.
    """

    conversation: str
    where: str
    token: int
    before: str
    trained: str
    served: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What one engine made of all conversations; `stops` has what went wrong with the tokens that end an answer.

    `first` is the first difference without a known reason; with one only where all have it. `unserved` are those that
    the engine would refuse to its user in words, such as tools; they are not compared.
    """

    engine: str
    conversations: int
    equal: int
    first: Mismatch | None
    stops: tuple[str, ...]
    unserved: int = 0

    @property
    def kept(self) -> bool:
        """Whether the engine sees what was trained, and stops where it should."""
        return self.equal == self.conversations and not self.stops


@dataclass(frozen=True, slots=True)
class Contract:
    """All engines' agreements; `absent` names what could not be asked and what would bring it."""

    run: str
    version: str
    conversations: int
    unrendered: int
    agreements: tuple[Agreement, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether every engine that was asked agrees."""
        return all(agreement.kept for agreement in self.agreements)

    def as_json(self) -> dict[str, Any]:
        """Its facts by name."""
        return {**asdict(self), "kept": self.kept}


def check_serving(
    store: Path, target: str, *, url: str = "", key: str = "", model: str = "", limit: int = LIMIT
) -> Contract:
    """Compare the engines that serve `target`: a run with all that was exported of it, a folder, or a GGUF.

    `url` is asked as well. Raises `ExportError` for a target of no run, `CurateError`s where its base or version are
    no longer there.
    """
    begun = time.perf_counter()
    source, places = _places(store, target)
    _check_chat(source)
    cases, unrendered = _cases(store, source, limit)
    absent = _absent(places, source)
    with ExitStack() as stack:
        engines: list[Backend] = [
            Trained(source),
            TransformersBackend("transformers, model" if source.whole else "transformers, adapter", source.adapter),
            *_folders(places),
            *_servers(places, stack),
            *_addressed(url, key, model, absent),
        ]
        stops = find_stop_ids(source.renderer)[:1]
        agreements = tuple(_agreement(engine, cases, stops, source) for engine in engines)
    took = time.perf_counter() - begun
    version = source.manifest.data.version
    return Contract(source.name, version, len(cases), unrendered, agreements, absent, round(took, 2))


def check_export(store: Path, target: str) -> Contract | None:
    """`check_serving` of what was just written; None for a run of raw text, which has no chat template to compare."""
    source, _ = _places(store, target)
    return None if source.template.raw else check_serving(store, target)


def _check_chat(source: Source) -> None:
    if source.template.raw:
        raise ExportError(
            f"Run {source.name} learned raw text: it is sent a beginning, no conversation, and has no chat template.",
            f"curate chat {source.name} --prompt '…' goes on with a beginning; servers do so for /v1/completions.",
        )


# --------------------------------------------------------------------------------------------------------- places


@dataclass(frozen=True, slots=True)
class Places:
    """What there is of a run beside its adapter."""

    merged: Path | None = None
    gguf: Path | None = None
    ollama: Path | None = None


def _places(store: Path, target: str) -> tuple[Source, Places]:
    """The run of a target and what of it is to be asked: a run's exports, or the one thing that was named."""
    path = Path(target).expanduser()
    if path.suffix == ".gguf":
        return find_source(store, _run_of(json.loads(_manifest_text(path)), store), weights=False), Places(gguf=path)
    if (path / MODELFILE).exists():
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return find_source(store, _run_of(manifest, store), weights=False), Places(ollama=path)
    if (path / "config.json").exists():
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return find_source(store, _run_of(manifest, store), weights=False), Places(merged=path)
    source = find_source(store, target, weights=False)
    merged = beside(store, "merged", source.name)
    files = sorted(beside(store, "gguf", source.name).glob("*.gguf"), key=lambda file: file.stat().st_size)
    ollama = beside(store, "ollama", source.name)
    return source, Places(
        merged if merged.is_dir() else None,
        files[-1] if files else None,
        ollama if (ollama / MODELFILE).exists() else None,
    )


def _manifest_text(path: Path) -> str:
    text = read_metadata(path).get(MANIFEST_KEY)
    if text is None:
        raise ExportError(f"{path} does not say which run made it.", "curate gguf RUN writes one that does.")
    return text


def _run_of(manifest: Mapping[str, Any], store: Path) -> str:
    """The run of the store that a manifest names. Raises `ExportError` when the store has another under that name."""
    source = find_source(store, str(manifest["run"]), weights=False)
    if source.manifest.adapter_digest != manifest["adapter_digest"]:
        raise ExportError(
            f"It was made of a run {source.name} of another store: the adapters' digests differ.", "Give its --store."
        )
    return source.name


def _absent(places: Places, source: Source) -> dict[str, str]:
    absent: dict[str, str] = {}
    if places != Places() and sum(place is not None for place in (places.merged, places.gguf, places.ollama)) == 1:
        return absent  # one thing was named, or there is one
    if places.merged is None and places.gguf is None and not source.whole:
        absent["merged model"] = f"curate merge {source.name}"
    if places.gguf is None:
        absent["llama.cpp"] = f"curate gguf {source.name}"
    return absent


def _folders(places: Places) -> Iterator[Backend]:
    if places.merged is not None:
        yield TransformersBackend("transformers, merged", places.merged)


def _servers(places: Places, stack: ExitStack) -> Iterator[Backend]:
    if places.gguf is not None:
        address = stack.enter_context(serving(places.gguf, context=512, threads=threads(), gpu=False))
        yield LlamaCppBackend(f"llama.cpp, {places.gguf.name}", address)
    if places.ollama is not None:
        address = stack.enter_context(serving(gguf_of(places.ollama), context=512, threads=threads(), gpu=False))
        yield Ollama("Ollama, Modelfile", places.ollama, address)


def _addressed(url: str, key: str, model: str, absent: dict[str, str]) -> Iterator[Backend]:
    if not url:
        return
    engine = detect_backend(url, connect(url, key, model))
    if engine is None:
        absent[url] = "it neither renders nor reads for others: no /tokenize of vLLM, no /apply-template of llama.cpp"
        return
    yield engine


# ---------------------------------------------------------------------------------------------------------- cases


class Trained:
    """The training's own rendering, asked as a server is asked: does what is learned begin where the prompt ends?"""

    name = "training, generation prompt"

    def __init__(self, source: Source) -> None:
        self._renderer = source.renderer

    def encode_prompts(self, asked: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the messages with the template's generation prompt."""
        texts = [self._renderer.apply_template(one.messages, one.tools, add_generation_prompt=True) for one in asked]
        return [encoding.ids for encoding in self._renderer.tokenizer.encode(texts)]

    def encode_texts(self, asked: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the texts, by the library alone."""
        return [encoding.ids for encoding in self._renderer.tokenizer.encode([one.text for one in asked])]

    def check_stop(self, token: int) -> str | None:  # noqa: ARG002
        """Rendering generates nothing."""
        return None


def _cases(store: Path, source: Source, limit: int) -> tuple[list[Case], int]:
    """The conversations of the version and the odd ones, and how many of them this template does not render."""
    members = members_of(store, source.manifest).head(limit)
    rows = [*members.iter_rows(named=True), *probes(source)]
    renderings = [source.renderer.render(row) for row in rows]  # a template is a program, conversation by conversation
    labelled = encode_renderings(pl.Series([row["id"] for row in rows]), renderings, source.tokenizer)
    cases = []
    for row, rendering, ids, labels in zip(
        rows, renderings, labelled["input_ids"].to_list(), labelled["labels"].to_list(), strict=True
    ):
        if ids is not None and rendering.loss_spans:
            case = _case(source, row, rendering.text, rendering.loss_spans[-1].turn, (ids, labels))
            cases += [case] if case else []
    return cases, len(rows) - len(cases)


def _case(source: Source, row: Mapping[str, Any], text: str, turn: int, learned: tuple[Ids, Ids]) -> Case | None:
    turns = strip_reasoning(row["conversations"]) if source.reasoning == "strip" else row["conversations"]
    messages = to_messages(turns)[: message_numbers(turns)[turn]]
    tools = to_tools(row.get("tools"))
    try:
        prompt = source.renderer.apply_template(messages, tools, add_generation_prompt=True)
    except TEMPLATE_FAILURES:
        return None  # it refuses a conversation without an answer: nobody can serve it either
    (encoding,) = source.tokenizer.encode([prompt])
    ids, labels = learned
    end = len(encoding.ids)
    prefix = ids[:end] == encoding.ids and labels[end - 1] == IGNORE_INDEX != labels[end]
    return Case(row["id"], ids, encoding.ids, RenderRequest(messages, tools, text), prefix)


def probes(source: Source) -> list[dict[str, Any]]:
    """Conversations that data may lack and users do not: white space, scripts, markers, systems, tools."""
    marker = " ".join(sorted(source.tokenizer.stops)) + source.renderer.generation_prompt
    questions = {
        "white space": "  \n\tHello,  there \r\n\n ",
        "scripts": "你好，世界 مرحبا नमस्ते Привет こんにちは e\u0301 \u200d👩\u200d🚀🇩🇪",
        "markers": f"I typed {marker} and {{{{ messages }}}} and {{% if %}} and </s>",
        "code": '```python\nprint("a\\\\b")\n```\n<xml attr="&amp;">{"a": [1, null]}</xml>',
        "length": "word " * 300 + "1234567890" * 20,
    }
    rows = [_talk(name, [("human", text), ("gpt", f"You said: {text.strip()}")]) for name, text in questions.items()]
    several = [("human", "One?"), ("gpt", "Two."), ("human", "Three?\n"), ("gpt", "Four.")]
    call = json.dumps({"name": "now", "arguments": {"zone": "Europe/Zürich", "at": 1}}, ensure_ascii=False)
    used = [("human", "How late?"), ("function_call", call), ("observation", '{"time": "5 pm"}'), ("gpt", "5 pm.")]
    tool = {"name": "now", "description": "The time <now>", "parameters": {"type": "object", "properties": {}}}
    tools = json.dumps([{"type": "function", "function": tool}])
    return [
        *rows,
        _talk("several turns", several),
        _talk("system", [("system", " You are brief. "), *several]),
        _talk("tools", used, tools),
        _talk("system and tools", [("system", "You are brief."), *used], tools),
    ]


def _talk(name: str, turns: Sequence[tuple[str, str]], tools: str | None = None) -> dict[str, Any]:
    return {
        "id": f"probe: {name}",
        "conversations": [{"from": role, "value": value} for role, value in turns],
        "tools": tools,
    }


# ------------------------------------------------------------------------------------------------------ comparing


def _agreement(engine: Backend, cases: Sequence[Case], stops: Sequence[int], source: Source) -> Agreement:
    asked = [case.asked for case in cases]
    prompts, texts = engine.encode_prompts(asked), engine.encode_texts(asked)
    problems = [
        _mismatch(case, prompt, texts[number] if texts else case.ids, source, engine)
        for number, (case, prompt) in enumerate(zip(cases, prompts, strict=True))
        if prompt is not None
    ]
    found = [problem for problem in problems if problem is not None]
    wrong = tuple(problem for token in stops if (problem := engine.check_stop(token)))
    served = len(problems)
    first = next((problem for problem in found if not problem.why), found[0] if found else None)
    return Agreement(engine.name, served, served - len(found), first, wrong, len(cases) - served)


def _mismatch(case: Case, prompt: Ids | str, text: Ids | str, source: Source, engine: Backend) -> Mismatch | None:
    """How an engine's ids differ from the training's; the training itself is asked where its learning begins, too."""
    if isinstance(engine, Trained) and not case.prefix:
        return _difference(case, "behind the prompt", case.ids, case.prompt, source)
    if prompt != case.prompt:
        why = _why(case, prompt, source) if isinstance(engine, LlamaCppBackend | Ollama) else ""
        return replace(_difference(case, "prompt", case.prompt, prompt, source), why=why)
    if text != case.ids:
        return _difference(case, "conversation", case.ids, text, source)
    return None


def _difference(case: Case, where: str, trained: Ids, served: Ids | str, source: Source) -> Mismatch:
    if isinstance(served, str):
        return Mismatch(case.id, where, 0, "", "a prompt", f"refused: {served}")
    shorter = min(len(trained), len(served))
    place = next((n for n in range(shorter) if trained[n] != served[n]), shorter)

    def words(ids: Ids) -> str:
        return source.tokenizer.backend.decode(ids, skip_special_tokens=False)

    before = words(trained[max(0, place - AROUND) : place])
    shown = (words(trained[place : place + 4]), words(served[place : place + 4]))
    return Mismatch(case.id, where, place, before, *shown)


def _why(case: Case, served: Ids | str, source: Source) -> str:
    """The known reason of llama.cpp's: the prompts differ, but only by digits of numbers that stand in tool calls."""
    if isinstance(served, str):
        return ""
    trained, other = (source.tokenizer.backend.decode(ids, skip_special_tokens=False) for ids in (case.prompt, served))
    lost = set(Counter(FRACTION.findall(trained)) - Counter(FRACTION.findall(other)))
    called = json.dumps([message.get("tool_calls") for message in case.asked.messages])
    known = lost and lost <= set(FRACTION.findall(called)) and in_six_digits(trained) == in_six_digits(other)
    return SIX_DIGITS if known else ""


def in_six_digits(text: str) -> str:
    """A text with its numbers as llama.cpp's templates write those of a tool call: C++ prints six digits.

    >>> in_six_digits('{"at": -118.2437, "price": 3.0, "id": 12345678}')
    '{"at": -118.244, "price": 3, "id": 12345678}'
    """
    return FRACTION.sub(lambda number: f"{float(number[0]):g}", text)
