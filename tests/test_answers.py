"""Several answers to a prompt: all, the first, the best-rated; rows that can be read in several ways."""

from pathlib import Path
from typing import Any

import pytest
from support.advice import printed_options
from support.imports import import_one, pairs, rejects, talks, write

from schemas.errors import SourceError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


RATED = [
    {"answer": "No.", "model": "x", "rank": 2.0},
    {"answer": "Pull the lever.", "model": "y", "rank": 1.0},
]


def test_rated_answers_are_imported_only_on_request(store: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", {"prompt": "How?", "answers": RATED})
    with pytest.raises(SourceError) as error:
        import_one(store, path)
    assert [" ".join(options) for options in printed_options(error.value)] == [
        "--shape best-answer --map answers=answers --map prompt=prompt",
        "--shape answers --map answers=answers --map prompt=prompt",
    ]
    import_one(store, path, shape="best-answer")
    assert pairs(store) == [("How?", "Pull the lever.")]


def test_all_answers_of_a_row_are_conversations_with_its_prompt(store: Path, tmp_path: Path) -> None:
    result = import_one(store, write(tmp_path / "n.jsonl", {"prompt": "How?", "answers": RATED}), shape="answers")
    assert (result.rows_kept, result.conversations) == (1, 2)
    assert pairs(store) == [("How?", "No."), ("How?", "Pull the lever.")]


@pytest.mark.parametrize(
    "answers",
    [
        [{"response": "bad", "overall_score": 9.0}, {"response": "good", "overall_score": 10.0}],
        [{"text": "bad", "pm_score": 0, "selected": False}, {"text": "good", "pm_score": 3, "selected": True}],
        [{"text": "bad", "score": None}, {"text": "good", "score": "-1"}, {"text": "late", "score": -1}],
        [{"completion": "bad", "rank": 10}, {"completion": "good", "rank": 9}],
    ],
)
def test_the_best_answer_has_the_highest_score_or_the_lowest_rank(
    store: Path, tmp_path: Path, answers: list[dict[str, Any]]
) -> None:
    import_one(store, write(tmp_path / "a.jsonl", {"instruction": "Q", "completions": answers}), shape="best-answer")
    assert pairs(store) == [("Q", "good")]


def test_a_row_without_a_rating_has_no_best_answer(store: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "answers": RATED},
        {"prompt": "Q", "answers": [{"answer": "x"}]},
        {"prompt": "Q", "answers": []},
    ]
    result = import_one(store, write(tmp_path / "a.jsonl", *rows), shape="best-answer")
    assert result.rejected == {"no-answer": 2}
    assert [reason for _, _, reason in rejects(store)] == [
        "No answer of the row has a rating.",
        "The row has no answer.",
    ]


def test_lists_of_texts_offer_the_first_answer_or_all(store: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "Q", "answers": ["Paris", "paris"]})
    with pytest.raises(SourceError, match=r"first-answer .* or answers"):
        import_one(store, path)
    import_one(store, path, shape="first-answer")
    assert pairs(store) == [("Q", "Paris")]


def test_a_prompt_that_is_a_transcript_becomes_its_turns(store: Path, tmp_path: Path) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: "
    import_one(store, write(tmp_path / "n.jsonl", {"prompt": prompt, "answers": RATED}), shape="answers")
    assert talks(store)[1] == [("human", "Hi"), ("gpt", "Hello"), ("human", "How?"), ("gpt", "Pull the lever.")]
    assert pairs(store)[0][-1] == "No."


# ---------------------------------------------------------------------------------- precedence


def test_a_list_of_generations_next_to_an_answer_is_one_of_several_ways_to_read_a_file(
    store: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.jsonl", {"question": "Q?", "answer": "4", "generations": ["It is 4.", "4"]})
    with pytest.raises(SourceError) as error:
        import_one(store, path)
    for option in (
        "--shape pairs --map question=question --map answer=answer",
        "--shape first-answer ",
        "--shape answers ",
    ):
        assert option in error.value.hint
