"""A name and a password → the account, checked in another thread and limited per name and address.

bcrypt takes about 0.2 s per password, during which Argilla's event loop would not answer. It releases Python's lock,
so a thread of its own is enough.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import bcrypt
from argilla_server.contexts import accounts
from argilla_server.models import User
from fastapi import HTTPException
from sqlalchemy.ext.asyncio import AsyncSession

from .rate_limit import SignInLimit

MAX_NAME, MAX_PASSWORD = 200, 100
"""Characters; Argilla accepts passwords of at most 100."""

MAX_WAITING = 20
"""Passwords that wait to be checked. More are answered with "try again" at once."""

_NOBODY = bcrypt.hashpw(b"nobody", bcrypt.gensalt()).decode()
"""Compared with if there is no such account, so that the time does not tell which names exist."""

client_address: ContextVar[str] = ContextVar("client_address", default="")
"""The address that the current request came from."""


def address_of(scope: MutableMapping[str, Any]) -> str:
    """The client's IPv4 address, or its IPv6 network: one client has 2^64 addresses there."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


class PasswordCheck:
    """Argilla's `authenticate_user`, limited and in another thread."""

    def __init__(self) -> None:
        self._limit = SignInLimit()
        # Half of the cores, so that the event loop always has one.
        self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), thread_name_prefix="passwords")
        self._waiting = 0

    async def authenticate(self, db: AsyncSession, username: str, password: str) -> User | None:
        """The account, or None if there is none or the password is wrong. Raises `HTTPException` 429."""
        address = client_address.get()
        is_full = self._waiting >= MAX_WAITING  # first: an attempt that is not checked does not count
        wait = 1.0 if is_full else self._limit.start(username[:MAX_NAME], address)
        if wait:
            raise HTTPException(429, "Too many attempts to sign in.", {"Retry-After": str(math.ceil(wait))})
        if len(username) > MAX_NAME or len(password) > MAX_PASSWORD:
            return None
        user = await accounts.get_user_by_username(db, username)
        if not await self.is_correct(password, user.password_hash if user else _NOBODY):
            return None
        self._limit.succeed(username, address)
        return user

    async def is_correct(self, password: str, digest: str) -> bool:
        """Whether this is the password with this bcrypt digest."""
        return bool(await self._run(accounts.verify_password, password, digest))

    async def digest(self, password: str) -> str:
        """The bcrypt digest of a new password."""
        return str(await self._run(accounts.hash_password, password))

    async def _run(self, function: Any, *arguments: str) -> Any:
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        finally:
            self._waiting -= 1
