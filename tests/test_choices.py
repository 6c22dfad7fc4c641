"""Multiple choice: the prompt lists the choices, the answer is the right one."""

from pathlib import Path
from typing import Any

import pytest
from support.imports import import_one, pairs, rejects, write

from curate.ingest.readers import byte_stream
from schemas.errors import SourceError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


ARC = {"text": ["wind", "rain", "oil"], "label": ["A", "B", "C"]}


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        ([{"question": "Q?", "choices": ARC, "answerKey": "B"}], "choices"),
        ([{"question_stem": "Q?", "choices": ARC, "answerKey": "B", "fact1": "x"}], "choices"),
        ([{"question": "Q?", "options": ["wind", "rain", "oil"], "answer": "b", "rationale": "x"}], "choices"),
        ([{"question": "Q?", "options": ["A)wind", "B) rain", "C)oil"], "correct": "B"}], "choices"),
        ([{"question": "Q?", "options": ["(A) wind", "(B) rain", "(C) oil"], "answer": "(B)"}], "choices"),
        (
            [
                {"question": "Q?", "choices": ["wind", "rain", "oil"], "answer": 1, "subject": "x"},
                {"question": "R?", "choices": ["1", "2", "3"], "answer": 0, "subject": "x"},
            ],
            "choices-from-0",
        ),
        (
            [
                {"ctx": "Q?", "ctx_a": "Q?", "ctx_b": "", "endings": ["wind", "rain", "oil"], "label": "1"},
                {"ctx": "R?", "ctx_a": "R?", "ctx_b": "", "endings": ["1", "2", "3"], "label": "0"},
            ],
            "choices-from-0",
        ),
        (
            [
                {"question": "Q?", "opa": "wind", "opb": "rain", "opc": "oil", "opd": None, "cop": 1},
                {"question": "R?", "opa": "1", "opb": "2", "opc": "3", "opd": " ", "cop": 0},
            ],
            "choice-columns-from-0",
        ),
        (
            [
                {"question": "Q?", "choice0": "wind", "choice1": "rain", "choice2": "oil", "answer": 1},
                {"question": "R?", "choice0": "1", "choice1": "2", "choice2": "3", "answer": 0},
            ],
            "choice-columns-from-0",
        ),
        ([{"question": "Q?", "A": "wind", "B": "rain", "C": "oil", "answer": "B"}], "choice-columns"),
        (
            [{"question": "Q?", "option_a": "wind", "Option B": "rain", "optionC": "oil", "Answer": "B"}],
            "choice-columns",
        ),
    ],
)
def test_the_prompt_has_the_choices_and_the_answer_is_the_right_one(
    store: Path, tmp_path: Path, rows: list[dict[str, Any]], shape: str
) -> None:
    result = import_one(store, write(tmp_path / "mc.jsonl", *rows))
    assert (result.shape, result.rows_rejected) == (shape, 0)
    answer = ("R?\n\nA. 1\nB. 2\nC. 3", "A. 1")
    assert pairs(store) == [("Q?\n\nA. wind\nB. rain\nC. oil", "B. rain"), *([answer] if len(rows) > 1 else [])]


@pytest.mark.parametrize(("first", "right"), [("choice-columns-from-1", "A. Ann"), ("choice-columns-from-0", "B. Bob")])
def test_numbers_of_choices_without_a_zero_are_counted_from_0_or_1_on_request(
    store: Path, tmp_path: Path, first: str, right: str
) -> None:
    row = {"sentence": "_ sails.", "option1": "Ann", "option2": "Bob", "answer": "1"}
    path = write(tmp_path / "w.jsonl", row)
    with pytest.raises(SourceError, match=r"choice-columns-from-0 .* or choice-columns-from-1"):
        import_one(store, path)
    import_one(store, path, shape=first)
    assert pairs(store) == [("_ sails.\n\nA. Ann\nB. Bob", right)]


def test_a_later_batch_without_a_zero_does_not_change_how_choices_are_counted(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_stream, "CHUNK", 1024)
    monkeypatch.setattr(byte_stream, "FIRST_CHUNK", 1024)
    rows = [{"question": f"Q{n}", "choices": ["x", "y"], "answer": min(n, 1)} for n in range(60)]
    result = import_one(store, write(tmp_path / "mc.jsonl", *rows))
    assert (result.shape, result.rows_kept) == ("choices-from-0", 60)


def test_an_answer_that_names_no_choice_is_rejected_with_it(store: Path, tmp_path: Path) -> None:
    good = {"question": "Q?", "choices": ["x", "y"], "answer": "A"}
    rows = [good, {**good, "answer": "C"}, {**good, "answer": None}, {**good, "choices": []}, {**good, "question": ""}]
    result = import_one(store, write(tmp_path / "mc.jsonl", *rows))
    assert result.rows_kept == 1
    assert rejects(store) == [
        (2, "no-answer", "The answer C names none of the 2 choices."),
        (3, "no-answer", "The row names no right choice."),
        (4, "no-answer", "The row has no answer."),
        (5, "empty-question", "Turn 1 (human) is empty."),
    ]


def test_a_passage_precedes_the_question_and_its_choices(store: Path, tmp_path: Path) -> None:
    row = {"article": "A text.", "question": "Q?", "options": ["x", "y"], "answer": "A", "example_id": "1"}
    import_one(store, write(tmp_path / "race.jsonl", row))
    assert pairs(store) == [("A text.\n\nQ?\n\nA. x\nB. y", "A. x")]
