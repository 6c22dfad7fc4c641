"""The role names used by exports → the roles of a conversation."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

_NAMES_BY_ROLE = {
    "system": "system developer system_prompt",
    "human": "human user prompter customer client visitor student patient questioner instruction",
    "gpt": "gpt assistant chatgpt bing bard bot chatbot ai model claude gemini llama vicuna agent support operator "
    "advisor teacher doctor output gpt_4 gpt4",
    "function_call": "function_call functioncall tool_call tool_calls call",
    "observation": "observation tool function function_response function_result function_output tool_response "
    "tool_result tool_results tool_output ipython environment",
}

ROLE_NAMES: dict[str, str] = {name: role for role, names in _NAMES_BY_ROLE.items() for name in names.split()}
"""Name → role. Names are compared in lower case, with `_` for spaces and hyphens."""


UNKNOWN_ROLE = r"unknown(?: role)?: (.*)$"
"""The names in the reason of a reject with the code `unknown-role`, separated by commas."""

_MOST_NAMES = 5
"""Unknown names that the reason of a conversation lists."""


def unknown_roles(turns: pl.DataFrame) -> pl.DataFrame:
    """The first turn of each `row` without a role, with the distinct unknown names of the row in `name`."""
    unknown = turns.filter(pl.col("name").is_not_null() & pl.col("from").is_null())
    names = pl.col("name").str.strip_chars().unique(maintain_order=True).head(_MOST_NAMES)
    listed = unknown.group_by("row").agg(names.str.join(", "))
    return unknown.unique("row", keep="first", maintain_order=True).drop("name").join(listed, on="row")


def plain_name(name: str) -> str:
    """The form in which names are compared.

    >>> plain_name(" Function-Call")
    'function_call'
    """
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def to_role(name: pl.Expr, assigned: Mapping[str, str] | None = None) -> pl.Expr:
    """The role of a name; null for an unknown name. Names in `assigned` have the role given there.

    >>> names = pl.DataFrame({"who": ["User", " Function-Call", "narrator"]})
    >>> names.select(to_role(pl.col("who"))).to_series().to_list()
    ['human', 'function_call', None]
    """
    roles = {**ROLE_NAMES, **{plain_name(own): role for own, role in (assigned or {}).items()}}
    plain = name.str.strip_chars().str.to_lowercase().str.replace_all(r"[\s-]", "_")
    return plain.replace_strict(roles, default=None, return_dtype=pl.String)
