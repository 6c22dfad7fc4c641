"""Annotated records of Argilla per row → one conversation per annotator, with its correction in place of the answer.

Layouts: `fields` and `responses` of `records.to_json` and of feedback datasets of Argilla 1, and the flat columns of
`to_datasets` (`verdict.responses`, `verdict.responses.users`) and of Argilla 1 (lists of `user_id` and `value`).
Discarded records, and answers that were judged to be bad, are problems; drafts and suggestions are left out.
https://docs.argilla.io/latest/how_to_guides/import_export/
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from curate.ingest.shapes import turn_lists
from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.judgements import is_bad_expr
from curate.ingest.shapes.pairs import ANSWER_NAMES, QUESTION_NAMES
from curate.ingest.shapes.parts import NO_ANSWER, parse_parts
from curate.ingest.shapes.shape import ColumnMapping, Field, ParsedTable, json_like, problem_rows, shorten_expr

_PROMPTS = ("chat", "conversation", "messages", "dialogue", "instruction", *QUESTION_NAMES, "text")
_CORRECTIONS = (
    *("correction", "corrected", "corrected_response", "edit", "edited_response", "rewrite", "rewritten", "improved"),
    *("improved_response", "better_response", "better_answer", "new_response", *ANSWER_NAMES),
)
_COMMENTS = ("comment", "comments", "note", "notes", "reason", "feedback", "explanation", "rationale", "why")
"""Questions whose texts are about an answer."""

_DROPS = ("drop", "discard", "reject", "delete", "remove", "exclude", "skip")
_MOST_LABEL_WORDS = 3

_USERS = ".users"
_QUESTION = ".responses"


def _question_columns(cells: Mapping[str, pl.Series]) -> list[str]:
    """The columns with the responses to a question, in the flat layouts of Argilla 2 and 1."""
    named = [name for name in cells if name.endswith(_QUESTION) and f"{name}{_USERS}" in cells]
    lists = json_like("[", r'"user_id"\s*:', r'"value"\s*:', r'"status"\s*:')
    return named or [name for name, column in cells.items() if lists(column.drop_nulls()).any()]


def _are_responses(cells: pl.Series) -> pl.Series:
    return cells.str.contains(r'"user_id"\s*:|^\s*(?:\{\s*\}|\[\s*\])\s*$')


FIELDS = {
    "fields": Field(("fields",), required=True, fits=json_like("{", r'"\s*:')),
    "responses": Field(("responses",), required=True, fits=_are_responses),
    "prompt": Field(()),
    "response": Field(()),
    "correction": Field(()),
}
COLUMN_FIELDS = {
    "responses": Field((), required=True, find=lambda cells: _question_columns(cells)[:1]),
    "prompt": Field(_PROMPTS, required=True),
    "response": Field(ANSWER_NAMES),
    "correction": Field(()),
}

_TEXTS = f"""
    SELECT row, coalesce({", ".join(f"cell ->> '{key}'" for key in _PROMPTS)},
            CASE WHEN len(texts) = 1 THEN texts[1] END) AS prompt,
        coalesce({", ".join(f"cell ->> '{key}'" for key in ANSWER_NAMES)}) AS response
    FROM (
        SELECT row, cell, [cell ->> k FOR k IN json_keys(cell) IF json_type(cell -> k) IN ('VARCHAR', 'ARRAY')] AS texts
        FROM (SELECT row, cell::JSON AS cell FROM cells)
    )
"""
_RESPONSES = """
    SELECT row, question, n, r ->> 'user_id' AS "user", r -> 'value' AS value, r ->> 'status' AS status FROM (
        SELECT row, question, unnest(list) AS r, generate_subscripts(list, 1) AS n FROM (
            SELECT row, question, from_json(cell -> question, '["JSON"]') AS list
            FROM (SELECT row, cell, unnest(json_keys(cell)) AS question FROM cells WHERE json_type(cell) = 'OBJECT')))
    UNION ALL
    SELECT row, question, n, r ->> 'user_id', r -> 'values' -> question -> 'value', r ->> 'status' FROM (
        SELECT row, r, n, unnest(coalesce(nullif(json_keys(r -> 'values'), []), [''])) AS question FROM (
            SELECT row, unnest(list) AS r, generate_subscripts(list, 1) AS n
            FROM (SELECT row, from_json(cell, '["JSON"]') AS list FROM cells WHERE json_type(cell) = 'ARRAY')))
