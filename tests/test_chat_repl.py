"""Chatting: letters as they come, sides that remember, and conversations that go back into the store."""

import json

import pytest
from support.training import copy_project

from curate.cli.chat_repl import Memory, ask
from curate.cli.views.runs import show_answers
from schemas.errors import TrainError
from schemas.manifest import read_manifest
from schemas.store import reading
from train.inference.chat_log import remember
from train.inference.generate import Sampling, speak_for

QUESTION = [{"role": "user", "content": "What about the red lamp?"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture(scope="module")
def speaker(trained):
    return speak_for(trained / "adapters/r1")


@pytest.fixture
def project(trained, tmp_path):
    return copy_project(trained, tmp_path / "copy")


@pytest.mark.slow
def test_letters_come_one_token_at_a_time_and_are_the_answer(speaker):
    parts = []
    answer = speaker.answer(QUESTION, say=parts.append)
    assert "".join(parts).strip() == answer
    assert len(parts) > 3


@pytest.mark.slow
def test_greedy_is_the_same_every_time_and_a_seed_repeats_what_is_drawn(speaker):
    drawn = Sampling(max_tokens=12, temperature=5.0, seed=1)
    assert speaker.answer(QUESTION) == speaker.answer(QUESTION)
    one, same, other = (speaker.answer(QUESTION, sampling=each) for each in (drawn, drawn, Sampling(12, 5.0, seed=2)))
    assert one == same != other
    assert speaker.answer(QUESTION, sampling=Sampling(200, 5.0, top_k=1)) == speaker.answer(QUESTION)


@pytest.mark.slow
def test_a_conversation_goes_back_into_the_store_by_command(curate, project):
    typed = "What about the red lamp?\n/good\nAnd the blue tent?\n"
    ran = curate("chat", "r1", "--system", "Be brief.", "--save", "bad", input=typed, cwd=project.parent)
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
def test_a_single_question_is_saved_with_its_side_and_sampling(project):
    adapter = project.parent / "adapters/r1"
    memory = Memory(project, adapter, Sampling(max_tokens=5))
    keep = lambda side, talk: memory.keep(side, talk, "good")  # noqa: E731
    (found,) = ask(adapter, ["Hi"], ("base", "adapter"), sampling=memory.sampling, keep=keep)
    with reading(project) as connection:
        ((metadata, words),) = connection.execute(
            """SELECT o.metadata, c.conversations[2].value FROM origins o JOIN conversations c ON c.id = o.conversation
               WHERE c.id = ?""",
            [found["saved"]],
        ).fetchall()
    noted = json.loads(metadata)
    assert (noted["side"], noted["max_tokens"], noted["run"]) == ("adapter", 5, "r1")
    assert words == found["adapter"] != found["base"]


@pytest.mark.slow
def test_the_same_is_saved_once_and_what_is_known_is_a_duplicate(project):
    manifest = read_manifest(project.parent / "adapters/r1")
    first = remember(project, manifest, ANSWERED, "good", {})
    assert remember(project, manifest, ANSWERED, "good", {}) == first
    assert remember(project, manifest, ANSWERED, "bad", {}) == first
    with reading(project) as connection:
        sums = connection.sql("SELECT rows_kept, rows_duplicate, conversations FROM sources WHERE shape = 'chat'")
        assert sorted(sums.fetchall()) == [(0, 1, 0), (1, 0, 1)]
        verdicts = connection.sql("SELECT conversation, verdict, reason FROM verdicts").fetchall()
    assert verdicts == [(first, "drop", "a bad answer in a chat with r1")]


@pytest.mark.slow
def test_a_conversation_without_an_answer_is_not_saved(project):
    with pytest.raises(TrainError, match="no answer to save"):
        remember(project, read_manifest(project.parent / "adapters/r1"), QUESTION, "good", {})


def test_one_side_is_printed_without_the_word_before_or_after(capsys):
    show_answers([{"prompt": "Hi", "adapter": "Hello"}, {"prompt": "Hi", "base": "Ho", "adapter": "Hello"}])
    assert capsys.readouterr().out == "› Hi\nHello\n\n› Hi\nbefore: Ho\nafter:  Hello\n"
