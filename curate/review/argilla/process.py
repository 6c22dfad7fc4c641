"""curate review serve: a labelling server with its accounts, its environment, its copies; one home folder holds it all.

The server is the real argilla-server. It pins packages that curate needs in other versions, so it runs in a virtual
environment of its own, made on first use from `curate/argilla/constraints.txt` and used again without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from schemas.errors import ReviewError

DEFAULT_HOME = Path("curate-review")
DATABASE, STATE, LOCK = "argilla.db", "server.json", "lock"
ENVIRONMENT_VARIABLE = "CURATE_REVIEW_ENVIRONMENT"
"""Names the folder of the server's environment, where the user's cache is not the place for it."""

KEY_VARIABLE = "ARGILLA_API_KEY"
"""Holds the key of a server that is named by its address: never a recipe, never the store."""

REDIS_VARIABLE = "CURATE_REVIEW_REDIS"
"""The address of a Redis, which `--redis` gives too."""

_ARGILLA = Path(__file__).parent
_CONSTRAINTS = _ARGILLA / "constraints.txt"
COMPOSE = _ARGILLA / "compose.yaml"
_REQUIRED = ("argilla-server", "fakeredis")
_READY, _PAGES = "ready", "pages"
_OURS = "curate-review"
"""The file by which an environment is known for one of ours, which may be removed and made anew."""
_LAYOUT = b"2"
"""Counted up when an environment is made in another way from the same constraints."""
_BASE_URL = "@@baseUrl@@"
_PYTHONS = {(3, 11), (3, 12), (3, 13)}  # its pydantic has no build for a later one
_SHOWN_LINES = 3
_AT_ONCE = 1000
"""Pages of the database that are copied at once: others may write in between."""

Progress = Callable[[int, int, str], None]


def serve(home: Path, host: str, port: int, redis: str | None, progress: Progress) -> NoReturn:
    """Become the server. Returns never: this process is replaced, so that signals and its exit code are the server's.

    Raises `ReviewError` when its environment cannot be made.
    """
    python = make_environment(progress)
    options = ["--home", str(home), "--host", host, "--port", str(port)]
    # In the environment, which others cannot read: an address may hold a password, and everybody reads the arguments.
    surroundings = _surroundings() | ({} if redis is None else {REDIS_VARIABLE: redis})
    os.execve(python, [str(python), "-P", "-m", "server.launcher", *options], surroundings)


# the environment


def make_environment(progress: Progress) -> Path:
    """The Python of the server's environment, made if it is not there; then nothing is fetched.

    `progress(done, total, what)` counts packages. Raises `ReviewError` when it cannot be made.
    """
    folder = environment()
    python = folder / "bin" / "python"
    with _alone(folder):
        if not is_made():
            _clear(folder)
            _make(folder, python, progress)
            _lay_out_pages(folder)
            _run([str(python), "-P", "-m", "server.repair"], lambda _line: None, "Delete it and try again.")
            (folder / _READY).write_text(_wanted(), encoding="utf-8")
    return python


def is_made() -> bool:
    """Whether the environment is there, whole, and made from these constraints."""
    ready = environment() / _READY
    return ready.exists() and ready.read_text(encoding="utf-8") == _wanted()


def environment() -> Path:
    """Where the environment lies: one folder for each set of constraints and each Python."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "curate" / f"argilla-server-{_wanted()}"