"""
_COLUMNS = """
    SELECT row, question, n,
        CASE WHEN users IS NULL THEN value ->> 'user_id' ELSE from_json(users, '["VARCHAR"]')[n] END AS "user",
        CASE WHEN users IS NULL THEN value -> 'value' ELSE value END AS value,
        CASE WHEN users IS NULL THEN value ->> 'status' ELSE from_json(states, '["VARCHAR"]')[n] END AS status
    FROM (
        SELECT row, question, users, states, unnest(list) AS value, generate_subscripts(list, 1) AS n
        FROM (SELECT *, from_json(cell, '["JSON"]') AS list FROM cells))
"""
_VALUES = """
    SELECT row, question, n, coalesce("user", '') AS "user", coalesce(status, 'submitted') AS status,
        CASE WHEN json_type(value) = 'ARRAY' AND json_type(value, '$[0]') = 'VARCHAR'
            THEN array_to_string(from_json(value, '["VARCHAR"]'), ', ')
            WHEN json_type(value) NOT IN ('ARRAY', 'OBJECT') THEN value ->> '$' END AS text,
        json_type(value) IN ('VARCHAR', 'ARRAY') AS worded, coalesce(json_type(value), 'NULL') = 'NULL' AS blank
    FROM responses ORDER BY row, n, question
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of records with `fields` and `responses`; `prompt` and `response` may be paths into them."""
    fields, problems = valid_cells(mapping.column(table, "fields"))
    cells, broken = valid_cells(mapping.column(table, "responses"))
    texts = query_frames(_TEXTS, cells=fields)
    for name in ("prompt", "response"):
        if name in mapping.fields:
            given = mapping.rows(table, [name])
            texts = texts.drop(name).join(given, on="row", how="left", maintain_order="left")
    responses = query_frames(_RESPONSES, cells=cells)
    return _to_table(table.height, texts, responses, mapping, [problems, broken])


def parse_columns(table: pl.DataFrame, mapping: ColumnMapping) -> ParsedTable:
    """The conversations of records with a column per field and question."""
    parts, problems = [], []
    for name in _question_columns({name: table[name] for name in table.columns}):
        columns = {"cell": name, "users": f"{name}{_USERS}", "states": f"{name}.status"}
        cells = pl.DataFrame({"row": pl.int_range(table.height, eager=True)})
        for short, column in columns.items():
            found = table[column] if column in table.columns else pl.Series([None] * table.height, dtype=pl.String)
            sound, broken = valid_cells(found)
            problems.append(broken)
            cells = cells.join(sound.rename({"cell": short}), on="row", how="left", maintain_order="left")
        question = name.removesuffix(_QUESTION) if columns["users"] in table.columns else name
        parts.append(cells.filter(pl.col("cell").is_not_null()).with_columns(question=pl.lit(question)))
    responses = query_frames(_COLUMNS, cells=pl.concat(parts))
    return _to_table(table.height, mapping.rows(table, ["prompt", "response"]), responses, mapping, problems)


def _to_table(
    height: int, texts: pl.DataFrame, responses: pl.DataFrame, mapping: ColumnMapping, problems: list[pl.DataFrame]
) -> ParsedTable:
    """The conversations of `texts` (`row`, `prompt`, `response`) and responses per record, question and annotator."""
    unasked = texts.filter(pl.col("prompt").fill_null("").str.strip_chars() == "")
    no_prompt = "No field is known to be a prompt; map it, for example with --map prompt=fields.KEY."
    is_chat = pl.col("prompt").str.contains(r'^\s*\[\s*\{[^}]*"(?:role|from)"\s*:').fill_null(False)
    chats = turn_lists.parse(
        texts.filter(is_chat).select("prompt"),
        ColumnMapping("messages", {"messages": "prompt"}, mapping.roles),
        "messages",
    )
    rows = texts.filter(is_chat)["row"]
    turns, broken = (frame.with_columns(rows.gather(frame["row"])) for frame in (chats.turns, chats.problems))
    is_last = pl.struct("row").is_last_distinct() & (pl.col("from") == "gpt")
    own = turns.filter(is_last).select("row", chat_answer="value")
    texts = texts.join(own, on="row", how="left", maintain_order="left").select(
        "row",
        pl.when(~is_chat).then("prompt").alias("human"),
        pl.coalesce("chat_answer", pl.when(pl.col("response").str.strip_chars() != "").then("response")).alias("own"),
    )
    values = query_frames(_VALUES, responses=responses).filter(pl.col("status") != "draft")
    everyone = pl.DataFrame({"row": pl.int_range(height, eager=True)})
    unanswered = everyone.join(values, on="row", how="anti")
    nobody = problem_rows(unanswered, NO_ANSWER, "No annotator has submitted an answer to the record.")
    parts = _answers(values, mapping).join(texts, on="row", how="left", maintain_order="left")
    reason, answer = _decide(mapping)
    parts = parts.select(position="row", human="human", gpt=answer, no_answer=reason)
    same = parts.unique(maintain_order=True)  # annotators who agree
    return parse_parts(
        height,
        same,
        [*problems, broken, problem_rows(unasked, "no-question", no_prompt), nobody],
        earlier=turns.filter(~is_last),
    )


def _answers(values: pl.DataFrame, mapping: ColumnMapping) -> pl.DataFrame:
    """Per record and annotator: whether it was discarded, the judgement, the correction, and the other texts."""
    given = mapping.fields.get("correction", "").removeprefix("responses.").removesuffix(_QUESTION)
    corrects = pl.col("question").str.to_lowercase().is_in([given.lower()] if given else list(_CORRECTIONS))
    text, lower = pl.col("text"), pl.col("text").str.strip_chars().str.to_lowercase()
    filled = text.fill_null("").str.strip_chars() != ""
    comment = pl.col("question").str.to_lowercase().is_in(list(_COMMENTS))
    other = filled & pl.col("worded").fill_null(False) & ~corrects & ~comment
    drops, bad = lower.is_in(list(_DROPS)), is_bad_expr(pl.col("question"), text)
    prose = other & (text.str.count_matches(r"\s+") >= _MOST_LABEL_WORDS) & ~bad
    judged = pl.format("{}: {}", "question", shorten_expr(text, 30))
    return values.group_by("row", "user", maintain_order=True).agg(
        discarded=(pl.col("status") == "discarded").any() | pl.col("blank").all(),
        dropped=judged.filter(drops & ~corrects).first(),
        bad=judged.filter(bad & ~corrects).first(),
        correction=text.filter(corrects & filled).first(),
        prose=pl.col("question").filter(prose).str.join(", "),
        labels=text.filter(other),
        questions=pl.col("question").filter(other).str.join(", "),
    )


def _decide(mapping: ColumnMapping) -> tuple[pl.Expr, pl.Expr]:
    """Why an annotator's part has no answer, and its answer: the correction, the record's own one, or a label."""
    user, own, correction = pl.col("user"), pl.col("own"), pl.col("correction")
    corrected = correction.is_not_null() & ~correction.eq_missing(own)
    option = "NAME" + _QUESTION if mapping.shape == "argilla-columns" else "responses.NAME"
    several, labels = f"name the one with the answers with --map correction={option}", pl.col("labels")
    reason = (
        pl.when("discarded")
        .then(pl.format("The annotator {} discarded the record.", user))
        .when(own.is_not_null() & pl.col("dropped").is_not_null())
        .then(pl.format("The annotator {} dropped the record ({}).", user, "dropped"))
        .when(own.is_not_null() & pl.col("bad").is_not_null() & ~corrected)
        .then(pl.format("The annotator {} marked the answer as bad ({}).", user, "bad"))
        .when(correction.is_null() & own.is_not_null() & (pl.col("prose") != ""))
        .then(pl.format("The texts of {} may be corrections or comments; " + several + ".", "prose"))
        .when(correction.is_null() & own.is_null() & (labels.list.len() > 1))
        .then(pl.format("The record has several texts ({}); " + several + ".", "questions"))
        .when(correction.is_null() & own.is_null() & (labels.list.len() == 0))
        .then(pl.format("The annotator {} wrote no text and chose no label.", user))
    )
    return reason, pl.coalesce(correction, own, labels.list.first())
