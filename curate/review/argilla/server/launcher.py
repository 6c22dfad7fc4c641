"""`python -m server.launcher --home DIR`: create the home if necessary and run the labelling server in it.

Locking the home and binding the port come first, because they are quick and can fail. The address is printed on stdout
and written to `server.json` in the home, where other commands read it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .app import StartupReport

DATABASE, STATE, LOCK, SECRET, TEMPORARY = "argilla.db", "server.json", "lock", "secret", "tmp"
REDIS = "CURATE_REVIEW_REDIS"


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # uvicorn handles them, finishes its requests, and raises them again
    arguments = _parse_arguments()
    os.umask(0o077)  # the home contains keys and answers
    arguments.home.mkdir(parents=True, exist_ok=True)
    home = arguments.home.resolve()
    lock = _lock(home)
    sock = _bind(arguments.host, arguments.port)
    killed = (home / STATE).exists()
    (home / STATE).unlink(missing_ok=True)  # written again when the server is ready
    redis = os.environ.get(REDIS)
    _set_environment(home, redis)
    _serve(home, sock, in_process=redis is None, killed=killed)
    lock.close()


def _exit(_number: int, _frame: object) -> NoReturn:
    sys.exit(0)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=6900)
    return parser.parse_args()


def _lock(home: Path) -> IO[str]:
    """The lock on the home, which is released when the process ends in any way."""
    file = (home / LOCK).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _fail(f"A server already runs in {home}.", "Stop it, or use another folder: --home DIR")
    return file


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        _fail(f"The server cannot listen on {host}:{port}: {error.strerror}.", "Use another port: --port 6901")
    return sock


def _set_environment(home: Path, redis: str | None) -> None:
    """Set the variables that argilla_server reads when it is imported."""
    shutil.rmtree(home / TEMPORARY, ignore_errors=True)
    (home / TEMPORARY).mkdir()
    tempfile.tempdir = str(home / TEMPORARY)  # files left by a killed process are removed at the next start
    for name in [name for name in os.environ if name.startswith("ARGILLA_")]:
        del os.environ[name]  # settings of other servers, for example a key
    os.environ |= {
        "ARGILLA_HOME_PATH": str(home),
        "ARGILLA_DATABASE_URL": f"sqlite+aiosqlite:///{home / DATABASE}",
        "ARGILLA_DATABASE_SQLITE_TIMEOUT": "60",
        "ARGILLA_SEARCH_ENGINE": "curate",
        "ARGILLA_AUTH_SECRET_KEY": _load_secret(home),
        "ARGILLA_AUTH_OAUTH_CFG": str(home / "oauth.yaml"),
        "ARGILLA_CORS_ORIGINS": "[]",  # Argilla's default permits requests from every page
        "ARGILLA_DOCS_ENABLED": "false",  # its documentation pages load scripts from other servers
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if redis is not None:
        os.environ["ARGILLA_REDIS_URL"] = redis


def _load_secret(home: Path) -> str:
    """The key that signs sessions. Argilla's default is a new one at each start, which ends all sessions."""
    file = home / SECRET
    if not file.exists():
        new = home / f"{SECRET}.new"
        new.write_text(secrets.token_hex(32), encoding="utf-8")
        new.replace(file)
    return file.read_text(encoding="utf-8")


def _serve(home: Path, sock: socket.socket, *, in_process: bool, killed: bool) -> None:
    from .job_queue import redis_in_memory

    # Argilla is older than the packages that it runs with.
    warnings.filterwarnings("ignore", message="'HTTP_422_UNPROCESSABLE_ENTITY' is deprecated")
    with redis_in_memory() if in_process else nullcontext():
        from .app import run
        from .repair import UnusableDatabaseError

    try:
        run(home / DATABASE, sock, killed=killed, announce=partial(_announce, home, sock))
    except UnusableDatabaseError as error:
        _fail(str(error), f"Restore a backup: curate review restore FILE --home {home} --replace")
    finally:
        (home / STATE).unlink(missing_ok=True)
        shutil.rmtree(home / TEMPORARY, ignore_errors=True)


def _announce(home: Path, sock: socket.socket, report: StartupReport) -> None:
    host, port = sock.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    state = {"url": f"http://{reachable}:{port}", "pid": os.getpid()}
    new = home / f"{STATE}.new"
    new.write_text(json.dumps(state), encoding="utf-8")
    new.replace(home / STATE)
    lines = [f"The labelling server is ready: {state['url']}"]
    if report.password is not None:
        lines += [
            "Sign in as owner with the password",
            f"    {report.password}",
            "It is not stored and cannot be shown again.",
        ]
    if report.repairs:
        lines.append(f"Repaired after the previous run: {report.repairs}.")
    print(*lines, sep="\n", flush=True)


def _fail(what: str, hint: str) -> NoReturn:
    print(f"Error: {what}\n  → {hint}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
