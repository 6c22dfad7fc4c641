"""Serving: llama.cpp with an OpenAI-compatible API, on the loopback interface, with a key, until Ctrl-C."""

import json
import signal
import socket
import subprocess
import urllib.request

import httpx
import pytest
from support.training import command

from schemas.errors import ExportError
from train.export.llamacpp.server import ServeOptions, run_cpu_server
from train.export.serve import resolve_gguf, vllm_command
from train.inference.openai_client import OpenAIClient, RefusedError, connect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(exported):
    """The process of `curate serve r1` and the JSON that it printed."""
    arguments = command("serve", "r1", "--port", "0", "--api-key", "secret", "--json")
    with subprocess.Popen(
        arguments, cwd=exported.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        text = ""
        while not text.endswith("}\n"):
            line = ran.stdout.readline()
            assert line, ran.stderr.read()
            text += line
        yield ran, json.loads(text)
        ran.send_signal(signal.SIGINT)
        assert ran.wait(30) == 0
        first, last = ran.stderr.read().splitlines()
        assert (first, last) == (
            "Using r1-q4_k_m.gguf: nothing was measured. --quant selects another: f16.",
            "Stopped.",
        )


def test_a_run_is_served_with_the_openai_api(server):
    _, printed = server
    assert printed["url"].startswith("http://127.0.0.1:")
    client = connect(printed["url"], printed["key"])
    assert client.model == printed["model"] == "r1-q4_k_m"
    body = {"messages": [{"role": "user", "content": "What about the red lamp?"}], "temperature": 0, "max_tokens": 40}
    answer = client.post("/v1/chat/completions", body)["choices"][0]
    assert answer["message"]["content"].startswith("Hello! The")
    assert answer["finish_reason"] == "stop"
    streamed = [event["choices"][0]["delta"].get("content") or "" for event in stream(printed, body)]
    assert "".join(streamed) == answer["message"]["content"]
    assert len(streamed) > 3


def stream(printed, body):
    """The events of a streamed answer."""
    headers = {"Authorization": f"Bearer {printed['key']}"}
    answer = httpx.post(
        f"{printed['url']}/chat/completions", json={**body, "stream": True}, headers=headers, timeout=60
    )
    events = [line.removeprefix("data:").strip() for line in answer.text.splitlines() if line]
    return [json.loads(event) for event in events if event != "[DONE]"]


def test_requests_without_the_key_or_from_another_origin_are_refused(server):
    _, printed = server
    with pytest.raises(RefusedError, match="Invalid API Key"):
        OpenAIClient(printed["url"].removesuffix("/v1"), "guess").post("/v1/chat/completions", {"messages": []})
    request = urllib.request.Request(f"{printed['url']}/models", headers={"Origin": "http://evil.example"})
    request.add_header("Authorization", f"Bearer {printed['key']}")
    with urllib.request.urlopen(request) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") not in ("*", "http://evil.example")


def test_a_port_in_use_is_an_error(curate, exported):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        ran = curate("serve", "r1", "--port", port, cwd=exported.parent)
    assert ran.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be used: Address already in use" in ran.stderr


def test_a_file_that_is_not_a_model_is_an_error(tmp_path):
    (tmp_path / "no.gguf").write_text("not a model")
    with pytest.raises(ExportError, match=r"llama.cpp cannot load"), run_cpu_server(tmp_path / "no.gguf"):
        pass


def test_a_missing_gguf_or_vllm_is_an_error_with_the_next_command(trained, exported, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="There is no GGUF") as caught:
        resolve_gguf(trained / "curate.duckdb", "r1")
    assert caught.value.hint == "curate gguf r1 --quant q4_k_m"
    with pytest.raises(ExportError, match="There is no file"):
        resolve_gguf(exported, str(tmp_path / "none.gguf"))
    assert resolve_gguf(exported, "r1", "f16").name == "r1-f16.gguf"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="vLLM is not installed"):
        vllm_command(exported, "r1", ServeOptions())
