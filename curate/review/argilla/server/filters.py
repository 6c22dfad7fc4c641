"""Argilla's filters and orders → SQL over `curate_documents d` and Argilla's own tables.

The semantics are those of Argilla's Elasticsearch mappings: a filter with several values matches any of them; labels,
ratings and metadata can be searched, texts, spans and rankings cannot; missing values come last in both directions; an
order by several answers uses their mean.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    MetadataFilterScope,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
    TermsFilter,
)

_NUMBERS = {"rating", "integer", "float"}
_LABELS = {"label_selection", "multi_label_selection", "terms"}
_TIMES = {"inserted_at", "updated_at"}
FALSE = "0"


@dataclass
class Sql:
    """An SQL fragment and its parameters, in order."""

    text: str
    parameters: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetScope:
    """The searched dataset, and the connection to look up its questions and metadata properties."""

    connection: sqlite3.Connection
    dataset: str

    def question(self, name: str) -> tuple[str, str]:
        """A question's id and type."""
        return self._look_up("questions", name)

    def metadata_type(self, name: str) -> str:
        """A metadata property's type."""
        return self._look_up("metadata_properties", name)[1]

    def _look_up(self, table: str, name: str) -> tuple[str, str]:
        select = f"SELECT id, json_extract(settings, '$.type') FROM {table} WHERE dataset_id = ? AND name = ?"
        row = self.connection.execute(select, [self.dataset, name]).fetchone()
        if row is None:
            raise ValueError(f"{name} is not in the dataset {self.dataset}")
        return row[0], row[1]


def filter_condition(dataset: DatasetScope, query: Filter) -> Sql:
    """The condition on a document `d` that is equivalent to the filter."""
    if isinstance(query, AndFilter):
        parts = [filter_condition(dataset, part) for part in query.filters]
        return Sql(
            " AND ".join(f"({part.text})" for part in parts) or "1", [p for part in parts for p in part.parameters]
        )
    scope = query.scope
    if isinstance(scope, RecordFilterScope):
        return _record_condition(query, scope.property)
    if isinstance(scope, MetadataFilterScope):
        return _metadata_condition(dataset, query, scope.metadata_property)
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion_condition(dataset, query, scope)
    if isinstance(scope, ResponseFilterScope):
        return _answer_condition(dataset, query, scope) if scope.question else _status_condition(query, scope)
    raise ValueError(f"Unknown filter scope: {scope}")


def _record_condition(query: TermsFilter | RangeFilter, name: str) -> Sql:
    if name in _TIMES:
        return _time_condition(query, f"d.{name}")
    if name == "id":
        return _comparison(query, "d.record", lambda value: str(value).replace("-", ""))
    return _comparison(query, f"d.{name}", str)


def _time_condition(query: TermsFilter | RangeFilter, column: str) -> Sql:
    if isinstance(query, TermsFilter):
        return _is_in(column, [to_sqlite_time(value) for value in query.values])
    return _is_between(
        column,
        None if query.ge is None else to_sqlite_time(query.ge),
        None if query.le is None else to_sqlite_time(query.le, end_of_day=True),
    )


def to_sqlite_time(value: str | float, *, end_of_day: bool = False) -> str:
    """A time as Argilla stores it in SQLite: UTC without a zone. Numbers are milliseconds since 1970.

    A date without a time means its beginning, or its end if it is an upper bound.
    """
    text = str(value)
    try:
        at = datetime.fromtimestamp(float(text) / 1000, tz=UTC)
    except ValueError:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if end_of_day and len(text) == len("2026-01-31"):
            at = at.replace(hour=23, minute=59, second=59, microsecond=999_999)
    if at.tzinfo is not None:
        at = at.astimezone(UTC).replace(tzinfo=None)
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")


def _metadata_condition(dataset: DatasetScope, query: TermsFilter | RangeFilter, name: str) -> Sql:
    value = _value_condition(query, dataset.metadata_type(name), "v.value")
    return Sql(
        f"EXISTS (SELECT 1 FROM json_each(d.metadata, ?) v WHERE {value.text})", [json_path(name), *value.parameters]
    )


