"""Shapes of exports from labelling, support and chat tools, and of datasets with their own layout."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.imports import import_one, pairs, rejects, talks, write

from schemas.errors import SourceError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "x.duckdb"


def write_list(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


# ---------------------------------------------------------------------------------- datasets


def test_each_instance_of_self_instruct_is_a_conversation(store: Path, tmp_path: Path) -> None:
    instances = [{"input": "", "output": "A"}, {"input": "Text", "output": "B"}, {"input": "x", "output": ""}]
    rows = [{"id": "seed", "instruction": "Do it.", "instances": instances}, {"instruction": "None", "instances": []}]
    result = import_one(store, write(tmp_path / "s.jsonl", *rows))
    assert (result.shape, result.rows_kept, result.rows_rejected) == ("instances", 1, 1)
    assert pairs(store) == [("Do it.", "A"), ("Do it.\n\nText", "B")]
    assert rejects(store) == [
        (1, "empty-answer", "Conversation 3 of 3: Turn 2 (gpt) is empty."),
        (2, "no-answer", "The row has no answer."),
    ]


@pytest.mark.parametrize("separator", ["\n\n###\n\n", "\n\n###", " ->", "\n\n---\n\n", "\n=>"])
@pytest.mark.parametrize("stop", [" END", "###", "\n", ""])
def test_separators_and_stop_sequences_of_old_openai_files_are_removed(
    store: Path, tmp_path: Path, separator: str, stop: str
) -> None:
    row = {"prompt": f"What is a -> b?{separator}", "completion": f" An arrow, the END.{stop}"}
    result = import_one(store, write(tmp_path / "old.jsonl", row))
    assert (result.shape, result.warnings) == ("openai-legacy", {})
    assert pairs(store) == [("What is a -> b?", "An arrow, the END.")]


def test_prompts_without_separators_stay_pairs(store: Path, tmp_path: Path) -> None:
    assert (
        import_one(store, write(tmp_path / "p.jsonl", {"prompt": "Hi ### you", "completion": "Ho END"})).shape
        == "pairs"
    )
    assert pairs(store) == [("Hi ### you", "Ho END")]


A, B = (
    [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}],
    [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "b"},
    ],
)


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (
            [{"conversation_a": A, "conversation_b": B, "winner": w} for w in ("model_b", "tie", "tie (bothbad)")],
            "winner",
        ),
        ([{"prompt": "Q", "response_a": "a", "response_b": "b", "winner": w} for w in ("B", "tie", "both")], "winner"),
        (
            [
                {"prompt": '["Q"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 0,
                 "winner_model_b": won, "winner_tie": 1 - won}
                for won in (1, 0, 0)
            ],
            "winner-flags",
        ),
    ],
)  # fmt: skip
def test_the_answer_that_won_is_imported_on_request_and_ties_are_rejected(
    store: Path, tmp_path: Path, rows: list[dict[str, Any]], shape: str
) -> None:
    path = write(tmp_path / "arena.jsonl", *rows)
    with pytest.raises(SourceError) as error:
        import_one(store, path)
    assert f"--shape {shape} " in error.value.hint
    result = import_one(store, path, shape=shape)
    assert pairs(store) == [("Q", "b")]
    assert result.rejected == {"no-winner": 2}


# ---------------------------------------------------------------------------------- labelling tools


def annotated(*annotations: Any, **data: str) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": list(annotations), "predictions": []}


def wrote(*texts: str, name: str = "response", **more: Any) -> dict[str, Any]:
    value = {"value": {"text": list(texts)}, "from_name": name, "to_name": "prompt", "type": "textarea"}
    return {"id": 1, "result": [value, *more.pop("result", [])], "was_cancelled": False, **more}


def test_each_annotation_of_label_studio_is_a_conversation(store: Path, tmp_path: Path) -> None:
    chosen = {"value": {"choices": ["good", "short"]}, "from_name": "x", "to_name": "y", "type": "choices"}
    rows = [
        annotated(
            wrote("Pull.", "Then turn."),
            wrote("No.", was_cancelled=True),
            wrote("Push.", result=[chosen]),
            prompt="How?",
        ),
        annotated({"result": [chosen], "was_cancelled": False}, comment="A ship."),
        annotated(prompt="Nobody?"),
        annotated(wrote("a", result=wrote("b", name="reason")["result"]), prompt="Two?"),
    ]
    result = import_one(store, write_list(tmp_path / "ls.json", *rows))
    assert result.shape == "label-studio"
    assert pairs(store) == [("How?", "Pull.\nThen turn."), ("How?", "Push."), ("A ship.", "good, short")]
    assert rejects(store) == [
        (3, "no-answer", "The row has no answer."),
        (4, "no-answer", "The annotation has several texts (response, reason)."),
    ]


def test_the_prompt_of_label_studio_can_be_any_key_of_the_data(store: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path / "ls.json", annotated(wrote("Pull."), ticket="How?", source="mail"))
    assert import_one(store, path).rejected == {"no-question": 1}
    assert "--map prompt=data.KEY" in rejects(store)[0][2]
    import_one(store.with_name("y.duckdb"), path, map=["prompt=data.ticket"])
    assert pairs(store.with_name("y.duckdb")) == [("How?", "Pull.")]


# ---------------------------------------------------------------------------------- support and chat tools


def comment(author: int, body: str, **more: Any) -> dict[str, Any]:
    return {"id": 1, "author_id": author, "body": body, "public": True, **more}


def test_comments_of_the_requester_are_the_user_and_internal_notes_are_left_out(store: Path, tmp_path: Path) -> None:
    comments = [
        comment(9, "How?"),
        comment(9, "Really?"),
        comment(5, "Ask Bob.", public=False),
        comment(5, "<p>Pull.</p>", plain_body="Pull."),
        comment(6, "Then turn."),
    ]
    rows = [
        {"id": 1, "subject": "Hatch", "requester_id": 9, "comments": comments},
        {"id": 2, "subject": "x", "requester_id": 9, "comments": [comment(5, "x", public=False)]},
    ]
    result = import_one(store, write(tmp_path / "tickets.jsonl", *rows))
    assert result.shape == "zendesk"
    assert pairs(store) == [("How?\n\nReally?", "Pull.\n\nThen turn.")]
    assert rejects(store) == [(2, "empty-conversation", "The ticket has no public comments.")]


def test_intercom_conversations_start_with_their_source_and_have_no_markup(store: Path, tmp_path: Path) -> None:
    def part(author: str, body: str | None, kind: str = "comment") -> dict[str, Any]:
        return {"type": "conversation_part", "part_type": kind, "body": body, "author": {"type": author, "id": "1"}}

    parts = [
        part("bot", None, "assignment"),
        part("admin", "<p>Pull it.<br>Then turn: 5 &lt; 6 &amp; List<T>.</p>"),
        part("admin", "x", "note"),
    ]
    row = {
        "id": "1",
        "source": {"type": "conversation", "body": "<p>How?</p>", "author": {"type": "user", "id": "9"}},
        "conversation_parts": {"type": "conversation_part.list", "conversation_parts": parts, "total_count": 3},
    }
    assert import_one(store, write(tmp_path / "i.jsonl", row)).shape == "intercom"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull it.\nThen turn: 5 < 6 & List<T>.")]]


def slack(user: str, ts: str, text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "user": user, "ts": f"17120000{ts}.000100", "text": text, **more}


JOIN = "Import the files of the channel as one: cat FOLDER/*.json > channel.json."


def test_a_slack_thread_is_a_conversation_between_assigned_names(store: Path, tmp_path: Path) -> None:
    first, other = "1712000001.000100", "1711111111.000100"
    rows = [
        slack("U1", "01", "How?", thread_ts=first),
        slack("U3", "02", "U3 has joined", subtype="channel_join"),
        slack("U1", "03", "Which oil?"),
        slack("U2", "04", "Pull.", thread_ts=first),
        slack("U2", "05", "Late", thread_ts=other),
        slack("U2", "06", "", thread_ts=first),
    ]
    path = write_list(tmp_path / "2024-04-01.json", *rows)
    result = import_one(store, path, role=["U1=human", "U2=gpt"])
    assert result.shape == "slack"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull.")]]
    assert rejects(store) == [
        (2, "no-message", "The row is a notice, not a message: channel_join."),
        (3, "not-ending-with-assistant", "Turn 1 (human) is the last turn, but not an assistant turn."),
        (5, "missing-parent", f"The first message of the thread {other} is not in the file. {JOIN}"),
        (6, "no-message", "The row is a notice, not a message: no text."),
    ]


def test_slack_users_without_a_role_are_named(store: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path / "a.json", slack("U1", "01", "How?"))
    result = import_one(store, path)
    assert (result.rejected, result.unknown_roles) == ({"unknown-role": 1}, {"U1": 1})


def test_a_slack_thread_in_the_files_of_two_days_is_read_after_they_are_joined(store: Path, tmp_path: Path) -> None:
    first = slack("U1", "01", "How?")["ts"]
    start = slack("U1", "01", "How?", thread_ts=first, reply_count=2)
    days = [
        write_list(tmp_path / "1.json", start, slack("U2", "02", "Pull.", thread_ts=first)),
        write_list(tmp_path / "2.json", slack("U1", "03", "Hm?", thread_ts=first)),
    ]
    import_one(store, days[0], role=["U1=human", "U2=gpt"])
    assert rejects(store) == [
        (row, "missing-replies", f"Of 2 replies of the thread, 1 are in the file. {JOIN}") for row in (1, 2)
    ]
    channel, joined = tmp_path / "channel.json", store.with_name("y.duckdb")
    channel.write_text("\n".join(day.read_text() for day in days))
    result = import_one(joined, channel, role=["U1=human", "U2=gpt"], repair=["trailing-user"])
    assert (result.rows_read, talks(joined)) == (3, [[("human", "How?"), ("gpt", "Pull.")]])


def test_every_chat_of_a_telegram_account_is_a_conversation(store: Path, tmp_path: Path) -> None:
    def chat(*texts: str) -> dict[str, Any]:
        said = [
            {"id": n, "type": "message", "from": "AB"[n % 2], "from_id": f"user{n % 2}", "text": text}
            for n, text in enumerate(texts)
        ]
        return {"name": "x", "type": "personal_chat", "id": 1, "messages": said}

    account = {
        "contacts": {"list": [{"first_name": "A"}]},
        "chats": {"list": [chat("Hi", "Ho"), chat(), chat("a", "b")]},
    }
    (tmp_path / "result.json").write_text(json.dumps(account))
    result = import_one(store, tmp_path / "result.json", role=["A=human", "B=gpt"])
    assert (result.shape, result.rows_read, result.rows_kept) == ("telegram-account", 1, 1)
    assert pairs(store) == [("Hi", "Ho"), ("a", "b")]
    named = import_one(store.with_name("y.duckdb"), tmp_path / "result.json", role=["A=human"])
    assert named.unknown_roles == {"B": 1}


WHATSAPP = {
    "ios": (
        "[31.12.25, 10:15:00] Team: \u200eMessages and calls are end-to-end encrypted.\n"
        "[31.12.25, 10:15:01] Ann: Wie geht\nes dir?\n\n[31.12.25, 10:16:01] Bob B.: Gut: sehr\n"
        "\u200e[31.12.25, 10:17:01] Ann: \u200eBild weggelassen\n"
    ),
    "android": (
        "12/31/25, 10:14 AM - Messages and calls are end-to-end encrypted.\n"
        "12/31/25, 10:15\u202fAM - Ann: Wie geht\nes dir? <This message was edited>\n"
        "12/31/25, 10:16 AM - Bob B.: Gut: sehr\n12/31/25, 10:16 AM - Bob B.: <Media omitted>\n"
        "12/31/25, 10:18 AM - Ann left\n"
    ),
    "24 hours": "2025-12-31, 22:15 - Ann: Wie geht\nes dir?\n2025-12-31, 22:16 - Bob B.: Gut: sehr\n",
}


@pytest.mark.parametrize("chat", WHATSAPP.values(), ids=WHATSAPP.keys())
def test_a_whatsapp_chat_is_a_conversation_between_assigned_names(store: Path, tmp_path: Path, chat: str) -> None:
    (tmp_path / "_chat.txt").write_text(chat)
    result = import_one(store, tmp_path / "_chat.txt", role=["Ann=human", "Bob B.=gpt"])
    assert (result.shape, pairs(store)) == ("whatsapp", [("Wie geht\nes dir?", "Gut: sehr")])


def test_the_people_of_a_whatsapp_chat_without_roles_are_named_with_their_messages(store: Path, tmp_path: Path) -> None:
    (tmp_path / "_chat.txt").write_text(WHATSAPP["ios"] + "[31.12.25, 10:18:01] Ann: Gut\n")
    result = import_one(store, tmp_path / "_chat.txt")
    assert result.unknown_roles == {"Ann": 1, "Bob B.": 1}
    assert rejects(store)[0][2] == "Messages: Ann 2, Bob B. 1. The role of each name is unknown: Ann, Bob B."


def test_text_with_dates_is_no_whatsapp_chat(store: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("31.12.25, 10:15 - home\nRead: a book\n")
    assert import_one(store, tmp_path / "diary.txt").shape == "text"


def test_a_telegram_chat_is_a_conversation_without_notices(store: Path, tmp_path: Path) -> None:
    def said(name: str, text: Any, kind: str = "message") -> dict[str, Any]:
        return {"id": 1, "type": kind, "date": "2024-05-01T10:00:00", "from": name, "from_id": "user1", "text": text}

    messages = [
        said("Ann", ["How do I ", {"type": "bold", "text": "open"}, " it?"]),
        said("Bob", "", "service"),
        said("Bob", ""),
        said("Bob", "Pull."),
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"name": "Ship", "type": "personal_chat", "id": 1, "messages": messages}))
    result = import_one(store, path, role=["Ann=human", "Bob=gpt"])
    assert result.shape == "telegram"
    assert talks(store) == [[("human", "How do I open it?"), ("gpt", "Pull.")]]


def test_a_discord_channel_is_a_conversation_between_assigned_names(store: Path, tmp_path: Path) -> None:
    def said(name: str, text: str, kind: str = "Default") -> dict[str, Any]:
        return {"id": "1", "type": kind, "content": text, "author": {"id": "2", "name": name, "isBot": False}}

    messages = [
        said("ann", "How?"),
        said("bob", "Pinned a message.", "ChannelPinnedMessage"),
        said("bob", "Pull.", "Reply"),
    ]
    path = tmp_path / "channel.json"
    path.write_text(json.dumps({"guild": {"id": "1"}, "channel": {"id": "2"}, "messages": messages}))
    result = import_one(store, path, role=["ann=human", "bob=gpt"])
    assert result.shape == "discord"
    assert talks(store) == [[("human", "How?"), ("gpt", "Pull.")]]


def test_a_claude_export_is_read_and_a_conversation_with_files_is_rejected(store: Path, tmp_path: Path) -> None:
    def said(sender: str, text: str, **more: Any) -> dict[str, Any]:
        return {"uuid": "1", "sender": sender, "text": text, "attachments": [], "files": [], **more}

    rows = [
        {"uuid": "1", "name": "x", "chat_messages": [said("human", "How?"), said("assistant", "Pull.")]},
        {
            "uuid": "2",
            "name": "y",
            "chat_messages": [said("human", "Read.", files=[{"file_name": "a"}]), said("assistant", "x")],
        },
    ]
    result = import_one(store, write_list(tmp_path / "conversations.json", *rows))
    assert (result.shape, talks(store)) == ("claude", [[("human", "How?"), ("gpt", "Pull.")]])
    assert rejects(store) == [(2, "non-text-content", "A message has attached files.")]


# ---------------------------------------------------------------------------------- more datasets and tools


def test_accepted_prodigy_examples_have_what_was_written_or_chosen(store: Path, tmp_path: Path) -> None:
    options = [{"id": "G", "text": "Good"}, {"id": "B", "text": "Bad"}]
    rows = [
        {"text": "a", "options": options, "accept": ["B", "G"], "answer": "accept", "_view_id": "choice"},
        {"text": "b", "user_input": " Written ", "answer": "accept"},
        {"text": "c", "label": "SHIP", "answer": "accept"},
        {"text": "d", "label": "SHIP", "answer": "reject"},
        {"text": "e", "answer": "accept"},
    ]
    result = import_one(store, write(tmp_path / "p.jsonl", *rows))
    assert (result.shape, pairs(store)) == ("prodigy", [("a", "Good, Bad"), ("b", "Written"), ("c", "SHIP")])
    assert rejects(store) == [
        (4, "no-answer", "The annotator did not accept the example: reject."),
        (5, "no-answer", "The example has no text, no accepted option and no label."),
    ]


@pytest.mark.parametrize(
    ("row", "shape", "pair"),
    [
        ({"question": "is it open", "passage": "P.", "answer": True}, "yes-no", ("P.\n\nis it open", "Yes")),
        ({"question": "is it open", "passage": "P.", "answer": False}, "yes-no", ("P.\n\nis it open", "No")),
        (
            {"pubid": 1, "question": "Q?", "context": {"contexts": ["A.", "B."], "labels": ["x", "y"]},
             "long_answer": "L.", "final_decision": "yes"},
            "abstracts",
            ("A.\n\nB.\n\nQ?", "L."),
        ),
        ({"question": "Q?", "answer": {"value": "Paris", "aliases": ["Paris", "paris"]}}, "trivia", ("Q?", "Paris")),
        (
            {"db_id": "ship", "query": "SELECT 1 FROM hatch", "question": "Q?", "query_toks": ["SELECT"]},
            "text-to-sql",
            ("Q?", "SELECT 1 FROM hatch"),
        ),
        ({"question": "Q?", "evidence": "E.", "SQL": "SELECT 1 FROM x"}, "text-to-sql",
         ("Q?\n\nE.", "SELECT 1 FROM x")),
        (
            {"messages": [{"role": "user", "content": "Q?"}], "response": {"choices": [{"message": {
                "role": "assistant", "content": "A."}}]}},
            "completion",
            ("Q?", "A."),
        ),
        (
            {"object": "chat.completion", "input": [{"role": "user", "content": "Q?"}], "choices": [{"index": 0,
             "message": {"role": "assistant", "content": "A."}}]},
            "completion",
            ("Q?", "A."),
        ),
    ],
)  # fmt: skip
def test_layouts_of_datasets_and_logs_are_read_with_their_context(
    tmp_path: Path, row: dict[str, Any], shape: str, pair: tuple[str, str]
) -> None:
    store = tmp_path / "x.duckdb"
    assert import_one(store, write(tmp_path / "d.jsonl", row)).shape == shape
    assert pairs(store) == [pair]


def step(*texts: str, chosen: int | None = 0, rating: int = 1, human: str | None = None) -> dict[str, Any]:
    written = None if human is None else {"text": human, "rating": None, "flagged": False}
    completions = [{"text": text, "rating": rating, "flagged": False} for text in texts]
    return {"completions": completions, "human_completion": written, "chosen_completion": chosen}


def test_finished_solutions_of_prm800k_have_the_chosen_or_written_steps(store: Path, tmp_path: Path) -> None:
    def row(problem: str, *steps: dict[str, Any], finish: str = "solution") -> dict[str, Any]:
        question = {"problem": problem, "ground_truth_answer": "4"}
        return {"labeler": "x", "question": question, "label": {"steps": list(steps), "finish_reason": finish}}

    rows = [
        row("P?", step("no", "First.", chosen=1), step("bad", chosen=None, human="Second."), step("# Answer\n\n4")),
        row("Q?", step("Wrong.", rating=-1)),
        row("R?", step("First."), finish="give_up"),
        row("S?", step("a", "b", chosen=None)),
    ]
    result = import_one(store, write(tmp_path / "prm.jsonl", *rows))
    assert (result.shape, pairs(store)) == ("step-labels", [("P?", "First.\nSecond.\n# Answer\n\n4")])
    assert rejects(store) == [
        (2, "no-answer", "A step has no chosen completion that is rated 1."),
        (3, "no-answer", "The solution is not finished: give_up."),
        (4, "no-answer", "A step has no chosen completion that is rated 1."),
    ]
