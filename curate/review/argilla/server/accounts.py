"""An empty database → an owner and a workspace, created at the first start so that someone can sign in."""

from __future__ import annotations

import secrets

from argilla_server.contexts import accounts
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import UserRole
from argilla_server.models import User, Workspace

OWNER = "owner"
WORKSPACE = "curate"


async def create_owner() -> str | None:
    """Create the owner; its password, of which Argilla stores only a bcrypt digest. None if there is an owner."""
    async with AsyncSessionLocal() as db:
        if await User.count_by(db, role=UserRole.owner):
            return None
        if await Workspace.get_by(db, name=WORKSPACE) is None:
            await accounts.create_workspace(db, {"name": WORKSPACE})
        password = secrets.token_urlsafe(12)
        names = {"first_name": OWNER, "last_name": None, "username": OWNER}
        await accounts.create_user(db, {**names, "role": UserRole.owner, "password": password}, [WORKSPACE])
        return password
