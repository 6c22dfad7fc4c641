"""A question and its answer in two columns, with context, system text and earlier turns beside them.

In: one row per question. Out: the turns (system,) (history,) human, gpt.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from curate.ingest.shapes.history import read_history
from curate.ingest.shapes.shape import TOOLS, ColumnMapping, Field, ParsedTable, is_plain, without_problems

SYSTEM = Field(("system", "system_prompt", "system_message"))
HISTORY = Field(("history",))

QUESTION_NAMES = (
    *("question", "query", "prompt", "input", "user", "human", "problem", "ask", "q"),
    *("user_message", "user_input", "user_prompt", "user_query", "customer_message", "question_text"),
)
ANSWER_NAMES = (
    *("answer", "response", "reply", "completion", "output", "assistant", "solution", "gpt", "bot", "a"),
    *("assistant_response", "model_response", "agent_response", "ai_response", "bot_response", "answer_text"),
    *("assistant_message", "agent_reply", "canonical_solution"),
)
WEAK_QUESTION_NAMES = ("content", "text", "title")
WEAK_ANSWER_NAMES = ("target", "text", "summary", "code")
"""Names that real column maps use for a question or an answer, and that mean something else as often."""

FIELDS = {
    "question": Field(QUESTION_NAMES, required=True, weak=WEAK_QUESTION_NAMES, fits=is_plain),
    "answer": Field(ANSWER_NAMES, required=True, weak=WEAK_ANSWER_NAMES, fits=is_plain),
    "context": Field(("context",)),
    "system": SYSTEM,
    "history": HISTORY,
}


def read(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table of questions and answers. An absent cell is an empty turn, for rules to judge."""
    column = mapping.column
    return dialogue(
        question=joined(column(table, "question"), column(table, "context")),
        answer=column(table, "answer").fill_null(""),
        system=column(table, "system") if "system" in mapping.fields else None,
        history=column(table, "history") if "history" in mapping.fields else None,
    )


def joined(question: pl.Series, extra: pl.Series) -> pl.Series:
    r"""The question, a blank line and the extra text; the question alone where there is no extra text.

    >>> joined(pl.Series(["Sum up.", "Hi"]), pl.Series(["A text.", " "])).to_list()
    ['Sum up.\n\nA text.', 'Hi']
    """
    question = question.fill_null("")
    if extra.null_count() == extra.len():
        return question
    pair = pl.DataFrame({"question": question, "extra": extra})
    has_extra = pl.col("extra").str.strip_chars().str.len_bytes() > 0
    text = pl.when(has_extra).then(pl.concat_str("question", pl.lit("\n\n"), "extra")).otherwise("question")
    return pair.select(text.alias("question")).to_series()


def dialogue(
    question: pl.Series, answer: pl.Series, system: pl.Series | None, history: pl.Series | None
) -> ParsedTable:
    """One conversation a row from columns of texts: laid side by side, then read row by row."""
    spoken = {"human": question, "gpt": answer}
    if system is not None:
        blank = pl.col("system").str.strip_chars() == ""
        spoken = {
            "system": pl.DataFrame({"system": system}).select(pl.when(~blank).then("system")).to_series(),
            **spoken,
        }
    turns = interleave(spoken)
    if history is None:
        return ParsedTable(turns)
    earlier, problems = read_history(history)
    return without_problems(_insert(turns, earlier), pl.DataFrame(schema=TOOLS), [problems])


def interleave(spoken: dict[str, pl.Series]) -> pl.DataFrame:
    """Turns from one series of texts per role, all of one height; a null is no turn.

    The texts are not copied: one gather over views puts them into row order.
    """
    roles = list(spoken)
    height, width = spoken[roles[0]].len(), len(roles)
    order = np.arange(height * width, dtype=np.uint32).reshape(width, height).T.ravel()
    value = pl.concat([texts.alias("value") for texts in spoken.values()]).gather(pl.Series(order))
    turns = pl.DataFrame(
        {
            "row": pl.Series(np.repeat(np.arange(height, dtype=np.int64), width)),
            "from": pl.Series(roles).gather(pl.Series(np.tile(np.arange(width, dtype=np.uint32), height))),
            "value": value,
        }
    ).with_columns(train=pl.lit(True), tool_call_id=pl.lit(None, pl.String))
    return turns.filter(pl.col("value").is_not_null()) if value.null_count() else turns


def _insert(turns: pl.DataFrame, earlier: pl.DataFrame) -> pl.DataFrame:
    """The turns with the earlier ones behind the system text and before the question."""
    if earlier.is_empty():
        return turns
    ranked = turns.with_columns(rank=pl.when(pl.col("from") == "system").then(0).otherwise(2))
    both = pl.concat([ranked, earlier.with_columns(rank=pl.lit(1, pl.Int32)).select(ranked.columns)])
    return both.sort("row", "rank", maintain_order=True).drop("rank")
