"""Who speaks: the names that exports give to roles, and the role that each of them means."""

from __future__ import annotations

import polars as pl

ROLE_NAMES: dict[str, str] = {
    **dict.fromkeys(("system", "developer", "system_prompt"), "system"),
    **dict.fromkeys(
        (
            "human",
            "user",
            "prompter",
            "customer",
            "client",
            "visitor",
            "student",
            "patient",
            "questioner",
            "instruction",
        ),
        "human",
    ),
    **dict.fromkeys(
        (
            *(
                "gpt",
                "assistant",
                "chatgpt",
                "bing",
                "bard",
                "bot",
                "chatbot",
                "ai",
                "model",
                "claude",
                "gemini",
                "llama",
            ),
            *("vicuna", "agent", "support", "operator", "advisor", "teacher", "doctor", "output", "gpt_4", "gpt4"),
        ),
        "gpt",
    ),
    **dict.fromkeys(("function_call", "functioncall", "tool_call", "tool_calls", "call"), "function_call"),
    **dict.fromkeys(
        (
            *("observation", "tool", "function", "function_response", "function_result", "function_output"),
            *("tool_response", "tool_result", "tool_results", "tool_output", "ipython", "environment"),
        ),
        "observation",
    ),
}
"""Name -> role. Names are compared in lower case, with `_` for spaces and hyphens."""


def role(name: pl.Expr) -> pl.Expr:
    """The role that a name means; null for a name that is not known.

    >>> pl.DataFrame({"who": ["User", " Function-Call", "narrator"]}).select(role(pl.col("who"))).to_series().to_list()
    ['human', 'function_call', None]
    """
    plain = name.str.strip_chars().str.to_lowercase().str.replace_all(r"[\s-]", "_")
    return plain.replace_strict(ROLE_NAMES, default=None, return_dtype=pl.String)
