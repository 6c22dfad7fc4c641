"""Rows that refer to images or sound are rejected one by one; text rows of the same file are imported."""

import json

import pytest

from curate.ingest.pipeline import import_files
from schemas.import_recipe import ImportSection
from schemas.store import reading


def shaped(shape, question):
    answer = "It is a red tug."
    return {
        "pairs": {"question": question, "answer": answer},
        "alpaca": {"instruction": question, "output": answer},
        "sharegpt": {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        "messages": {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
    }[shape]


def outcome(tmp_path, rows, **options):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (result,) = import_files(tmp_path / "s.duckdb", [str(path)], ImportSection(**options))
    assert result.rows_read == result.rows_kept + result.rows_duplicate + result.rows_rejected
    with reading(tmp_path / "s.duckdb") as connection:
        return connection.sql('SELECT line, code, reason FROM rejects ORDER BY "row"').fetchall()


@pytest.mark.parametrize("shape", ["pairs", "alpaca", "sharegpt", "messages"])
@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("image", "0.jpg"),
        ("images", ["a.png", "b.png"]),
        ("Image", {"bytes": None, "path": "deck.webp"}),
        ("image_url", "https://example.org/deck?id=7"),
        ("imageUrl", "https://example.org/deck?id=7"),
        ("audio", {"array": [0.1], "sampling_rate": 16000}),
        ("videos", ["v.mp4"]),
    ],
)
def test_a_row_with_a_filled_media_column_is_rejected(tmp_path, shape, column, cell):
    rows = [{**shaped(shape, f"What is ship {n}?"), column: cell if n == 1 else None} for n in range(3)]
    ((line, code, reason),) = outcome(tmp_path, rows)
    assert (line, code) == (2, "refers-to-media")
    assert reason.startswith(f"The column {column} refers to media: ")


@pytest.mark.parametrize("empty", ["", [], None, [None], {"bytes": None, "path": None}, "null", "nan", [""]])
def test_an_empty_media_column_is_no_media(tmp_path, empty):
    rows = [{**shaped("pairs", f"What is ship {n}?"), "images": empty} for n in range(2)]
    assert outcome(tmp_path, [*rows, {**shaped("pairs", "And this?"), "images": ["x.png"]}]) == [
        (3, "refers-to-media", 'The column images refers to media: ["x.png"]')
    ]


@pytest.mark.parametrize("shape", ["pairs", "alpaca", "sharegpt", "messages"])
@pytest.mark.parametrize("placeholder", ["<image>", "<audio>", "<video>", "<|image_pad|>"])
def test_a_placeholder_in_a_question_is_rejected(tmp_path, shape, placeholder):
    column = {} if shape in ("sharegpt", "messages") else {"images": []}
    rows = [{**shaped(shape, text), **column} for text in ("What is a tug?", f"{placeholder}\nWhat is this?")]
    assert outcome(tmp_path, rows) == [(2, "refers-to-media", f"A question contains the placeholder {placeholder}.")]


@pytest.mark.parametrize("question", ["Close <image>a.png</image>, please.", "Why is img onerror in <img onerror>?"])
def test_markup_is_text(tmp_path, question):
    assert outcome(tmp_path, [shaped("pairs", question)]) == []


def test_a_placeholder_in_a_table_without_media_is_text(tmp_path):
    assert outcome(tmp_path, [shaped("alpaca", "Describe it: <image>")]) == []


def test_a_mapped_column_is_text(tmp_path):
    rows = [{"picture": "A tug, from the side.", "answer": "Seen from port."}]
    assert outcome(tmp_path, rows, map={"question": "picture", "answer": "answer"}) == []


def test_a_conversation_of_several_rows_is_rejected_as_a_whole(tmp_path):
    rows = [
        {"id": ticket, "at": at, "role": role, "text": f"Text {at}.", "image": "x.png" if at == 1 else ""}
        for ticket, at, role in [("A", 1, "user"), ("A", 2, "assistant"), ("B", 3, "user"), ("B", 4, "assistant")]
    ]
    rejects = outcome(tmp_path, rows, shape="long", group_by="id", order_by="at", role="role", text="text")
    assert [(line, code) for line, code, _ in rejects] == [(1, "refers-to-media"), (2, "refers-to-media")]
