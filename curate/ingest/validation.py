"""Validating: turns come in, findings go out: which conversation breaks which rule, and what was found.

A rule is an expression over a turns frame, evaluated for all turns at once; neighbours are reached by shifting, so
nothing is grouped and only what breaks a rule is looked at again. A rule that rejects is told once per conversation,
the first in the order of `RULES`; every warning is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal

import polars as pl

from curate.ingest.shapes.json_cells import query_frames, unreadable
from curate.ingest.shapes.shape import cut
from schemas.control_tokens import CONTROL_TOKENS
from schemas.conversation import ASSISTANT_ROLES, ROLES

FINDINGS = {"row": pl.Int64, "code": pl.String, "severity": pl.String, "reason": pl.String}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too large to be a conversation.

    A million characters are about 250,000 tokens at four characters a token, and 1,000 turns are a day of typing:
    beyond either, a file was read in the wrong shape rather than a long talk.
    """

    turns: int = 1_000
    characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand on a conversation: which turns break it, and how that is said.

    `breaks` is an expression over the columns of `_seen`; `found` says what was found in such a turn. `description`
    explains the rule itself. `repair` names what `curate import --repair` can do about it.
    """

    description: str
    breaks: Callable[[Limits], pl.Expr]
    found: Callable[[Limits], pl.Expr]
    severity: Literal["reject", "warning"] = "reject"
    repair: str | None = None


def validate(
    turns: pl.DataFrame, tools: pl.DataFrame | None = None, limits: Limits | None = None, *, asked: bool = True
) -> pl.DataFrame:
    """The findings of `turns`: columns `row`, `code`, `severity`, `reason`, sorted by row, in the order of the rules.

    `turns` has `row`, `from`, `value`, `tool_call_id`; the turns of a row stand together, in order. `tools` (`row`,
    `tools`) is judged too: it has to be a JSON list. Per row at most one finding rejects. Where nobody asks (`asked` is
    off: raw text) no question is missed, and a text that is a number or JSON is warned of: an answer may be one.
    """
    limits = limits or Limits()
    if turns.is_empty():
        return pl.DataFrame(schema=FINDINGS)
    seen = _seen(turns)
    rules = {code: rule for code, rule in RULES.items() if code != (NO_WORDS if asked else MISSED_QUESTION)}
    broken = seen.select(rule.breaks(limits).fill_null(False).alias(code) for code, rule in rules.items())
    hit = [code for code in rules if broken[code].any()]
    found = [_findings(code, seen.filter(broken[code]), limits) for code in hit]
    found += [_findings(code, rows, limits) for code, rows in (_bad_calls(seen) | _bad_tools(tools)).items()]
    return _first_reject(found)


def _seen(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with what the rules look at: neighbours, emptiness, sizes, and the number of the turn from 1.

    `role` is `from` as an enum, null where it is not known: comparing numbers takes a fifth of comparing texts.
    """
    first = (pl.col("row") != pl.col("row").shift(1)).fill_null(True)
    last = (pl.col("row") != pl.col("row").shift(-1)).fill_null(True)
    index = pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    bytes_, core = pl.col("value").str.len_bytes().fill_null(0), pl.col("value").str.strip_chars().str.len_bytes()
    return (
        turns.lazy()
        .select(
            "row",
            "from",
            "value",
            "tool_call_id",
            pl.col("from").cast(pl.Enum(ROLES), strict=False).alias("role"),
            first.alias("first"),
            last.alias("last"),
            (core.fill_null(0) == 0).alias("empty"),
            (core != bytes_).alias("padded"),
            index.alias("index"),
            pl.col("value").str.len_chars().fill_null(0).cast(pl.Int64).cum_sum().alias("length"),
        )
        .with_columns(
            pl.when(~pl.col("first")).then(pl.col("role").shift(1)).alias("before"),
            pl.when("first").then(pl.col("index") - 1).forward_fill().alias("start"),
            pl.when("first").then(pl.col("length").shift(1, fill_value=0)).forward_fill().alias("length_before"),
        )
        .with_columns(
            turn=pl.col("index") - pl.col("start"),
            size=pl.col("length") - pl.col("length_before"),
        )
        .collect()
    )


