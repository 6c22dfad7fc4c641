"""Names and roles → accounts of a running Argilla."""

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
    """An account with its new password, which is not stored."""

    name: str
    role: str
    workspace: str
    password: str
    api_key: str


def add_account(url: str, api_key: str, name: str, *, role: str, workspace: str) -> Account:
    """Create an account with a random password in a workspace, which is created if it does not exist.

    Raises `ReviewError` if the server does not answer or does not accept the key, or if the account exists.
    """
    if not _NAME.fullmatch(name):
        raise ReviewError(f"{name} is not a valid account name.", "Use letters, digits, - and _.")
    if role not in ROLES:
        raise ReviewError(f"Unknown role {role}.", f"Use one of: {', '.join(ROLES)}.")
    password = secrets.token_urlsafe(12)
    body = {"first_name": name, "username": name, "role": role, "password": password}
    with open_api(url, api_key) as api:
        if name in _list_by(api, "users", "username"):
            raise ReviewError(
                f"The account {name} exists already.", f"Set a new password: curate review users password {name}"
            )
        account = api.request("POST", "users", body)
        existing = _list_by(api, "me/workspaces", "name").get(workspace)
        workspace_id = (existing or api.request("POST", "workspaces", {"name": workspace}))["id"]
        if role != "owner":  # owners see every workspace
            api.request("POST", f"workspaces/{workspace_id}/users", {"user_id": account["id"]})
    return Account(name, role, workspace, password, str(account["api_key"]))


@dataclass(frozen=True, slots=True)
class NewPassword:
    """A new password and API key. `ends_sessions`: whether the earlier key and sessions are no longer accepted."""

    name: str
    password: str
    api_key: str
    ends_sessions: bool


def set_password(url: str, api_key: str, name: str) -> NewPassword:
    """Set a new random password; the server of `curate review serve` then replaces the API key and ends sessions.

    Raises `ReviewError` if there is no such account.
    """
    password = secrets.token_urlsafe(12)
    with open_api(url, api_key) as api:
        users = _list_by(api, "users", "username")
        if name not in users:
            raise ReviewError(f"There is no account {name}.", f"Accounts: {', '.join(sorted(users))}.")
        changed = api.request("PATCH", f"users/{users[name]['id']}", {"password": password})
    return NewPassword(name, password, changed["api_key"], changed["api_key"] != users[name]["api_key"])


def list_accounts(url: str, api_key: str) -> list[dict[str, str]]:
    """Name, role and creation date of each account."""
    with open_api(url, api_key) as api:
        users = _list_by(api, "users", "username")
    return [{"name": name, "role": user["role"], "since": user["inserted_at"][:10]} for name, user in users.items()]


def _list_by(api: Api, path: str, key: str) -> dict[str, Any]:
    return {item[key]: item for item in api.request("GET", path)["items"]}
