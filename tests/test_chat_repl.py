"""Chatting: text is streamed, each side keeps its history, and rated chats are saved in the store."""

import json

import pytest
from support.training import copy_project

from curate.cli.chat_repl import ChatLog, answer_prompts
from curate.cli.views.runs import show_answers
from schemas.errors import TrainError
from schemas.manifest import read_manifest
from schemas.store import reading
from train.inference.chat_log import save_chat
from train.inference.generate import Sampling, load_chat_model

QUESTION = [{"role": "user", "content": "What about the red lamp?"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture(scope="module")
def model(trained):
    return load_chat_model(trained / "adapters/r1")


@pytest.fixture
def project(trained, tmp_path):
    return copy_project(trained, tmp_path / "copy")


@pytest.mark.slow
def test_the_streamed_text_is_the_answer(model):
    parts = []
    answer = model.answer(QUESTION, on_text=parts.append)
    assert "".join(parts).strip() == answer
    assert len(parts) > 3


@pytest.mark.slow
def test_greedy_decoding_and_sampling_with_a_seed_are_repeatable(model):
    random = Sampling(max_tokens=12, temperature=5.0, seed=1)
    assert model.answer(QUESTION) == model.answer(QUESTION)
    one, same, other = (model.answer(QUESTION, sampling=each) for each in (random, random, Sampling(12, 5.0, seed=2)))
    assert one == same != other
    assert model.answer(QUESTION, sampling=Sampling(200, 5.0, top_k=1)) == model.answer(QUESTION)


@pytest.mark.slow
def test_the_chat_command_saves_rated_conversations_in_the_store(curate, project):
    lines = "What about the red lamp?\n/good\nAnd the blue tent?\n"
    ran = curate("chat", "r1", "--system", "Be brief.", "--save", "bad", input=lines, cwd=project.parent)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Hello!") == 2
    assert [line.split(":")[0] for line in ran.stderr.splitlines()] == ["Saved as good", "Saved as bad"]
    with reading(project) as connection:
        rows = connection.sql(
            """SELECT o.metadata->>'chat', len(c.conversations), st.kept FROM origins o
               JOIN sources s USING (source) JOIN conversations c ON c.id = o.conversation
               JOIN current_verdicts st ON st.conversation = c.id WHERE s.path = 'chat:r1' ORDER BY 1"""
        ).fetchall()
    assert rows == [("bad", 5, False), ("good", 3, True)]


@pytest.mark.slow
def test_a_single_question_is_saved_with_its_side_and_sampling_parameters(project):
    adapter = project.parent / "adapters/r1"
    log = ChatLog(project, adapter, Sampling(max_tokens=5))
    save = lambda side, messages: log.save(side, messages, "good")  # noqa: E731
    (result,) = answer_prompts(adapter, ["Hi"], ("base", "adapter"), sampling=log.sampling, save=save)
    with reading(project) as connection:
        ((metadata, answer),) = connection.execute(
            """SELECT o.metadata, c.conversations[2].value FROM origins o JOIN conversations c ON c.id = o.conversation
               WHERE c.id = ?""",
            [result["saved"]],
        ).fetchall()
    origin = json.loads(metadata)
    assert (origin["side"], origin["max_tokens"], origin["run"]) == ("adapter", 5, "r1")
    assert answer == result["adapter"] != result["base"]


@pytest.mark.slow
def test_saving_a_chat_again_changes_nothing_and_a_known_conversation_counts_as_a_duplicate(project):
    manifest = read_manifest(project.parent / "adapters/r1")
    first = save_chat(project, manifest, ANSWERED, "good", {})
    assert save_chat(project, manifest, ANSWERED, "good", {}) == first
    assert save_chat(project, manifest, ANSWERED, "bad", {}) == first
    with reading(project) as connection:
        sums = connection.sql("SELECT rows_kept, rows_duplicate, conversations FROM sources WHERE shape = 'chat'")
        assert sorted(sums.fetchall()) == [(0, 1, 0), (1, 0, 1)]
        verdicts = connection.sql("SELECT conversation, verdict, reason FROM verdicts").fetchall()
    assert verdicts == [(first, "drop", "a bad answer in a chat with r1")]


@pytest.mark.slow
def test_a_chat_without_an_answer_is_not_saved(project):
    with pytest.raises(TrainError, match="no answer to save"):
        save_chat(project, read_manifest(project.parent / "adapters/r1"), QUESTION, "good", {})


def test_answers_of_one_side_are_printed_without_a_label(capsys):
    show_answers([{"prompt": "Hi", "adapter": "Hello"}, {"prompt": "Hi", "base": "Ho", "adapter": "Hello"}])
    assert capsys.readouterr().out == "› Hi\nHello\n\n› Hi\nbefore: Ho\nafter:  Hello\n"
