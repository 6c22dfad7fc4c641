"""Answers given through the API of a real labelling server: pulled, counted and resolved to verdicts."""

import json
import shutil

import pytest
from support.review_sets import HOSTILE, LONG, RemoteDataset, add_reviewed, verdicts
from support.stores import add, questions
from support.training import TINY

from curate.review.pull import pull
from curate.review.push import push
from curate.review.queue import QueueQuery
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection, check_recipe
from schemas.store import reading


@pytest.fixture
def store(tmp_path):
    return add_reviewed(tmp_path / "curate.duckdb")


def test_answers_become_verdicts_and_edits_that_preview_shows(curate, store, argilla_server, set_name, tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    at = ("--home", str(argilla_server.home))
    pushed = curate("review", "push", set_name, "--overlap", "2", "--blind", "0", *at)
    assert pushed.returncode == 0, pushed.stderr
    dataset = RemoteDataset(argilla_server, set_name)
    one, two, _, _, _ = (talk.id for talk in questions(5))
    for who in ("ann", "bob"):
        dataset.answer(who, LONG.id, quality=4, decision="keep", turns=["answer 1"])
        dataset.answer(who, HOSTILE.id, quality=1, decision="drop", issues=["unsafe"])
        dataset.answer(who, one, quality=3, decision="fix", answer="With <b>tags</b> & all.")
    dataset.answer("ann", two, decision="drop")
    pulled = curate("review", "pull", set_name, *at, "--json")
    result = json.loads(pulled.stdout)
    assert result["answers"] == {"submitted": 7, "discarded": 0, "draft": 0, "withdrawn": 0}
    assert result["outcomes"] == {"keep": 0, "edit": 2, "drop": 1, "waiting": 1, "disputed": 0, "undecided": 0}
    assert curate("freeze", "desk", "--held-out", "0").returncode == 0
    shown = curate("preview", "desk@1", "--limit", "9", "--set", "train.model=tiny").stdout
    assert "⟦Since Monday." in shown
    assert "On its way." in shown
    assert "⟦On its way." not in shown
    assert "⟦With <b>tags</b> & all." in shown
    assert "alert" not in shown
    assert "Answer 1." in shown  # waits for a second answer


def test_without_new_answers_nothing_is_read_or_written(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    RemoteDataset(argilla_server, set_name).answer("ann", LONG.id, decision="drop")
    first = pull(store, ReviewSection(), server, set_name)
    second = pull(store, ReviewSection(), server, set_name)
    again = pull(store, ReviewSection(), server, set_name, again=True)
    assert (first.unchanged, first.verdicts) == (False, 1)
    assert (second.unchanged, second.verdicts) == (True, 0)
    assert (again.answers["submitted"], again.verdicts) == (0, 0)


def test_changed_and_withdrawn_answers_are_counted(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    response = dataset.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, set_name)
    dataset.answer("ann", LONG.id, decision="keep")
    assert pull(store, ReviewSection(), server, set_name).answers["submitted"] == 1
    assert verdicts(store)[LONG.id] == "keep"
    argilla_server.ask("DELETE", f"responses/{response}", key=argilla_server.annotator("ann")[2])
    assert pull(store, ReviewSection(), server, set_name).answers["withdrawn"] == 1


def test_a_discarded_empty_form_does_not_fail_a_pull(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    RemoteDataset(argilla_server, set_name).answer("ann", LONG.id, status="discarded")
    done = pull(store, ReviewSection(), server, set_name)
    assert (done.answers["discarded"], done.verdicts) == (1, 0)


def test_a_prefilled_answer_submitted_unchanged_is_not_an_edit(store, server, argilla_server, set_name):
    push(store, check_recipe({"review": {"blind": 0}}, "the test"), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    given = {each["agent"]: each["value"] for each in dataset.records[HOSTILE.id]["suggestions"]}["original"]
    assert given == HOSTILE.turns[-1].value  # not escaped: the text box shows plain text
    dataset.answer("ann", HOSTILE.id, decision="keep", answer=given)
    assert pull(store, ReviewSection(), server, set_name).outcomes["keep"] == 1


def test_disputed_conversations_are_pushed_to_a_third_annotator(store, server, argilla_server, set_name):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, recipe, server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="keep")
    dataset.answer("bob", LONG.id, decision="drop")
    assert pull(store, recipe.review, server, set_name).outcomes["disputed"] == 1
    third = f"{set_name[:40]}-third"
    one = check_recipe({"review": {"overlap": 1}}, "the test")
    assert push(store, one, server, third, QueueQuery(queue="disagreement")).sent == 1
    RemoteDataset(argilla_server, third).answer("cat", LONG.id, decision="drop")
    assert pull(store, one.review, server, third).outcomes["drop"] == 1


def test_disputes_go_to_annotators_who_have_not_answered_with_the_earlier_answers(
    store, server, argilla_server, set_name
):
    two = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, two, server, set_name, QueueQuery())
    first = RemoteDataset(argilla_server, set_name)
    first.answer("ann", LONG.id, decision="keep", turns=["answer 1"], note="<b>Fine</b>.")
    first.answer("bob", LONG.id, decision="drop", quality=1, answer="Since today.")
    pull(store, two.review, server, set_name)
    third = f"{set_name}-3"[-50:]
    push(store, Recipe(), server, third, QueueQuery(queue="disagreement"))
    dispute = RemoteDataset(argilla_server, third)
    [record] = dispute.records.values()
    assert record["fields"]["earlier_answers"] == (
        "Annotator 1\ndecision: keep\nturns: answer 1\nnote: &lt;b&gt;Fine&lt;/b&gt;.\n\n"
        "Annotator 2\nquality: 1\ndecision: drop\nanswer: Since today."
    )
    assert [dispute.shown_to(who) for who in ("ann", "bob", "cyd")] == [[], [], [LONG.id]]
    dispute.answer("cyd", LONG.id, decision="drop")
    assert pull(store, two.review, server, third).outcomes["drop"] == 1
    assert push(store, Recipe(), server, third, QueueQuery()).unchanged == 1


def test_marks_of_answers_that_do_not_exist_are_ignored_and_counted(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    one = questions(1)[0].id
    RemoteDataset(argilla_server, set_name).answer("ann", one, decision="fix", turns=["answer 1", "answer 2"])
    result = pull(store, ReviewSection(), server, set_name)
    assert (result.answers["submitted"], result.surplus_marks) == (1, 1)
    with reading(store) as connection:
        assert connection.sql("SELECT answers ->> 'turns' FROM reviews").fetchall() == [("[2]",)]


def test_annotator_time_and_blindness_of_an_answer_are_stored(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    response = dataset.answer("ann", LONG.id, decision="keep", note="fine")
    pull(store, ReviewSection(), server, set_name)
    with reading(store) as connection:
        row = connection.sql(
            "SELECT conversation, reviewer, response, record, blind, strftime(answered_at, '%Y') > '2025' FROM reviews"
        ).fetchall()[0]
        blind = connection.execute("SELECT blind FROM review_records WHERE conversation = ?", [LONG.id]).fetchall()
    assert row == (LONG.id, "ann", response, dataset.records[LONG.id]["id"], blind[0][0], True)


def test_a_record_deleted_on_the_server_keeps_its_answers_and_is_pushed_again(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, set_name)
    dataset.delete(LONG.id)
    done = pull(store, ReviewSection(), server, set_name)
    assert (done.deleted, done.answers["withdrawn"], done.outcomes["drop"]) == (1, 0, 1)
    assert push(store, Recipe(), server, set_name, QueueQuery()).sent == 1
    assert LONG.id in dataset.records
    assert pull(store, ReviewSection(), server, set_name).deleted == 0
    assert verdicts(store) == {LONG.id: "drop"}


def test_a_question_with_another_title_on_the_server_is_the_same_question(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    questions_now = argilla_server.ask("GET", f"datasets/{dataset.id}/questions")["items"]
    decision = next(question["id"] for question in questions_now if question["name"] == "decision")
    argilla_server.ask("PATCH", f"questions/{decision}", {"title": "Keep it?"})
    dataset.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, set_name).outcomes["drop"] == 1


def test_a_set_created_again_with_a_renamed_question_is_an_error(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, set_name)
    argilla_server.ask("DELETE", f"datasets/{dataset.id}")
    with pytest.raises(ReviewError, match=r"no longer has the set"):
        pull(store, ReviewSection(), server, set_name)
    other = store.with_name("other.duckdb")
    add(other, questions(2))
    renamed = check_recipe(
        {
            "review": {
                "questions": ["quality", "issues", "turns", "answer", "note"],
                "policy": "mean >= 3",
                "more": {"verdict": {"kind": "choice", "title": "Keep it?", "options": ["keep", "drop"]}},
            }
        },
        "the test",
    )
    push(other, renamed, server, set_name, QueueQuery())
    with pytest.raises(ReviewError, match="lacks the question decision, has the additional question verdict"):
        pull(store, ReviewSection(), server, set_name)
    assert verdicts(store) == {LONG.id: "drop"}


def test_answers_to_records_that_were_not_pushed_are_ignored(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery(sample=2))
    dataset = RemoteDataset(argilla_server, set_name)
    message = {"role": "user", "content": "hello"}
    body = {"items": [{"fields": {"conversation": [message]}, "external_id": "theirs"}]}
    argilla_server.ask("POST", f"datasets/{dataset.id}/records/bulk", body)
    dataset.answer("ann", "theirs", decision="drop")
    done = pull(store, ReviewSection(), server, set_name)
    assert (done.unknown, done.answers["submitted"], done.verdicts) == (1, 0, 0)


def test_pulling_an_unknown_set_is_an_error(store, server):
    with pytest.raises(ReviewError, match="The store has no review set nobody"):
        pull(store, ReviewSection(), server, "nobody")
