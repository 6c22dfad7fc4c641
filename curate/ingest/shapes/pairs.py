"""A question and its answer in two columns, with context, system prompt and earlier turns in others → turns.

The turns of a row are (system,) (history,) human, gpt.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from curate.ingest.shapes.history import parse_history
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, is_plain_text
from curate.ingest.shapes.system_prompt import SYSTEM, read_prompts

HISTORY = Field(("history",))

QUESTION_NAMES = (
    *("question", "query", "prompt", "input", "user", "human", "problem", "ask", "q"),
    *("user_message", "user_input", "user_prompt", "user_query", "customer_message", "question_text"),
    *("input_text", "inputs_pretokenized", "frage", "pregunta", "domanda", "pergunta", "vraag", "вопрос"),
    *("问题", "問題", "質問", "질문", "pytanie", "fråga"),
)
ANSWER_NAMES = (
    *("answer", "response", "reply", "completion", "output", "assistant", "solution", "gpt", "bot", "a"),
    *("assistant_response", "model_response", "agent_response", "ai_response", "bot_response", "answer_text"),
    *("assistant_message", "agent_reply", "canonical_solution"),
    *("output_text", "targets_pretokenized", "generated_solution", "antwort", "respuesta", "réponse", "risposta"),
    *("resposta", "antwoord", "ответ", "回答", "答案", "답변", "odpowiedź", "svar"),
)
WEAK_QUESTION_NAMES = ("content", "text", "title")
WEAK_ANSWER_NAMES = ("target", "text", "summary", "code")
"""Names that public datasets use for a question or an answer, and as often for other content."""

FIELDS = {
    "question": Field(QUESTION_NAMES, required=True, weak_names=WEAK_QUESTION_NAMES, fits=is_plain_text),
    "answer": Field(ANSWER_NAMES, required=True, weak_names=WEAK_ANSWER_NAMES, fits=is_plain_text),
    "context": Field(("context",)),
    "system": SYSTEM,
    "history": HISTORY,
}


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of a table of questions and answers. A missing cell becomes an empty turn."""
    return parse_pairs(table, mapping, question="question", context="context", answer="answer")


def parse_pairs(
    table: pl.DataFrame, mapping: ColumnMapping, *, question: str, context: str, answer: str
) -> ParsedTable:
    """One conversation per row from the named fields and, where they are mapped, `system` and `history`."""
    cells = {
        "human": append_context(mapping.column(table, question), mapping.column(table, context)),
        "gpt": mapping.column(table, answer).fill_null(""),
    }
    problems = []
    if "system" in mapping.fields:
        texts, broken = read_prompts(mapping.column(table, "system"))
        problems.append(broken)
        system, blank = pl.DataFrame({"system": texts}), pl.col("system").str.strip_chars() == ""
        cells = {"system": system.select(pl.when(~blank).then("system")).to_series(), **cells}
    turns = interleave(cells)
    if "history" in mapping.fields:
        earlier, broken = parse_history(mapping.column(table, "history"))
        turns = _insert_history(turns, earlier)
        problems.append(broken)
    return ParsedTable(turns).reject(*problems)


def append_context(question: pl.Series, context: pl.Series) -> pl.Series:
    r"""The question, a blank line and the context; the question alone if there is no context.

    >>> append_context(pl.Series(["Sum up.", "Hi"]), pl.Series(["A text.", " "])).to_list()
    ['Sum up.\n\nA text.', 'Hi']
    """
    question = question.fill_null("")
    if context.null_count() == context.len():
        return question
    pair = pl.DataFrame({"question": question, "context": context})
    has_context = pl.col("context").str.strip_chars().str.len_bytes() > 0
    text = pl.when(has_context).then(pl.concat_str("question", pl.lit("\n\n"), "context")).otherwise("question")
    return pair.select(text.alias("question")).to_series()


def interleave(cells: dict[str, pl.Series]) -> pl.DataFrame:
    """Turns in row order from one series of texts per role, all of equal length; a null is not a turn.

    One gather of string views orders the texts without copying them.
    """
    roles = list(cells)
    height, width = cells[roles[0]].len(), len(roles)
    order = np.arange(height * width, dtype=np.uint32).reshape(width, height).T.ravel()
    value = pl.concat([texts.alias("value") for texts in cells.values()]).gather(pl.Series(order))
    turns = pl.DataFrame(
        {
            "row": pl.Series(np.repeat(np.arange(height, dtype=np.int64), width)),
            "from": pl.Series(roles).gather(pl.Series(np.tile(np.arange(width, dtype=np.uint32), height))),
            "value": value,
        }
    ).with_columns(train=pl.lit(True), tool_call_id=pl.lit(None, pl.String))
    return turns.filter(pl.col("value").is_not_null()) if value.null_count() else turns


def _insert_history(turns: pl.DataFrame, earlier: pl.DataFrame) -> pl.DataFrame:
    """The turns with the earlier ones after the system prompt and before the question."""
    if earlier.is_empty():
        return turns
    ranked = turns.with_columns(rank=pl.when(pl.col("from") == "system").then(0).otherwise(2))
    both = pl.concat([ranked, earlier.with_columns(rank=pl.lit(1, pl.Int32)).select(ranked.columns)])
    return both.sort("row", "rank", maintain_order=True).drop("rank")