# ------------------------------------------------------------------------------------------------------- the rules

ROLE, BEFORE = pl.col("role"), pl.col("before")
OPENS = pl.col("first") | ((BEFORE == "system") & (pl.col("turn") == 2))
MISSED_QUESTION = "not-starting-with-user"
NO_WORDS = "no-words"
JSON_VALUE = (
    r"""(?s)^\s*(?:\[\s*(?:["\[{\d-].*)?\]|\{\s*(?:".*)?\}|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)\s*$"""
)
"""A number, a truth value, or what begins and ends as a list or an object of JSON does."""
ANSWERS_MAY_FOLLOW = ("human", "observation")


def _this_turn(text: str) -> Callable[[Limits], pl.Expr]:
    return lambda _: pl.format(f"Turn {{}} ({{}}) {text}.", "turn", "from")


def _beside(text: str) -> Callable[[Limits], pl.Expr]:
    return lambda _: pl.format(
        f"Turn {{}} ({{}}) {text} (turn {{}}, {{}}).", "turn", "from", pl.col("turn") - 1, BEFORE.cast(pl.String)
    )


def _says(text: str) -> Callable[[Limits], pl.Expr]:
    return lambda _: pl.format(f"Turn {{}} ({{}}) {text}: {{}}", "turn", "from", cut(pl.col("value")))


def _control_token() -> pl.Expr:
    return pl.col("value").str.extract_many(list(CONTROL_TOKENS)).list.first()


def _wrong_order() -> pl.Expr:
    """What neither repeats a role nor opens, and does not follow from the turn before."""
    allowed = {
        "human": ("gpt",),
        "gpt": ANSWERS_MAY_FOLLOW,
        "function_call": (*ANSWERS_MAY_FOLLOW, "gpt"),
        "observation": ("function_call", "observation"),
    }
    follows = reduce(or_, ((ROLE == role) & BEFORE.is_in(list(before)) for role, before in allowed.items()))  # noqa: SIM300
    return ~OPENS & ROLE.is_in(list(allowed)) & (ROLE != BEFORE) & ~follows


