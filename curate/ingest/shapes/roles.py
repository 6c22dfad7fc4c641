"""The role names used by exports → the roles of a conversation."""

from __future__ import annotations

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


def to_role(name: pl.Expr) -> pl.Expr:
    """The role of a name; null for an unknown name.

    >>> names = pl.DataFrame({"who": ["User", " Function-Call", "narrator"]})
    >>> names.select(to_role(pl.col("who"))).to_series().to_list()
    ['human', 'function_call', None]
    """
    plain = name.str.strip_chars().str.to_lowercase().str.replace_all(r"[\s-]", "_")
    return plain.replace_strict(ROLE_NAMES, default=None, return_dtype=pl.String)