def _wanted() -> str:
    """What an environment is made from, in twelve letters."""
    return hashlib.sha256(_LAYOUT + _CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()[:12]


def _clear(folder: Path) -> None:
    """Remove an environment that is older or half made. Raises `ReviewError` when the folder is something else."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)  # a folder of the cache is ours by its name
    if named and folder.exists() and any(folder.iterdir()) and not (folder / _OURS).exists():
        raise ReviewError(
            f"{folder} is no environment of this server, and is not touched.",
            f"Give {ENVIRONMENT_VARIABLE} another folder, or delete this one.",
        )
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process makes the same environment."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, python: Path, progress: Progress) -> None:
    total = sum("==" in line for line in _CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    progress(0, total, "making the labelling server's environment")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _OURS).touch()
    _run([str(_base_python()), "-m", "venv", str(folder)], lambda _line: None, "sudo apt install python3-venv")
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        done += line.startswith("Collecting ")
        what = line.split()[1].partition("==")[0].partition(">")[0] if line.startswith("Collecting ") else ""
        if line.startswith("Installing "):
            progress(total, total, "installing, half a minute")
        elif what:
            progress(min(done, total), total, f"fetching {what}")

    install = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    _run([*install, *_REQUIRED, "-c", str(_CONSTRAINTS)], follow, "Try again with a network; it is needed this once.")


def _lay_out_pages(folder: Path) -> None:
    """Move the web page out of the package, with the address that it is served under filled in.

    argilla_server would do that at each start, in a copy of 14 MB that it leaves behind; without the folder it serves
    no page, and `launching` serves this one.
    """
    [static] = folder.glob("lib/python*/site-packages/argilla_server/static")
    for file in static.rglob("*"):
        if file.suffix in {".br", ".gz"}:  # compressed copies, which are never sent
            file.unlink()
        elif file.suffix in {".js", ".html"}:
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(_BASE_URL, ""), encoding="utf-8")
    static.rename(folder / _PAGES)


def _base_python() -> Path:
    """A Python that the server runs on: this one, or an older one beside it."""
    if sys.version_info[:2] in _PYTHONS:
        return Path(sys.executable)
    for major, minor in sorted(_PYTHONS, reverse=True):
        found = shutil.which(f"python{major}.{minor}")
        if found is not None:
            return Path(found)
    raise ReviewError(
        f"The labelling server runs on Python 3.11 to 3.13; this is {sys.version.split()[0]} and no other was found.",
        "Install one of them, such as: sudo apt install python3.13-venv",
    )


def _run(command: list[str], follow: Callable[[str], None], hint: str) -> None:
    """Run a command and hand on its lines. Raises `ReviewError` with its last lines when it fails."""
    surroundings = _surroundings()
    with subprocess.Popen(
        command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line.strip())
            follow(line)
    if process.returncode:
        said = " ".join(lines[-_SHOWN_LINES:])
        raise ReviewError(f"The labelling server's environment could not be made: {said}", hint)


def _surroundings() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(_ARGILLA), "PYTHONNOUSERSITE": "1"}


# a home


def running(home: Path) -> dict[str, Any] | None:
    """What the server of this home says of itself (url, pid); None when none runs there."""
    import fcntl

    try:
        with (home / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        state = home / STATE  # not there while it starts
        return dict(json.loads(state.read_text(encoding="utf-8"))) if state.exists() else None
    return None


def server_of(home: Path) -> tuple[str, str]:
    """The address of the server that runs on this home, and its owner's API key.

    Raises `ReviewError` when none runs there.
    """
    state = running(home)
    if state is None:
        raise ReviewError(f"No labelling server runs on {home}.", f"curate review serve --home {home}")
    return str(state["url"]), _owner_key(home)


def meant_server(url: str | None, home: Path | None) -> tuple[str, str]:
    """The address and the key of the server that is meant: one's own by address, or the one that runs on a home.

    Raises `ReviewError` when none runs there, or there is no key in `ARGILLA_API_KEY`, or one that cannot be.
    """
    if url is None:
        return server_of(home or DEFAULT_HOME)
    address, key = plain_address(url), os.environ.get(KEY_VARIABLE)
    if not key:
        raise ReviewError(
            f"There is no key for {url}.", f"Put the API key of an owner or an admin into the variable {KEY_VARIABLE}."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:  # httpx would print it, or end in a traceback
        raise ReviewError(
            f"The key in {KEY_VARIABLE} has a space, a line end or a letter in it that no key has.",
            "A line end often comes from reading it out of a file; the key itself is not shown here.",
        )
    return address, key


def plain_address(url: str) -> str:
    """The address of a server of one's own. Raises `ReviewError` for one with a password in it: it would be stored."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ReviewError(f"{url} is no address of a server: {error}.", "Such as http://127.0.0.1:6900.") from error
    if "@" in parts.netloc:
        raise ReviewError(
            f"The server {parts.hostname} is given with a name or a password in its address.",
            "Leave it out: the address is written into the store. The key goes into ARGILLA_API_KEY.",
        )
    return url.rstrip("/")


def _owner_key(home: Path) -> str:
    """The first owner's API key, which Argilla keeps in its database."""
    with closing(sqlite3.connect(home / DATABASE)) as connection:
        found = connection.execute("SELECT api_key FROM users WHERE role = 'owner' ORDER BY inserted_at").fetchone()
    if found is None:
        raise ReviewError(f"{home} has no owner.", f"curate review serve --home {home} makes one when it starts.")
    return str(found[0])


# copies


def backup(home: Path, to: Path, progress: Callable[[int, int], None]) -> int:
    """Copy the home's database into a file, whole also while people work; how many answers it holds.

    Raises `ReviewError` when there is none, the file is there already, or the copy fails; then nothing is left of it.
    """
    if not (home / DATABASE).exists():
        raise ReviewError(f"{home} holds no labelling server's data.", "Name its folder: --home DIR")
    if to.exists():
        raise ReviewError(f"{to} is there already.", "Give another name.")
    new = to.with_name(f"{to.name}.part")
    try:
        _copy(home / DATABASE, new, progress)
        answers = _answers(new)
        new.replace(to)
    except (OSError, sqlite3.Error) as error:
        raise ReviewError(f"{home} could not be copied to {to}: {error}.", "Check the folder, or its data.") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    return answers


def _copy(database: Path, new: Path, progress: Callable[[int, int], None]) -> None:
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)  # it holds keys
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(new)) as target:
        source.backup(target, pages=_AT_ONCE, progress=lambda _status, left, total: progress(total - left, total))
        target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it


