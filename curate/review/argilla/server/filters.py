"""Argilla's filters and orders to SQL over `curate_documents d` and Argilla's own tables.

The meaning is that of Argilla's Elasticsearch mappings: a filter over several values wants any of them; labels,
ratings and metadata can be searched, texts, spans and rankings cannot; what has no value comes last in both
directions; an order over several answers takes their mean.
"""

from __future__ import annotations

import math
import sqlite3
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
NOTHING = "0"


@dataclass
class Sql:
    """A piece of SQL and its parameters, in their order."""

    text: str
    parameters: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Searched:
    """The dataset that is searched, and the connection that knows its questions and properties."""

    connection: sqlite3.Connection
    dataset: str

    def question(self, name: str) -> tuple[str, str]:
        """A question's id and type."""
        return self._one("SELECT id, json_extract(settings, '$.type') FROM questions", name)

    def metadata_type(self, name: str) -> str:
        """A metadata property's type."""
        return self._one("SELECT id, json_extract(settings, '$.type') FROM metadata_properties", name)[1]

    def _one(self, select: str, name: str) -> tuple[str, str]:
        found = self.connection.execute(f"{select} WHERE dataset_id = ? AND name = ?", [self.dataset, name]).fetchone()
        if found is None:
            raise ValueError(f"{name} is not in the dataset {self.dataset}")
        return found[0], found[1]


def condition(searched: Searched, wanted: Filter) -> Sql:
    """The condition that a document `d` meets when the filter takes it."""
    if isinstance(wanted, AndFilter):
        parts = [condition(searched, part) for part in wanted.filters]
        return Sql(
            " AND ".join(f"({part.text})" for part in parts) or "1", [p for part in parts for p in part.parameters]
        )
    scope = wanted.scope
    if isinstance(scope, RecordFilterScope):
        return _of_record(wanted, scope.property)
    if isinstance(scope, MetadataFilterScope):
        return _of_metadata(searched, wanted, scope.metadata_property)
    if isinstance(scope, SuggestionFilterScope):
        return _of_suggestion(searched, wanted, scope)
    if isinstance(scope, ResponseFilterScope):
        return _of_answer(searched, wanted, scope) if scope.question else _of_answer_status(wanted, scope)
    raise ValueError(f"A filter over {scope} is not known")


def _of_record(wanted: TermsFilter | RangeFilter, name: str) -> Sql:
    if name in _TIMES:
        return _of_time(wanted, f"d.{name}")
    if name == "id":
        return _compared(wanted, "d.record", lambda value: str(value).replace("-", ""))
    return _compared(wanted, f"d.{name}", str)


def _of_time(wanted: TermsFilter | RangeFilter, column: str) -> Sql:
    if isinstance(wanted, TermsFilter):
        return _among(column, [moment(value) for value in wanted.values])
    return _between(
        column,
        None if wanted.ge is None else moment(wanted.ge),
        None if wanted.le is None else moment(wanted.le, end_of_day=True),
    )


def moment(value: str | float, *, end_of_day: bool = False) -> str:
    """A time as SQLite holds Argilla's: UTC without a zone. Numbers are milliseconds since 1970, as in Elasticsearch.

    A day without a time means its beginning, or its end where it is the upper bound.
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


def _of_metadata(searched: Searched, wanted: TermsFilter | RangeFilter, name: str) -> Sql:
    inside = _value_condition(wanted, searched.metadata_type(name), "v.value")
    return Sql(
        f"EXISTS (SELECT 1 FROM json_each(d.metadata, ?) v WHERE {inside.text})", [json_path(name), *inside.parameters]
    )


def _of_suggestion(searched: Searched, wanted: TermsFilter | RangeFilter, scope: SuggestionFilterScope) -> Sql:
    question, kind = searched.question(scope.question)
    if scope.property in {"value", "score"}:
        inside = _value_condition(wanted, "float" if scope.property == "score" else kind, "v.value")
        source = f"suggestions s, json_each(s.{scope.property}) v"
    else:
        inside = _compared(wanted, f"s.{scope.property}", str)
        source = "suggestions s"
    return Sql(
        f"d.record IN (SELECT s.record_id FROM {source} WHERE s.question_id = ? AND {inside.text})",
        [question, *inside.parameters],
    )


def _of_answer(searched: Searched, wanted: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> Sql:
    _, kind = searched.question(str(scope.question))
    inside = _value_condition(wanted, kind, "v.value")
    who = _by(scope)
    return Sql(
        f"""d.record IN (SELECT p.record_id FROM responses p, json_each(p."values", ?) v
                         WHERE {who.text} AND {inside.text})""",
        [json_path(str(scope.question), "value"), *who.parameters, *inside.parameters],
    )


def _of_answer_status(wanted: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> Sql:
    """Records with an answer of these statuses, by the user where one is given; `pending` is no answer at all."""
    if not isinstance(wanted, TermsFilter) or scope.property != "status":
        raise ValueError(f"A filter over {scope} is not known")
    who = _by(scope)
    statuses = [str(getattr(value, "value", value)) for value in wanted.values]
    given = _among("p.status", [status for status in statuses if status != "pending"])
    answered = f"SELECT p.record_id FROM responses p WHERE {who.text}"
    parts = [Sql(f"d.record IN ({answered} AND {given.text})", [*who.parameters, *given.parameters])]
    if "pending" in statuses:
        parts.append(Sql(f"d.record NOT IN ({answered})", who.parameters))
    return Sql(" OR ".join(part.text for part in parts), [p for part in parts for p in part.parameters])


def _by(scope: ResponseFilterScope) -> Sql:
    return Sql("1") if scope.user is None else Sql("p.user_id = ?", [scope.user.id.hex])


def json_path(*names: str) -> str:
    """The JSON path to a value, whatever signs the names have."""
    return "$" + "".join('."' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names)


def _value_condition(wanted: TermsFilter | RangeFilter, kind: str, column: str) -> Sql:
    """The condition on one value of a question or property of this type."""
    if kind in _NUMBERS:
        inside = _compared(wanted, column, _number)
        return Sql(f"typeof({column}) IN ('integer', 'real') AND {inside.text}", inside.parameters)
    if kind in _LABELS:
        inside = _compared(wanted, column, str)
        return Sql(f"typeof({column}) = 'text' AND {inside.text}", inside.parameters)
    return Sql(NOTHING)


def _number(value: object) -> float | None:
    """The number that a filter names; None, which equals nothing, when it names none."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _compared(wanted: TermsFilter | RangeFilter, column: str, read: Any) -> Sql:
    if isinstance(wanted, TermsFilter):
        return _among(column, [read(value) for value in wanted.values])
    bounds = [None if bound is None else read(bound) for bound in (wanted.ge, wanted.le)]
    if any(bound is None and given is not None for bound, given in zip(bounds, (wanted.ge, wanted.le), strict=True)):
        return Sql(NOTHING)
    return _between(column, *bounds)


