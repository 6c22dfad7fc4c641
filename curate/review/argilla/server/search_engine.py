"""The search engine that Argilla is given: everything it searches lies in its own SQLite database."""

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
from .filters import Searched, Sql, condition, json_path, ordering
from .index import catch_up, connect

NAME = "curate"
_READERS = 4
Answer = TypeVar("Answer")


class _Own(threading.local):
    connection: sqlite3.Connection | None = None


@SearchEngine.register(NAME)
class SqliteSearchEngine(SearchEngine):
    """Answers from SQLite, in threads of its own, so that the server's loop goes on meanwhile."""

    the_one: ClassVar[SqliteSearchEngine]

    def __init__(self, database: Path) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="search")
        self._threads_own = _Own()
        self._writing = threading.Lock()

    @classmethod
    async def new_instance(cls) -> SqliteSearchEngine:
        """The one engine: Argilla asks for a new instance with each request."""
        return cls.the_one

    async def close(self) -> None:
        """Nothing: the next request uses the same connections."""

    async def ping(self) -> bool:
        """Whether the database answers."""
        return await self._ask(lambda connection: connection.execute("SELECT 1").fetchone() == (1,))

    async def info(self) -> dict[str, Any]:
        """What the server says of its search engine."""
        return {"name": NAME, "engine": "SQLite", "version": sqlite3.sqlite_version}

    # What Argilla tells of changes: triggers have written them down already, words and vectors are left to do.

    async def create_index(self, dataset: Dataset) -> None:
        """Nothing: one index serves all datasets."""

    async def delete_index(self, dataset: Dataset) -> None:
        """Nothing: the records' triggers have emptied it."""

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
        """Nothing: metadata are read as they stand."""

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        """Nothing: vectors are kept by the id of their settings."""

    async def index_records(self, _dataset: Dataset, _records: Iterable[Record]) -> None:
        """Index the words and vectors of what was written."""
        await self._ask(self._catch_up)

    async def partial_record_update(self, record: Record, **update: Any) -> None:
        """Nothing: a trigger has noted the status."""

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Nothing: a trigger has removed them."""

    async def update_record_response(self, response: Response) -> None:
        """Nothing: answers are searched where they lie."""

    async def delete_record_response(self, response: Response) -> None:
        """Nothing: answers are searched where they lie."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """Nothing: suggestions are searched where they lie."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """Nothing: suggestions are searched where they lie."""

    # What Argilla asks.

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """How many records there are, and of each status; nothing for a draft."""
        if dataset.is_draft:
            return {}
        return await self._ask(lambda connection: queries.progress(connection, dataset.id.hex))

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """How many answers the person gave, and of each status; nothing for a draft."""
        if dataset.is_draft:
            return {}
        return await self._ask(lambda connection: queries.progress_of(connection, dataset.id.hex, user.id.hex))

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """The values of a metadata property, counted, or the least and the greatest."""
        dataset, path = metadata_property.dataset_id.hex, json_path(metadata_property.name)
        if metadata_property.type == MetadataPropertyType.terms:
            counts = await self._ask(lambda connection: queries.term_counts(connection, dataset, path))
            values = [TermsMetrics.TermCount(term=str(term), count=count) for term, count in counts]
            return TermsMetrics(total=sum(value.count for value in values), values=values)
        least, greatest = await self._ask(lambda connection: queries.bounds(connection, dataset, path))
        whole = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if whole else FloatMetadataMetrics)(min=least, max=greatest)

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
        """A page of the records that the query and the filter take."""
        shuffle = None if user_id is None else UUID(str(user_id)).int

        def ask(connection: sqlite3.Connection) -> queries.Found:
            searched = Searched(connection, dataset.id.hex)
            text, ranks = self._text(connection, dataset, query)
            where = condition(searched, filter) if filter else Sql("1")
            order = ordering(searched, sort) if sort else None
            page = {"offset": offset, "limit": limit}
            ranked = None if sort else ranks
            return queries.search(connection, dataset.id.hex, text, where, order, ranks=ranked, shuffle=shuffle, **page)

        return _response(await self._ask(ask))

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
        """The records whose vectors are most, or least, like a value or another record's."""
        wanted = value or (record.vector_value_by_vector_settings(vector_settings) if record else None)
        if not wanted or bool(value) == bool(record):
            raise ValueError("A vector or a record that has one is needed, and only one of the two.")
        towards = [-one for one in wanted] if order == SimilarityOrder.least_similar else wanted

        def ask(connection: sqlite3.Connection) -> queries.Found:
            self._catch_up(connection)
            text, _ = self._text(connection, dataset, query)
            where = condition(Searched(connection, dataset.id.hex), filter) if filter else Sql("1")
            both = Sql(
                f"({where.text}) AND ({text.text if text else 1})", where.parameters + (text.parameters if text else [])
            )
            return queries.similar(
                connection,
                dataset.id.hex,
                vector_settings.id.hex,
                towards,
                both,
                without=record.id.hex if record else None,
                most=max_results,
                threshold=threshold,
            )

        return _response(await self._ask(ask))

    # How it asks.

    def _text(
        self, connection: sqlite3.Connection, dataset: Dataset, query: TextQuery | str | None
    ) -> tuple[Sql | None, Sql | None]:
        if query is None:
            return None, None
        self._catch_up(connection)
        text = TextQuery(q=query) if isinstance(query, str) else query
        return queries.text_condition(connection, dataset.id.hex, text.q, text.field)

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        stale = "SELECT 1 FROM curate_documents WHERE stale UNION ALL SELECT 1 FROM curate_vectors WHERE value IS NULL"
        if connection.execute(f"{stale} LIMIT 1").fetchone():
            with self._writing:  # one at a time: others would only wait for SQLite's lock
                catch_up(connection)

    async def _ask(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question)

    def _answer(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        if self._threads_own.connection is None:
            self._threads_own.connection = connect(self._database)
        return question(self._threads_own.connection)


def _response(found: queries.Found) -> SearchResponses:
    items = [SearchResponseItem(record_id=UUID(hex=record), score=score) for record, score in found.records]
    return SearchResponses(items=items, total=found.total)