def _suggestion_condition(dataset: DatasetScope, query: TermsFilter | RangeFilter, scope: SuggestionFilterScope) -> Sql:
    question, kind = dataset.question(scope.question)
    if scope.property in {"value", "score"}:
        value = _value_condition(query, "float" if scope.property == "score" else kind, "v.value")
        source = f"suggestions s, json_each(s.{scope.property}) v"
    else:
        value = _comparison(query, f"s.{scope.property}", str)
        source = "suggestions s"
    return Sql(
        f"d.record IN (SELECT s.record_id FROM {source} WHERE s.question_id = ? AND {value.text})",
        [question, *value.parameters],
    )


def _answer_condition(dataset: DatasetScope, query: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> Sql:
    _, kind = dataset.question(str(scope.question))
    value = _value_condition(query, kind, "v.value")
    user = _user_condition(scope)
    return Sql(
        f"""d.record IN (SELECT p.record_id FROM responses p, json_each(p."values", ?) v
                         WHERE {user.text} AND {value.text})""",
        [json_path(str(scope.question), "value"), *user.parameters, *value.parameters],
    )


def read_statuses(query: TermsFilter) -> list[str]:
    """The statuses that a filter names."""
    return [str(getattr(value, "value", value)) for value in query.values]


def _status_condition(query: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> Sql:
    """Records with an answer of these statuses, by the user if one is given; `pending` means without an answer."""
    if not isinstance(query, TermsFilter) or scope.property != "status":
        raise ValueError(f"Unknown filter scope: {scope}")
    user = _user_condition(scope)
    statuses = read_statuses(query)
    status = _is_in("p.status", [status for status in statuses if status != "pending"])
    answered = f"SELECT p.record_id FROM responses p WHERE {user.text}"
    parts = [Sql(f"d.record IN ({answered} AND {status.text})", [*user.parameters, *status.parameters])]
    if "pending" in statuses:
        parts.append(Sql(f"d.record NOT IN ({answered})", user.parameters))
    return Sql(" OR ".join(part.text for part in parts), [p for part in parts for p in part.parameters])


def _user_condition(scope: ResponseFilterScope) -> Sql:
    return Sql("1") if scope.user is None else Sql("p.user_id = ?", [scope.user.id.hex])


def json_path(*names: str) -> str:
    """The JSON path to a value; names can contain any characters."""
    return "$" + "".join('."' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names)


def _value_condition(query: TermsFilter | RangeFilter, kind: str, column: str) -> Sql:
    """The condition on one value of a question or metadata property of this type."""
    if kind in _NUMBERS:
        value = _comparison(query, column, _to_number)
        return Sql(f"typeof({column}) IN ('integer', 'real') AND {value.text}", value.parameters)
    if kind in _LABELS:
        value = _comparison(query, column, str)
        return Sql(f"typeof({column}) = 'text' AND {value.text}", value.parameters)
    return Sql(FALSE)


def _to_number(value: object) -> float | None:
    """The number in a filter; None, which equals nothing, if it is not a number."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _comparison(query: TermsFilter | RangeFilter, column: str, convert: Callable[[Any], Any]) -> Sql:
    if isinstance(query, TermsFilter):
        return _is_in(column, [convert(value) for value in query.values])
    bounds = [None if bound is None else convert(bound) for bound in (query.ge, query.le)]
    if any(bound is None and given is not None for bound, given in zip(bounds, (query.ge, query.le), strict=True)):
        return Sql(FALSE)
    return _is_between(column, *bounds)


def _is_in(column: str, values: Sequence[Any]) -> Sql:
    return Sql(f"{column} IN ({', '.join('?' * len(values))})", list(values))


def _is_between(column: str, ge: Any, le: Any) -> Sql:
    parts = [(f"{column} >= ?", ge), (f"{column} <= ?", le)]
    bounds = [(text, bound) for text, bound in parts if bound is not None]
    return Sql(" AND ".join(text for text, _ in bounds) or FALSE, [bound for _, bound in bounds])


def both_conditions(one: Sql, other: Sql) -> Sql:
    """The condition that both conditions are met."""
    return Sql(f"({one.text}) AND ({other.text})", [*one.parameters, *other.parameters])


def offered_condition(connection: sqlite3.Connection, user: str) -> Sql:
    """The condition that a document is offered to a user: it has no names in `assigned`, theirs, or their answer."""
    row = connection.execute("SELECT username, role FROM users WHERE id = ?", [user]).fetchone()
    if row is None or row[1] != "annotator":
        return Sql("1")
    return Sql(
        """json_extract(d.metadata, '$.assigned') IS NULL
           OR EXISTS (SELECT 1 FROM json_each(d.metadata, '$.assigned') v WHERE v.value = ?)
           OR d.record IN (SELECT p.record_id FROM responses p WHERE p.user_id = ?)""",
        [row[0], user],
    )


def order_clause(dataset: DatasetScope, orders: list[Order]) -> Sql:
    """The terms of ORDER BY: missing values last, ties by insertion."""
    parts = [_sort_key(dataset, order) for order in orders]
    text = ", ".join(f"{part.text} {_direction(order)} NULLS LAST" for part, order in zip(parts, orders, strict=True))
    return Sql(f"{text}, d.doc", [p for part in parts for p in part.parameters])


def _direction(order: Order) -> str:
    return str(getattr(order.order, "value", order.order)).upper()


def _sort_key(dataset: DatasetScope, order: Order) -> Sql:
    """The value to sort a document by: the smallest of several values, or the largest in descending order."""
    scope = order.scope
    aggregate = "max" if _direction(order) == "DESC" else "min"
    if isinstance(scope, RecordFilterScope):
        return Sql(f"d.{'record' if scope.property == 'id' else str(scope.property)}")
    if isinstance(scope, MetadataFilterScope):
        dataset.metadata_type(scope.metadata_property)
        return Sql(
            f"(SELECT {aggregate}(v.value) FROM json_each(d.metadata, ?) v)", [json_path(scope.metadata_property)]
        )
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion_sort_key(dataset, scope, aggregate)
    if isinstance(scope, ResponseFilterScope):
        return _answer_sort_key(dataset, scope, aggregate)
    raise ValueError(f"Unknown order scope: {scope}")


def _suggestion_sort_key(dataset: DatasetScope, scope: SuggestionFilterScope, aggregate: str) -> Sql:
    question, kind = dataset.question(scope.question)
    if scope.property not in {"value", "score"}:
        return Sql(
            f"(SELECT s.{scope.property} FROM suggestions s WHERE s.record_id = d.record AND s.question_id = ?)",
            [question],
        )
    if scope.property == "value" and kind not in _NUMBERS | _LABELS:
        return Sql("NULL")
    return Sql(
        f"""(SELECT {aggregate}(v.value) FROM suggestions s, json_each(s.{scope.property}) v
             WHERE s.record_id = d.record AND s.question_id = ?)""",
        [question],
    )


def _answer_sort_key(dataset: DatasetScope, scope: ResponseFilterScope, aggregate: str) -> Sql:
    """The mean of ratings; of labels and statuses the first or last in alphabetical order."""
    user = _user_condition(scope)
    if not scope.question:
        return Sql(
            f"(SELECT {aggregate}(p.status) FROM responses p WHERE p.record_id = d.record AND {user.text})",
            user.parameters,
        )
    _, kind = dataset.question(scope.question)
    if kind not in _NUMBERS | _LABELS:
        return Sql("NULL")
    return Sql(
        f"""(SELECT {"avg" if kind in _NUMBERS else aggregate}(v.value) FROM responses p, json_each(p."values", ?) v
             WHERE p.record_id = d.record AND {user.text})""",
        [json_path(scope.question, "value"), *user.parameters],
    )
