"""A home folder → a running labelling server, its installed environment, its address and key, and its backups.

The server is the unmodified argilla-server package. It requires packages that curate needs in other versions, so it has
its own virtual environment, installed once from `constraints.txt` and then used offline.
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

from schemas.atomic import atomic_file
from schemas.errors import ReviewError

DEFAULT_HOME = Path("curate-review")
DATABASE, STATE, LOCK = "argilla.db", "server.json", "lock"
ENVIRONMENT_VARIABLE = "CURATE_REVIEW_ENVIRONMENT"
"""Names the folder of the server's environment; without it, it is in the user's cache."""

KEY_VARIABLE = "ARGILLA_API_KEY"
"""Holds the API key of a server given by --url. Keys are never in the recipe or the store."""

REDIS_VARIABLE = "CURATE_REVIEW_REDIS"
"""The address of a Redis, as an alternative to `--redis`."""

_ARGILLA = Path(__file__).parent
_CONSTRAINTS = _ARGILLA / "constraints.txt"
COMPOSE = _ARGILLA / "compose.yaml"
_INSTALLERS = ("pip", "setuptools")
"""Packages that `venv` puts into the environment, in old versions, and that are only needed to install the others."""
_READY, _PAGES = "ready", "pages"
_MARKER = "curate-review"
"""A file that marks an environment as created by curate, so that it may be removed."""
_REVISION = b"2"
"""Increase to reinstall environments with unchanged constraints."""
_BASE_URL = "@@baseUrl@@"
_PYTHONS = {(3, 11), (3, 12), (3, 13)}  # its pydantic has no build for later versions
_SHOWN_LINES = 3
_COPIED_PAGES = 1000
"""Database pages copied per step of a backup; other processes can write between steps."""

Progress = Callable[[int, int, str], None]
"""Called with finished packages, all packages and the current step."""


def serve(home: Path, host: str, port: int, redis: str | None, progress: Progress) -> NoReturn:
    """Replace this process by the server, which then receives signals and sets the exit code.

    Raises `ReviewError` if the environment cannot be installed.
    """
    python = install_environment(progress)
    options = ["--home", str(home), "--host", host, "--port", str(port)]
    # The address can contain a password. Other users can read arguments, but not the environment.
    environ = _environ() | ({} if redis is None else {REDIS_VARIABLE: redis})
    os.execve(python, [str(python), "-P", "-m", "server.launcher", *options], environ)


# --- environment ---


def install_environment(progress: Progress) -> Path:
    """The Python of the server's environment, which is installed if necessary; raises `ReviewError` if it cannot be."""
    folder = environment_dir()
    python = folder / "bin" / "python"
    with _lock_environment(folder):
        if not is_installed():
            _remove_old(folder)
            _install(folder, python, progress)
            _extract_pages(folder)
            _run([str(python), "-P", "-m", "server.repair"], lambda _line: None, "Delete it and try again.")
            (folder / _READY).write_text(_fingerprint(), encoding="utf-8")
    return python


def is_installed() -> bool:
    """Whether the environment is complete and up to date."""
    ready = environment_dir() / _READY
    return ready.exists() and ready.read_text(encoding="utf-8") == _fingerprint()


