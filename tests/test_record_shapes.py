"""Shapes of whole records: rows that are not a list of turns, with any number of conversations each."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.advice import printed_options

from curate.ingest.import_options import apply_options
from curate.ingest.import_result import ImportResult
from curate.ingest.pipeline import import_files
from curate.ingest.readers import byte_stream
from curate.ingest.rejects import RejectFilter, export_rejects
from curate.ingest.removal import remove_source
from curate.ingest.shapes import SHAPES
from curate.versions.card_stats import describe_rejects
from curate.versions.freeze import freeze
from curate.versions.lineage import Lineage, RejectedRow, trace
from schemas.errors import SourceError, VersionError
from schemas.import_recipe import ImportSection
from schemas.recipe import check_recipe
from schemas.store import reading, writing


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


# ---------------------------------------------------------------------------------- SQuAD


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


# ---------------------------------------------------------------------------------- several answers to a prompt

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


# ---------------------------------------------------------------------------------- trees


def message(id_: str, parent: str | None, **more: Any) -> dict[str, Any]:
    role = "assistant" if id_.startswith("a") else "prompter"
    return {"message_id": id_, "parent_id": parent, "text": f"text {id_}", "role": role, **more}


def texts(store: Path) -> list[str]:
    return [" ".join(text.removeprefix("text ") for text in turns) for turns in pairs(store)]


def test_every_path_from_the_first_message_to_a_last_answer_is_a_conversation(store: Path, tmp_path: Path) -> None:
    rows = [("r", None), ("a1", "r"), ("p2", "a1"), ("a2", "p2"), ("p3", "a1"), ("a3", "p3"), ("a4", "r")]
    result = import_one(store, write(tmp_path / "t.jsonl", *(message(*row) for row in rows)))
    assert result.shape == "tree"
    assert (result.rows_read, result.rows_kept, result.conversations) == (7, 7, 3)
    assert texts(store) == ["r a1 p2 a2", "r a1 p3 a3", "r a4"]


def test_rows_of_a_tree_may_be_in_any_order_and_ids_of_two_trees_do_not_mix(store: Path, tmp_path: Path) -> None:
    rows = [("a2", "p2"), ("a9", "s"), ("p2", "a1"), ("a1", "r"), ("s", None), ("r", "")]
    import_one(store, write(tmp_path / "t.jsonl", *(message(*row) for row in rows)))
    assert texts(store) == ["r a1 p2 a2", "s a9"]


def test_a_message_that_no_answer_follows_is_rejected_alone(store: Path, tmp_path: Path) -> None:
    rows = [("r", None), ("a1", "r"), ("p2", "a1"), ("q", None)]
    result = import_one(store, write(tmp_path / "t.jsonl", *(message(*row) for row in rows)))
    assert texts(store) == ["r a1"]
    assert result.rows_kept == 2
    assert rejects(store) == [(n, "no-answer", "No answer follows the message.") for n in (3, 4)]


def test_messages_after_a_missing_parent_or_in_a_circle_are_rejected(store: Path, tmp_path: Path) -> None:
    rows = [("r", None), ("a1", "r"), ("a2", "gone"), ("p3", "a2"), ("a4", "p5"), ("p5", "a4"), ("a6", "a6")]
    import_one(store, write(tmp_path / "t.jsonl", *(message(*row) for row in rows)))
    assert texts(store) == ["r a1"]
    assert [(row, code) for row, code, _ in rejects(store)] == [(n, "missing-parent") for n in (3, 4, 5, 6, 7)]


def test_an_invalid_branch_is_rejected_and_others_of_its_rows_are_kept(store: Path, tmp_path: Path) -> None:
    rows = [message("r", None), message("a1", "r"), message("a2", "r", text=" ")]
    result = import_one(store, write(tmp_path / "t.jsonl", *rows))
    assert texts(store) == ["r a1"]
    assert (result.rows_kept, result.rows_rejected) == (2, 1)
    assert rejects(store) == [
        (1, "empty-answer", "Conversation 2 of 2: Turn 2 (gpt) is empty."),
        (3, "empty-answer", "Turn 2 (gpt) is empty."),
    ]


def test_rows_with_the_id_of_their_ticket_are_not_a_tree(store: Path, tmp_path: Path) -> None:
    rows = [{"id": n, "parent": "T1", "role": role, "text": "x"} for n, role in enumerate(["user", "assistant"])]
    with pytest.raises(SourceError, match=r"not certain|No shape fits"):
        import_one(store, write(tmp_path / "t.jsonl", *rows))


def test_of_ranked_replies_the_best_ranked_ones_are_imported_on_request(store: Path, tmp_path: Path) -> None:
    ranked = [message("a1", "r", rank=1), message("a2", "r", rank=0), message("p3", "a1"), message("a3", "p3", rank=0)]
    path = write(tmp_path / "t.jsonl", message("r", None), *ranked)
    with pytest.raises(SourceError, match=r"best-branch .* or tree"):
        import_one(store, path)
    result = import_one(store, path, shape="best-branch")
    assert texts(store) == ["r a2"]
    assert result.rejected == {"lower-ranked": 3}


def test_removing_an_import_keeps_every_row_of_a_branch_in_another_import(store: Path, tmp_path: Path) -> None:
    rows = [message("r", None), message("a1", "r"), message("a2", "r")]
    import_one(store, write(tmp_path / "a.jsonl", *rows))
    second = import_one(store, write(tmp_path / "b.jsonl", *rows, message("a3", "r")))
    assert (second.rows_kept, second.rows_duplicate) == (2, 2)
    remove_source(store, str(tmp_path / "a.jsonl"))
    with reading(store) as connection:
        counts = connection.sql("SELECT rows_kept, rows_duplicate, conversations FROM sources").fetchall()
    assert counts == [(4, 0, 3)]


def nested(id_: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**message(id_, None, **more), "replies": list(replies)}


def test_the_branches_of_nested_replies_are_conversations_of_one_row(store: Path, tmp_path: Path) -> None:
    tree = nested("r", nested("a1", nested("p2", nested("a2")), nested("p3")), nested("a4"))
    row = {"message_tree_id": "r", "tree_state": "ready_for_export", "prompt": tree}
    result = import_one(store, write(tmp_path / "trees.jsonl", row))
    assert (result.shape, result.rows_kept, result.conversations) == ("replies", 1, 2)
    assert texts(store) == ["r a1 p2 a2", "r a4"]
    assert rejects(store) == [(1, "no-answer", "Conversation 2 of 3: No answer follows the message.")]


def test_of_nested_ranked_replies_the_best_ranked_one_is_imported_on_request(store: Path, tmp_path: Path) -> None:
    tree = nested("r", nested("a1", rank=1), nested("a2", rank=0))
    path = write(tmp_path / "trees.jsonl", {"prompt": tree})
    with pytest.raises(SourceError, match=r"best-replies .* or replies"):
        import_one(store, path)
    import_one(store, path, shape="best-replies")
    assert texts(store) == ["r a2"]


# ---------------------------------------------------------------------------------- ChatGPT


def node(id_: str, parent: str | None, role: str, *parts: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    content = {"content_type": "text", "parts": list(parts), **more.pop("content", {})}
    text = {"id": id_, "author": {"role": role, "name": more.pop("name", None)}, "content": content, **more}
    return id_, {"id": id_, "message": text, "parent": parent, "children": []}


def chat_export(*nodes: tuple[str, dict[str, Any]], current: str) -> dict[str, Any]:
    root = {"id": "root", "message": None, "parent": None, "children": ["x"]}
    return {"title": "Boats", "mapping": {"root": root, **dict(nodes)}, "current_node": current}


def test_only_the_shown_branch_of_a_chatgpt_export_is_read(store: Path, tmp_path: Path) -> None:
    hidden = {"metadata": {"is_visually_hidden_from_conversation": True}}
    row = chat_export(
        node("s", "root", "system", ""),
        node("h", "s", "user", "My profile", **hidden),
        node("w", "h", "user", "Not counted", weight=0.0),
        node("u", "w", "user", "How?", "Really?"),
        node("old", "u", "assistant", "No."),
        node("t", "u", "assistant", content={"content_type": "thoughts", "parts": None, "thoughts": []}),
        node("new", "t", "assistant", "Pull.", weight=1.0),
        current="new",
    )
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([row]))
    result = import_one(store, path)
    assert (result.shape, result.rows_kept) == ("chatgpt", 1)
    assert talks(store) == [[("human", "How?\n\nReally?"), ("gpt", "Pull.")]]


@pytest.mark.parametrize(
    ("nodes", "current", "code"),
    [
        ([node("u", "root", "user", "Draw"), node("a", "u", "tool", "x", name="dalle")], "a", "uses-tools"),
        ([node("u", "root", "user", "Run"), node("a", "u", "assistant", "x", recipient="python")], "a", "uses-tools"),
        (
            [node("u", "root", "user", {"content_type": "image_asset_pointer"}, "What?",
                  content={"content_type": "multimodal_text"}), node("a", "u", "assistant", "A boat.")],
            "a",
            "non-text-content",
        ),
        ([node("u", "root", "user", "Hi"), node("a", "u", "assistant", "Ho")], "gone", "missing-conversation"),
        ([node("u", "a", "user", "Hi"), node("a", "u", "assistant", "Ho")], "a", "missing-conversation"),
        ([node("u", "root", "user", "Hi")], "u", "not-ending-with-assistant"),
    ],
)  # fmt: skip
def test_a_chatgpt_conversation_that_is_not_only_text_is_rejected_with_its_reason(
    store: Path, tmp_path: Path, nodes: list[Any], current: str, code: str
) -> None:
    good = chat_export(node("u", "root", "user", "Hi"), node("a", "u", "assistant", "Ho"), current="a")
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([good, chat_export(*nodes, current=current)]))
    assert import_one(store, path).rejected == {code: 1}


# ---------------------------------------------------------------------------------- multiple choice

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


# ---------------------------------------------------------------------------------- traces

ASKED, TOLD = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Pull."}
LANGCHAIN_ASKED = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "HumanMessage"],
    "kwargs": {"content": "How?"},
}
LANGCHAIN_TOLD = {"lc": 1, "type": "constructor", "id": ["x", "AIMessageChunk"], "kwargs": {"content": "Pull."}}


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ({"messages": [ASKED]}, {"role": "assistant", "content": "Pull."}),
        ({"messages": [ASKED], "model": "x"}, {"id": "c", "choices": [{"index": 0, "message": TOLD}]}),
        ({"messages": [ASKED]}, {"message": TOLD}),
        ({"messages": [ASKED]}, {"messages": [ASKED, TOLD]}),
        ({"messages": [ASKED]}, {"messages": [TOLD]}),
        ({"messages": [ASKED]}, {"output": "Pull."}),
        ({"messages": [ASKED]}, {"output": [{"type": "reasoning"}, {**TOLD, "type": "message"}]}),
        ({"messages": [ASKED]}, "Pull."),
        ({"messages": [[LANGCHAIN_ASKED]]}, {"generations": [[{"text": "Pull.", "message": LANGCHAIN_TOLD}]]}),
        ({"messages": [{"type": "human", "data": {"content": "How?"}}]}, {"generations": [[{"text": "Pull."}]]}),
        ({"question": "How?"}, {"answer": "Pull."}),
        ([ASKED], [TOLD]),
    ],
)
@pytest.mark.parametrize("names", [("inputs", "outputs"), ("request", "response")])
def test_the_messages_of_an_output_follow_those_of_its_input(
    tmp_path: Path, given: Any, output: Any, names: tuple[str, str]
) -> None:
    store = tmp_path / "x.duckdb"
    row = {"id": "1", names[0]: given, names[1]: output, "metadata": {"source": "x"}}
    assert import_one(store, write(tmp_path / "runs.jsonl", row)).shape == "trace"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull.")]]


def test_langfuse_generations_keep_their_output_and_their_tools(store: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"n": 1e5}'}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    rows = [
        {"id": "1", "input": json.dumps([ASKED]), "output": json.dumps(TOLD)},
        {"id": "2", "input": json.dumps({"messages": [ASKED], "tools": [tool]}), "output": json.dumps(calling)},
        {"id": "3", "input": json.dumps([ASKED]), "output": 'Turn, "then" pull.'},
        {"id": "4", "input": json.dumps([ASKED]), "output": None},
        {"id": "5", "input": json.dumps([ASKED]), "output": '{"score": 3}'},
    ]
    path = tmp_path / "langfuse.csv"
    pl.DataFrame(rows).write_csv(path)
    result = import_one(store, path)
    assert result.shape == "generation"
    assert [turns[-1] for turns in talks(store)] == [
        ("gpt", "Pull."),
        ("function_call", '{"name": "look", "arguments": {"n": 1e5}, "id": "c"}'),
        ("gpt", 'Turn, "then" pull.'),
    ]
    assert rejects(store) == [
        (4, "no-answer", "The row has no output."),
        (5, "no-answer", 'The output has no message or text: {"score": 3}'),
    ]
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM conversations WHERE tools IS NOT NULL").fetchall() == [(1,)]


def test_a_langfuse_dataset_has_expected_outputs(store: Path, tmp_path: Path) -> None:
    row = {"id": "1", "input": {"messages": [ASKED]}, "expectedOutput": TOLD, "metadata": None}
    assert import_one(store, write(tmp_path / "items.jsonl", row)).shape == "generation"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull.")]]


def test_an_alpaca_file_whose_inputs_are_json_stays_an_alpaca_file(store: Path, tmp_path: Path) -> None:
    row = {"instruction": "Read the text.", "input": '{"text": "Hi"}', "output": '{"greeting": true}'}
    assert import_one(store, write(tmp_path / "a.jsonl", row)).shape == "alpaca"


def test_an_alpaca_file_without_inputs_stays_an_alpaca_file(store: Path, tmp_path: Path) -> None:
    row = {"instruction": "Say hello.", "input": None, "output": "Hello."}
    assert import_one(store, write(tmp_path / "a.jsonl", row)).shape == "alpaca"


def batch_result(id_: str, text: str) -> dict[str, Any]:
    body = {"model": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return {"id": f"b{id_}", "custom_id": id_, "response": {"status_code": 200, "body": body}, "error": None}


def batch_request(id_: str, text: str) -> dict[str, Any]:
    body = {"model": "x", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": id_, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_the_output_of_an_openai_batch_is_read_together_with_its_requests(store: Path, tmp_path: Path) -> None:
    results = [batch_result("r2", "B"), batch_result("r1", "A"), batch_result("r9", "Z")]
    requests = [batch_request("r1", "A?"), batch_request("r2", "B?"), batch_request("r3", "C?")]
    result = import_one(store, write(tmp_path / "both.jsonl", *results, *requests))
    assert result.shape == "openai-batch"
    assert pairs(store) == [("B?", "B"), ("A?", "A")]
    assert (result.rows_read, result.rows_kept, result.conversations) == (6, 4, 2)
    assert rejects(store) == [
        (3, "no-question", "No request has the custom_id r9."),
        (6, "no-answer", "No result has the custom_id r3."),
    ]


def test_the_output_of_an_openai_batch_alone_is_an_error_with_the_command(store: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="answers without their questions") as error:
        import_one(store, write(tmp_path / "output.jsonl", batch_result("r1", "A")))
    assert "cat output.jsonl requests.jsonl | curate import -" in error.value.hint


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


def test_replies_that_a_shape_leaves_out_by_request_do_not_count_for_max_rejects(store: Path, tmp_path: Path) -> None:
    ranked = [message("r", None), message("a1", "r", rank=1), message("a2", "r", rank=0)]
    result = import_one(store, write(tmp_path / "t.jsonl", *ranked), shape="best-branch", max_rejects="0%")
    assert (result.rows_kept, result.rejected) == (2, {"lower-ranked": 1})


def test_every_shape_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[1] / "curate" / "ingest" / "README.md").read_text()
    assert [name for name in SHAPES if f"`{name}`" not in guide] == []
