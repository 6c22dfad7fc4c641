"""Naming: the names of columns come in as they were given, each goes out once, so that none hides another."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count


def make_unique(names: Iterable[str]) -> list[str]:
    """The names, each once: a second `name` becomes `name_2`, an empty one in third place `column_3`.

    >>> make_unique(["id", "text", "id", ""])
    ['id', 'text', 'id_2', 'column_4']
    """
    taken: dict[str, None] = {}
    for place, name in enumerate(names, 1):
        wanted = name or f"column_{place}"
        free = (wanted if number == 1 else f"{wanted}_{number}" for number in count(1))
        taken[next(one for one in free if one not in taken)] = None
    return list(taken)
