"""In: a run with a GGUF. Out: a Modelfile, whose template is the training's, told in Go, and the engine that proves it.

Ollama collates messages before it renders them (`template.go`, `collate`): neighbours of one role become one message,
joined by an empty line, and all system messages together are `.System`. Its template here knows no tools, so Ollama
refuses a request with tools in words, instead of rendering it in a spacing that was never trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import ExportError
from schemas.manifest import Manifest
from train.checks.go_templates import parse, render
from train.export.gguf import threads
from train.export.go_template import to_go
from train.export.llamacpp.server import serving
from train.export.quant_choice import gguf_of_run
from train.export.source import Source, beside, find_source, members_of, placed
from train.inference.backends import Ids, LlamaCppBackend, RenderRequest, map_requests
from train.inference.openai_client import Messages, OpenAIClient

MODELFILE = "Modelfile"
CONTEXT = 4096
"""Tokens that Ollama looks at by default; a run that was trained on longer conversations asks for more."""


@dataclass(frozen=True, slots=True)
class ForOllama:
    """What was written: the folder, the GGUF it names, and the name under which it is created."""

    folder: Path
    gguf: Path
    name: str

    def as_json(self) -> dict[str, str]:
        """Its facts by name."""
        return {"folder": str(self.folder), "gguf": str(self.gguf), "name": self.name}


def write_ollama(
    store: Path, target: str, *, to: Path | None = None, quant: str = "", report: Callable[[str], None] = lambda _: None
) -> ForOllama:
    """The Modelfile of the run that `target` names, in `to` (default: `ollama/RUN` by the store).

    What is there already, the same, is left as it is; `report` is told which GGUF it names. Raises `ExportError` when
    there is no GGUF, the template cannot be written for Ollama, or something else is in the folder.
    """
    source = find_source(store, target, weights=False)
    gguf = gguf_of_run(store, source, quant, report)
    folder = (to or beside(store, "ollama", source.name)).resolve()
    with serving(gguf, context=512, threads=threads(), gpu=False) as address:
        beginning = _beginning(address)
    template = to_go(source.renderer, beginning)
    text = modelfile(source, gguf, folder, template, _system_of(members_of(store, source.manifest)))
    papers = {MODELFILE: text, "manifest.json": source.manifest.as_json()}
    if not _is_there(folder, papers):
        with placed(folder, "ollama") as partial:
            for name, written in papers.items():
                (partial / name).write_text(written, encoding="utf-8")
    return ForOllama(folder, gguf, _name(source.manifest))


def _is_there(folder: Path, papers: Mapping[str, str]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).read_text(encoding="utf-8") == text
        for name, text in papers.items()
    )


def _beginning(address: OpenAIClient) -> str:
    """The text that the server puts before every prompt, as its model's file asks for: perhaps a beginning token."""
    tokens = address.post("/tokenize", {"content": "", "add_special": True})["tokens"]
    return str(address.post("/detokenize", {"tokens": tokens})["content"]) if tokens else ""


def _name(manifest: Manifest) -> str:
    """A name for `ollama create`: the version and the run, in the letters that Ollama allows."""
    return f"{manifest.data.version.replace('@', '-')}-{manifest.run}".lower()


def _system_of(members: pl.DataFrame) -> str:
    """The system message that every conversation of the version begins with, if it is one and the same; else ""."""
    first = members["conversations"].list.first()
    systems = pl.select(pl.when(first.struct["from"] == "system").then(first.struct["value"])).to_series()
    return str(systems[0]) if systems.n_unique() == 1 and systems[0] is not None else ""


def modelfile(source: Source, gguf: Path, folder: Path, template: str, system: str) -> str:
    """The text of the Modelfile. Raises `ExportError` where a text holds what would end its quotes."""
    manifest = source.manifest
    stops = sorted(source.tokenizer.stops | {region.stop for region in _ends(source) if region.stop})
    length = max(CONTEXT, int(manifest.recipe["max_length"]))
    lines = [
        f"# {manifest.data.version}, {manifest.data.digest}, run {manifest.run}, template "
        f"{manifest.rendering.template_digest}",
        f"FROM {os.path.relpath(gguf, folder)}",
        f"TEMPLATE {_quoted(template)}",
        *([f"SYSTEM {_quoted(system)}"] if system else []),
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        f"PARAMETER num_ctx {length}",
    ]
    return "\n".join(lines) + "\n"


def _ends(source: Source) -> Sequence[Any]:
    row = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    return source.renderer.render(row).loss_spans


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise ExportError("The template or system text has quotes that a Modelfile cannot hold.", "Use curate serve.")
    return f'"""{text}"""'


# ------------------------------------------------------------------------------------------------------ the engine


class Ollama:
    """A Modelfile as Ollama would serve it: its template by Go's rules, its tokens by llama.cpp, which Ollama runs."""

    def __init__(self, name: str, folder: Path, address: OpenAIClient) -> None:
        self.name = name
        text = (folder / MODELFILE).read_text(encoding="utf-8")
        self._template = parse(_field(text, "TEMPLATE"))
        self._system = _field(text, "SYSTEM")
        self._llama = LlamaCppBackend(name, address)
        self._address = address

    def encode_prompts(self, asked: Sequence[RenderRequest]) -> list[Ids | str | None]:
        """The ids of the rendering; nothing for a request with tools, which Ollama refuses for this template."""
        served = [one for one in asked if not _has_tools(one)]
        found = iter(map_requests(self._prompt, served))
        return [None if _has_tools(one) else next(found) for one in asked]

    def _prompt(self, asked: RenderRequest) -> Ids:
        system, messages = collate(_with_system(asked.messages, self._system))
        text = render(self._template, {"System": system, "Messages": messages, "Tools": [], "Response": ""})
        body = {"content": text, "add_special": True, "parse_special": True}
        return list(self._address.post("/tokenize", body)["tokens"])

    def encode_texts(self, asked: Sequence[RenderRequest]) -> list[Ids | str]:
        """The ids of the texts, by llama.cpp."""
        return self._llama.encode_texts(asked)

    def check_stop(self, token: int) -> str | None:
        """As llama.cpp does."""
        return self._llama.check_stop(token)


def _has_tools(asked: RenderRequest) -> bool:
    return bool(asked.tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in asked.messages)


def _with_system(messages: Messages, system: str) -> Messages:
    """Ollama puts the Modelfile's system before messages that begin without one."""
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def collate(messages: Messages) -> tuple[str, list[dict[str, str]]]:
    r"""What Ollama makes of messages before it renders them: `.System`, and `.Messages` without neighbours of one role.

    >>> collate([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    ('', [{'Role': 'user', 'Content': 'a\n\nb'}])
    """
    together: list[dict[str, str]] = []
    for message in messages:
        if together and together[-1]["Role"] == message["role"] != "tool":
            together[-1]["Content"] += f"\n\n{message['content']}"
        else:
            together.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return system, together


def gguf_of(folder: Path) -> Path:
    """The GGUF that a Modelfile names."""
    text = (folder / MODELFILE).read_text(encoding="utf-8")
    (named,) = [line.removeprefix("FROM ").strip() for line in text.splitlines() if line.startswith("FROM ")]
    return (folder / named).resolve()


def _field(text: str, name: str) -> str:
    """What stands between the three quotes behind a Modelfile's instruction; "" where it is not there."""
    _, found, rest = text.partition(f'\n{name} """')
    return rest.partition('"""')[0] if found else ""
