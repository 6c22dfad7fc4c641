"""Session tokens and API keys → accounts; a new password ends both.

Argilla's tokens are valid for a day and its keys for ever, whatever happens to the account. A token of this server also
has the account's id and a digest of its password's digest, so it ends with the account and with the password.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from argilla_server.contexts import accounts
from argilla_server.errors import UnauthorizedError
from argilla_server.models import User
from argilla_server.security.authentication.jwt import JWT
from argilla_server.security.authentication.userinfo import UserInfo
from sqlalchemy.ext.asyncio import AsyncSession

from .sign_in import PasswordCheck

_MARK = "password"
"""The claim of a token with `_fingerprint`."""


@dataclass(frozen=True)
class Caller:
    """The account that a request belongs to."""

    id: str
    role: str


class Sessions:
    """The accounts of a database by their keys and tokens."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._decode = JWT.decode

    def find(self, headers: dict[bytes, bytes]) -> Caller | None:
        """The account of a request's API key or token; None without a valid one."""
        key = headers.get(b"x-argilla-api-key", b"").decode("latin-1")
        if key:
            row = self._connection.execute("SELECT id, role FROM users WHERE api_key = ?", [key]).fetchone()
            return Caller(*row) if row else None
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            return self._owner(self._decode(token.strip()))
        except UnauthorizedError:
            return None

    def decode(self, token: str) -> dict[str, Any]:
        """The claims of a token. Raises `UnauthorizedError` if its account or password has changed since."""
        claims: dict[str, Any] = self._decode(token)
        if self._owner(claims) is None:
            raise UnauthorizedError("Invalid token")
        return claims

    def _owner(self, claims: dict[str, Any]) -> Caller | None:
        select = "SELECT id, role, password_hash FROM users WHERE username = ?"
        row = self._connection.execute(select, [str(claims.get("username"))]).fetchone()
        if row is None or str(claims.get("identity")).replace("-", "") != row[0].replace("-", ""):
            return None
        is_same = hmac.compare_digest(str(claims.get(_MARK)).encode("utf-8", "replace"), _fingerprint(row[2]).encode())
        return Caller(row[0], row[1]) if is_same else None


def bind_sessions_to_passwords(sessions: Sessions, passwords: PasswordCheck) -> None:
    """Make Argilla issue and accept such tokens, and replace an account's API key with its password."""
    update = accounts.update_user

    def generate_user_token(user: User) -> str:
        claims = {"identity": str(user.id), "name": user.first_name, "username": user.username, "role": user.role}
        return str(JWT.create(UserInfo({**claims, _MARK: _fingerprint(user.password_hash)})))

    async def update_user(db: AsyncSession, user: User, user_attrs: dict[str, Any]) -> User:
        changes = dict(user_attrs)
        if "password" in changes:
            changes["password_hash"] = await passwords.digest(changes.pop("password"))
            changes["api_key"] = secrets.token_urlsafe()
        return await update(db, user, changes)

    JWT.decode = sessions.decode
    accounts.generate_user_token = generate_user_token
    accounts.update_user = update_user
    accounts.authenticate_user = passwords.authenticate


def _fingerprint(password_hash: str) -> str:
    return sha256(password_hash.encode()).hexdigest()[:16]
