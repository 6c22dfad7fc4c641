"""The recipe's `[import]` section and the options of `curate import` → one checked section."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from curate.ingest.column_mapping import field_options
from curate.ingest.column_names import MAX_LISTED
from curate.ingest.readers import TableOptions
from curate.ingest.repairs import REPAIRS
from curate.ingest.select_statement import check_select
from curate.ingest.shapes.roles import ROLE_NAMES, plain_name
from curate.ingest.shapes.turn_lists import MESSAGES, SHAREGPT
from schemas.conversation import ROLES
from schemas.errors import RecipeError, SourceError
from schemas.import_recipe import MAX_RECORD, ImportSection
from schemas.recipe import OPTIONS, check_recipe
from schemas.section import parse_share
from schemas.text import join_names, plural, shell_quote

GROUP_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)\}|\$(\{|[0-9A-Za-z_]+)")
"""A group in a replacement, as Rust reads it: `$1`, `$name` or `${name}`; `$$` is a dollar sign."""

SHAREGPT_FIELD = "conversations"


def apply_options(section: ImportSection, options: Mapping[str, Any]) -> ImportSection:
    """The recipe's import section with the given options, which take precedence; `None` and `[]` are not given.

    `map` is a list of `field=column`, `role` a list of `name=role` or a column, `max_rejects` a share such as `5%`.
    Raises `RecipeError`.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    names = given.pop("role", [])
    if columns := [name for name in names if "=" not in name]:
        given["role"] = columns[-1]
    if assigned := [name for name in names if "=" in name]:
        given["roles"] = {**section.roles, **dict(name.rsplit("=", 1) for name in assigned)}
    if "map" in given:
        given["map"] = {**section.map, **dict(_parse_pair(text) for text in given["map"])}
    if "max_rejects" in given:
        given["max_rejects"] = parse_share(given["max_rejects"], "--max-rejects")
    return check_recipe({"import": {**section.model_dump(), **given}}, OPTIONS).import_


def canonical_roles(section: ImportSection) -> dict[str, str]:
    """Name → role as stored in turns, from roles such as `user` or `assistant`."""
    return {name: ROLE_NAMES[plain_name(role)] for name, role in section.roles.items()}


def _parse_pair(text: str) -> tuple[str, str]:
    field_name, equals, column = text.partition("=")
    if not equals:
        raise RecipeError(f"--map {text!r} is not field=column.", "For example: --map question=title")
    return field_name.strip(), column


def check_section(section: ImportSection) -> None:
    """Raise `RecipeError` for a repair or a role that does not exist, and for SQL that is not allowed."""
    if unknown := [name for name in section.repair if name not in REPAIRS]:
        raise RecipeError(f"Unknown repair: {', '.join(unknown)}.", f"Known repairs: {', '.join(sorted(REPAIRS))}.")
    for name, (pattern, replacement) in section.substitute.items():
        _check_substitution(f"import.substitute.{name}", pattern, replacement)
    if section.sql is not None:
        check_select(section.sql)
    for name, role in section.roles.items():
        if plain_name(role) not in ROLE_NAMES:
            column = shell_quote(f"role={name}={role}")
            raise RecipeError(
                f"--role {name}={role} assigns an unknown role.",
                f"Known roles: {', '.join(ROLES)}. If it is the name of a column: --map {column}",
            )


def _check_substitution(key: str, pattern: str, replacement: str) -> None:
    """Raise `RecipeError` for an invalid pattern, and for groups that it lacks: Polars would insert nothing."""
    try:
        groups = pl.Series([""]).str.extract_groups(pattern).struct.fields
    except pl.exceptions.ComputeError as error:
        raise RecipeError(
            f"{key} is not a regular expression (Rust syntax; no look-around): {pattern}",
            "Correct the pattern; a backslash before a sign takes away its meaning.",
        ) from error
    known = {*groups, *map(str, range(len(groups) + 1))}
    used = [(match[0], match[1] or match[2]) for match in GROUP_REFERENCE.finditer(replacement)]
    if unknown := [text for text, name in used if text != "$$" and name not in known]:
        raise RecipeError(
            f"{key}: the replacement refers to {unknown[0]}, a group that the pattern lacks: {pattern}",
            "Write ${1}a for group 1 before a letter, digit or underscore, and $$ for a dollar sign.",
        )


def name_turns(table: pl.DataFrame, section: ImportSection) -> ImportSection:
    """The section with the shape and the column of the lists of turns, if their keys are options.

    Raises `SourceError` for another shape, and if no column or several have lists of objects with these keys.
    """
    if not (section.turns_key or turn_keys(section)):
        return section
    shape = section.shape or (SHAREGPT if SHAREGPT_FIELD in section.map else MESSAGES)
    if shape not in (SHAREGPT, MESSAGES):
        raise SourceError(
            f"--turns-key, --role-key and --text-key are for lists of turns, not for the shape {shape}.",
            f"Omit them, or give --shape {MESSAGES}.",
        )
    field = SHAREGPT_FIELD if shape == SHAREGPT else MESSAGES
    column = section.turns_key or section.map.get(field) or _find_turns(table, turn_keys(section))
    return section.model_copy(update={"shape": shape, "map": {**section.map, field: column}})


def _find_turns(table: pl.DataFrame, keys: Mapping[str, str]) -> str:
    """The one column with lists of objects that have these keys."""
    heads = [re.escape(json.dumps(re.split(r"[.\[]", key)[0], ensure_ascii=False)) for key in keys.values()]

    def has_turns(cells: pl.Series) -> bool:
        return all(cells.str.contains(pattern).any() for pattern in (r"^\s*\[\s*\{", *(rf"{key}\s*:" for key in heads)))

    found = [name for name in table.columns if has_turns(table[name])]
    if len(found) == 1:
        return found[0]
    options = " ".join(f"--{name}-key {shell_quote(key)}" for name, key in keys.items())
    raise SourceError(
        f"{options}: {plural(len(found), 'column')} with lists of objects that have these keys.",
        f"Name the column or path with --turns-key; the columns are {join_names(found or table.columns, MAX_LISTED)}.",
    )


def turn_keys(section: ImportSection) -> dict[str, str]:
    """`role` and `text` → the key of the option, if it is given."""
    return {name: key for name, key in (("role", section.role_key), ("text", section.text_key)) if key}


def row_options(section: ImportSection) -> dict[str, Any]:
    """The options for rows, cells and texts, if they are set: ids of imports without them do not depend on them."""
    substitute = {name: list(how) for name, how in section.substitute.items()}
    rows = {
        "max_record": None if section.max_record == MAX_RECORD else section.max_record,
        "where": section.where,
        "sql": section.sql,
        "system": section.system,
        "substitute": substitute or None,
    }
    given = {name: value for name, value in rows.items() if value is not None}
    return {**given, **{name: getattr(section, name) for name in table_options(section).given()}}


def table_options(section: ImportSection) -> TableOptions:
    """The options that say how a source is divided into rows and cells."""
    return TableOptions(
        delimiter=section.delimiter,
        quote=section.quote,
        escape=section.escape,
        skip_lines=section.skip_lines,
        header=section.header,
        sheet=section.sheet,
        named=tuple(field_options(section).values()),
    )