RULES: dict[str, Rule] = {
    "unknown-role": Rule(
        f"Every turn is said by one of {', '.join(ROLES)}.",
        lambda _: ROLE.is_null(),
        _this_turn("is said by nobody that is known"),
    ),
    "empty-question": Rule(
        "A question has words.", lambda _: pl.col("empty") & (ROLE == "human"), _this_turn("is empty")
    ),
    "empty-answer": Rule(
        "An answer has words.",
        lambda _: pl.col("empty") & ROLE.is_in(list(ASSISTANT_ROLES)),
        _this_turn("is empty"),
    ),
    "empty-turn": Rule(
        "A system prompt and a tool's result have words.",
        lambda _: pl.col("empty") & ROLE.is_in(["system", "observation"]),
        _this_turn("is empty"),
    ),
    "not-ending-with-assistant": Rule(
        "A conversation ends with the assistant: there is nothing to learn behind its last answer.",
        lambda _: pl.col("last") & ~ROLE.is_in(list(ASSISTANT_ROLES)),
        _this_turn("is the last, and not the assistant's"),
        repair="trailing-user",
    ),
    "misplaced-system": Rule(
        "A system prompt stands at the beginning, once.",
        lambda _: (ROLE == "system") & ~pl.col("first"),
        _this_turn("is not the first"),
    ),
    MISSED_QUESTION: Rule(
        "A conversation begins with the user, behind the system prompt where there is one.",
        lambda _: OPENS & ~ROLE.is_in(["human", "system"]),
        _this_turn("comes before any question"),
        repair="leading-assistant",
    ),
    "same-role-twice": Rule(
        "User and assistant take turns.",
        lambda _: (ROLE == BEFORE) & ROLE.is_in(["human", "gpt", "function_call"]),
        _beside("follows its like"),
        repair="merge-consecutive",
    ),
    "unanswered-tool-call": Rule(
        "What calls a tool is followed by the tool's result.",
        lambda _: (BEFORE == "function_call") & ROLE.is_in(["human", "gpt"]),
        _beside("follows a tool call that has no result"),
    ),
    "result-without-call": Rule(
        "A tool's result follows what called the tool.",
        lambda _: (ROLE == "observation") & BEFORE.is_in(["human", "gpt"]),
        _beside("is the result of no call"),
    ),
    "wrong-order": Rule(
        "Answers follow questions or results, questions follow answers.",
        lambda _: _wrong_order(),
        _beside("cannot stand behind what comes before"),
    ),
    "too-many-turns": Rule(
        "A conversation has at most 1,000 turns.",
        lambda limits: pl.col("last") & (pl.col("turn") > limits.turns),
        lambda limits: pl.format("It has {} turns, {} are allowed.", "turn", pl.lit(limits.turns)),
    ),
    "too-long": Rule(
        "A conversation has at most 1,000,000 characters.",
        lambda limits: pl.col("last") & (pl.col("size") > limits.characters),
        lambda limits: pl.format("It has {} characters, {} are allowed.", "size", pl.lit(limits.characters)),
    ),
    "broken-tool-call": Rule(
        "A tool call is JSON: an object with a name and arguments that are an object, or a list of such objects.",
        lambda _: pl.lit(False),  # judged by `_bad_calls`, for the few turns that call
        _says("is no valid tool call"),
    ),
    "mismatched-results": Rule(
        "A tool call has as many results as calls, and under their ids where both name them.",
        lambda _: pl.lit(False),  # judged by `_bad_calls`
        lambda _: pl.format(
            "Turn {} ({}) makes {} calls, {} results follow; ids asked: {}; ids answered: {}.",
            *("turn", "from", "calls", "results", _listed("ids"), _listed("answered")),
        ),
    ),
    "broken-tools": Rule(
        "The tools of a conversation are a JSON list of objects.",
        lambda _: pl.lit(False),  # judged by `_bad_tools`
        lambda _: pl.format("Its tools are no JSON list of objects: {}", cut(pl.col("value"))),
    ),
    "open-tool-call": Rule(
        "It ends with a tool call that has no result; the call itself is what is learned.",
        lambda _: pl.col("last") & (ROLE == "function_call"),
        _this_turn("calls a tool, and there the conversation ends"),
        severity="warning",
    ),
    "control-token-text": Rule(
        "It holds the text of a control token of a chat template; a tokenizer may read it as the token.",
        lambda _: pl.col("value").str.contains_any(list(CONTROL_TOKENS)),
        lambda _: pl.format("Turn {} ({}) holds {}.", "turn", "from", _control_token()),
        severity="warning",
    ),
    "unreadable-character": Rule(
        "It holds a character that stands for a lost one (U+FFFD), or a NUL: it was decoded wrongly somewhere.",
        lambda _: pl.col("value").str.contains_any(["\ufffd", "\x00"]),
        _this_turn("holds a character that was lost"),
        severity="warning",
    ),
    "outer-white-space": Rule(
        "A turn begins or ends with white space, which most templates keep.",
        lambda _: pl.col("padded"),
        _this_turn("begins or ends with white space"),
        severity="warning",
        repair="strip",
    ),
    NO_WORDS: Rule(
        "A text is a number, a list or an object, as if another column were meant; it is learned as it stands.",
        lambda _: pl.col("value").str.contains(JSON_VALUE),
        _says("is JSON in place of words"),
        severity="warning",
    ),
}
"""Every rule by its code, in the order in which they are told."""


# ----------------------------------------------------------------------------------------------- tools and findings

