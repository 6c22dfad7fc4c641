"""A GGUF → llama.cpp's server for it, in a child process. Uses the package xllamacpp.

The server needs its own process: after a failed start it leaves threads running, and a second server in the same
process then waits forever (xllamacpp 2026.10). The process ends with its parent. By default the server listens on the
loopback interface, requires an API key, and allows no web page of another origin.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schemas.environment import count_cores, install_command
from schemas.errors import ExportError
from train.inference.openai_client import OpenAIClient

LOOPBACK = "127.0.0.1"
SILENT = -1
PLAIN_TEMPLATE = "{{ messages[0]['content'] }}"
"""A template that every release can parse: a server that starts with it fails because of the model's own template."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve: address, access and limits.

    Port 0 uses a free port. `origins` are the web origins that may send requests, by default the server's own.
    `context` is in tokens, 0 for the model's own.
    """

    host: str = LOOPBACK
    port: int = 0
    key: str = ""
    origins: str = ""
    context: int = 0
    slots: int = 1


def run_cpu_server(path: Path) -> AbstractContextManager[OpenAIClient]:
    """A server without GPU and with a context of 512 tokens, enough to render and tokenize."""
    return run_server(path, ServeOptions(context=512), threads=count_threads(), gpu=False)


def count_threads() -> int:
    """Threads for llama.cpp: OMP_NUM_THREADS, otherwise all cores that this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or count_cores()


@contextmanager
def run_server(path: Path, options: ServeOptions, *, threads: int = 0, gpu: bool = True) -> Iterator[OpenAIClient]:
    """Serve the GGUF at `path` while the block runs.

    Raises `ExportError` if the port is in use, or llama.cpp cannot load the model or its template.
    """
    check_port(options.host, options.port)
    if find_spec("xllamacpp") is None:
        raise ExportError("llama.cpp's server, the package xllamacpp, is not installed.", install_command("gguf"))
    key = options.key or secrets.token_urlsafe(24)
    job = asdict(options) | {"path": str(path), "key": key, "threads": threads, "gpu": gpu}
    with _start(job) as url:
        if not url:
            raise _explain(job, path)
        yield OpenAIClient(url, key, path.stem)


def check_port(host: str, port: int) -> None:
    """Raise `ExportError` if the port is in use."""
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ExportError(
                f"Port {port} on {host} cannot be used: {error.strerror}.", "Give another --port; 0 uses a free one."
            ) from error


@contextmanager
def _start(job: Mapping[str, Any]) -> Iterator[str]:
    """Start a child process with the server; its URL, or "" if it could not start."""
    command = [sys.executable, "-P", "-c", "from train.export.llamacpp.server import run_job; run_job()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _explain(job: Mapping[str, Any], path: Path) -> ExportError:
    """llama.cpp does not report whether the model or its template is the cause; a start with another template does."""
    with _start({**job, "port": 0, "template": PLAIN_TEMPLATE}) as url:
        starts = bool(url)
    if not starts:
        return ExportError(
            f"llama.cpp cannot load {path}.", "The file may be damaged or newer than this llama.cpp: curate gguf RUN."
        )
    return ExportError(
        f"llama.cpp cannot read the chat template in {path}.",
        "Serve the run with vLLM or TGI, which read it as training did; or train with a simpler --template.",
    )


# ----------------------------------------------------------------------------------------------- the child process


def run_job() -> None:
    """Start the server described by the JSON on stdin, print its URL, and end when stdin is closed."""
    import xllamacpp

    job = json.loads(sys.stdin.readline())
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, job))
    except RuntimeError:
        print(flush=True)
        os._exit(1)  # do not wait for the threads of a server that failed to start
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


def _parameters(llama: Any, job: Mapping[str, Any]) -> Any:
    parameters = llama.CommonParams()
    parameters.model.path = job["path"]
    parameters.port, parameters.hostnames = job["port"], [job["host"]]
    parameters.api_keys = [job["key"]]
    own_origin = f"http://{job['host']}" + (f":{job['port']}" if job["port"] else "")
    parameters.cors_origins = job["origins"] or own_origin
    parameters.n_ctx, parameters.n_parallel = job["context"], job["slots"]
    parameters.model_alias = {Path(job["path"]).stem}  # the default name is the path
    parameters.use_jinja, parameters.warmup, parameters.verbosity = True, False, SILENT
    if job["threads"]:
        parameters.cpuparams.n_threads = job["threads"]
    if not job["gpu"]:
        parameters.n_gpu_layers = 0
    if "template" in job:
        parameters.chat_template = job["template"]
    return parameters