def environment_dir() -> Path:
    """The folder of the environment: one per content of `constraints.txt` and Python version."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "curate" / f"argilla-server-{_fingerprint()}"


def _fingerprint() -> str:
    """12 hex digits of the digest of everything that the environment depends on."""
    return hashlib.sha256(_REVISION + _CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()[:12]


def _remove_old(folder: Path) -> None:
    """Remove an outdated or incomplete environment. Raises `ReviewError` if the folder is something else."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)  # folders in the cache are recognised by their name
    if named and folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise ReviewError(
            f"{folder} is not an environment of this server; it was left unchanged.",
            f"Set {ENVIRONMENT_VARIABLE} to another folder, or delete this one.",
        )
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock_environment(folder: Path) -> Iterator[None]:
    """Wait for other processes that install the same environment."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(folder: Path, python: Path, progress: Progress) -> None:
    total = sum("==" in line for line in _CONSTRAINTS.read_text(encoding="utf-8").splitlines())
    progress(0, total, "creating the environment")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    _run([str(_base_python()), "-m", "venv", str(folder)], lambda _line: None, "sudo apt install python3-venv")
    fetched = 0

    def follow(line: str) -> None:
        nonlocal fetched
        if line.startswith("Collecting "):
            fetched += 1
            package = line.split()[1].partition("==")[0].partition(">")[0]
            progress(min(fetched, total), total, f"fetching {package}")
        elif line.startswith("Installing "):
            progress(total, total, "installing, half a minute")

    pip = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    # Without resolving: some versions are newer than argilla-server's own limits permit, see the file.
    packages = ["install", "--progress-bar=off", "--no-deps", "-r", str(_CONSTRAINTS)]
    _run([*pip, *packages], follow, "Network access is required once: try again with it.")
    _run([*pip, "uninstall", "--yes", *_INSTALLERS], lambda _line: None, "Delete it and try again.")


def _extract_pages(folder: Path) -> None:
    """Move the web page out of the package, with its base address filled in.

    argilla_server does this at every start, in a copy of 14 MB that it does not remove. Without the folder it serves no
    page, and `server.app` serves this one.
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
    """A Python that the server supports: this one, or another on the path."""
    if sys.version_info[:2] in _PYTHONS:
        return Path(sys.executable)
    for major, minor in sorted(_PYTHONS, reverse=True):
        path = shutil.which(f"python{major}.{minor}")
        if path is not None:
            return Path(path)
    raise ReviewError(
        f"The labelling server requires Python 3.11 to 3.13; this is {sys.version.split()[0]}, and there is no other.",
        "Install one of them, for example: sudo apt install python3.13-venv",
    )


def _run(command: list[str], follow: Callable[[str], None], hint: str) -> None:
    """Run a command and pass each line of its output to `follow`. Raises `ReviewError` with the last lines."""
    with subprocess.Popen(
        command, env=_environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line.strip())
            follow(line)
    if process.returncode:
        output = " ".join(lines[-_SHOWN_LINES:])
        raise ReviewError(f"The labelling server's environment could not be installed: {output}", hint)


def _environ() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(_ARGILLA), "PYTHONNOUSERSITE": "1"}


# --- address and key ---


def resolve_server(url: str | None, home: Path | None) -> tuple[str, str]:
    """The address and API key of the server at `url`, or without it of the one running in `home`.

    Raises `ReviewError` if none runs there, or if `ARGILLA_API_KEY` has no valid key.
    """
    if url is None:
        return running_server(home or DEFAULT_HOME)
    address, key = _check_address(url), os.environ.get(KEY_VARIABLE)
    if not key:
        raise ReviewError(f"There is no key for {url}.", f"Set {KEY_VARIABLE} to the API key of an owner or admin.")
    if not (key.isascii() and key.isprintable()) or " " in key:  # httpx would print it in a traceback
        raise ReviewError(
            f"The key in {KEY_VARIABLE} has a space, a line break or a character that is not allowed in keys.",
            "A line break often comes from reading a file. The key itself is not shown here.",
        )
    return address, key


def running_server(home: Path) -> tuple[str, str]:
    """The address of the server running in this home and its owner's API key; raises `ReviewError` if none runs."""
    state = read_state(home)
    if state is None:
        raise ReviewError(f"No labelling server runs in {home}.", f"curate review serve --home {home}")
    return str(state["url"]), _owner_key(home)


