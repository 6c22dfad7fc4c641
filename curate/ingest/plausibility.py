"""A mapping that was found by names, and the cells of its columns → an error that asks, if the cells do not fit it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from curate.ingest.column_content import Content, describe_column
from curate.ingest.column_names import name_words
from curate.ingest.shapes.shape import ColumnMapping, is_mostly
from curate.ingest.suggestions import (
    describe_columns,
    exclude_optional,
    find_choices,
    list_commands,
    shown,
    suggest_mappings,
)
from schemas.errors import SourceError
from schemas.text import join_names

_QUESTION = {"pairs": "question", "alpaca": "instruction"}
_ANSWER = {"pairs": "answer", "alpaca": "output"}
_CONTEXT = {"pairs": "context", "alpaca": "input"}

_NO_QUESTIONS = ("ids", "numbers", "index", "dates", "flags", "links")
_USERS = {"user", "human", "customer", "client"}
_CHOICE_MARKS = ("numbers", "index", "choice letters")

_TURNS = {"turns", "rounds"}
"""Names of a list of texts that do not mean a conversation of two sides."""

_TITLES = {"title", "subject", "headline", "topic"}
_BODIES = {"body", "details", "description", "selftext", "post"}
_TITLE_BODIES = {*_BODIES, "content", "text", "message", "question", "detail"}
_PROMPTS = {"instruction", "instructions", "persona", "system"}
"""Words in the names of columns that belong to a question: the text below a title, an instruction before an input."""


def check_plausibility(table: pl.DataFrame, mapping: ColumnMapping) -> None:
    """Raise `SourceError` with the commands to choose from if the cells of a detected mapping do not fit it.

    Answers may be numbers or single words, as in mathematics and classification: these are warnings of validation.
    """
    if mapping.shape == "alternating":
        _check_alternating(table, mapping)
    if mapping.shape not in _QUESTION:
        return
    question = _describe(table, mapping, _QUESTION[mapping.shape])
    answer = _describe(table, mapping, _ANSWER[mapping.shape])
    _check_nested(table, mapping, question, answer)
    _check_question(table, mapping, question)
    _check_answer(table, mapping, answer)
    _check_numbered(table, mapping, question, answer)
    _check_unused(table, mapping, question)


def _check_alternating(table: pl.DataFrame, mapping: ColumnMapping) -> None:
    """Raise if lists of texts may be the turns of the user alone, as in MT-Bench: their name does not tell."""
    column = mapping.fields["texts"]
    if set(name_words(column)) <= _TURNS and mapping.column(table, "texts").str.contains(r"^\s*\[").any():
        raise SourceError(
            f"The lists of texts in the column {column} have no roles: they may be the turns of both sides, or of the "
            "user alone.",
            "Import them if they alternate, a user turn first; with --dry-run it only shows examples:"
            f"{mapping.as_command()}",
        )


def _describe(table: pl.DataFrame, mapping: ColumnMapping, field: str) -> Content:
    return describe_column(mapping.column(table, field), mapping.fields[field])


def _check_nested(table: pl.DataFrame, mapping: ColumnMapping, question: Content, answer: Content) -> None:
    """Raise if a column has lists or objects: several answers, tokens, or the columns of a whole table.

    An answer may be an object, if none of its values seems to be the answer. Inputs of Alpaca may be anything.
    """
    context = [_describe(table, mapping, "context")] if "context" in mapping.fields else []
    for content in (question, answer, *context):
        if content.kind not in ("lists", "objects"):
            continue
        if content in context:
            others = [ColumnMapping("pairs", {**mapping.fields, "context": ""})]
        else:
            others = _others(table, mapping)
        if content is answer and content.kind == "objects" and all(other.shape == "text" for other in others):
            continue
        raise SourceError(
            f"The column {content.column} has {content.kind}, such as {content.example}",
            list_commands([*others, mapping]) + (_FRAME_HINT if _is_frame(table, content) else ""),
        )


_FRAME_HINT = "\nIf pandas wrote it with to_json, write it again with orient='records', lines=True."


def _is_frame(table: pl.DataFrame, content: Content) -> bool:
    """Whether the only row has columns of a table, as objects with row numbers as keys."""
    return table.height == 1 and re.match(r'\{\s*"0"\s*:', content.example) is not None


def _check_question(table: pl.DataFrame, mapping: ColumnMapping, question: Content) -> None:
    """Raise if the questions are ids, numbers and the like, or names of users."""
    is_name = question.kind == "words" and set(name_words(question.column)) <= _USERS
    if question.kind in _NO_QUESTIONS or is_name:
        kind = "names or single words" if is_name else question.kind
        raise SourceError(
            f"The column {question.column} does not have questions, but {kind}, such as {question.example}.",
            list_commands([*_others(table, mapping), mapping]),
        )


def _check_answer(table: pl.DataFrame, mapping: ColumnMapping, answer: Content) -> None:
    """Raise if the answers are the numbers or letters of choices in other columns, an index, or ids next to texts."""
    unused = [name for name in table.columns if name not in mapping.fields.values()]
    if answer.column in find_choices([answer.column, *unused]):
        raise SourceError(
            f"The column {answer.column} seems to be one of several choices, not the answer.",
            list_commands([*_others(table, mapping), mapping]),
        )
    choices = find_choices(unused) if answer.kind in _CHOICE_MARKS else []
    if choices:
        raise SourceError(
            f"The column {answer.column} has {answer.kind}, such as {answer.example}, for the choices in "
            f"{join_names(choices, 4)}; a model would learn the number or letter without them.",
            list_commands([*_others(table, mapping), mapping]),
        )
    others = _others(table, mapping) if answer.kind in ("index", "ids", "links") else []
    others = [other for other in others if other.shape == mapping.shape]
    if answer.kind == "index" or (answer.kind in ("ids", "links") and others):
        raise SourceError(
            f"The column {answer.column} does not have answers, but {answer.kind}, such as {answer.example}.",
            list_commands([*others, mapping]),
        )


def _check_numbered(table: pl.DataFrame, mapping: ColumnMapping, question: Content, answer: Content) -> None:
    """Raise if there are more pairs under the same names with a number, such as `question_2` and `answer_2`."""
    numbered = [_numbered(table.columns, content.column) for content in (question, answer)]
    more = [number for number in numbered[0] if number in numbered[1]]
    if not more:
        return
    field, other = _QUESTION[mapping.shape], _ANSWER[mapping.shape]
    following = [
        ColumnMapping(mapping.shape, {**mapping.fields, field: numbered[0][number], other: numbered[1][number]})
        for number in more
    ]
    rest = "".join(f"\nThen the others:{second.as_command('--add')}" for second in following[:1])
    rest += "".join(second.as_command("--add") for second in following[1:])
    raise SourceError(
        f"A row has {len(more) + 1} questions and answers: {question.column} and {answer.column}, "
        f"{join_names([f'{numbered[0][n]} and {numbered[1][n]}' for n in more], 3)}.",
        f"Import the first ones; with --dry-run it only shows examples:{mapping.as_command()}{rest}",
    )


def _numbered(columns: Sequence[str], name: str) -> dict[str, str]:
    """Number → column with that name and a number."""
    base = [word for word in name_words(name) if not word.isdigit()]
    found = {column: name_words(column) for column in columns if column != name}
    return {
        words[-1]: column
        for column, words in found.items()
        if len(words) > 1 and words[-1].isdigit() and words[:-1] == base
    }


def _check_unused(table: pl.DataFrame, mapping: ColumnMapping, question: Content) -> None:
    """Raise if an unmapped column has the longer part of the question, or an instruction that belongs to it."""
    words = set(name_words(question.column))
    bodies, field = _TITLE_BODIES if words & _TITLES else _BODIES, _QUESTION[mapping.shape]
    context = _CONTEXT[mapping.shape]
    unused = [name for name in table.columns if name not in mapping.fields.values()]
    for name in (name for name in unused if set(name_words(name)) & (bodies | _PROMPTS)):
        content = describe_column(table[name], name)
        if content.kind != "text" or _has_answers(table, mapping, name):
            continue
        if set(name_words(name)) & _PROMPTS and mapping.shape == "pairs" and "system" not in mapping.fields:
            rest = {"input": question.column, "output": mapping.fields["answer"]}
            choices = [
                ColumnMapping("pairs", {**mapping.fields, "system": name}),
                ColumnMapping("alpaca", {"instruction": name, **rest}),
            ]
        elif set(name_words(name)) & bodies and content.words >= question.words and context not in mapping.fields:
            choices = [
                ColumnMapping(mapping.shape, {**mapping.fields, field: name}),
                ColumnMapping(mapping.shape, {**mapping.fields, context: name}),
            ]
        else:
            continue
        raise SourceError(
            f"The column {name} seems to be a part of the question too ({shown(content)}); {question.column} alone was "
            "found by its name.",
            list_commands([*choices, mapping]),
        )


def _has_answers(table: pl.DataFrame, mapping: ColumnMapping, name: str) -> bool:
    """Whether the cells of an unmapped column contain the answers, like the whole text in an Alpaca file."""
    head = table.head(50)
    texts = pl.DataFrame({"whole": head[name], "part": mapping.column(head, _ANSWER[mapping.shape])})
    return is_mostly(texts.select(pl.col("whole").str.contains(pl.col("part"), literal=True)).to_series())


def _others(table: pl.DataFrame, mapping: ColumnMapping) -> list[ColumnMapping]:
    """The mappings that the cells suggest instead; else the plain text of the only column with sentences."""
    contents = describe_columns(table)
    found = [other for other in suggest_mappings(table) if _texts_only(other, contents)]
    texts = [name for name, content in contents.items() if content.kind == "text"]
    plain = [ColumnMapping("text", {"text": texts[0]})] if not found and len(texts) == 1 else []
    same = exclude_optional(mapping, table.columns).as_options()
    return [other for other in (found[:2] or plain) if other.as_options() != same]


def _texts_only(mapping: ColumnMapping, contents: dict[str, Content]) -> bool:
    """Whether the questions and answers of a suggestion are sentences."""
    return all(contents[column].kind == "text" for column in mapping.fields.values() if column in contents)
