"""Column names → unique column names."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count


def make_unique(names: Iterable[str]) -> list[str]:
    """The names with suffixes for duplicates and names for empty ones.

    >>> make_unique(["id", "text", "id", ""])
    ['id', 'text', 'id_2', 'column_4']
    """
    unique: dict[str, None] = {}
    for position, name in enumerate(names, 1):
        base = name or f"column_{position}"
        candidates = (base if number == 1 else f"{base}_{number}" for number in count(1))
        unique[next(candidate for candidate in candidates if candidate not in unique)] = None
    return list(unique)