def read_state(home: Path) -> dict[str, Any] | None:
    """The state of the server running in this home (url, pid); None if none runs or it is still starting."""
    import fcntl

    try:
        with (home / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        state = home / STATE
        return dict(json.loads(state.read_text(encoding="utf-8"))) if state.exists() else None
    return None


def _check_address(url: str) -> str:
    """The address without a final slash. Raises `ReviewError` if it contains a password, which would be stored."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ReviewError(
            f"{url} is not a valid address: {error}.", "Use an address such as http://127.0.0.1:6900."
        ) from error
    if "@" in parts.netloc:
        raise ReviewError(
            f"The address of {parts.hostname} contains a user name or password.",
            f"Remove it: the address is stored. The key belongs into {KEY_VARIABLE}.",
        )
    return url.rstrip("/")


def _owner_key(home: Path) -> str:
    """The first owner's API key, from Argilla's database."""
    with closing(sqlite3.connect(home / DATABASE)) as connection:
        row = connection.execute("SELECT api_key FROM users WHERE role = 'owner' ORDER BY inserted_at").fetchone()
    if row is None:
        raise ReviewError(f"{home} has no owner.", f"Start the server to create one: curate review serve --home {home}")
    return str(row[0])


# --- backups ---


def backup(home: Path, to: Path, progress: Callable[[int, int], None]) -> int:
    """Copy the home's database to a file, also while the server runs; the number of answers in it.

    Raises `ReviewError` if there is no database, the file exists, or the copy fails; then no file is left.
    """
    if not (home / DATABASE).exists():
        raise ReviewError(f"{home} has no labelling server's data.", "Name its folder: --home DIR")
    if to.exists():
        raise ReviewError(f"{to} exists.", "Choose another name.")
    try:
        with atomic_file(to) as new:
            _copy(home / DATABASE, new, progress)
            return _count_answers(new)
    except (OSError, sqlite3.Error) as error:
        raise ReviewError(f"{home} could not be copied to {to}: {error}.", "Check the folder and its data.") from error


def _copy(database: Path, new: Path, progress: Callable[[int, int], None]) -> None:
    new.touch(mode=0o600)  # it contains keys
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(new)) as target:
        source.backup(target, pages=_COPIED_PAGES, progress=lambda _status, left, total: progress(total - left, total))
        target.execute("PRAGMA journal_mode = DELETE")  # a single file, without a write-ahead log


def restore(file: Path, home: Path, *, replace: bool) -> int:
    """Copy a backup into a home; the number of answers in it. With `replace`, existing data is renamed and kept.

    Raises `ReviewError` if the file is not a backup, a server runs in the home, it has data, or it cannot be written.
    """
    answers = _count_answers(file)
    if read_state(home) is not None:
        raise ReviewError(f"A labelling server runs in {home}.", "Stop it first.")
    database = home / DATABASE
    if database.exists() and not replace:
        raise ReviewError(f"{home} has data already.", "Add --replace, or name another folder: --home DIR")
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_file(database) as new:
            new.touch(mode=0o600)
            shutil.copyfile(file, new)
            _rename_existing(database)
    except OSError as error:
        raise ReviewError(f"{file} could not be copied into {home}: {error}.", "Check the folder.") from error
    return answers


def _rename_existing(database: Path) -> None:
    """Rename a database and its logs without opening them, since it may be damaged."""
    renamed = database.with_name(f"{DATABASE}.before-restore")
    if database.exists():
        for end in ("-wal", "-shm"):
            renamed.with_name(f"{renamed.name}{end}").unlink(missing_ok=True)
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            database.with_name(f"{DATABASE}{end}").replace(renamed.with_name(f"{renamed.name}{end}"))


def _count_answers(file: Path) -> int:
    """The number of answers in a backup. Raises `ReviewError` if it is not one, or damaged."""
    if not file.is_file():
        raise ReviewError(f"There is no {file}.", "Create one: curate review backup FILE")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (answers,) = connection.execute("SELECT count(*) FROM responses").fetchone()
    except sqlite3.DatabaseError as error:
        raise ReviewError(f"{file} is not a backup of a labelling server: {error}.", "Name another file.") from error
    if check != "ok":
        raise ReviewError(f"{file} is damaged: {check}.", "Use an older backup.")
    return int(answers)
