"""Column names → unique column names, their words, and columns with a known name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, count

MAX_LISTED = 20
"""Column names that an error lists; some exports have hundreds."""


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


def find_named(names: Sequence[str], columns: Iterable[str]) -> Iterator[str]:
    """The columns with one of `names`; `System Prompt` matches `system_prompt`, unless that exists too.

    >>> list(find_named(["system_prompt"], ["id", "System Prompt"]))
    ['System Prompt']
    """
    return iter(_find_named(tuple(names), tuple(columns)))


@lru_cache(maxsize=4096)  # files of a folder have the same columns, and every batch compares them with all shapes
def _find_named(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    found = ([name] if name in columns else _same_key(name, columns) for name in names)
    return list(chain.from_iterable(found))


def _same_key(name: str, columns: Sequence[str]) -> list[str]:
    return [column for column in columns if name_key(column) == name_key(name)]


@lru_cache(maxsize=4096)  # every batch compares the columns with the names of all shapes
def name_key(name: str) -> str:
    """The letters and digits of a name in lower case: names with equal keys are the same column name.

    >>> name_key("System Prompt") == name_key("system_prompt")
    True
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def name_words(name: str) -> list[str]:
    """The words and numbers of a name in lower case.

    >>> name_words("idealOutput_2"), name_words("Long Answer")
    (['ideal', 'output', '2'], ['long', 'answer'])
    """
    return re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
