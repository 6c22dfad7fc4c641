"""Shapes of whole records: rows that are not a list of turns, with any number of conversations each."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.ingest.import_options import apply_options
from curate.ingest.import_result import ImportResult
from curate.ingest.pipeline import import_files
from curate.ingest.readers import byte_stream
from curate.versions.lineage import Lineage, RejectedRow, trace
from schemas.recipe import ImportSection
from schemas.store import reading


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return path


def import_one(store: Path, path: Path, **options: Any) -> ImportResult:
    (result,) = import_files(store, [str(path)], apply_options(ImportSection(), options))
    return result


def talks(store: Path) -> list[list[tuple[str, str]]]:
    """The conversations in the order of their rows."""
    with reading(store) as connection:
        found = connection.sql("SELECT conversations FROM conversations ORDER BY rowid").pl()["conversations"].to_list()
    return [[(turn["from"], turn["value"]) for turn in turns] for turns in found]


def pairs(store: Path) -> list[tuple[str, ...]]:
    return [tuple(text for _, text in turns) for turns in talks(store)]


def rejects(store: Path) -> list[tuple[int, str, str]]:
    with reading(store) as connection:
        return connection.sql('SELECT "row", code, reason FROM rejects ORDER BY ALL').fetchall()


# ------------------------------------------------------------------------------------------------- several per row

ARTICLE = {
    "title": "Boats",
    "paragraphs": [
        {
            "context": "The hatch has a lever.",
            "qas": [
                {"id": "1", "question": "What has the hatch?", "answers": [{"text": "a lever", "answer_start": 14}]},
                {"id": "2", "question": "Who painted it?", "answers": [], "is_impossible": True},
            ],
        },
        {
            "context": "Oil is grade 30.",
            "qas": [{"id": "3", "question": "Which grade?", "answers": [{"text": "30", "answer_start": 13}]}],
        },
    ],
}
UNANSWERED = {"title": "Rope", "paragraphs": [{"context": "A rope.", "qas": [{"question": "Why?", "answers": []}]}]}


def test_a_row_counts_once_if_it_has_several_conversations(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [ARTICLE, UNANSWERED, {"title": "x", "paragraphs": []}]}))
    result = import_one(store, path)
    assert result.shape == "squad-articles"
    assert (result.rows_read, result.rows_kept, result.rows_duplicate, result.rows_rejected) == (3, 1, 0, 2)
    assert result.conversations == 2
    assert pairs(store) == [
        ("The hatch has a lever.\n\nWhat has the hatch?", "a lever"),
        ("Oil is grade 30.\n\nWhich grade?", "30"),
    ]
    assert (result.rejected, result.partly_rejected) == ({"no-answer": 2}, {"no-answer": 1})


def test_the_reason_of_each_rejected_part_is_recorded_with_its_number(store: Path, tmp_path: Path) -> None:
    import_one(store, write(tmp_path / "squad.jsonl", ARTICLE, UNANSWERED))
    assert rejects(store) == [
        (1, "no-answer", "Conversation 2 of 3: The question is marked as impossible to answer."),
        (2, "no-answer", "The question has no answer in its text."),
    ]


def test_equal_reasons_of_a_row_are_joined(store: Path, tmp_path: Path) -> None:
    questions = [{"question": "Why?", "answers": []}] * 2 + [{"question": " ", "answers": [{"text": "x"}]}]
    import_one(store, write(tmp_path / "s.jsonl", {"paragraphs": [{"context": "A.", "qas": questions}]}, ARTICLE))
    ((_, code, reason), _) = rejects(store)
    assert code == "no-answer"
    assert reason == (
        "Conversations 1, 2 of 3: The question has no answer in its text. Conversation 3 of 3: Turn 1 (human) is empty."
    )


def test_a_row_is_a_duplicate_if_all_of_its_conversations_are(store: Path, tmp_path: Path) -> None:
    again = {**ARTICLE, "paragraphs": ARTICLE["paragraphs"][1:]}
    result = import_one(store, write(tmp_path / "s.jsonl", ARTICLE, again))
    assert (result.rows_kept, result.rows_duplicate, result.rows_rejected) == (1, 1, 0)


def test_trace_lists_every_conversation_of_a_row_and_its_rejected_parts(store: Path, tmp_path: Path) -> None:
    import_one(store, write(tmp_path / "squad.jsonl", ARTICLE))
    with reading(store) as connection:
        found = trace(connection, "squad.jsonl#1")
    assert [type(lineage) for lineage in found].count(Lineage) == 2
    (rejected,) = [lineage for lineage in found if isinstance(lineage, RejectedRow)]
    assert rejected.reason.startswith("Conversation 2 of 3")


def test_keys_of_conversations_are_distinct_across_batches(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_stream, "CHUNK", 1024)
    monkeypatch.setattr(byte_stream, "FIRST_CHUNK", 1024)
    rows = [
        {"paragraphs": [{"context": f"C{n}", "qas": [{"question": f"Q{n}{k}", "answers": [{"text": f"A{n}{k}"}]}
                                                     for k in range(3)]}]}
        for n in range(60)
    ]  # fmt: skip
    result = import_one(store, write(tmp_path / "s.jsonl", *rows))
    assert (result.rows_kept, result.conversations) == (60, 180)
    assert pairs(store)[-1] == ("C59\n\nQ592", "A592")


def test_a_dry_run_counts_partly_rejected_rows_like_an_import(store: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "squad.jsonl", ARTICLE, UNANSWERED)
    (dry,) = import_files(store, [str(path)], ImportSection(), dry_run=True)
    real = import_one(store, path)
    (again,) = import_files(store, [str(path)], ImportSection(), dry_run=True)
    for result in (dry, real, again):
        assert (result.rows_kept, result.rows_rejected) == (1, 1)
        assert (result.rejected, result.partly_rejected) == ({"no-answer": 1}, {"no-answer": 1})


def test_an_exported_partly_rejected_row_closes_its_reject_when_it_is_imported(store: Path, tmp_path: Path) -> None:
    from curate.ingest.rejects import RejectFilter, export_rejects

    import_one(store, write(tmp_path / "squad.jsonl", ARTICLE))
    fixed = tmp_path / "fix.jsonl"
    with reading(store) as connection:
        exported = export_rejects(connection, RejectFilter(), fixed)
    assert exported.options == "--shape squad-articles --map paragraphs=paragraphs"
    row = json.loads(fixed.read_text())
    row["paragraphs"][0]["qas"][1] = {"question": "Who painted it?", "answers": [{"text": "Ann"}]}
    result = import_one(store, write(fixed, row), shape="squad-articles")
    assert (result.rows_kept, result.rows_rejected, result.closed, result.conversations) == (1, 0, 1, 1)


def test_removing_an_import_keeps_the_sums_of_another_one_with_the_same_conversations(
    store: Path, tmp_path: Path
) -> None:
    from curate.ingest.removal import remove_source

    import_one(store, write(tmp_path / "a.jsonl", ARTICLE))
    extra = {"context": "B", "qas": [{"question": "B?", "answers": [{"text": "b"}]}]}
    second = import_one(store, write(tmp_path / "b.jsonl", {"paragraphs": [*ARTICLE["paragraphs"], extra]}))
    assert (second.rows_kept, second.conversations) == (1, 1)
    remove_source(store, str(tmp_path / "a.jsonl"))
    with reading(store) as connection:
        counts = connection.sql("SELECT rows_read, rows_kept, rows_duplicate, conversations FROM sources").fetchall()
    assert counts == [(1, 1, 0, 3)]


# ---------------------------------------------------------------------------------------------------------- SQuAD


def squad(**changes: Any) -> dict[str, Any]:
    answers = {"text": ["a lever", "lever"], "answer_start": [14, 16]}
    row = {"id": "1", "title": "Boats", "context": "The hatch has a lever.", "question": "What has the hatch?"}
    return {**row, "answers": answers, **changes}


def test_squad_rows_become_passage_and_question_and_the_first_answer(store: Path, tmp_path: Path) -> None:
    result = import_one(store, write(tmp_path / "s.jsonl", squad(), squad(answers={"text": [], "answer_start": []})))
    assert result.shape == "squad"
    assert pairs(store) == [("The hatch has a lever.\n\nWhat has the hatch?", "a lever")]
    assert rejects(store) == [(2, "no-answer", "The question has no answer in its text.")]


@pytest.mark.parametrize(
    "changes",
    [
        {"answers": [{"text": "a lever", "answer_start": 14}]},
        {"answers_spans": {"spans": ["a lever"], "types": ["span"]}, "answers": None},
    ],
)
def test_answers_of_squad_may_be_a_list_of_objects_or_spans(
    store: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    row = {name: value for name, value in squad(**changes).items() if value is not None}
    assert import_one(store, write(tmp_path / "s.jsonl", row)).shape == "squad"
    assert pairs(store) == [("The hatch has a lever.\n\nWhat has the hatch?", "a lever")]


def test_answers_of_squad_that_are_broken_json_are_rejected(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    frame = pl.DataFrame([{**squad(), "answers": json.dumps(squad()["answers"])}, {**squad(), "answers": "{'text': ["}])
    frame.write_csv(path)
    import_one(store, path)
    assert [(row, code) for row, code, _ in rejects(store)] == [(2, "broken-json")]
