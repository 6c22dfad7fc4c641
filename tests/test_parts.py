"""Rows with any number of conversations, such as SQuAD articles: counted, rejected, traced, removed in parts."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.imports import import_one, pairs, rejects, write

from curate.ingest.pipeline import import_files
from curate.ingest.readers import byte_stream
from curate.ingest.rejects import RejectFilter, export_rejects
from curate.ingest.removal import remove_source
from curate.versions.card_stats import describe_rejects
from curate.versions.freeze import freeze
from curate.versions.lineage import Lineage, RejectedRow, trace
from schemas.errors import VersionError
from schemas.import_recipe import ImportSection
from schemas.recipe import check_recipe
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


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


# ---------------------------------------------------------------------------------- several per row

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


def test_the_card_of_a_version_counts_only_rows_without_a_conversation_as_rejected(store: Path, tmp_path: Path) -> None:
    import_one(store, write(tmp_path / "squad.jsonl", ARTICLE, UNANSWERED))
    with writing(store) as connection:
        version = freeze(connection, "boats", check_recipe({"freeze": {"held_out": 0}}, "the test")).version
        assert describe_rejects(connection, version) == [{"code": "no-answer", "rows": 1, "repaired since": 0}]


def test_trace_lists_the_ids_of_a_row_with_many_conversations(store: Path, tmp_path: Path) -> None:
    questions = [{"question": f"Q{n}", "answers": [{"text": f"A{n}"}]} for n in range(25)]
    import_one(store, write(tmp_path / "s.jsonl", {"paragraphs": [{"context": "C", "qas": questions}]}))
    with reading(store) as connection, pytest.raises(VersionError, match=r"Row 1 of .* has 25 conversations") as error:
        trace(connection, "s.jsonl#1")
    assert "Trace one by its id: " in error.value.hint


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
    import_one(store, write(tmp_path / "a.jsonl", ARTICLE))
    extra = {"context": "B", "qas": [{"question": "B?", "answers": [{"text": "b"}]}]}
    second = import_one(store, write(tmp_path / "b.jsonl", {"paragraphs": [*ARTICLE["paragraphs"], extra]}))
    assert (second.rows_kept, second.conversations) == (1, 1)
    remove_source(store, str(tmp_path / "a.jsonl"))
    with reading(store) as connection:
        counts = connection.sql("SELECT rows_read, rows_kept, rows_duplicate, conversations FROM sources").fetchall()
    assert counts == [(1, 1, 0, 3)]
