"""Messages that name their parents, flat, nested or as a ChatGPT export: one conversation per branch."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.imports import import_one, pairs, rejects, talks, write

from curate.ingest.removal import remove_source
from schemas.errors import SourceError
from schemas.store import reading


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


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


def test_replies_that_a_shape_leaves_out_by_request_do_not_count_for_max_rejects(store: Path, tmp_path: Path) -> None:
    ranked = [message("r", None), message("a1", "r", rank=1), message("a2", "r", rank=0)]
    result = import_one(store, write(tmp_path / "t.jsonl", *ranked), shape="best-branch", max_rejects="0%")
    assert (result.rows_kept, result.rejected) == (2, {"lower-ranked": 1})


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
