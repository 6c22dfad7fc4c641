"""Ask instead of guessing: a mapping found by names stops if its cells do not fit, and never with explicit options."""
# ruff: noqa: E501  one layout a line

import json

import polars as pl
import pytest
from support.advice import printed_options, section_fields

from curate.ingest.column_mapping import find_mapping
from schemas.errors import SourceError
from schemas.import_recipe import ImportSection

ASKS = [
    "How do I open the hatch?",
    "Which oil does the winch need?",
    "Can I wash the sail?",
    "Who checks the anchor?",
] * 2
SAYS = ["Turn the lever twice.", "Use grade 30 oil.", "Yes, in lukewarm water.", "The mate does, every Friday."] * 2
BODIES = [f"{text} I have tried it all day and asked everybody on board." for text in ASKS]
NUMBERS, LETTERS, INDEX = list("20413312"), list("ABCDABCD"), [str(n) for n in range(8)]
USERS = [f"U{n % 3}" for n in range(8)]
LISTS = [json.dumps([text, "Or not."]) for text in SAYS]
OBJECTS = [json.dumps({"value": text, "n": 1}) for text in SAYS]
CALLS = [json.dumps({"depth": n}) for n in range(8)]

ASKED = {
    "title and body": ({"title": ["Hatch"] * 8, "body": BODIES, "answer": SAYS}, "body seems to be a part of the question"),
    "question and body": ({"question": ASKS, "body": BODIES, "answer": SAYS}, "body seems to be a part of the question"),
    "instructions and input": ({"instructions": ["Be a mate."] * 8, "input": ASKS, "output": SAYS}, "instructions seems to be"),
    "letters": ({"question": ASKS, "options": ["A or B"] * 8, "answer": LETTERS}, "for the choices in options"),
    "answer is a choice": ({"question": ASKS, "A": SAYS, "B": SAYS, "key": LETTERS}, "A seems to be one of several choices"),
    "user ids": ({"user": USERS, "text": SAYS}, "user does not have questions, but ids"),
    "user names": ({"user": ["Ann", "Ben"] * 4, "text": SAYS}, "user does not have questions, but names"),
    "numbers as questions": ({"input": NUMBERS, "output": SAYS}, "input does not have questions, but numbers"),
    "dates as questions": ({"input": ["2026-01-01"] * 8, "output": SAYS}, "input does not have questions, but dates"),
    "index as answers": ({"question": ASKS, "answer": INDEX}, "answer does not have answers, but index"),
    "ids as answers": ({"question": ASKS, "answer": USERS, "what they said": SAYS}, "answer does not have answers, but ids"),
    "lists of answers": ({"question": ASKS, "answer": LISTS}, "answer has lists"),
    "objects as answers": ({"question": ASKS, "answer": OBJECTS}, "answer has objects"),
    "objects as context": ({"question": ASKS, "context": OBJECTS, "answer": SAYS}, "context has objects"),
    "numbered pairs": ({"question": ASKS, "answer": SAYS, "question_2": ASKS, "answer_2": SAYS}, "has 2 questions and answers"),
    "turns without roles": ({"turns": [json.dumps(ASKS[:2])] * 8}, "turns of both sides, or of the user alone"),
}  # fmt: skip

NOT_ASKED = {
    "numeric answers": {"question": ASKS, "answer": NUMBERS},
    "one-word answers": {"question": ASKS, "answer": ["yes", "no"] * 4},
    "classes": {"instruction": ["Classify."] * 8, "input": ASKS, "output": ["deck", "sail"] * 4},
    "dates as answers": {"question": ASKS, "answer": ["2026-01-01"] * 8},
    "letters as answers": {"question": ASKS, "answer": LETTERS},
    "objects to learn": {"prompt": ASKS, "completion": CALLS},
    "single words": {"input": ["cat", "dog"] * 4, "output": ["chat", "chien"] * 4},
    "a pandas index": {"column_1": INDEX, "question": ASKS, "answer": SAYS},
    "the whole prompt": {"instruction": ASKS, "input": [""] * 8, "output": SAYS, "text": [f"Q: {a} A: {b}" for a, b in zip(ASKS, SAYS, strict=True)]},
    "a short description": {"question": ASKS, "answer": SAYS, "description": ["Deck"] * 8},
    "an explanation": {"question": ASKS, "answer": SAYS, "explanation": BODIES},
    "letters, no choices": {"id": INDEX, "q": ASKS, "a": SAYS},
}  # fmt: skip


def table(columns):
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


@pytest.mark.parametrize("name", ASKED)
def test_columns_that_do_not_fit_are_asked_about_with_commands_that_work(name):
    columns, message = ASKED[name]
    with pytest.raises(SourceError) as error:
        find_mapping(table(columns), ImportSection())
    assert message in error.value.what
    assert "--dry-run" in error.value.hint
    commands = [[word for word in options if word != "--add"] for options in printed_options(error.value)]
    assert commands
    mappings = [find_mapping(table(columns), ImportSection(**section_fields(options))) for options in commands]
    assert len({json.dumps([mapping.shape, mapping.fields]) for mapping in mappings}) == len(commands)


@pytest.mark.parametrize("name", NOT_ASKED)
def test_clear_names_are_imported_at_once(name):
    assert find_mapping(table(NOT_ASKED[name]), ImportSection()).shape in ("pairs", "alpaca")


@pytest.mark.parametrize("name", ["title and body", "letters", "objects as answers"])
def test_two_or_more_commands_are_printed_where_another_column_fits(name):
    with pytest.raises(SourceError) as error:
        find_mapping(table(ASKED[name][0]), ImportSection())
    assert len(printed_options(error.value)) >= (1 if name == "letters" else 2)


def test_an_explicit_shape_or_map_never_asks():
    columns = table(ASKED["title and body"][0])
    assert find_mapping(columns, ImportSection(shape="pairs")).fields["question"] == "title"
    assert find_mapping(columns, ImportSection(map={"question": "title"})).fields["question"] == "title"


def test_a_file_of_columns_instead_of_rows_is_named():
    columns = {"question": ['{"0":"One?","1":"Two?"}'], "answer": ['{"0":"Yes, one.","1":"Yes, two."}']}
    with pytest.raises(SourceError, match=r"question has objects") as error:
        find_mapping(table(columns), ImportSection())
    assert "orient='records'" in error.value.hint
