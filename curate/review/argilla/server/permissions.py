"""Argilla's endpoints → the same, with the answers of others left out of what annotators read.

Annotators are members of a workspace. Argilla shows members a single record with everybody's answers and all metadata,
and the names of all annotators with the number of their answers. Its other endpoints with answers are for admins, or
return one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from argilla_server.api.handlers.v1.datasets import datasets, records
from argilla_server.api.handlers.v1.records import get_record
from argilla_server.api.routes import api_v1
from argilla_server.models import User
from argilla_server.search_engine import SearchEngine
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import set_committed_value

from .search_engine import SqliteSearchEngine


def restrict_annotators() -> None:
    """Apply to all endpoints."""
    _replace(get_record, _get_record)
    _replace(datasets.get_current_user_dataset_metrics, _get_current_user_dataset_metrics)
    _replace(datasets.get_dataset_progress, _get_dataset_progress)
    _replace(datasets.get_dataset_users_progress, _get_dataset_users_progress)


def _replace(endpoint: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Call `replacement` for an endpoint, with the same arguments."""
    [route] = [each for each in api_v1.routes if isinstance(each, APIRoute) and each.endpoint is endpoint]
    route.dependant.call = replacement


async def _get_record(*, db: AsyncSession, record_id: Any, current_user: User) -> Any:
    record = await get_record(db=db, record_id=record_id, current_user=current_user)
    if not current_user.is_annotator:
        return record
    await record.dataset.awaitable_attrs.metadata_properties
    metadata = await records._filter_record_metadata_for_user(record, current_user)
    own = [each for each in record.responses if each.user_id == current_user.id]
    set_committed_value(record, "metadata_", metadata)  # for this response only: nothing is written
    set_committed_value(record, "responses", own)
    return record


async def _get_current_user_dataset_metrics(
    *, dataset_id: Any, db: AsyncSession, search_engine: SearchEngine, current_user: User
) -> Any:
    metrics = await datasets.get_current_user_dataset_metrics(
        dataset_id=dataset_id, db=db, search_engine=search_engine, current_user=current_user
    )
    if current_user.is_annotator:  # only what is offered to them
        responses = metrics.responses
        offered = await SqliteSearchEngine.instance.count_offered(dataset_id, current_user.id)
        responses.pending -= responses.total - offered
        responses.total = offered
    return metrics


async def _get_dataset_progress(
    *, dataset_id: Any, db: AsyncSession, search_engine: SearchEngine, current_user: User
) -> Any:
    progress = await datasets.get_dataset_progress(
        dataset_id=dataset_id, db=db, search_engine=search_engine, current_user=current_user
    )
    if current_user.is_annotator:
        progress.users = _own(progress.users, current_user)
    return progress


async def _get_dataset_users_progress(*, dataset_id: Any, db: AsyncSession, current_user: User) -> Any:
    progress = await datasets.get_dataset_users_progress(dataset_id=dataset_id, db=db, current_user=current_user)
    if current_user.is_annotator:
        progress.users = _own(progress.users, current_user)
    return progress


def _own(rows: list[Any], user: User) -> list[Any]:
    return [each for each in rows if each.username == user.username]
