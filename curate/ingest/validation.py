"""Turns → findings: the rules that each conversation violates, with the reason.

A rule is an expression over a turns frame, evaluated for all turns at once. Neighbouring turns are accessed by
shifting, so the frame is not grouped, and only turns that violate a rule are processed further. Of the rules that
reject, only the first violated one is reported per conversation, in the order of `RULES`; all warnings are reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal

import polars as pl

from curate.ingest.shapes.shape import shorten_expr
from curate.ingest.text_checks import MARKS, check_texts, find_blank
from curate.ingest.tool_checks import check_calls, check_reasoning, check_tools
from schemas.control_tokens import CONTROL_TOKENS
from schemas.conversation import ASSISTANT_ROLES, ROLES

FINDINGS = {"row": pl.Int64, "code": pl.String, "severity": pl.String, "reason": pl.String}


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum size of a conversation.

    A million characters are about 250,000 tokens at four characters per token, and 1,000 turns are a day of typing:
    larger conversations indicate that the file was parsed with the wrong shape.
    """

    turns: int = 1_000
    characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One requirement for a conversation.

    `description` states the rule. `breaks` is an expression over the columns of `_add_context`: which turns violate
    it; None if another module finds them. `reason` is the message for such a turn. `repair` is the name of a repair for
    `curate import --repair`.
    """

    description: str
    breaks: Callable[[Limits], pl.Expr] | None
    reason: Callable[[Limits], pl.Expr]
    severity: Literal["reject", "warning"] = "reject"
    repair: str | None = None


def validate(
    turns: pl.DataFrame, tools: pl.DataFrame | None = None, limits: Limits | None = None, *, has_questions: bool = True
) -> pl.DataFrame:
    """The findings of `turns`: columns `row`, `code`, `severity`, `reason`, sorted by row, in the order of the rules.

    `turns` has `row`, `from`, `value`, `tool_call_id`; the turns of a row are consecutive and in order. `tools` (`row`,
    `tools`) must be JSON lists. At most one finding per row rejects. With `has_questions=False` (raw text), no user
    turn is required, and a text that is a number or JSON is a warning, while an answer may be one.
    """
    limits = limits or Limits()
    if turns.is_empty():
        return pl.DataFrame(schema=FINDINGS)
    context = _add_context(turns)
    if (blank := find_blank(context)).len():
        context = context.with_columns(empty=pl.col("empty") | pl.col("index").is_in(blank.implode()))
    rules = {code: rule for code, rule in RULES.items() if code != (NO_WORDS if has_questions else NO_QUESTION_FIRST)}
    broken = context.select(
        rule.breaks(limits).fill_null(False).alias(code) for code, rule in rules.items() if rule.breaks
    )
    findings = [find_rows(code, context.filter(broken[code]), limits) for code in broken.columns if broken[code].any()]
    others = check_calls(context, tools) | check_tools(tools) | check_reasoning(context) | check_texts(context)
    findings += [find_rows(code, rows, limits) for code, rows in others.items()]
    return _keep_first_reject(findings)


def _add_context(turns: pl.DataFrame) -> pl.DataFrame:
    """The turns with the columns that the rules use: neighbours, emptiness, sizes, the number of the turn from 1.

    `wide` is whether a text has characters outside ASCII, `marked` whether it has one of `MARKS`.

    `role` is `from` as an enum, null if unknown: comparing enums takes a fifth of the time of comparing texts. Each
    text is searched once per column; expressions that name a search twice run it twice.
    """
    text, row = pl.col("value").str, pl.col("row")
    return (
        turns.lazy()
        .select(
            *("row", "from", "value", "tool_call_id"),
            role=pl.col("from").cast(pl.Enum(ROLES), strict=False),
            first=(row != row.shift(1)).fill_null(True),
            last=(row != row.shift(-1)).fill_null(True),
            index=pl.int_range(1, pl.len() + 1, dtype=pl.Int64),
            marked=text.contains(MARKS),
            bytes=text.len_bytes().fill_null(0),
            characters=text.len_chars(),
            core=text.strip_chars().str.len_bytes(),
        )
        .with_columns(
            empty=pl.col("core").fill_null(0) == 0,
            padded=pl.col("core") != pl.col("bytes"),
            wide=pl.col("bytes") != pl.col("characters"),
            length=pl.col("characters").fill_null(0).cast(pl.Int64).cum_sum(),
            before=pl.when(~pl.col("first")).then(pl.col("role").shift(1)),
            start=pl.when("first").then(pl.col("index") - 1).forward_fill(),
        )
        .with_columns(
            turn=pl.col("index") - pl.col("start"),
            length_before=pl.when("first").then(pl.col("length").shift(1, fill_value=0)).forward_fill(),
        )
        .with_columns(size=pl.col("length") - pl.col("length_before"))
        .collect()
    )


# ------------------------------------------------------------------------------------------------------------- rules

ROLE, BEFORE = pl.col("role"), pl.col("before")
IS_OPENING = pl.col("first") | ((BEFORE == "system") & (pl.col("turn") == 2))
NO_QUESTION_FIRST = "not-starting-with-user"
NO_WORDS = "no-words"
JSON_VALUE = (
    r"""(?s)^\s*(?:\[\s*(?:["\[{\d-].*)?\]|\{\s*(?:".*)?\}|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)\s*$"""
)
"""A number, a boolean, null, or text that starts and ends like a JSON list or object."""


def _turn(text: str) -> Callable[[Limits], pl.Expr]:
    return lambda _: pl.format(f"Turn {{}} ({{}}) {text}.", "turn", "from")


def _turn_after(text: str) -> Callable[[Limits], pl.Expr]:
    return lambda _: pl.format(
        f"Turn {{}} ({{}}) {text} (turn {{}}, {{}}).", "turn", "from", pl.col("turn") - 1, BEFORE.cast(pl.String)
    )


def _turn_quoting(text: str) -> Callable[[Limits], pl.Expr]:
    return lambda _: pl.format(f"Turn {{}} ({{}}) {text}: {{}}", "turn", "from", shorten_expr(pl.col("value")))


def _is_wrong_order() -> pl.Expr:
    """Turns that neither repeat a role nor open the conversation, after a turn that they must not follow."""
    questions = ("human", "observation")
    allowed = {
        "human": ("gpt",),
        "gpt": questions,
        "function_call": (*questions, "gpt"),
        "observation": ("function_call", "observation"),
    }
    follows = reduce(or_, ((ROLE == role) & BEFORE.is_in(list(before)) for role, before in allowed.items()))  # noqa: SIM300
    return ~IS_OPENING & ROLE.is_in(list(allowed)) & (ROLE != BEFORE) & ~follows


def _join_ids(column: str) -> pl.Expr:
    names = pl.col(column).list.join(", ")
    return shorten_expr(pl.when(names == "").then(pl.lit("none")).otherwise(names))


RULES: dict[str, Rule] = {
    "unknown-role": Rule(
        f"The role of every turn is one of {', '.join(ROLES)}.", lambda _: ROLE.is_null(), _turn("has an unknown role")
    ),
    "empty-question": Rule(
        "A question is not empty.", lambda _: pl.col("empty") & (ROLE == "human"), _turn("is empty")
    ),
    "empty-answer": Rule(
        "An answer is not empty.",
        lambda _: pl.col("empty") & ROLE.is_in(list(ASSISTANT_ROLES)),
        _turn("is empty"),
    ),
    "empty-turn": Rule(
        "A system prompt or tool result is not empty.",
        lambda _: pl.col("empty") & ROLE.is_in(["system", "observation"]),
        _turn("is empty"),
    ),
    "only-reasoning": Rule(
        "An answer has text after its reasoning (<think>…</think>).",
        None,  # checked by `check_reasoning`
        _turn("has reasoning and no answer after it"),
    ),
    "not-ending-with-assistant": Rule(
        "A conversation ends with an assistant turn; later turns would not be trained on.",
        lambda _: pl.col("last") & ~ROLE.is_in(list(ASSISTANT_ROLES)),
        _turn("is the last turn, but not an assistant turn"),
        repair="trailing-user",
    ),
    "misplaced-system": Rule(
        "A system prompt is the first turn; there is at most one.",
        lambda _: (ROLE == "system") & ~pl.col("first"),
        _turn("is not the first turn"),
    ),
    NO_QUESTION_FIRST: Rule(
        "A conversation starts with a user turn, after an optional system prompt.",
        lambda _: IS_OPENING & ~ROLE.is_in(["human", "system"]),
        _turn("precedes the first user turn"),
        repair="leading-assistant",
    ),
    "same-role-twice": Rule(
        "User and assistant turns alternate.",
        lambda _: (ROLE == BEFORE) & ROLE.is_in(["human", "gpt", "function_call"]),
        _turn_after("repeats the role of the previous turn"),
        repair="merge-consecutive",
    ),
    "unanswered-tool-call": Rule(
        "A tool call is followed by its result.",
        lambda _: (BEFORE == "function_call") & ROLE.is_in(["human", "gpt"]),
        _turn_after("follows a tool call without a result"),
    ),
    "result-without-call": Rule(
        "A tool result follows a tool call.",
        lambda _: (ROLE == "observation") & BEFORE.is_in(["human", "gpt"]),
        _turn_after("has no matching tool call"),
    ),
    "wrong-order": Rule(
        "Answers follow questions or tool results, questions follow answers.",
        lambda _: _is_wrong_order(),
        _turn_after("must not follow the previous turn"),
    ),
    "too-many-turns": Rule(
        "A conversation has at most 1,000 turns.",
        lambda limits: pl.col("last") & (pl.col("turn") > limits.turns),
        lambda limits: pl.format("The conversation has {} turns; the maximum is {}.", "turn", pl.lit(limits.turns)),
    ),
    "too-long": Rule(
        "A conversation has at most 1,000,000 characters.",
        lambda limits: pl.col("last") & (pl.col("size") > limits.characters),
        lambda limits: pl.format(
            "The conversation has {} characters; the maximum is {}.", "size", pl.lit(limits.characters)
        ),
    ),
    "broken-tool-call": Rule(
        "A tool call is JSON: an object with a name and an arguments object, or a list of such objects.",
        None,  # checked by `check_calls`, only for turns with tool calls
        _turn_quoting("is not a valid tool call"),
    ),
    "mismatched-results": Rule(
        "A tool call has as many results as calls, with equal ids if both have ids.",
        None,  # checked by `check_calls`
        lambda _: pl.format(
            "Turn {} ({}) makes {} calls, {} results follow; ids of the calls: {}; ids of the results: {}.",
            *("turn", "from", "calls", "results", _join_ids("ids"), _join_ids("result_ids")),
        ),
    ),
    "broken-tools": Rule(
        "The tools of a conversation are a JSON list of objects.",
        None,  # checked by `check_tools`
        lambda _: pl.format("The tools are not a JSON list of objects: {}", shorten_expr(pl.col("value"))),
    ),
    "undeclared-tool": Rule(
        "A call names a tool that the tools of the conversation do not define.",
        None,  # checked by `check_calls`
        lambda _: pl.format("Turn {} ({}) calls {}, which is not among the tools.", "turn", "from", "name"),
        severity="warning",
    ),
    "calls-without-tools": Rule(
        "A conversation calls tools and defines none; the prompt of a server lists them.",
        None,  # checked by `check_calls`
        lambda _: pl.format("Turn {} ({}) calls {}; the conversation has no tools.", "turn", "from", "name"),
        severity="warning",
    ),
    "calls-in-text": Rule(
        "Tools and tool calls inside texts (<tools>, <tool_call>, <functioncall>) were read as tools and calls.",
        None,  # reported by `convert`
        lambda _: pl.lit("Its texts contained tools or tool calls."),
        severity="warning",
    ),
    "open-tool-call": Rule(
        "The conversation ends with a tool call without a result; the call itself is trained on.",
        lambda _: pl.col("last") & (ROLE == "function_call"),
        _turn("is a tool call at the end of the conversation"),
        severity="warning",
    ),
    "control-token-text": Rule(
        "A turn contains the text of a control token of a chat template; a tokenizer may encode it as the token.",
        None,  # checked by `check_texts`
        lambda _: pl.format(
            "Turn {} ({}) contains {}.",
            *("turn", "from", pl.col("value").str.extract_many(list(CONTROL_TOKENS)).list.first()),
        ),
        severity="warning",
    ),
    "unreadable-character": Rule(
        "A turn contains U+FFFD, the replacement for an undecodable character, or NUL: it was decoded incorrectly.",
        None,  # checked by `check_texts`
        _turn("contains U+FFFD or NUL"),
        severity="warning",
    ),
    "outer-white-space": Rule(
        "A turn starts or ends with white space, which most chat templates keep.",
        lambda _: pl.col("padded"),
        _turn("starts or ends with white space"),
        severity="warning",
        repair="strip",
    ),
    "placeholder-text": Rule(
        "A text is only a placeholder of a missing value, such as nan, None or N/A; it is trained on unchanged. "
        "--repair nan-text rejects it.",
        None,  # this and the following rules are checked by `check_texts`
        _turn_quoting("is a placeholder"),
        severity="warning",
        repair="nan-text",
    ),
    "no-letters": Rule(
        "A text has no letter and no digit; a single ? is a question.",
        None,
        _turn_quoting("has no letter and no digit"),
        severity="warning",
    ),
    "invisible-text": Rule(
        "A turn contains invisible characters, such as zero-width spaces or marks of text direction.",
        None,
        _turn_quoting("contains invisible characters"),
        severity="warning",
        repair="invisible",
    ),
    "mojibake": Rule(
        "A turn was decoded with another encoding than its own (Ã© instead of é).",
        None,
        _turn_quoting("was decoded incorrectly"),
        severity="warning",
        repair="mojibake",
    ),
    "stop-marker": Rule(
        "A turn ends with a marker of a prompt format, such as ### or END, which a model would learn to write.",
        None,
        lambda _: pl.format("Turn {} ({}) ends with {}", "turn", "from", pl.col("value").str.tail(12)),
        severity="warning",
        repair="stop-marker",
    ),
    "html-markup": Rule(
        "A turn has HTML tags or entities, although its conversation is not about code.",
        None,
        _turn_quoting("has HTML markup"),
        severity="warning",
        repair="html",
    ),
    "media-placeholder": Rule(
        "A question has a placeholder of an image, sound or video that the row does not have.",
        None,
        _turn_quoting("has a placeholder of an image, sound or video"),
        severity="warning",
    ),
    "unusable-metadata": Rule(
        "Columns that are not mapped have no NaN (stored as null) and no half of a surrogate pair.",
        None,  # found by the readers
        lambda _: pl.lit("A column that is not mapped has a value that cannot be stored."),
        severity="warning",
    ),
    "rival-replies": Rule(
        "Two turns of a conversation reply to the same turn, so that one of them follows the other by mistake.",
        None,  # found by the column with the parent of each row
        lambda _: pl.lit("Two turns reply to the same turn; --shape tree makes a conversation of every branch."),
        severity="warning",
    ),
    NO_WORDS: Rule(
        "A text is a number, a list or an object, which may be the wrong column; it is trained on unchanged.",
        lambda _: pl.col("value").str.contains(JSON_VALUE),
        _turn_quoting("is JSON instead of text"),
        severity="warning",
    ),
}
"""Code → rule, in the order in which findings are reported."""


# ------------------------------------------------------------------------------------------------------------ findings


def find_rows(code: str, turns: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """One finding per conversation (`row`), for the first of `turns`, which violate the rule."""
    rule = RULES[code]
    first = turns.unique("row", keep="first", maintain_order=True)
    return first.select(
        "row", pl.lit(code).alias("code"), pl.lit(rule.severity).alias("severity"), rule.reason(limits).alias("reason")
    )


def _keep_first_reject(findings: list[pl.DataFrame]) -> pl.DataFrame:
    """All warnings, and the first finding of each row that rejects."""
    order = pl.col("code").replace_strict({code: n for n, code in enumerate(RULES)}, return_dtype=pl.Int64)
    in_order = pl.concat([pl.DataFrame(schema=FINDINGS), *findings]).sort(pl.col("row"), order)
    rejects = in_order.filter(pl.col("severity") == "reject").unique("row", keep="first", maintain_order=True)
    return pl.concat([rejects, in_order.filter(pl.col("severity") == "warning")]).sort("row", maintain_order=True)
