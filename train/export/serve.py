"""A GGUF or a run → an OpenAI-compatible server, until it is stopped.

llama.cpp's server serves a GGUF; vLLM, if installed, serves a merged model. By default both listen on the loopback
interface and require an API key.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from schemas.errors import ExportError
from train.export.llamacpp.server import ServeOptions, check_port, run_server
from train.export.output import export_dir
from train.export.quant_choice import find_gguf
from train.export.source import find_source
from train.inference.openai_client import OpenAIClient, RefusedError

ENGINES = ("llama.cpp", "vllm")
HEALTH_CHECK_SECONDS = 2.0


def serve(
    store: Path,
    target: str,
    options: ServeOptions,
    on_ready: Callable[[OpenAIClient], None],
    *,
    quant: str = "",
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a GGUF, or the GGUF of a run, until Ctrl-C. `on_ready` is called when the server listens.

    `report` receives which file of the run is used. Raises `ExportError` if there is no GGUF, the port is in use, or
    the server stops responding.
    """
    with run_server(resolve_gguf(store, target, quant, report), options) as client:
        on_ready(client)
        _monitor(client)


def resolve_gguf(store: Path, target: str, quant: str = "", report: Callable[[str], None] = lambda _: None) -> Path:
    """The GGUF file that `target` names, or of a run the one of kind `quant`, or else the recommended one."""
    path = Path(target).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ExportError(f"There is no file {path}.", "curate gguf RUN writes one.")
        return path
    return find_gguf(store, find_source(store, target, weights=False), quant, report)


def vllm_command(store: Path, target: str, options: ServeOptions) -> list[str]:
    """The command that serves a run's merged model with vLLM.

    Raises `ExportError` if vLLM is not installed, the run is not merged, or the port is in use.
    """
    program = shutil.which("vllm")
    if program is None:
        raise ExportError("vLLM is not installed.", "pip install vllm, on a machine with a GPU; or --engine llama.cpp.")
    source = find_source(store, target, weights=False)
    folder = source.adapter if source.is_full_finetune else export_dir(store, "merged", source.name)
    if not folder.is_dir():
        raise ExportError(f"Run {source.name} is not merged.", f"curate merge {source.name}")
    check_port(options.host, options.port)
    context = ["--max-model-len", str(options.context)] if options.context else []
    address = ["--host", options.host, "--port", str(options.port)]
    return [program, "serve", str(folder), "--served-model-name", source.name, *address, *context]


def exec_vllm(store: Path, target: str, options: ServeOptions, on_ready: Callable[[OpenAIClient], None]) -> None:
    """Replace this process with vLLM's server. The API key is passed in the environment, not in the process list."""
    command = vllm_command(store, target, options)
    key = options.key or secrets.token_urlsafe(24)
    os.environ["VLLM_API_KEY"] = key
    model = command[command.index("--served-model-name") + 1]
    on_ready(OpenAIClient(f"http://{options.host}:{options.port}", key, model))
    os.execv(command[0], command)


def _monitor(client: OpenAIClient) -> None:
    while True:
        time.sleep(HEALTH_CHECK_SECONDS)
        try:
            client.models()
        except RefusedError as error:
            raise ExportError(f"The server at {client.url} reports an error: {error}.") from error
