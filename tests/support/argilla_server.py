"""A real labelling server for tests, started by `curate review serve`, and requests to its API."""

import json
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

START_SECONDS = 600  # the first start installs the server's environment


class RefusedError(Exception):
    """An error response of the server."""

    def __init__(self, status, message):
        super().__init__(f"{status}: {message}")
        self.status = status


class LabellingServer:
    """A home folder with a server that can be started, stopped and killed."""

    def __init__(self, home: Path):
        self.home = home
        self.log = home.with_name(f"{home.name}.log")
        self._process = None
        self._annotators = {}

    def start(self, *options):
        command = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()"]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "review", "serve", "--home", str(self.home), "--port", "0", *options],
                stdout=log, stderr=log, cwd=self.home.parent,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while not (self.home / "server.json").exists() or self._state["pid"] != self._process.pid:
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def stop(self):
        """Terminate the server; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def kill(self):
        self._process.kill()
        self._process.wait()

    @property
    def pid(self):
        return self._process.pid

    @property
    def _state(self):
        return json.loads((self.home / "server.json").read_text())

    @property
    def url(self):
        return self._state["url"]

    @cached_property
    def api_key(self):
        """The owner's key."""
        from curate.review.argilla.process import running_server

        return running_server(self.home)[1]

    @property
    def workspace(self):
        """The id of the workspace created by the first start."""
        return self.ask("GET", "me/workspaces")["items"][0]["id"]

    def annotator(self, name):
        """Name, password and API key of an annotator, who is created by the first call."""
        from curate.review.argilla.accounts import add_account

        if name not in self._annotators:
            made = add_account(self.url, self.api_key, name, role="annotator", workspace="curate")
            self._annotators[name] = (name, made.password, made.api_key)
        return self._annotators[name]

    def ask(self, method, path, body=None, key=None):
        """The JSON response to a request under /api/v1 with the owner's or another key."""
        headers = {"X-Argilla-Api-Key": key or self.api_key, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/api/v1/{path}", data=data, headers=headers, method=method)
        try:
            with urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "null")
        except HTTPError as error:
            raise RefusedError(error.code, error.read().decode()) from error