def _among(column: str, values: list[Any]) -> Sql:
    return Sql(f"{column} IN ({', '.join('?' * len(values))})", values)


def _between(column: str, ge: Any, le: Any) -> Sql:
    parts = [(f"{column} >= ?", ge), (f"{column} <= ?", le)]
    given = [(text, bound) for text, bound in parts if bound is not None]
    return Sql(" AND ".join(text for text, _ in given) or NOTHING, [bound for _, bound in given])


def ordering(searched: Searched, orders: list[Order]) -> Sql:
    """What follows ORDER BY: what has no value last, equal ones in the order in which they came in."""
    parts = [_key(searched, order) for order in orders]
    text = ", ".join(f"{part.text} {_way(order)} NULLS LAST" for part, order in zip(parts, orders, strict=True))
    return Sql(f"{text}, d.doc", [p for part in parts for p in part.parameters])


def _way(order: Order) -> str:
    return "DESC" if _descends(order) else "ASC"


def _descends(order: Order) -> bool:
    return str(getattr(order.order, "value", order.order)) == "desc"


def _key(searched: Searched, order: Order) -> Sql:
    """The value that a document is sorted by. Of several values the least counts, going down the greatest."""
    scope = order.scope
    pick = "max" if _descends(order) else "min"
    if isinstance(scope, RecordFilterScope):
        return Sql(f"d.{'record' if scope.property == 'id' else str(scope.property)}")
    if isinstance(scope, MetadataFilterScope):
        searched.metadata_type(scope.metadata_property)
        return Sql(f"(SELECT {pick}(v.value) FROM json_each(d.metadata, ?) v)", [json_path(scope.metadata_property)])
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion_key(searched, scope, pick)
    if isinstance(scope, ResponseFilterScope):
        return _answer_key(searched, scope, pick)
    raise ValueError(f"An order by {scope} is not known")


def _suggestion_key(searched: Searched, scope: SuggestionFilterScope, pick: str) -> Sql:
    question, kind = searched.question(scope.question)
    if scope.property not in {"value", "score"}:
        return Sql(
            f"(SELECT s.{scope.property} FROM suggestions s WHERE s.record_id = d.record AND s.question_id = ?)",
            [question],
        )
    if scope.property == "value" and kind not in _NUMBERS | _LABELS:
        return Sql("NULL")
    return Sql(
        f"""(SELECT {pick}(v.value) FROM suggestions s, json_each(s.{scope.property}) v
             WHERE s.record_id = d.record AND s.question_id = ?)""",
        [question],
    )


def _answer_key(searched: Searched, scope: ResponseFilterScope, pick: str) -> Sql:
    """A rating's mean over the answers; of labels and statuses, which have none, the first or last in the alphabet."""
    who = _by(scope)
    if not scope.question:
        return Sql(
            f"(SELECT {pick}(p.status) FROM responses p WHERE p.record_id = d.record AND {who.text})", who.parameters
        )
    _, kind = searched.question(scope.question)
    if kind not in _NUMBERS | _LABELS:
        return Sql("NULL")
    how = "avg" if kind in _NUMBERS else pick
    return Sql(
        f"""(SELECT {how}(v.value) FROM responses p, json_each(p."values", ?) v
             WHERE p.record_id = d.record AND {who.text})""",
        [json_path(scope.question, "value"), *who.parameters],
    )
