"""Content ids: equal for a frame and for a single conversation, whatever the turns contain."""

import random

import polars as pl
import pytest

from schemas.conversation import CONVERSATIONS, Conversation, Turn, fold, unfold

UNUSUAL_TEXTS = (
    "Hi",
    "",
    "  ",
    "é漢🙂",
    "'; DROP TABLE x;--",
    "<|im_end|>",
    "=cmd()",
    "a;gpt:2:no",
    "line\nbreak\x00",
    "7:human:",
)


def turns_of(conversations: list[Conversation]) -> pl.DataFrame:
    rows = [{"row": n, **turn.as_row()} for n, conversation in enumerate(conversations) for turn in conversation.turns]
    schema = {"row": pl.Int64, "from": pl.String, "value": pl.String, "train": pl.Boolean, "tool_call_id": pl.String}
    return pl.DataFrame(rows, schema=schema)


def random_conversation(rng: random.Random, length: int) -> Conversation:
    turns = [
        Turn(
            rng.choice(["system", "human", "gpt", "function_call", "observation"]),
            "".join(rng.choices(UNUSUAL_TEXTS, k=rng.randint(1, 3))),
            rng.random() < 0.8,
            rng.choice([None, None, "call_1", "!#:"]),
        )
        for _ in range(length)
    ]
    return Conversation(tuple(turns), rng.choice([None, None, "[]", '[{"name": "f"}]']))


@pytest.mark.parametrize("lengths", [[2] * 50, [1] * 20, [random.Random(3).randint(1, 6) for _ in range(80)]])
def test_a_frame_and_a_single_conversation_have_the_same_ids(lengths):
    rng = random.Random(7)
    conversations = [random_conversation(rng, length) for length in lengths]
    folded = fold(turns_of(conversations), [conversation.tools for conversation in conversations])
    assert folded["id"].to_list() == [conversation.id for conversation in conversations]
    assert [Conversation.from_row(row) for row in folded.iter_rows(named=True)] == conversations
    assert dict(folded.drop("row").schema) == CONVERSATIONS


def test_the_id_of_a_conversation_never_changes():
    conversation = Conversation(
        (Turn("system", "Be brief."), Turn("human", "Grüße?"), Turn("gpt", "Hallo", train=False)), "[]"
    )
    assert conversation.id == "222b8fed5d732fcbaa69f9ef8f59fef3"


def test_one_turn_has_another_id_than_two_turns_with_the_same_text():
    one = Conversation((Turn("human", "a;gpt:1:b"),))
    two = Conversation((Turn("human", "a"), Turn("gpt", "b")))
    assert one.id != two.id


def test_unfold_inverts_fold():
    conversations = [random_conversation(random.Random(n), n + 1) for n in range(5)]
    folded = fold(turns_of(conversations), [conversation.tools for conversation in conversations])
    turns = unfold(folded)
    assert turns.drop("id", "position").equals(turns_of(conversations).drop("row"))
    assert turns["position"].to_list() == [n for conversation in conversations for n in range(len(conversation.turns))]


def test_folding_no_turns_gives_no_conversations():
    assert fold(turns_of([])).height == 0
