"""Multiple choice: a question, its choices in one column or one column each, and the answer → one conversation per row.

The prompt is the context, the question and the choices with their labels or letters; the answer is the right choice
with its letter, `B. text`. The answer column holds a label, a letter, or the number of a choice. Layouts: MMLU, ARC,
CommonsenseQA, OpenBookQA, MedMCQA, HellaSwag, PIQA.
"""

from __future__ import annotations

from functools import partial

import polars as pl

from curate.ingest.shapes.frames import query_frames
from curate.ingest.shapes.json_cells import valid_cells
from curate.ingest.shapes.parts import join_texts, parse_parts
from curate.ingest.shapes.shape import (
    ColumnMapping,
    Field,
    ParsedTable,
    fits_json,
    is_plain_text,
    mostly_like,
    shorten_expr,
)
from curate.ingest.shapes.system_prompt import SYSTEM, read_prompts

LETTERS = "ABCDEFGHIJ"


@fits_json()
def _are_choices(cells: pl.Series) -> pl.Series:
    """Whether each cell is a list of at least two texts, or texts with labels."""
    texts = cells.str.contains(r'(?s)^\s*\[\s*(?:"|-?\d).*,')
    labelled = cells.str.contains(r'"text"\s*:') & cells.str.contains(r'"label"\s*:')
    return texts | labelled


_are_letters = mostly_like(rf"^\s*\(?[{LETTERS}{LETTERS.lower()}]\)?\.?\s*$")
_are_numbers = mostly_like(r"^\s*(?:-1|\d)(?:\.0)?\s*$")


def _count_from_one(cells: pl.Series) -> pl.Series:
    """Whether the cells are numbers without a zero. One with a zero certainly counts from 0."""
    has_zero = cells.str.contains(r"^\s*0(?:\.0)?\s*$").any()
    return pl.repeat(False, cells.len(), eager=True) if has_zero else _are_numbers(cells)


_ANSWERS = (
    *("answer", "answerKey", "answer_key", "label", "cop", "correct", "correct_answer", "correct_option"),
    *("answer_index", "correct_index", "answer_idx", "gold", "target", "answer_choice", "correct_choice"),
)
_QUESTION = Field(
    (
        *("question", "question_stem", "stem", "query", "ctx", "goal", "sentence", "startphrase", "problem", "prompt"),
        *("input", "instruction"),
    ),
    required=True,
    fits=is_plain_text,
)
_CONTEXT = Field(("context", "passage", "article", "support", "paragraph", "premise", "background"), fits=is_plain_text)


def _names(letter: str, number: int) -> tuple[str, ...]:
    """Names of the column of a choice: opa, option_a, choice_a, answerA, A; those with numbers count from 1."""
    words = ("option", "choice", "answer", "ending", "sol", "op")
    return (letter, *(f"{word}_{letter}" for word in words), *(f"{word}{number}" for word in words))


def _zero_names(number: int) -> tuple[str, ...]:
    return tuple(f"{word}{number - 1}" for word in ("option", "choice", "ending", "answer"))


def _fields(answer: Field) -> dict[str, Field]:
    choices = Field(("choices", "options", "endings", "answer_choices", "answers"), required=True, fits=_are_choices)
    return {"choices": choices, "answer": answer, "question": _QUESTION, "context": _CONTEXT, "system": SYSTEM}


def _column_fields(answer: Field) -> dict[str, Field]:
    """Choices in columns; if a column ends in 0, it is the first choice."""
    columns = {
        letter: Field((*_zero_names(number), *_names(letter, number)), required=number <= 2)
        for number, letter in enumerate(LETTERS[:6], 1)
    }
    return {
        "A": columns.pop("A"),
        "answer": answer,
        "question": _QUESTION,
        **columns,
        "context": _CONTEXT,
        "system": SYSTEM,
    }


_BY_LETTER = Field(_ANSWERS, required=True, fits=_are_letters)
_FROM_0 = Field(_ANSWERS, required=True, fits=_are_numbers)
_FROM_1 = Field(_ANSWERS, required=True, fits=_count_from_one)

FIELDS, FIELDS_FROM_0, FIELDS_FROM_1 = _fields(_BY_LETTER), _fields(_FROM_0), _fields(_FROM_1)
COLUMN_FIELDS, COLUMN_FIELDS_FROM_0, COLUMN_FIELDS_FROM_1 = map(_column_fields, (_BY_LETTER, _FROM_0, _FROM_1))

