"""The accounts without which nobody could sign in: an owner and a workspace, made at the first start."""

from __future__ import annotations

import secrets

from argilla_server.contexts import accounts
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import UserRole
from argilla_server.models import User, Workspace

OWNER = "owner"
WORKSPACE = "curate"


async def make_owner() -> str | None:
    """The password of the owner made now; None when there is an owner. Argilla keeps its bcrypt digest alone."""
    async with AsyncSessionLocal() as db:
        if await User.count_by(db, role=UserRole.owner):
            return None
        if await Workspace.get_by(db, name=WORKSPACE) is None:
            await accounts.create_workspace(db, {"name": WORKSPACE})
        password = secrets.token_urlsafe(12)
        named = {"first_name": OWNER, "last_name": None, "username": OWNER}
        await accounts.create_user(db, {**named, "role": UserRole.owner, "password": password}, [WORKSPACE])
        return password
