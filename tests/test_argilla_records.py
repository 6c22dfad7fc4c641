"""Exports of Argilla: records with fields and responses, and the flat columns of datasets."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.imports import import_one, pairs, rejects, talks, write

ANNA, BEN = (str(UUID(int=number)) for number in (1, 2))
FIELDS = {"prompt": "How do I reset my password?", "response": "Click it."}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


def flat(prompt: str, **columns: Any) -> dict[str, Any]:
    """A row of `to_datasets`: question → (value, user, status) of each response, or None."""
    row: dict[str, Any] = {"id": prompt, "status": "completed", "_server_id": "s", "prompt": prompt, "response": "Old."}
    for question, responses in columns.items():
        parts = [None] * 3 if responses is None else [list(part) for part in zip(*responses, strict=True)]
        row |= zip([f"{question}.responses{end}" for end in ("", ".users", ".status")], parts, strict=True)
    return row


def old(user: str, status: str = "submitted", **values: Any) -> dict[str, Any]:
    """A response of a feedback dataset of Argilla 1."""
    return {"user_id": user, "values": {name: {"value": value} for name, value in values.items()}, "status": status}


def test_records_that_argilla_writes_have_a_conversation_for_each_annotator(store: Path, tmp_path: Path) -> None:
    rg = pytest.importorskip("argilla")

    def record(*responses: tuple[str, Any, str], **fields: str) -> dict[str, Any]:
        given = [rg.Response(name, value, UUID(user)) for name, value, user in responses]
        return dict(rg.Record(id="1", fields=fields or FIELDS, metadata={"lang": "en"}, responses=given).to_dict())

    rows = [
        record(("verdict", "edit", ANNA), ("correction", "Use the link.", ANNA), ("verdict", "keep", BEN)),
        record(("verdict", "keep", ANNA), ("rating", 4, ANNA), ("verdict", "Bad", BEN), prompt="Hi", response="Ho"),
        record(("verdict", None, ANNA), prompt="Not mine", response="No"),
        record(prompt="Not yet", response="No"),
    ]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    result = import_one(store, tmp_path / "records.json")
    assert (result.shape, result.rows_kept, result.rows_rejected) == ("argilla", 2, 2)
    question = FIELDS["prompt"]
    assert pairs(store) == [(question, "Use the link."), (question, "Click it."), ("Hi", "Ho")]
    assert rejects(store) == [
        (2, "no-answer", f"Conversation 2 of 2: The annotator {BEN} marked the answer as bad (verdict: Bad)."),
        (3, "no-answer", f"The annotator {ANNA} discarded the record."),
        (4, "no-answer", "No annotator has submitted an answer to the record."),
    ]


def test_the_flat_columns_of_a_dataset_are_read_with_the_status_of_each_response(store: Path, tmp_path: Path) -> None:
    rows = [
        flat("a", verdict=[("keep", ANNA, "submitted"), ("drop", BEN, "submitted")], correction=None),
        flat("b", verdict=[("bad", ANNA, "submitted")], correction=[("New.", ANNA, "submitted")]),
        flat("c", verdict=[("keep", ANNA, "discarded")], correction=None),
        flat("d", verdict=[("keep", ANNA, "draft")], correction=None),
        flat("e", verdict=[("keep", ANNA, "submitted"), ("keep", BEN, "submitted")], correction=None),
    ]
    assert import_one(store, write(tmp_path / "f.jsonl", *rows)).shape == "argilla-columns"
    assert pairs(store) == [("a", "Old."), ("b", "New."), ("e", "Old.")]
    assert [(row, reason) for row, _, reason in rejects(store)] == [
        (1, f"Conversation 2 of 2: The annotator {BEN} dropped the record (verdict: drop)."),
        (3, f"The annotator {ANNA} discarded the record."),
        (4, "No annotator has submitted an answer to the record."),
    ]


def test_columns_that_pandas_wrote_as_python_lists_are_rejected(store: Path, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(
        "prompt,response,verdict.responses,verdict.responses.users,verdict.responses.status\n"
        "a,Old.,['keep'],['u'],['submitted']\n"
    )
    assert import_one(store, tmp_path / "f.csv").rejected == {"broken-json": 1}


def test_feedback_datasets_of_argilla_1_are_read_in_both_layouts(store: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [
        {"fields": FIELDS, "responses": [old("u1", quality="good", corrected="B."), old("u2", "discarded")]},
        {"fields": {"chat": chat}, "responses": [old("u1", label="👎"), old("u2", label="👍")]},
        {"fields": {"text": "The food is great."}, "responses": [old("u1", label="positive")]},
    ]
    assert import_one(store, write(tmp_path / "one.jsonl", *rows)).shape == "argilla"
    assert talks(store)[1] == [("human", "Hi"), ("gpt", "Ho")]
    assert pairs(store)[0][1:] + pairs(store)[2] == ("B.", "The food is great.", "positive")
    assert [row for row, _, _ in rejects(store)] == [1, 2]
    answer = {"user_id": "u1", "value": "B.", "status": "submitted"}
    row = {"prompt": "Q", "response": "A", "correction": [answer], "external_id": "7", "metadata": "{}"}
    second = store.with_name("y.duckdb")
    assert import_one(second, write(tmp_path / "flat.jsonl", row)).shape == "argilla-columns"
    assert pairs(second) == [("Q", "B.")]


def test_a_text_that_may_be_a_correction_is_asked_for(store: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", {"fields": FIELDS, "responses": [old("u1", summary="Use the link up there.")]})
    assert import_one(store, path).rejected == {"no-answer": 1}
    assert "--map correction=responses.NAME" in rejects(store)[0][2]
    mapped, fields = store.with_name("y.duckdb"), store.with_name("z.duckdb")
    import_one(mapped, path, map=["correction=responses.summary"])
    import_one(fields, path, shape="pairs", map=["question=fields.prompt", "answer=fields.response"])
    assert [pairs(mapped)[0][1], pairs(fields)[0][1]] == ["Use the link up there.", "Click it."]
