"""Serving: llama.cpp behind OpenAI's protocol, on the loopback, with a key, until it is stopped."""

import json
import signal
import socket
import subprocess
import urllib.request

import httpx
import pytest
from support.training import command

from schemas.errors import ExportError
from train.export.llamacpp.server import serving
from train.export.serve import Wish, gguf_to_serve, vllm_command
from train.inference.openai_client import OpenAIClient, RefusedError, connect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started(exported):
    """`curate serve r1` and what it printed."""
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
        assert (first, last) == ("Takes r1-q4_k_m.gguf: nothing was measured. --quant takes another: f16.", "Stopped.")


def test_a_run_is_served_and_answers_as_openai_does(started):
    _, told = started
    assert told["url"].startswith("http://127.0.0.1:")
    address = connect(told["url"], told["key"])
    assert address.model == told["model"] == "r1-q4_k_m"
    body = {"messages": [{"role": "user", "content": "What about the red lamp?"}], "temperature": 0, "max_tokens": 40}
    answer = address.post("/v1/chat/completions", body)["choices"][0]
    assert answer["message"]["content"].startswith("Hello! The")
    assert answer["finish_reason"] == "stop"
    streamed = [event["choices"][0]["delta"].get("content") or "" for event in stream(told, body)]
    assert "".join(streamed) == answer["message"]["content"]
    assert len(streamed) > 3


def stream(told, body):
    """The events of a streamed answer."""
    headers = {"Authorization": f"Bearer {told['key']}"}
    answer = httpx.post(f"{told['url']}/chat/completions", json={**body, "stream": True}, headers=headers, timeout=60)
    events = [line.removeprefix("data:").strip() for line in answer.text.splitlines() if line]
    return [json.loads(event) for event in events if event != "[DONE]"]


def test_nobody_without_the_key_and_no_page_of_another_origin_gets_in(started):
    _, told = started
    with pytest.raises(RefusedError, match="Invalid API Key"):
        OpenAIClient(told["url"].removesuffix("/v1"), "guess").post("/v1/chat/completions", {"messages": []})
    request = urllib.request.Request(f"{told['url']}/models", headers={"Origin": "http://evil.example"})
    request.add_header("Authorization", f"Bearer {told['key']}")
    with urllib.request.urlopen(request) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") not in ("*", "http://evil.example")


def test_a_port_in_use_is_said_in_a_sentence(curate, exported):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = curate("serve", "r1", "--port", port, cwd=exported.parent)
    assert ran.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be used: Address already in use" in ran.stderr


def test_a_file_that_is_no_model_is_said_in_a_sentence(tmp_path):
    (tmp_path / "no.gguf").write_text("no model")
    with pytest.raises(ExportError, match=r"llama.cpp cannot load"), serving(tmp_path / "no.gguf", gpu=False):
        pass


def test_what_is_not_there_is_named_with_what_brings_it(trained, exported, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="There is no GGUF") as caught:
        gguf_to_serve(trained / "curate.duckdb", "r1")
    assert caught.value.hint == "curate gguf r1 --quant q4_k_m"
    with pytest.raises(ExportError, match="There is no file"):
        gguf_to_serve(exported, str(tmp_path / "none.gguf"))
    assert gguf_to_serve(exported, "r1", "f16").name == "r1-f16.gguf"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="vLLM is not installed"):
        vllm_command(exported, "r1", Wish())