_CHOICES = """
    SELECT row AS position, unnest(texts) AS text, generate_subscripts(texts, 1) AS n, unnest(labels) AS given
    FROM (
        SELECT row,
            CASE
                WHEN left(cell, 1) = '{' THEN from_json(cell -> '$.text', '["VARCHAR"]')
                WHEN json_type(cell, '$[0]') = 'OBJECT' THEN from_json(cell -> '$[*].text', '["VARCHAR"]')
                ELSE from_json(cell, '["VARCHAR"]') END AS texts,
            CASE
                WHEN left(cell, 1) = '{' THEN from_json(cell -> '$.label', '["VARCHAR"]')
                WHEN json_type(cell, '$[0]') = 'OBJECT' THEN from_json(cell -> '$[*].label', '["VARCHAR"]')
                ELSE [] END AS labels
        FROM cells
    )
"""


def parse(table: pl.DataFrame, mapping: ColumnMapping, *, first: int | None = None) -> ParsedTable:
    """The conversations of questions with a column of choices; numbers of choices count from `first`."""
    cells, problems = valid_cells(mapping.column(table, "choices"))
    return _parse(table, mapping, query_frames(_CHOICES, cells=cells), [problems], first)


def parse_columns(table: pl.DataFrame, mapping: ColumnMapping, *, first: int | None = None) -> ParsedTable:
    """The conversations of questions with a column per choice; an empty cell is not a choice."""
    columns = [
        pl.DataFrame({"text": mapping.column(table, letter)})
        .with_row_index("position")
        .with_columns(n=pl.lit(number, pl.Int64), given=pl.lit(None, pl.String))
        for number, letter in enumerate(LETTERS[:6], 1)
    ]
    return _parse(table, mapping, pl.concat(columns).filter(pl.col("text").str.strip_chars() != ""), [], first)


parse_from_0, parse_from_1 = partial(parse, first=0), partial(parse, first=1)
parse_columns_from_0, parse_columns_from_1 = partial(parse_columns, first=0), partial(parse_columns, first=1)


def _parse(
    table: pl.DataFrame, mapping: ColumnMapping, choices: pl.DataFrame, problems: list[pl.DataFrame], first: int | None
) -> ParsedTable:
    """The conversations of `choices`: `position`, `n` (from 1), `text`, and `given`, a label of the source or null."""
    prompts, no_text = read_prompts(mapping.column(table, "system"))
    names = ("context", "question", "answer")
    rows = pl.DataFrame([prompts, *(mapping.column(table, name) for name in names)]).with_row_index("position")
    key = pl.col("answer").str.strip_chars(" ().\t").str.to_uppercase()
    by_label = pl.col("label").str.to_uppercase() == key
    by_number = pl.col("n") - 1 + (first or 0) == key.cast(pl.Float64, strict=False)
    is_right = by_label if first is None else pl.when(pl.col("given").is_null()).then(by_number).otherwise(by_label)
    line = pl.format("{}. {}", "label", "text")
    lines = (
        _label(choices)
        .join(rows, on="position")
        .sort("position", "n")
        .rechunk()  # `pl.format` panics on a filtered column of several chunks
        .group_by("position", maintain_order=True)
        .agg(choices=line.str.join("\n"), gpt=line.filter(is_right.fill_null(False)).first(), count=pl.len())
    )
    parts = (
        rows.join(lines, on="position", how="left", maintain_order="left")
        .filter(pl.col("choices").is_not_null())
        .rechunk()
    )
    wrong = pl.format("The answer {} names none of the {} choices.", shorten_expr(pl.col("answer"), 20), "count")
    blank = pl.col("question").fill_null("").str.strip_chars() == ""
    human = pl.when(blank).then(pl.lit("")).otherwise(join_texts("context", "question", "choices"))
    system = pl.when(pl.col("system").str.strip_chars() != "").then("system")
    unnamed = pl.col("answer").fill_null("").str.strip_chars() == ""
    reason = pl.when(unnamed).then(pl.lit("The row names no right choice.")).otherwise(wrong)
    no_answer = pl.when(pl.col("gpt").is_null()).then(reason).alias("no_answer")
    parts = parts.select("position", system.alias("system"), human.alias("human"), "gpt", no_answer)
    return parse_parts(table.height, parts, [*problems, no_text])


def _label(choices: pl.DataFrame) -> pl.DataFrame:
    """The choices with `label`; if every text of a row starts with its own label, as in `A)21`, without it."""
    label = pl.coalesce("given", pl.lit(list(LETTERS)).list.get(pl.col("n") - 1, null_on_oob=True))
    labelled = choices.with_columns(
        pl.col("position").cast(pl.UInt32), label.alias("label"), pl.col("text").str.strip_chars()
    )
    marks = [pl.col("label") + end for end in (")", ".", ":")] + ["(" + pl.col("label") + ")"]
    lengths = [pl.when(pl.col("text").str.starts_with(mark)).then(mark.str.len_chars()) for mark in marks]
    own = pl.coalesce(lengths)
    is_marked = own.is_not_null().all().over("position")
    bare = pl.col("text").str.slice(own.fill_null(0)).str.strip_chars()
    return labelled.with_columns(pl.when(is_marked).then(bare).otherwise("text").alias("text"))