_CALLS = """
    SELECT * EXCLUDE (entries), len(entries) AS calls,
        calls = 0 OR list_bool_or([
            coalesce(json_type(c, '$.name') <> 'VARCHAR' OR json_type(c, '$.arguments') <> 'OBJECT', true)
            FOR c IN entries
        ]) AS broken,
        [c ->> '$.id' FOR c IN entries IF c ->> '$.id' IS NOT NULL] AS ids
    FROM (
        SELECT *, CASE
            WHEN NOT json_valid(value) THEN []
            WHEN json_type(value::JSON) = 'ARRAY' THEN CAST(value::JSON AS JSON[])
            ELSE [value::JSON] END AS entries
        FROM calling
    )
"""


def _bad_calls(seen: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The turns whose tool calls cannot be read, and those whose results are not theirs."""
    calling = seen.filter(ROLE == "function_call")
    if calling.is_empty():
        return {}
    judged = query_frames(_CALLS, calling=calling)
    judged = judged.with_columns(broken=judged["broken"] | unreadable(judged["value"]))
    call = pl.when(ROLE == "function_call").then("index").forward_fill()
    results = seen.select("row", "role", "tool_call_id", call.alias("index")).filter(ROLE == "observation")
    follow = results.group_by("row", "index").agg(results=pl.len(), answered=pl.col("tool_call_id").drop_nulls())
    answered = judged.filter(~pl.col("broken")).join(follow, on=["row", "index"]).filter(_mismatched()).sort("index")
    return {"broken-tool-call": judged.filter("broken"), "mismatched-results": answered}


def _mismatched() -> pl.Expr:
    """Whether the results that follow a call are not its own.

    Several calls without ids may be answered by one result that holds all of them, as ShareGPT files have it.
    """
    ids, answered = pl.col("ids").list.len(), pl.col("answered").list.len()
    all_named = (ids == pl.col("calls")) & (answered == pl.col("results"))
    others = pl.col("ids").list.set_symmetric_difference("answered").list.len() > 0
    in_one = (pl.col("results") == 1) & (ids + answered == 0)
    return ((pl.col("results") != pl.col("calls")) & ~in_one) | (all_named & others)


def _listed(column: str) -> pl.Expr:
    names = pl.col(column).list.join(", ")
    return cut(pl.when(names == "").then(pl.lit("none")).otherwise(names))


def _bad_tools(tools: pl.DataFrame | None) -> dict[str, pl.DataFrame]:
    if tools is None or tools.is_empty():
        return {}
    judged = tools.with_columns(unreadable=unreadable(tools["tools"]))
    query = """
        SELECT row, tools AS value FROM judged
        WHERE unreadable OR NOT json_valid(tools) OR json_type(tools::JSON) <> 'ARRAY'
            OR list_bool_or([json_type(t) <> 'OBJECT' FOR t IN CAST(tools::JSON AS JSON[])])
    """
    return {"broken-tools": query_frames(query, judged=judged)}


def _findings(code: str, broken: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """One finding per conversation: the first of its turns that breaks the rule."""
    rule = RULES[code]
    first = broken.unique("row", keep="first", maintain_order=True)
    return first.select(
        "row", pl.lit(code).alias("code"), pl.lit(rule.severity).alias("severity"), rule.found(limits).alias("reason")
    )


def _first_reject(found: list[pl.DataFrame]) -> pl.DataFrame:
    together = pl.concat([pl.DataFrame(schema=FINDINGS), *found])
    order = pl.col("code").replace_strict({code: n for n, code in enumerate(RULES)}, return_dtype=pl.Int64)
    sorted_ = together.sort(pl.col("row"), order)
    rejects = sorted_.filter(pl.col("severity") == "reject").unique("row", keep="first", maintain_order=True)
    return pl.concat([rejects, sorted_.filter(pl.col("severity") == "warning")]).sort("row", maintain_order=True)