def restore(file: Path, home: Path, *, replace: bool) -> int:
    """Lay a copy into a home; how many answers it holds. With `replace`, what is there is kept beside it.

    Raises `ReviewError` when the file is no such copy, a server runs there, data lie there, or it cannot be written.
    """
    answers = _answers(file)
    if running(home) is not None:
        raise ReviewError(f"A labelling server runs on {home}.", "Stop it first.")
    there = home / DATABASE
    if there.exists() and not replace:
        raise ReviewError(f"{home} holds data already.", "Add --replace, or name another folder: --home DIR")
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _lay(file, there)
    except OSError as error:
        raise ReviewError(f"{file} could not be laid into {home}: {error}.", "Check the folder.") from error
    return answers


def _lay(file: Path, there: Path) -> None:
    """Put a copy in the place of a database, which is put aside with its logs."""
    new = there.with_name(f"{DATABASE}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)  # before anything of it can be read
    try:
        shutil.copyfile(file, new)
        _put_aside(there)
        new.replace(there)
    finally:
        new.unlink(missing_ok=True)


def _put_aside(database: Path) -> None:
    """Rename a database together with its logs, unopened: it may be damaged, and they are still its own."""
    aside = database.with_name(f"{DATABASE}.before-restore")
    if database.exists():
        for end in ("-wal", "-shm"):
            aside.with_name(f"{aside.name}{end}").unlink(missing_ok=True)
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            database.with_name(f"{DATABASE}{end}").replace(aside.with_name(f"{aside.name}{end}"))


def _answers(file: Path) -> int:
    """How many answers a whole copy holds."""
    if not file.is_file():
        raise ReviewError(f"There is no {file}.", "curate review backup FILE makes one.")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (answers,) = connection.execute("SELECT count(*) FROM responses").fetchone()
    except sqlite3.DatabaseError as error:
        raise ReviewError(f"{file} is no copy of a labelling server's data: {error}.", "Name another file.") from error
    if sound != "ok":
        raise ReviewError(f"{file} is damaged: {sound}.", "Take an older copy.")
    return int(answers)
