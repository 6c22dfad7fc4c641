"""Argilla's searches → results from SQLite: the implementation of its search engine interface."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.models import Dataset, MetadataProperty, Record, Response, Suggestion, User, VectorSettings
from argilla_server.search_engine.base import (
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataMetrics,
    Order,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    TermsMetrics,
    TextQuery,
)

from . import queries
from .filters import DatasetScope, Sql, both_conditions, filter_condition, json_path, offered_condition, order_clause
from .index import connect, index_pending
from .readers import Readers, asks_for_pending

NAME = "curate"
_READERS = 4
Result = TypeVar("Result")


class _ThreadState(threading.local):
    connection: sqlite3.Connection | None = None


@SearchEngine.register(NAME)
class SqliteSearchEngine(SearchEngine):
    """Searches in SQLite, in its own threads, so that the server's event loop is not blocked."""

    instance: ClassVar[SqliteSearchEngine]

    def __init__(self, database: Path) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="search")
        self._state = _ThreadState()
        self._writing = threading.Lock()
        self._readers = Readers()

    @classmethod
    async def new_instance(cls) -> SqliteSearchEngine:
        """The only instance: Argilla requests a new one for each request."""
        return cls.instance

    async def close(self) -> None:
        """Keep the connections for the next request."""

    async def ping(self) -> bool:
        """Whether the database can be queried."""
        return await self._run(lambda connection: connection.execute("SELECT 1").fetchone() == (1,))

    async def info(self) -> dict[str, Any]:
        """Name and version for the server's status."""
        return {"name": NAME, "engine": "SQLite", "version": sqlite3.sqlite_version}

    # --- notifications of changes, which triggers have recorded already; only words and vectors are indexed here ---

    async def create_index(self, dataset: Dataset) -> None:
        """Do nothing: there is one index for all datasets."""

    async def delete_index(self, dataset: Dataset) -> None:
        """Do nothing: triggers have removed the records."""

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
        """Do nothing: metadata is searched in Argilla's tables."""

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        """Do nothing: vectors are stored with the id of their settings."""

    async def index_records(self, _dataset: Dataset, _records: Iterable[Record]) -> None:
        """Index the words and vectors of new and changed records."""
        await self._run(self._index_pending)

    async def partial_record_update(self, record: Record, **update: Any) -> None:
        """Do nothing: a trigger has recorded the status."""

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Do nothing: a trigger has removed them."""

    async def update_record_response(self, response: Response) -> None:
        """Do nothing: answers are searched in Argilla's tables."""

    async def delete_record_response(self, response: Response) -> None:
        """Do nothing: answers are searched in Argilla's tables."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """Do nothing: suggestions are searched in Argilla's tables."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """Do nothing: suggestions are searched in Argilla's tables."""

    # --- queries ---

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """The number of records, in total and by status; empty for a draft."""
        if dataset.is_draft:
            return {}
        return await self._run(lambda connection: queries.count_records(connection, dataset.id.hex))

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """The number of the user's answers, in total and by status; empty for a draft."""
        if dataset.is_draft:
            return {}
        return await self._run(lambda connection: queries.count_answers(connection, dataset.id.hex, user.id.hex))

    async def count_offered(self, dataset: UUID, user: UUID) -> int:
        """The number of a dataset's records that are offered to a user."""

        def run(connection: sqlite3.Connection) -> int:
            return queries.count_matching(connection, dataset.hex, _for_user(connection, Sql("1"), user))

        return await self._run(run)

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """The counts of a metadata property's values, or its minimum and maximum."""
        dataset, path = metadata_property.dataset_id.hex, json_path(metadata_property.name)
        if metadata_property.type == MetadataPropertyType.terms:
            counts = await self._run(lambda connection: queries.count_terms(connection, dataset, path))
            values = [TermsMetrics.TermCount(term=str(term), count=count) for term, count in counts]
            return TermsMetrics(total=sum(value.count for value in values), values=values)
        minimum, maximum = await self._run(lambda connection: queries.value_range(connection, dataset, path))
        is_integer = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if is_integer else FloatMetadataMetrics)(min=minimum, max=maximum)

    async def search(
        self,
        dataset: Dataset,
        *,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | str | None = None,
    ) -> SearchResponses:
        """A page of the records that match the query and the filter."""
        user = None if user_id is None else UUID(str(user_id))
        shuffle = None if user is None else user.int

        def run(connection: sqlite3.Connection) -> queries.SearchPage:
            scope = DatasetScope(connection, dataset.id.hex)
            text, ranks = self._text_condition(connection, dataset, query)
            where = filter_condition(scope, filter) if filter else Sql("1")
            if user is not None:
                where = _for_user(connection, where, user)
            is_work = user is not None and not sort and query is None and asks_for_pending(filter)
            taken = self._readers.others(dataset.id.hex, user.hex) if user and is_work else {}
            order = order_clause(scope, sort) if sort else None
            page = queries.search(
                connection, dataset.id.hex, text, where, order,
                ranks=None if sort else ranks, shuffle=shuffle, taken=taken, offset=offset, limit=limit,
            )  # fmt: skip
            if user and is_work:
                self._readers.add(dataset.id.hex, user.hex, [record for record, _ in page.records])
            return page

        return _response(await self._run(run))

    async def similarity_search(
        self,
        dataset: Dataset,
        *,
        vector_settings: VectorSettings,
        value: list[float] | None = None,
        record: Record | None = None,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        max_results: int = 100,
        order: SimilarityOrder = SimilarityOrder.most_similar,
        threshold: float | None = None,
    ) -> SearchResponses:
        """The records whose vectors are most, or least, similar to a value or to another record's vector."""
        vector = value or (record.vector_value_by_vector_settings(vector_settings) if record else None)
        if not vector or bool(value) == bool(record):
            raise ValueError("Exactly one of a vector and a record with a vector is required.")
        target = [-each for each in vector] if order == SimilarityOrder.least_similar else vector

        def run(connection: sqlite3.Connection) -> queries.SearchPage:
            self._index_pending(connection)
            text, _ = self._text_condition(connection, dataset, query)
            where = filter_condition(DatasetScope(connection, dataset.id.hex), filter) if filter else Sql("1")
            both = Sql(
                f"({where.text}) AND ({text.text if text else 1})", where.parameters + (text.parameters if text else [])
            )
            return queries.find_similar(
                connection,
                dataset.id.hex,
                vector_settings.id.hex,
                target,
                both,
                exclude=record.id.hex if record else None,
                limit=max_results,
                threshold=threshold,
            )

        return _response(await self._run(run))

    # --- execution ---

    def _text_condition(
        self, connection: sqlite3.Connection, dataset: Dataset, query: TextQuery | str | None
    ) -> tuple[Sql | None, Sql | None]:
        if query is None:
            return None, None
        self._index_pending(connection)
        text = TextQuery(q=query) if isinstance(query, str) else query
        return queries.text_condition(connection, dataset.id.hex, text.q, text.field)

    def _index_pending(self, connection: sqlite3.Connection) -> None:
        stale = "SELECT 1 FROM curate_documents WHERE stale UNION ALL SELECT 1 FROM curate_vectors WHERE value IS NULL"
        if connection.execute(f"{stale} LIMIT 1").fetchone():
            with self._writing:  # one thread: others would only wait for SQLite's lock
                index_pending(connection)

    async def _run(self, query: Callable[[sqlite3.Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run_in_thread, query)

    def _run_in_thread(self, query: Callable[[sqlite3.Connection], Result]) -> Result:
        if self._state.connection is None:
            self._state.connection = connect(self._database)
        return query(self._state.connection)


def _for_user(connection: sqlite3.Connection, where: Sql, user: UUID) -> Sql:
    """The condition, and offered to this user: assigned to them, and not answered by them in another set."""
    return both_conditions(queries.without_answered(where, user.hex), offered_condition(connection, user.hex))


def _response(page: queries.SearchPage) -> SearchResponses:
    items = [SearchResponseItem(record_id=UUID(hex=record), score=score) for record, score in page.records]
    return SearchResponses(items=items, total=page.total)
