"""In: a GGUF, or a run. Out: a server that speaks OpenAI's protocol, until it is stopped.

llama.cpp's own server serves a GGUF; vLLM, where it is installed, serves a merged model. Both listen on the loopback
and ask for a key, unless they are told otherwise.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import ExportError
from train.export.llamacpp.server import LOOPBACK, check_port, serving
from train.export.quant_choice import gguf_of_run
from train.export.source import beside, find_source
from train.inference.openai_client import OpenAIClient, RefusedError

ENGINES = ("llama.cpp", "vllm")
PULSE = 2.0
"""Seconds between two looks whether the server is still there."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How to serve: where to listen, for whom, and with how much room."""

    host: str = LOOPBACK
    port: int = 8080
    key: str = ""
    origins: str = ""
    context: int = 0
    slots: int = 1
    quant: str = ""


def serve(
    store: Path,
    target: str,
    wish: Wish,
    tell: Callable[[OpenAIClient], None],
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the GGUF that `target` is, or the one of the run that it names, until Ctrl-C; `tell` is told the address.

    `report` is told which of the run's files it is. Raises `ExportError` when there is no GGUF, the port is taken, or
    the server ends by itself.
    """
    path = gguf_to_serve(store, target, wish.quant, report)
    with serving(
        path,
        port=wish.port,
        host=wish.host,
        key=wish.key,
        origins=wish.origins,
        context=wish.context,
        slots=wish.slots,
    ) as address:
        tell(address)
        _watch(address)


def gguf_to_serve(store: Path, target: str, quant: str = "", report: Callable[[str], None] = lambda _: None) -> Path:
    """The GGUF that a target is or names: of a run the kind that is asked for, else the one to take."""
    path = Path(target).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ExportError(f"There is no file {path}.", "curate gguf RUN writes one.")
        return path
    return gguf_of_run(store, find_source(store, target, weights=False), quant, report)


def vllm_command(store: Path, target: str, wish: Wish) -> list[str]:
    """The command that serves a run's merged model with vLLM.

    Raises `ExportError` where vLLM is not installed, nothing is merged, or the port is taken.
    """
    program = shutil.which("vllm")
    if program is None:
        raise ExportError("vLLM is not installed.", "pip install vllm, on a machine with a GPU; or --engine llama.cpp.")
    source = find_source(store, target, weights=False)
    folder = source.adapter if source.whole else beside(store, "merged", source.name)
    if not folder.is_dir():
        raise ExportError(f"Run {source.name} is not merged.", f"curate merge {source.name}")
    check_port(wish.host, wish.port)
    room = ["--max-model-len", str(wish.context)] if wish.context else []
    where = ["--host", wish.host, "--port", str(wish.port)]
    return [program, "serve", str(folder), "--served-model-name", source.name, *where, *room]


def become_vllm(store: Path, target: str, wish: Wish, tell: Callable[[OpenAIClient], None]) -> None:
    """Go on as vLLM's server, in place of this process; the key goes along where no list of processes shows it."""
    command = vllm_command(store, target, wish)
    key = wish.key or secrets.token_urlsafe(24)
    os.environ["VLLM_API_KEY"] = key
    tell(OpenAIClient(f"http://{wish.host}:{wish.port}", key, command[command.index("--served-model-name") + 1]))
    os.execv(command[0], command)


def _watch(address: OpenAIClient) -> None:
    while True:
        time.sleep(PULSE)
        try:
            address.models()
        except RefusedError as error:
            raise ExportError(f"The server at {address.url} is not well: {error}.") from error
