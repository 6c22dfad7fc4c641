"""A column, or a path into its nested values such as `answers.text[0]` → the cells that it names.

A path is a column followed by keys (`.text`, or `["a.b"]` for a key with other characters) and list positions from 0
(`[0]`), or from the end (`[-1]`). A name that is a column is never a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import polars as pl

from curate.ingest.shapes.frames import query_frames

_STEP = re.compile(r'\.([^.\[\]"]+)|\[(-?\d+)\]|\["((?:[^"\\]|\\.)*)"\]')


def base_column(name: str, columns: Sequence[str]) -> str | None:
    """The column that a mapping reads: `name`, or the longest column that `name` extends by a path.

    >>> base_column("a.b[0]", ["a"]), base_column("a.b", ["a", "a.b"]), base_column("c.b", ["a"])
    ('a', 'a.b', None)
    """
    if name in columns:
        return name
    bases = (name[:end] for end in range(len(name) - 1, 0, -1) if name[end] in ".[")
    return next((base for base in bases if base in columns and path_steps(name[len(base) :]) is not None), None)


def path_steps(path: str) -> tuple[str | int, ...] | None:
    """The keys and positions of the path after a column; None if it is not a path.

    >>> path_steps('.text[0]["a.b"]'), path_steps(".text[")
    (('text', 0, 'a.b'), None)
    """
    if _STEP.sub("", path):
        return None
    return tuple(
        int(step[2]) if step[2] else step[1] if step[1] is not None else str(json.loads(f'"{step[3]}"'))
        for step in _STEP.finditer(path)
    )


def path_cells(table: pl.DataFrame, name: str) -> pl.Series | None:
    """The cells that a column or path names, null where a row has no such value; None without its column.

    Text is unescaped, other values are JSON text. A cell that is not JSON has no values inside.
    """
    base = base_column(name, table.columns)
    if base is None or base == name:
        return None if base is None else table[base]
    cells = pl.DataFrame({"cell": table[base]})
    path = "$" + "".join(map(_json_path_step, path_steps(name[len(base) :]) or ())).replace("'", "''")
    found = query_frames(f"SELECT try(cell ->> '{path}') AS cell FROM cells", cells=cells)
    return found["cell"].rename(name)


def _json_path_step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]" if step >= 0 else f"[#{step}]"
    return f".{json.dumps(step, ensure_ascii=False)}"
