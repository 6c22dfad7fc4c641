"""Connections to the labelling server that fail: interrupted pushes and pulls, keys, addresses."""

import contextlib
import socket
import subprocess
import sys
import threading

import pytest
from support.argilla_server import RefusedError
from support.review_sets import LONG, RemoteDataset, add_reviewed, verdicts
from support.stores import add, questions

from curate.review.argilla.client import connect
from curate.review.pull import pull
from curate.review.push import push
from curate.review.queue import QueueQuery
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection
from schemas.store import reading


@pytest.fixture
def store(tmp_path):
    return add_reviewed(tmp_path / "curate.duckdb")


class Proxy:
    """A TCP proxy to the server that can be disconnected."""

    def __init__(self, url):
        self._target = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def disconnect(self):
        for end in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def proxy(argilla_server, monkeypatch):
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.api_key)
    connection = Proxy(argilla_server.url)
    yield connection
    connection.disconnect()


def test_a_push_interrupted_by_the_server_is_resumed_by_the_same_command(
    tmp_path, server, argilla_server, proxy, set_name
):
    store = tmp_path / "many.duckdb"
    add(store, questions(600))
    with (
        connect(proxy.url, None) as unreliable,
        pytest.raises(ReviewError, match=r"does not answer: .* Sent 100 of 600 conversations") as raised,
    ):
        push(store, Recipe(), unreliable, set_name, QueueQuery(), progress=lambda *_: proxy.disconnect())
    assert "Run the same command again to resume." in raised.value.hint
    done = push(store, Recipe(), server, set_name, QueueQuery())  # the same server at another address
    assert (done.sent, done.unchanged) == (500, 100)
    assert len(RemoteDataset(argilla_server, set_name).records) == 600


def test_a_killed_push_is_resumed_by_the_same_command(tmp_path, curate, argilla_server, set_name):
    store = tmp_path / "curate.duckdb"
    add(store, questions(600))
    at = ["review", "push", set_name, "--home", str(argilla_server.home)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", *at],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    dataset = None
    while dataset is None or not dataset.count:
        assert process.poll() is None, "it ended before it could be killed"
        with contextlib.suppress(StopIteration):
            dataset = RemoteDataset(argilla_server, set_name)
    process.kill()
    process.wait()
    done = curate(*at, "--json")
    assert done.returncode == 0, done.stderr
    assert dataset.count == 600
    with reading(store) as connection:
        assert connection.sql("SELECT count(record), count(DISTINCT record) FROM review_records").fetchall() == [
            (600, 600)
        ]


def test_a_pull_interrupted_by_the_server_does_not_change_the_store(store, server, argilla_server, proxy, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    RemoteDataset(argilla_server, set_name).answer("ann", LONG.id, decision="drop")
    with connect(proxy.url, None) as unreliable:
        proxy.disconnect()
        with pytest.raises(ReviewError, match="does not answer"):
            pull(store, ReviewSection(), unreliable, set_name)
    assert verdicts(store) == {}
    assert pull(store, ReviewSection(), server, set_name).verdicts == 1


def test_server_and_key_errors_are_explained(curate, store, argilla_server, tmp_path):
    def error(*options, **environment):
        ran = curate("review", "push", "desk", *options, **environment)
        assert ran.returncode == 1
        assert "Traceback" not in ran.stderr
        return ran.stderr

    free = socket.create_server(("127.0.0.1", 0))
    nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    free.close()
    assert "does not answer" in error("--url", nowhere, ARGILLA_API_KEY="k")
    assert "There is no key for" in error("--url", nowhere, ARGILLA_API_KEY="")
    assert "does not accept the key" in error("--url", argilla_server.url, ARGILLA_API_KEY="wrong")
    assert "No labelling server runs in" in error("--home", str(tmp_path / "nobody"))
    _, _, key = argilla_server.annotator("ann")
    refused = error("--url", argilla_server.url, ARGILLA_API_KEY=key)
    assert "with the role annotator, which is not sufficient" in refused
    assert key not in refused


def test_an_address_with_a_password_is_rejected_and_not_repeated(curate, store):
    for command in (("push", "desk"), ("users", "list")):
        ran = curate("review", *command, "--url", "https://bob:hunter2@labels.example", ARGILLA_API_KEY="k")
        assert (ran.returncode, "contains a user name or password" in ran.stderr) == (1, True), ran.stderr
        assert "hunter2" not in ran.stderr + ran.stdout
    assert b"hunter2" not in store.read_bytes()


def test_an_invalid_address_is_an_explained_error(curate, store):
    ran = curate("review", "push", "desk", "--url", "http://[::1", ARGILLA_API_KEY="k")
    assert (ran.returncode, "is not a valid address" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)


@pytest.mark.parametrize("key", ["secretkey123\n", "secret key123", "schlüssel-secret"])
def test_an_invalid_key_is_rejected_and_not_repeated(curate, store, key):
    for command in (("push", "desk"), ("users", "list")):
        ran = curate("review", *command, "--url", "http://127.0.0.1:9", ARGILLA_API_KEY=key)
        assert (ran.returncode, "The key in ARGILLA_API_KEY has" in ran.stderr) == (1, True), ran.stderr
        assert "secret" not in ran.stderr + ran.stdout


def test_after_the_account_is_deleted_during_a_push_the_sent_records_are_known(
    tmp_path, server, argilla_server, monkeypatch, set_name
):
    store = tmp_path / "many.duckdb"
    add(store, questions(300))
    body = {"first_name": "t", "username": "temporary", "role": "owner", "password": "12345678"}
    user = argilla_server.ask("POST", "users", body)
    monkeypatch.setenv("ARGILLA_API_KEY", user["api_key"])
    with (
        connect(argilla_server.url, None) as theirs,
        pytest.raises(ReviewError, match=r"no longer accepts the key.* Sent 100 of 300"),
    ):
        push(store, Recipe(), theirs, set_name, QueueQuery(),
             progress=lambda *_: argilla_server.ask("DELETE", f"users/{user['id']}"))  # fmt: skip
    assert push(store, Recipe(), server, set_name, QueueQuery()).sent == 200


def test_the_key_is_not_stored(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    assert argilla_server.api_key.encode() not in store.read_bytes()
    with pytest.raises(RefusedError):
        argilla_server.ask("GET", "me", key="no key at all")
