"""Lists of turns with keys of their own, named by `--role-key` and `--text-key` → lists with `from` and `value`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from curate.ingest.shapes.cell_path import path_steps
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import join_object, object_items, split_list, split_object
from curate.ingest.shapes.shape import PROBLEMS, problem_rows
from curate.ingest.shapes.turn_elements import ROLE_KEYS, TEXT_KEYS

_KNOWN = {"role": ("from", ROLE_KEYS), "text": ("value", TEXT_KEYS)}
"""Option → the key that the value gets, and the known keys that it takes the place of."""

_KEYS_SQL = """
    SELECT row, position, list_filter(json_keys(turn), lambda key:
        json_type(turn, '/' || replace(replace(key, '~', '~0'), '/', '~1')) = 'VARCHAR') AS keys
    FROM (
        SELECT row, generate_subscripts(turns, 1) AS position, unnest(turns) AS turn
        FROM (SELECT row, from_json(cell, '["JSON"]') AS turns FROM lists)
    ) SEMI JOIN silent USING (row, position)
"""


def rename_keys(lists: pl.DataFrame, keys: Mapping[str, str]) -> pl.DataFrame:
    """The lists (`row`, `cell`) in which `from` and `value` hold what the own keys hold.

    Python loops over the rows, only if keys are given, because DuckDB would rewrite numbers such as `1e5`.
    """
    if not keys:
        return lists
    return lists.with_columns(cell=pl.Series([_rename_turns(cell, keys) for cell in lists["cell"]], dtype=pl.String))


def _rename_turns(cell: str, keys: Mapping[str, str]) -> str:
    turns = (_rename_turn(turn, keys) if turn.startswith("{") else turn for turn in split_list(cell))
    return f"[{', '.join(turns)}]"


def _rename_turn(turn: str, keys: Mapping[str, str]) -> str:
    """The turn with renamed keys; a key that occurs twice still does, so that it is found."""
    items = list(object_items(turn))
    for option, own in keys.items():
        name, known = _KNOWN[option]
        found = list(_find(items, own))
        items = [(key, value) for key, value in items if key not in known and key != own]
        items += [(name, value) for value in found]
    return join_object(items)


def _find(items: list[tuple[str, str]], own: str) -> Iterator[str]:
    """The values of a key, or the value at a path such as `author.role`."""
    if values := [value for key, value in items if key == own]:
        yield from values
        return
    head = own.partition(".")[0].partition("[")[0]
    for key, value in items:
        if key == head and (found := _at_path(value, path_steps(own[len(head) :]) or ())) is not None:
            yield found


def _at_path(value: str, steps: tuple[str | int, ...]) -> str | None:
    for step in steps:
        if isinstance(step, str):
            found = split_object(value).get(step) if value.startswith("{") else None
        else:
            elements = list(split_list(value)) if value.startswith("[") else []
            found = elements[step] if -len(elements) <= step < len(elements) else None
        if found is None:
            return None
        value = found
    return value


def missing_texts(elements: pl.DataFrame, lists: pl.DataFrame) -> pl.DataFrame:
    """Problems of turns without a text under a known key, but with text under others, which `--text-key` can name."""
    silent = elements.filter(
        pl.col("kind").is_null() & pl.col("calls").is_null() & pl.col("from").is_in(["human", "gpt", "observation"])
    ).select("row", "position")
    if silent.is_empty():
        return pl.DataFrame(schema=PROBLEMS)
    others = pl.col("keys").list.set_difference([*ROLE_KEYS, *TEXT_KEYS, "type", "id", "name", "tool_call_id"])
    found = query_frames(_KEYS_SQL, lists=lists, silent=silent).with_columns(others).sort("row", "position")
    found = found.filter(pl.col("keys").list.len() > 0)
    reason = pl.format(
        f"Turn {{}} has no text ({', '.join(TEXT_KEYS)}); --text-key can name another key: {{}}",
        "position",
        pl.col("keys").list.sort().list.join(", "),
    )
    return problem_rows(found, "missing-text", reason)
