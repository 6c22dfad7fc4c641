"""The real labelling server for tests, as `curate review serve` starts it, and its API over plain HTTP."""

import json
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

START_SECONDS = 600  # the first start of all makes the server's environment


class RefusedError(Exception):
    """The server answered with an error."""

    def __init__(self, status, said):
        super().__init__(f"{status}: {said}")
        self.status = status


class LabellingServer:
    """A home folder with a server that can be started, killed and started again."""

    def __init__(self, home: Path):
        self.home = home
        self.said = home.with_name(f"{home.name}.log")
        self._process = None
        self._annotators = {}

    def start(self, *options):
        command = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()"]
        with self.said.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "review", "serve", "--home", str(self.home), "--port", "0", *options],
                stdout=log, stderr=log, cwd=self.home.parent,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while not (self.home / "server.json").exists() or self._state["pid"] != self._process.pid:
            assert self._process.poll() is None, self.said.read_text()
            assert time.monotonic() < end, self.said.read_text()
            time.sleep(0.05)

    def stop(self):
        """Ask it to end, and wait; its exit code."""
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
        """The owner's."""
        from curate.review.argilla.process import server_of

        return server_of(self.home)[1]

    @property
    def workspace(self):
        """The id of the workspace that the first start makes."""
        return self.ask("GET", "me/workspaces")["items"][0]["id"]

    def annotator(self, name):
        """An annotator's name, password and API key; the account is made once."""
        from curate.review.argilla.accounts import add_account

        if name not in self._annotators:
            made = add_account(self.url, self.api_key, name, role="annotator", workspace="curate")
            self._annotators[name] = (name, made.password, made.api_key)
        return self._annotators[name]

    def ask(self, method, path, body=None, key=None):
        """What the API answers to a request under /api/v1, by the owner or with another key."""
        headers = {"X-Argilla-Api-Key": key or self.api_key, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/api/v1/{path}", data=data, headers=headers, method=method)
        try:
            with urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "null")
        except HTTPError as error:
            raise RefusedError(error.code, error.read().decode()) from error
