"""The models of the recipe → a complete `curate.toml`: every key with its default and its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from schemas.atomic import write_hint, write_text
from schemas.errors import RecipeError
from schemas.recipe import Recipe
from schemas.section import Section

TITLE = """\
# The recipe: all settings from source files to a fine-tuned model.
# The values are the defaults. Lines directly after a # are examples: remove the # to use them.
# To override a key in a single command: --set section.key=value
"""


def write_recipe(path: Path, *, replace: bool = False) -> None:
    """Write the complete recipe to `path`. Raises `RecipeError` if the file exists and `replace` is not set."""
    if path.exists() and not replace:
        raise RecipeError(f"{path} already exists.", "Give another name, or use --replace.")
    try:
        write_text(path, recipe_text())
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}.", write_hint(error, path)) from error


def recipe_text() -> str:
    """The complete recipe as TOML, which is read back as the default recipe."""
    return TITLE + "".join(_section(field.alias or name, field) for name, field in Recipe.model_fields.items())


def _section(name: str, field: FieldInfo) -> str:
    """A `[section]` of the recipe."""
    section = field.annotation
    if not (isinstance(section, type) and issubclass(section, Section)):
        return _table(name, field)
    keys = [(key.alias or key_name, key) for key_name, key in section.model_fields.items()]
    plain = "".join(_line(key, info) for key, info in keys if not _is_table(info))
    tables = "".join(_table(f"{name}.{key}", info) for key, info in keys if _is_table(info))
    head = f"\n# {_first_line(section)}\n" + (f"[{name}]\n" if plain else "")
    return head + plain + tables


def _line(key: str, field: FieldInfo) -> str:
    """`key = value  # meaning`; a key without a default is a commented example."""
    meaning = f"  # {field.description}" if field.description else ""
    if field.default is None:
        return f"#{key} = {_toml(_example(field))}{meaning}\n"
    return f"{key} = {_toml(field.default)}{meaning}\n"


def _table(name: str, field: FieldInfo) -> str:
    """A table with arbitrary keys: empty, with commented examples."""
    return f"\n# {field.description}\n[{name}]\n" + "".join(f"#{line}\n" for line in _entries(_example(field)))


def _entries(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key} = {_toml(value)}" for key, value in table.items())


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.default, Mapping)


def _example(field: FieldInfo) -> Any:
    assert field.examples, f"{field.description!r}: a key without a default needs an example in schemas/recipe.py"
    return field.examples[0]


def _toml(value: object) -> str:
    """`value` as TOML.

    >>> print(_toml({"a": (1, 0.5), "b": True, "c": "it's"}))
    { a = [1, 0.5], b = true, c = "it's" }
    """
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_entries(value)) + " }" if value else "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]
