"""The accounts of a running Argilla: who may sign in. Standard library alone, so that it needs no extra."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from schemas.errors import ReviewError

_PATIENCE = 30
ROLES = ("annotator", "admin", "owner")
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Account:
    """A person's account, with the password that is known this once."""

    name: str
    role: str
    workspace: str
    password: str
    api_key: str


def add_account(url: str, api_key: str, name: str, *, role: str, workspace: str) -> Account:
    """Make an account with a new password, in a workspace, which is made where it is missing.

    Raises `ReviewError` when the server cannot be reached, refuses the key, or has the name.
    """
    if not _NAME.fullmatch(name):
        raise ReviewError(f"{name} is no name for an account.", "Letters, digits, - and _ can stand in it.")
    if role not in ROLES:
        raise ReviewError(f"There is no role {role}.", f"One of: {', '.join(ROLES)}.")
    if name in _by_name(_ask(url, api_key, "GET", "users"), "username"):
        raise ReviewError(
            f"There is an account {name} already.", f"curate review users password {name} sets a new one."
        )
    password = secrets.token_urlsafe(12)
    wanted = {"first_name": name, "username": name, "role": role, "password": password}
    made = _ask(url, api_key, "POST", "users", wanted)
    place = _workspace(url, api_key, workspace)
    if role != "owner":  # owners see every workspace
        _ask(url, api_key, "POST", f"workspaces/{place}/users", {"user_id": made["id"]})
    return Account(name, role, workspace, password, str(made["api_key"]))


def set_password(url: str, api_key: str, name: str) -> str:
    """A new password for an account. Raises `ReviewError` when there is no such account."""
    users = _by_name(_ask(url, api_key, "GET", "users"), "username")
    if name not in users:
        raise ReviewError(f"There is no account {name}.", f"These are: {', '.join(sorted(users))}.")
    password = secrets.token_urlsafe(12)
    _ask(url, api_key, "PATCH", f"users/{users[name]['id']}", {"password": password})
    return password


def list_accounts(url: str, api_key: str) -> list[dict[str, str]]:
    """Who may sign in, and as what."""
    users = _by_name(_ask(url, api_key, "GET", "users"), "username")
    return [{"name": name, "role": user["role"], "since": user["inserted_at"][:10]} for name, user in users.items()]


def _workspace(url: str, api_key: str, name: str) -> str:
    there = _by_name(_ask(url, api_key, "GET", "me/workspaces"), "name")
    made = there.get(name) or _ask(url, api_key, "POST", "workspaces", {"name": name})
    return str(made["id"])


def _by_name(answer: dict[str, Any], key: str) -> dict[str, Any]:
    return {one[key]: one for one in answer["items"]}


def _ask(url: str, api_key: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = Request(
        f"{url.rstrip('/')}/api/v1/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-Argilla-Api-Key": api_key, "Content-Type": "application/json"},
        method=method,
    )
    try:
        with build_opener(_Stay).open(request, timeout=_PATIENCE) as answer:
            return dict(json.loads(answer.read()))
    except HTTPError as error:
        raise _refused(url, path, error) from error
    except (URLError, TimeoutError) as error:
        raise ReviewError(f"{url} does not answer: {error}.", "Start it: curate review serve") from error


class _Stay(HTTPRedirectHandler):
    """Follows nobody elsewhere: the key would go along."""

    def redirect_request(self, *_: object) -> None:
        """No request in the place of the first one: the redirection is an error."""


def _refused(url: str, path: str, error: HTTPError) -> ReviewError:
    if error.code in {401, 403}:
        return ReviewError(f"{url} does not let this key do that.", "Give an owner's key in ARGILLA_API_KEY.")
    said = error.read().decode("utf-8", "replace")[:300]
    return ReviewError(f"{url} answered {error.code} to {path}: {said}", "Look at the server's own messages.")
