"""In: a GGUF. Out: llama.cpp's own server for it, and what it answers. Through the package xllamacpp.

The server runs in a process of its own, which ends with the one that started it: a server that could not start leaves
threads behind, and a second one in the same process then waits for ever (xllamacpp 2026.10). It listens on the
loopback, asks for a key, and lets no page of another origin in, unless it is told otherwise.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas.environment import install_command
from schemas.errors import ExportError
from train.inference.openai_client import OpenAIClient

LOOPBACK = "127.0.0.1"
SILENT = -1
PLAIN_TEMPLATE = "{{ messages[0]['content'] }}"
"""A template that every release reads: with it a server starts whose model's own template is the fault."""


@contextmanager
def serving(
    path: Path,
    *,
    port: int = 0,
    host: str = LOOPBACK,
    key: str = "",
    origins: str = "",
    context: int = 0,
    slots: int = 1,
    threads: int = 0,
    gpu: bool = True,
) -> Iterator[OpenAIClient]:
    """The address of a server for the GGUF at `path`, while the block runs; port 0 takes a free one.

    `context` is in tokens, 0 for what the model was made for; `origins` are the pages that may ask it, by default its
    own. Raises `ExportError` when the port is taken, or llama.cpp cannot load the model or read its template.
    """
    check_port(host, port)
    _check_installed()
    key = key or secrets.token_urlsafe(24)
    order = {"path": str(path), "port": port, "host": host, "key": key, "origins": origins, "gpu": gpu}
    order |= {"context": context, "slots": slots, "threads": threads}
    with _child(order) as url:
        if not url:
            raise _explained(order, path)
        yield OpenAIClient(url, key, path.stem)


def check_port(host: str, port: int) -> None:
    """Raise `ExportError` when another program listens there."""
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ExportError(
                f"Port {port} on {host} cannot be used: {error.strerror}.", "Give another --port; 0 takes a free one."
            ) from error


def _check_installed() -> None:
    if find_spec("xllamacpp") is None:
        raise ExportError("llama.cpp's server, the package xllamacpp, is not installed.", install_command("gguf"))


@contextmanager
def _child(order: Mapping[str, Any]) -> Iterator[str]:
    """A process with the server that `order` asks for: its address, or "" when it could not start."""
    command = [sys.executable, "-P", "-c", "from train.export.llamacpp.server import work; work()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _explained(order: Mapping[str, Any], path: Path) -> ExportError:
    """What llama.cpp does not say: whether it is the model or its template. Asked by starting it with another."""
    with _child({**order, "port": 0, "template": PLAIN_TEMPLATE}) as url:
        starts = bool(url)
    if not starts:
        return ExportError(
            f"llama.cpp cannot load {path}.", "The file may be damaged or newer than this llama.cpp: curate gguf RUN."
        )
    return ExportError(
        f"llama.cpp cannot read the chat template in {path}.",
        "Serve it with vLLM or TGI, which read it as training did; or train with a simpler --template.",
    )


# --------------------------------------------------------------------------------------------- in its own process


def work() -> None:
    """Start the server that the JSON on stdin asks for, print its address, and end when stdin does."""
    import xllamacpp

    order = json.loads(sys.stdin.readline())
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, order))
    except RuntimeError:
        print(flush=True)
        os._exit(1)  # not waiting for the threads that a server leaves which could not start
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


def _parameters(llama: Any, order: Mapping[str, Any]) -> Any:
    wanted = llama.CommonParams()
    wanted.model.path = order["path"]
    wanted.port, wanted.hostnames = order["port"], [order["host"]]
    wanted.api_keys = [order["key"]]
    wanted.cors_origins = order["origins"] or f"http://{order['host']}" + (f":{order['port']}" if order["port"] else "")
    wanted.n_ctx, wanted.n_parallel = order["context"], order["slots"]
    wanted.model_alias = {Path(order["path"]).stem}  # else it tells its clients the path
    wanted.use_jinja, wanted.warmup, wanted.verbosity = True, False, SILENT
    if order["threads"]:
        wanted.cpuparams.n_threads = order["threads"]
    if not order["gpu"]:
        wanted.n_gpu_layers = 0
    if "template" in order:
        wanted.chat_template = order["template"]
    return wanted
