"""The accounts of a running Argilla: who may sign in."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from curate.review.argilla.http_api import Api, open_api
from schemas.errors import ReviewError

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
    password = secrets.token_urlsafe(12)
    wanted = {"first_name": name, "username": name, "role": role, "password": password}
    with open_api(url, api_key) as api:
        if name in _by_name(api.ask("GET", "users"), "username"):
            raise ReviewError(
                f"There is an account {name} already.", f"curate review users password {name} sets a new one."
            )
        made = api.ask("POST", "users", wanted)
        place = _workspace(api, workspace)
        if role != "owner":  # owners see every workspace
            api.ask("POST", f"workspaces/{place}/users", {"user_id": made["id"]})
    return Account(name, role, workspace, password, str(made["api_key"]))


def set_password(url: str, api_key: str, name: str) -> str:
    """A new password for an account. Raises `ReviewError` when there is no such account."""
    password = secrets.token_urlsafe(12)
    with open_api(url, api_key) as api:
        users = _by_name(api.ask("GET", "users"), "username")
        if name not in users:
            raise ReviewError(f"There is no account {name}.", f"These are: {', '.join(sorted(users))}.")
        api.ask("PATCH", f"users/{users[name]['id']}", {"password": password})
    return password


def list_accounts(url: str, api_key: str) -> list[dict[str, str]]:
    """Who may sign in, and as what."""
    with open_api(url, api_key) as api:
        users = _by_name(api.ask("GET", "users"), "username")
    return [{"name": name, "role": user["role"], "since": user["inserted_at"][:10]} for name, user in users.items()]


def _workspace(api: Api, name: str) -> str:
    there = _by_name(api.ask("GET", "me/workspaces"), "name")
    made = there.get(name) or api.ask("POST", "workspaces", {"name": name})
    return str(made["id"])


def _by_name(answer: dict[str, Any], key: str) -> dict[str, Any]:
    return {one[key]: one for one in answer["items"]}
