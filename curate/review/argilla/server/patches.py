"""Patches of argilla_server 2.8.0 that save time and do not change results.

Measured with a bulk of 500 records with two suggestions each, see DECISIONS.md.
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


def apply_patches(connection: sqlite3.Connection) -> None:
    """Apply all patches; `connection` to Argilla's database is used in the server's event loop."""
    build_type_adapters_once()
    build_events_for_webhooks_only(connection)
    open_connections_per_session()
    compile_inserts_once()
    collect_garbage_rarely()


def build_type_adapters_once() -> None:
    """Argilla builds pydantic's validator for every suggestion, answer and metadata value."""
    questions = TypeAdapter(models.QuestionSettings)
    properties = TypeAdapter(models.MetadataPropertySettings)
    Question.parsed_settings = property(lambda question: questions.validate_python(question.settings))
    MetadataProperty.parsed_settings = property(lambda each: properties.validate_python(each.settings))


class _NoEvent:
    """An event without receivers."""

    async def notify(self, _db: Any) -> list[Any]:
        return []


def build_events_for_webhooks_only(connection: sqlite3.Connection) -> None:
    """Argilla loads the dataset and copies the record for the event of every record, even without webhooks."""
    build = record_events.build_record_event
    no_event = _NoEvent()

    async def build_if_needed(db: Any, record_event: Any, record: Any) -> Any:
        # In this thread: the query takes 5 µs, a call in another thread 100 µs.
        if connection.execute("SELECT 1 FROM webhooks WHERE enabled LIMIT 1").fetchone() is None:
            return no_event
        return await build(db, record_event, record)

    record_events.build_record_event = build_if_needed


def open_connections_per_session() -> None:
    """Jobs run in their own event loop, so connections must not be pooled between loops."""
    url, arguments = database.settings.database_url, database.settings.database_engine_args
    engine = create_async_engine(url, poolclass=NullPool, **arguments)
    database.AsyncSessionLocal.configure(bind=engine)


def compile_inserts_once() -> None:
    """Argilla compiles one statement with all values for every bulk, and reads back rows that are not used."""
    original = CRUDMixin.upsert_many.__func__

    async def upsert_many(
        model: Any, db: AsyncSession, objects: list[Any], constraints: list[Any], autocommit: bool = True
    ) -> list[Any]:
        if len(objects) == 1:  # the only case in which the row is used
            rows: list[Any] = await original(model, db, objects, constraints, autocommit)
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


def collect_garbage_rarely() -> None:
    """A page of a thousand records creates so many objects that garbage collection took a third of the time."""
    gc.freeze()  # modules loaded so far stay in use
    gc.set_threshold(50_000, 20, 100)
