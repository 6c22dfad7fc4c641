"""Records shown to annotators lately → those that others are reading, which come last in a set with an order.

In such a set all annotators would otherwise read the same records at the same time. This is kept in memory only: after
a restart, an annotator may get a record that somebody else has open.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from argilla_server.search_engine.base import AndFilter, ResponseFilterScope, TermsFilter

from .filters import read_statuses

READING_SECONDS = 15 * 60
MAX_RECORDS = 20
"""Records per annotator: the page holds ten and requests the next ten when few are left."""


class Readers:
    """Dataset and annotator → the records shown last, with the time."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], deque[tuple[float, str]]] = {}
        self._lock = threading.Lock()

    def add(self, dataset: str, user: str, records: Iterable[str]) -> None:
        """Note that these records are shown to an annotator."""
        now = time.monotonic()
        with self._lock:
            shown = self._shown.setdefault((dataset, user), deque(maxlen=MAX_RECORDS))
            shown.extend((now, record) for record in records)

    def others(self, dataset: str, user: str) -> Counter[str]:
        """Record → the number of other annotators who are reading it."""
        oldest = time.monotonic() - READING_SECONDS
        with self._lock:
            return Counter(
                record
                for (of, reader), shown in self._shown.items()
                if of == dataset and reader != user
                for record in {record for at, record in shown if at > oldest}
            )


def asks_for_pending(query: Any) -> bool:
    """Whether a filter selects records that the annotator has not answered, as the page does for work to do."""
    parts = query.filters if isinstance(query, AndFilter) else [query]
    return any(
        isinstance(part, TermsFilter)
        and isinstance(part.scope, ResponseFilterScope)
        and not part.scope.question
        and "pending" in read_statuses(part)
        for part in parts
    )
