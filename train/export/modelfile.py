"""A run with a GGUF → an Ollama Modelfile with its chat template as a Go template, and a backend that checks it.

Ollama combines messages before rendering (`collate` in its `template.go`): consecutive messages of one role become one
message, joined by an empty line, and all system messages together become `.System`. The Go template has no slots for
tools, so Ollama refuses requests with tools instead of rendering them differently from training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from schemas.atomic import atomic_dir
from schemas.errors import CurateError, ExportError
from schemas.manifest import MANIFEST_FILE, Manifest, read_manifest
from train.export.go_template import find_slots, read_slots, to_go
from train.export.llamacpp.server import run_cpu_server
from train.export.output import ExportTarget, check_free, explain_write_errors, export_dir
from train.export.quant_choice import find_gguf
from train.export.source import ExportSource, find_source, read_conversations
from train.inference.backends import Ids, LlamaCppBackend, RenderRequest, map_requests
from train.inference.openai_client import Messages, OpenAIClient

MODELFILE = "Modelfile"
DEFAULT_CONTEXT = 4096
"""Ollama's default context in tokens; a larger `train.max_length` is written to the Modelfile."""


@dataclass(frozen=True, slots=True)
class OllamaExport:
    """A written Modelfile: its folder, the GGUF that it names, and the name for `ollama create`."""

    folder: Path
    gguf: Path
    name: str


def write_modelfile(
    store: Path, target: str, *, to: Path | None = None, quant: str = "", report: Callable[[str], None] = lambda _: None
) -> OllamaExport:
    """Write the Modelfile of the run that `target` names to `to` (default: `ollama/RUN` next to the store).

    An identical export is left unchanged. `report` receives which GGUF is used. Raises `ExportError` if there is no
    GGUF, the template cannot be written for Ollama, or the folder has other content.
    """
    source = find_source(store, target, weights=False)
    gguf = find_gguf(store, source, quant, report)
    folder = (to or export_dir(store, "ollama", source.name)).resolve()
    with run_cpu_server(gguf) as client:
        prefix = _read_prefix(client)
    template = to_go(find_slots(source.renderer, prefix))
    system = _find_system(read_conversations(store, source.manifest))
    text = format_modelfile(source, gguf, folder, template, system)
    if not _exists(folder, text, source.manifest):
        check_free(folder)
        with explain_write_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_dir(folder) as temporary:
                (temporary / MODELFILE).write_text(text, encoding="utf-8")
                (temporary / MANIFEST_FILE).write_text(source.manifest.as_json(), encoding="utf-8")
    name = f"{source.manifest.data.version.replace('@', '-')}-{source.manifest.run}".lower()  # as Ollama allows
    return OllamaExport(folder, gguf, name)


def _exists(folder: Path, text: str, manifest: Manifest) -> bool:
    try:
        return (folder / MODELFILE).read_text(encoding="utf-8") == text and read_manifest(folder) == manifest
    except (OSError, CurateError):
        return False


def _read_prefix(client: OpenAIClient) -> str:
    """The text that the server adds before every prompt, such as a beginning-of-sequence token."""
    tokens = client.post("/tokenize", {"content": "", "add_special": True})["tokens"]
    return str(client.post("/detokenize", {"tokens": tokens})["content"]) if tokens else ""


def _find_system(conversations: pl.DataFrame) -> str:
    """The system message if all conversations begin with the same one, otherwise ""."""
    first = conversations["conversations"].list.first()
    systems = pl.select(pl.when(first.struct["from"] == "system").then(first.struct["value"])).to_series()
    return str(systems[0]) if systems.n_unique() == 1 and systems[0] is not None else ""


def format_modelfile(source: ExportSource, gguf: Path, folder: Path, template: str, system: str) -> str:
    """The text of the Modelfile. Raises `ExportError` if a text contains the quotes that would end it."""
    manifest = source.manifest
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    spans = source.renderer.render({"conversations": turns}).loss_spans
    stops = sorted(source.tokenizer.stops | {span.stop for span in spans if span.stop})
    lines = [
        f"# {manifest.data.version}, {manifest.data.digest}, run {manifest.run}, template "
        f"{manifest.rendering.template_digest}",
        f"FROM {os.path.relpath(gguf, folder)}",
        f"TEMPLATE {_quote(template)}",
        *([f"SYSTEM {_quote(system)}"] if system else []),
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        f"PARAMETER num_ctx {max(DEFAULT_CONTEXT, int(manifest.recipe['max_length']))}",
    ]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise ExportError(
            "The template or system message has quotes that a Modelfile cannot contain.", "Use curate serve."
        )
    return f'"""{text}"""'


class OllamaBackend(LlamaCppBackend):
    """A Modelfile: the slots of its template, filled with a chat's messages and tokenized by llama.cpp."""

    note = (
        "fills the slots of the Modelfile's template as Go does and tokenizes the text with llama.cpp; Ollama itself "
        "is not run"
    )

    def __init__(self, name: str, folder: Path, client: OpenAIClient) -> None:
        super().__init__(name, client)
        text = (folder / MODELFILE).read_text(encoding="utf-8")
        self._slots = read_slots(_read_field(text, "TEMPLATE"))
        self._system = _read_field(text, "SYSTEM")

    def encode_prompts(self, requests: Sequence[RenderRequest]) -> list[Ids | str | None]:
        """The ids of the rendered messages; None for a request with tools, which Ollama refuses for this template."""
        ids = iter(map_requests(self._encode, [request for request in requests if not _has_tools(request)]))
        return [None if _has_tools(request) else next(ids) for request in requests]

    def _encode(self, request: RenderRequest) -> Ids:
        text = self._slots.fill(*collate(_add_system(request.messages, self._system)))
        return self._tokenize(text, add_special=True)


def _has_tools(request: RenderRequest) -> bool:
    return bool(request.tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in request.messages)


def _add_system(messages: Messages, system: str) -> Messages:
    """Ollama adds the Modelfile's system message to a chat that begins without one."""
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def collate(messages: Messages) -> tuple[str, list[dict[str, str]]]:
    r"""Ollama's `.System` and `.Messages` for a chat: consecutive messages of one role are joined.

    >>> collate([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    ('', [{'Role': 'user', 'Content': 'a\n\nb'}])
    """
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"] != "tool":
            joined[-1]["Content"] += f"\n\n{message['content']}"
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return system, joined


def _read_gguf_path(folder: Path) -> Path:
    text = (folder / MODELFILE).read_text(encoding="utf-8")
    (path,) = [line.removeprefix("FROM ").strip() for line in text.splitlines() if line.startswith("FROM ")]
    return (folder / path).resolve()


def _read_field(text: str, name: str) -> str:
    """The triple-quoted value of a Modelfile instruction, or "" if it is missing."""
    _, found, rest = text.partition(f'\n{name} """')
    return rest.partition('"""')[0] if found else ""


@contextmanager
def _open_backend(folder: Path) -> Iterator[OllamaBackend]:
    """A llama.cpp server for the GGUF, as Ollama runs it, with the Modelfile's template."""
    with run_cpu_server(_read_gguf_path(folder)) as client:
        yield OllamaBackend("Ollama, Modelfile", folder, client)


OLLAMA = ExportTarget(
    folder="ollama",
    engine="Ollama",
    command="curate ollama",
    matches=lambda path: (path / MODELFILE).exists(),
    open_backend=_open_backend,
)
