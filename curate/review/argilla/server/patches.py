"""What is changed in argilla_server 2.8.0, and why. Each is about time; none changes what it does.

Measured for a bulk of 500 records with two suggestions each, see DECISIONS.md.
"""

from __future__ import annotations

import gc
import sqlite3
from typing import Any

from argilla_server import database
from argilla_server.models import MetadataProperty, Question
from argilla_server.models import database as models
from argilla_server.models.mixins import CRUDMixin
from argilla_server.webhooks.v1 import records as record_events
from pydantic import TypeAdapter
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool


def patch(connection: sqlite3.Connection) -> None:
    """Apply all of them; `connection` is one to Argilla's database, for the server's loop."""
    build_type_adapters_once()
    build_events_for_webhooks_only(connection)
    open_connections_per_session()
    compile_inserts_once()
    collect_garbage_seldom()


def build_type_adapters_once() -> None:
    """Stock builds pydantic's validator anew for every suggestion, answer and metadata value."""
    questions = TypeAdapter(models.QuestionSettings)
    properties = TypeAdapter(models.MetadataPropertySettings)
    Question.parsed_settings = property(lambda question: questions.validate_python(question.settings))
    MetadataProperty.parsed_settings = property(lambda found: properties.validate_python(found.settings))


class _NoEvent:
    """An event that nobody waits for."""

    async def notify(self, _db: Any) -> list[Any]:
        return []


def build_events_for_webhooks_only(connection: sqlite3.Connection) -> None:
    """Stock loads the dataset and copies the record for every record's event, then finds that no webhook wants it."""
    build = record_events.build_record_event
    no_event = _NoEvent()

    async def build_if_wanted(db: Any, record_event: Any, record: Any) -> Any:
        # Asked here and not in a thread: it takes 5 µs, the way to a thread and back 100.
        if connection.execute("SELECT 1 FROM webhooks WHERE enabled LIMIT 1").fetchone() is None:
            return no_event
        return await build(db, record_event, record)

    record_events.build_record_event = build_if_wanted


def open_connections_per_session() -> None:
    """Jobs run in a loop of their own; pooled connections would wander between the loops."""
    url, arguments = database.settings.database_url, database.settings.database_engine_args
    engine = create_async_engine(url, poolclass=NullPool, **arguments)
    database.AsyncSessionLocal.configure(bind=engine)


def compile_inserts_once() -> None:
    """Stock compiles one statement of all values of a bulk, each time anew, and reads back what nobody reads."""
    stock = CRUDMixin.upsert_many.__func__

    async def upsert_many(
        model: Any, db: AsyncSession, objects: list[Any], constraints: list[Any], autocommit: bool = True
    ) -> list[Any]:
        if len(objects) == 1:  # the one case in which the row is wanted back
            rows: list[Any] = await stock(model, db, objects, constraints, autocommit)
            return rows
        values = [each if isinstance(each, dict) else each.model_dump() for each in objects]
        insert = sqlite_insert(model)
        changed = {column: insert.excluded[column] for column in model.__upsertable_columns__}
        if hasattr(model, "updated_at"):
            changed["updated_at"] = insert.excluded["updated_at"]
        await db.execute(insert.on_conflict_do_update(index_elements=constraints, set_=changed), values)
        if autocommit:
            await db.commit()
        return []

    CRUDMixin.upsert_many = classmethod(upsert_many)


def collect_garbage_seldom() -> None:
    """A page of a thousand records makes so many objects that Python looked for garbage a third of the time."""
    gc.freeze()  # what is loaded by now stays for good
    gc.set_threshold(50_000, 20, 100)
