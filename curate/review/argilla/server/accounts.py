"""An empty database → an owner and a workspace, so that someone can sign in; a deleted account → records to answer."""

from __future__ import annotations

import secrets
import sqlite3

from argilla_server.contexts import accounts
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import UserRole
from argilla_server.models import User, Workspace
from sqlalchemy.ext.asyncio import AsyncSession

from .repair import STATUSES

OWNER = "owner"
WORKSPACE = "curate"


def reopen_records_of_deleted_accounts(connection: sqlite3.Connection) -> None:
    """Make Argilla set the status of records anew when it deletes an account with its answers."""
    delete = accounts.delete_user

    async def delete_user(db: AsyncSession, user: User) -> User:
        deleted: User = await delete(db, user)
        connection.execute(STATUSES)
        return deleted

    accounts.delete_user = delete_user


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
