"""Review sets on a real labelling server: pushed, answered through its API, pulled and resolved to verdicts."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from unittest.mock import Mock

import pytest
from support.argilla_server import RefusedError
from support.stores import add, add_verdict, chat, questions
from support.training import TINY
from test_spreadsheet import fill

from curate.review import push as push_module
from curate.review.agreement import review_stats
from curate.review.argilla import client
from curate.review.argilla.client import connect
from curate.review.pull import pull
from curate.review.push import push
from curate.review.questions import build_questions
from curate.review.queue import QueueQuery
from curate.review.sets import prepare_set
from curate.review.spreadsheet import export_sheet, import_sheet
from curate.scorers.runner import score_store
from schemas.conversation import Conversation, Turn
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection, check_recipe
from schemas.review import SetPlan
from schemas.store import reading, writing

LONG = chat("Where is it?", "On its way.", "Since when?", "Since Monday.")
HOSTILE = chat("<img src=x onerror=alert(1)>", "<think>hm & so</think><script>alert(2)</script>")
TOOLS = Conversation(
    (
        Turn("human", "Is the pump there?"),
        Turn("function_call", '{"name": "find", "arguments": {"what": "pump"}}'),
        Turn("observation", '{"there": true}'),
        Turn("gpt", "Yes."),
    ),
    '[{"name": "find", "parameters": {}}]',
)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "curate.duckdb"
    add(path, [LONG, HOSTILE, TOOLS, *questions(5)])
    score_store(path, Recipe())
    return path


@pytest.fixture
def name(request):
    """A name for the set of this test, because all tests share one server."""
    return request.node.name.replace("_", "-")[:60].lower().strip("-[]")


@pytest.fixture
def server(argilla_server):
    with connect(None, argilla_server.home) as connected:
        yield connected


class RemoteDataset:
    """A review set on the server, as annotators see it."""

    def __init__(self, server, name):
        self.server = server
        sets = server.ask("GET", "me/datasets")["items"]
        self.id = next(one["id"] for one in sets if one["name"] == name)

    @property
    def records(self):
        path = f"datasets/{self.id}/records?limit=1000&include=responses,suggestions"
        return {record["external_id"]: record for record in self.server.ask("GET", path)["items"]}

    @property
    def count(self):
        return self.server.ask("GET", f"datasets/{self.id}/records?limit=1")["total"]

    def answer(self, who, conversation, status="submitted", **values):
        """Answer with an annotator's key; a second call changes the answer."""
        _, _, key = self.server.annotator(who)
        body = {"status": status, "values": {name: {"value": value} for name, value in values.items()} or None}
        record = self.records[conversation]["id"]
        me = self.server.ask("GET", "me", key=key)["id"]
        existing = [one["id"] for one in self.records[conversation]["responses"] if one["user_id"] == me]
        if existing:
            return self.server.ask("PUT", f"responses/{existing[0]}", body, key=key)["id"]
        return self.server.ask("POST", f"records/{record}/responses", body, key=key)["id"]

    def delete(self, conversation):
        self.server.ask("DELETE", f"datasets/{self.id}/records?ids={self.records[conversation]['id']}")


def verdicts(store):
    with reading(store) as connection:
        return dict(connection.sql("SELECT conversation, verdict FROM verdicts ORDER BY rowid").fetchall())


# push ----------------------------------------------------------------------------------------------------------


def test_a_second_push_changes_nothing_on_the_server(store, server, argilla_server, name):
    first = push(store, Recipe(), server, name, QueueQuery(sample=5))
    before = RemoteDataset(argilla_server, name).records
    second = push(store, Recipe(), server, name, QueueQuery(sample=5))
    assert (first.sent, first.unchanged, second.sent, second.unchanged) == (5, 0, 0, 5)
    assert RemoteDataset(argilla_server, name).records == before


def test_a_larger_sample_adds_and_keeps_answers(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery(where="turns >= 4", order="turns desc"))
    RemoteDataset(argilla_server, name).answer("ann", LONG.id, decision="keep")
    assert push(store, Recipe(), server, name, QueueQuery(sample=8)).sent == 6
    assert RemoteDataset(argilla_server, name).records[LONG.id]["responses"][0]["status"] == "submitted"


def suggested_by(dataset, agent):
    """Conversation -> value currently suggested by this agent on the server."""
    return {
        conversation: next((each["value"] for each in record["suggestions"] if each["agent"] == agent), None)
        for conversation, record in dataset.records.items()
    }


def suggestion_bias(store, name):
    with reading(store) as connection:
        rows = review_stats(connection, ReviewSection(), name).suggestion_bias
    return {row["question"]: (row["equal_if_shown"], row["equal_if_blind"]) for row in rows}


def test_a_new_member_of_a_cluster_does_not_change_the_other_tasks(tmp_path, server, argilla_server, name):
    words = " ".join(f"word{number}" for number in range(60))
    add(tmp_path / "c.duckdb", [chat("Which?", f"{words} end{number}.") for number in range(5)])
    for sample, sent, unchanged in ((4, 4, 0), (5, 1, 4), (5, 0, 5)):
        done = push(tmp_path / "c.duckdb", Recipe(), server, name, QueueQuery(order="id desc", sample=sample))
        assert (done.sent, done.unchanged) == (sent, unchanged)
    records = RemoteDataset(argilla_server, name).records
    assert len({record["metadata"]["cluster"] for record in records.values()}) == 1


def test_a_later_push_does_not_change_the_recorded_suggestions_of_earlier_answers(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    ids = [talk.id for talk in (LONG, HOSTILE, TOOLS, *questions(5))]
    for one in ids:
        add_verdict(store, one, "keep")
    push(store, recipe, server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    for one in ids[:-1]:
        dataset.answer("ann", one, decision="keep")
    pull(store, recipe.review, server, name)
    assert suggestion_bias(store, name) == {"decision": (1.0, 1.0)}
    dataset.answer("ann", ids[-1], decision="keep")  # pulled only after the next push
    for one in ids:
        add_verdict(store, one, "drop")
    push(store, recipe, server, name, QueueQuery())
    assert set(suggested_by(dataset, "rules").values()) == {"drop", None}
    pull(store, recipe.review, server, name)
    assert suggestion_bias(store, name) == {"decision": (1.0, 1.0)}


def test_obsolete_suggestions_are_removed_from_records_without_answers(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"blind": 0, "overlap": 2}}, "the test")
    for talk in (LONG, HOSTILE):
        add_verdict(store, talk.id, "keep")
    push(store, recipe, server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    dataset.answer("ann", LONG.id, decision="drop")
    with writing(store) as connection:
        connection.execute("DELETE FROM verdicts")  # as in a new store without a selection
    push(store, recipe, server, name, QueueQuery())
    found = suggested_by(dataset, "rules")
    assert (found[LONG.id], found[HOSTILE.id]) == ("keep", None)
    assert suggested_by(dataset, "original")[HOSTILE.id] == HOSTILE.turns[-1].value
    dataset.answer("bob", LONG.id, decision="keep")  # still sees the suggestion
    pull(store, recipe.review, server, name)
    with reading(store) as connection:
        rows = connection.sql("SELECT reviewer, suggestions::VARCHAR LIKE '%\"rules\"%' FROM reviews").fetchall()
    assert sorted(rows) == [("ann", True), ("bob", True)]


def test_html_in_a_conversation_is_escaped(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    shown = RemoteDataset(argilla_server, name).records[HOSTILE.id]["fields"]["conversation"]
    assert shown == [
        {"role": "user", "content": "&lt;img src=x onerror=alert(1)&gt;"},
        {
            "role": "answer 1",
            "content": "&lt;think&gt;hm &amp; so&lt;/think&gt;&lt;script&gt;alert(2)&lt;/script&gt;",
        },
    ]


def test_tools_calls_and_results_are_indented(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    shown = RemoteDataset(argilla_server, name).records[TOOLS.id]["fields"]["conversation"]
    assert [message["role"] for message in shown] == [
        "tools", "user", "answer 1 tool call", "tool result", "answer 2",
    ]  # fmt: skip
    assert shown[2]["content"].splitlines()[1] == '  "name": "find",'


def test_suggestions_name_their_score_and_are_not_shown_for_the_blind_share(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    done = push(store, recipe, server, name, QueueQuery())
    records = RemoteDataset(argilla_server, name).records
    with reading(store) as connection:
        rows = connection.sql("SELECT conversation, blind, suggestions FROM review_records").fetchall()
        quality = dict(connection.sql("SELECT conversation, quality FROM scores").fetchall())
    blind = {conversation for conversation, hidden, _ in rows if hidden}
    assert 0 < len(blind) == done.blind < 8
    assert all(records[one]["suggestions"] == [] for one in blind)
    assert all(json.loads(suggestions) for _, _, suggestions in rows)  # stored for comparison
    seen = next(one for one in records if one not in blind)
    rated = next(each for each in records[seen]["suggestions"] if each["agent"] == "quality")
    assert (rated["value"], rated["score"]) == (1 + round(4 * quality[seen]), pytest.approx(quality[seen], abs=1e-4))


def test_annotators_do_not_see_scores_in_the_metadata(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset, (_, _, key) = RemoteDataset(argilla_server, name), argilla_server.annotator("ann")
    found = argilla_server.ask("POST", f"me/datasets/{dataset.id}/records/search", {}, key=key)["items"]
    assert {tuple(sorted(item["record"]["metadata"])) for item in found} == {("line", "queue", "source")}
    assert "quality" in dataset.records[LONG.id]["metadata"]


def test_rejected_conversations_are_listed_with_reasons_and_the_others_are_sent(store, server, monkeypatch, name):
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    done = push(store, Recipe(), server, name, QueueQuery())
    reason = "the message of answer 1 has 24,000 characters, but Argilla accepts 20,000"
    assert done.rejected_by_server == [{"conversation": long, "reason": reason}]
    assert done.sent == 8
    monkeypatch.setattr(client, "MAX_CHARACTERS", 10**9)  # as on a server with lower limits
    again = push(store, Recipe(), server, f"{name[:50]}-again", QueueQuery())
    assert again.sent == 8
    assert "at most 20000 characters" in again.rejected_by_server[0]["reason"]


def test_a_conversation_with_more_answers_than_the_set_has_marks_is_rejected(store, server, name):
    push(store, Recipe(), server, name, QueueQuery(sample=2))
    add(store, [chat(*["word"] * 40)], source="many.csv")
    score_store(store, Recipe())
    done = push(store, Recipe(), server, name, QueueQuery(sample=9))
    assert [row["reason"][:18] for row in done.rejected_by_server] == ["it has 20 answers,"]


def test_without_the_question_turns_long_conversations_are_not_rejected(store):
    add(store, [chat(*["word"] * 600)], source="many.csv")
    for names, count in ((("decision",), 0), (("decision", "turns"), 1)):
        recipe = Recipe(review=ReviewSection(questions=names))
        prepared = prepare_set(store, recipe, "long", QueueQuery(), rejection_reason=lambda task: None)
        assert [row["reason"][:19] for row in prepared.rejected] == ["it has 300 answers,"] * count


def test_a_dry_run_sends_nothing(store, server, argilla_server, name):
    done = push(store, Recipe(), server, name, QueueQuery(), dry_run=True)
    assert (done.conversations, done.sent) == (8, 0)
    with pytest.raises(StopIteration):
        RemoteDataset(argilla_server, name)


def test_a_dry_run_makes_no_workspace(store, argilla_server, monkeypatch, name):
    body = {"first_name": "a", "username": "admin-without-any", "role": "admin", "password": "12345678"}
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.ask("POST", "users", body)["api_key"])
    before = argilla_server.ask("GET", "me/workspaces")["items"]
    with connect(argilla_server.url, None) as theirs:  # an admin who is in no workspace, and may make none
        assert push(store, Recipe(), theirs, name, QueueQuery(), dry_run=True).conversations == 8
    assert argilla_server.ask("GET", "me/workspaces")["items"] == before


def test_after_a_killed_push_rejected_conversations_do_not_count_towards_the_sample(store, server, monkeypatch, name):
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    score_store(store, Recipe())
    query = QueueQuery(order="characters desc", sample=3)
    with monkeypatch.context() as patched:
        patched.setattr(client, "MAX_CHARACTERS", 10**9)  # as on a server with lower limits
        patched.setattr(push_module, "_send", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            push(store, Recipe(), server, name, query)
    first, second = (push(store, Recipe(), server, name, query) for _ in range(2))
    assert (first.sent, [row["conversation"] for row in first.rejected_by_server]) == (2, [long])
    assert (second.sent, second.unchanged) == (1, 2)


def test_a_draft_that_no_push_created_is_not_deleted(store, server, argilla_server, name):
    body = {"name": name, "workspace_id": argilla_server.workspace}
    made = argilla_server.ask("POST", "datasets", body)["id"]
    question = {"name": "mine", "title": "Mine", "settings": {"type": "text"}}
    argilla_server.ask("POST", f"datasets/{made}/questions", question)
    with pytest.raises(ReviewError, match=f"has a draft {name} with the questions mine"):
        push(store, Recipe(), server, name, QueueQuery())
    assert argilla_server.ask("GET", f"datasets/{made}/questions")["items"][0]["name"] == "mine"


def test_conversations_that_cannot_be_shown_do_not_count_towards_the_sample(store, server, monkeypatch, name):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    score_store(store, Recipe())
    done = push(store, recipe, server, name, QueueQuery(order="characters desc", sample=3))
    assert (done.conversations, done.sent, [row["conversation"] for row in done.rejected_by_server]) == (3, 3, [long])
    monkeypatch.setattr(client, "MAX_CHARACTERS", 10**9)  # as on a server with lower limits
    again = push(store, recipe, server, name, QueueQuery(order="characters desc", sample=4))
    assert (again.sent, [row["conversation"] for row in again.rejected_by_server]) == (0, [long])
    with reading(store) as connection:
        (row,) = review_stats(connection, recipe.review, name).sets
    assert (row["conversations"], row["unanswered"]) == (3, 3)


def test_another_overlap_for_an_existing_set_is_an_error(curate, store, server, argilla_server, name):
    two = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, two, server, name, QueueQuery(overlap=2))
    assert push(store, two, server, name, QueueQuery(overlap=2)).overlap == 2
    assert push(store, Recipe(), server, name, QueueQuery()).overlap == 2
    refused = curate("review", "push", name, "--overlap", "3", "--home", str(argilla_server.home))
    assert refused.returncode == 1
    assert f"The set {name} asks for 2 answers per conversation, not 3." in refused.stderr


def test_the_overlap_is_read_from_the_server(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    distribution = {"distribution": {"strategy": "overlap", "min_submitted": 2}}
    argilla_server.ask("PATCH", f"datasets/{dataset.id}", distribution)
    dataset.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, name).outcomes["waiting"] == 1
    assert push(store, Recipe(), server, name, QueueQuery()).overlap == 2


def test_a_set_with_turn_numbers_keeps_them(store, server, argilla_server, name):
    """Sets of earlier releases offer the numbers of turns."""
    turn_numbers = tuple(
        replace(each, options=tuple("12345678")) if each.name == "turns" else each
        for each in build_questions(ReviewSection(), 2)
    )
    server.create_set(name, SetPlan(turn_numbers, 1, "", {"line": "integer", "source": "text", "queue": "text"}))
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    shown = dataset.records[TOOLS.id]["fields"]["conversation"]
    assert [each["role"] for each in shown][-2:] == ["3 tool result", "4 assistant"]
    dataset.answer("ann", LONG.id, decision="keep", turns=["2", "7"])
    pull(store, ReviewSection(), server, name)
    with reading(store) as connection:
        assert connection.sql("SELECT answers ->> 'turns' FROM reviews").fetchall() == [("[2,7]",)]


def test_a_set_with_titles_of_an_earlier_release_is_pushed_pulled_exported_and_imported(
    store, server, argilla_server, name, tmp_path
):
    push(store, Recipe(), server, name, QueueQuery(sample=2))
    former = {"decision": "Should a model learn from it?", "turns": "Which answers should not be learned from?"}
    dataset = RemoteDataset(argilla_server, name)
    with writing(store) as connection:
        ((stored,),) = connection.sql("SELECT questions FROM review_sets").fetchall()
        questions_then = [
            {**each, "title": former.get(each["name"], each["title"]), "help": "As it was."}
            for each in json.loads(stored)
        ]
        connection.execute("UPDATE review_sets SET questions = ?", [json.dumps(questions_then)])
    for question in argilla_server.ask("GET", f"datasets/{dataset.id}/questions")["items"]:
        if question["name"] in former:
            argilla_server.ask("PATCH", f"questions/{question['id']}", {"title": former[question["name"]]})
    assert push(store, Recipe(), server, name, QueueQuery(sample=8)).sent == 6
    dataset.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, name).outcomes["drop"] == 1
    export_sheet(store, Recipe(), tmp_path / "s.csv", name, QueueQuery())
    fill(tmp_path / "s.csv", {HOSTILE.id: {"decision": "keep"}})
    imported = import_sheet(store, ReviewSection(), tmp_path / "s.csv", "ann")
    assert (imported.answered, imported.empty, imported.rejected) == (1, 7, [])
    with reading(store) as connection:
        assert connection.sql("SELECT questions ->> '$[1].title' FROM review_sets").fetchall() == [
            ("Should a model learn from it?",)
        ]


def test_the_page_offers_existing_answers_and_explains_the_questions(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"overlap": 2, "guidelines": "Be kind."}}, "the test")
    push(store, recipe, server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    by_name = {each["name"]: each for each in argilla_server.ask("GET", f"datasets/{dataset.id}/questions")["items"]}
    offered = [option["text"] for option in by_name["turns"]["settings"]["options"]]
    assert offered == ["answer 1", "answer 2"]
    guidelines = argilla_server.ask("GET", f"datasets/{dataset.id}")["guidelines"]
    assert guidelines.startswith("Be kind.")
    assert all(f"**{each['title']}**" in guidelines for each in by_name.values())
    assert "Each conversation is answered by 2 annotators." in guidelines


def test_an_incomplete_set_is_created_again(store, server, argilla_server, name):
    argilla_server.ask("POST", "datasets", {"name": name, "workspace_id": argilla_server.workspace})
    assert push(store, Recipe(), server, name, QueueQuery()).sent == 8


def test_a_set_with_other_questions_is_an_error(store, server, name):
    push(store, check_recipe({"review": {"labels": ["rude", "long"]}}, "the test"), server, name, QueueQuery())
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM review_sets").fetchall() == [(1,)]
    with pytest.raises(ReviewError, match="has other options for issues"):
        push(store, Recipe(), server, name, QueueQuery())
    other = store.with_name("other.duckdb")  # a store without the set finds it on the server
    add(other, questions(2))
    with pytest.raises(ReviewError, match=f"The set {name} on the server has other options for issues"):
        push(other, Recipe(), server, name, QueueQuery())


# pull ----------------------------------------------------------------------------------------------------------


def test_answers_become_verdicts_and_edits_that_preview_shows(curate, store, argilla_server, name, tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    at = ("--home", str(argilla_server.home))
    pushed = curate("review", "push", name, "--overlap", "2", "--blind", "0", *at)
    assert pushed.returncode == 0, pushed.stderr
    dataset = RemoteDataset(argilla_server, name)
    one, two, _, _, _ = (talk.id for talk in questions(5))
    for who in ("ann", "bob"):
        dataset.answer(who, LONG.id, quality=4, decision="keep", turns=["answer 1"])
        dataset.answer(who, HOSTILE.id, quality=1, decision="drop", issues=["unsafe"])
        dataset.answer(who, one, quality=3, decision="fix", answer="With <b>tags</b> & all.")
    dataset.answer("ann", two, decision="drop")
    pulled = curate("review", "pull", name, *at, "--json")
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


def test_without_new_answers_nothing_is_read_or_written(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    RemoteDataset(argilla_server, name).answer("ann", LONG.id, decision="drop")
    first = pull(store, ReviewSection(), server, name)
    second = pull(store, ReviewSection(), server, name)
    again = pull(store, ReviewSection(), server, name, again=True)
    assert (first.unchanged, first.verdicts) == (False, 1)
    assert (second.unchanged, second.verdicts) == (True, 0)
    assert (again.answers["submitted"], again.verdicts) == (0, 0)


def test_changed_and_withdrawn_answers_are_counted(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    response = dataset.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, name)
    dataset.answer("ann", LONG.id, decision="keep")
    assert pull(store, ReviewSection(), server, name).answers["submitted"] == 1
    assert verdicts(store)[LONG.id] == "keep"
    argilla_server.ask("DELETE", f"responses/{response}", key=argilla_server.annotator("ann")[2])
    assert pull(store, ReviewSection(), server, name).answers["withdrawn"] == 1


def test_a_discarded_empty_form_does_not_fail_a_pull(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    RemoteDataset(argilla_server, name).answer("ann", LONG.id, status="discarded")
    done = pull(store, ReviewSection(), server, name)
    assert (done.answers["discarded"], done.verdicts) == (1, 0)


def test_a_prefilled_answer_submitted_unchanged_is_not_an_edit(store, server, argilla_server, name):
    push(store, check_recipe({"review": {"blind": 0}}, "the test"), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    given = {each["agent"]: each["value"] for each in dataset.records[HOSTILE.id]["suggestions"]}["original"]
    assert given == HOSTILE.turns[-1].value  # not escaped: the text box shows plain text
    dataset.answer("ann", HOSTILE.id, decision="keep", answer=given)
    assert pull(store, ReviewSection(), server, name).outcomes["keep"] == 1


def test_disputed_conversations_are_pushed_to_a_third_annotator(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, recipe, server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    dataset.answer("ann", LONG.id, decision="keep")
    dataset.answer("bob", LONG.id, decision="drop")
    assert pull(store, recipe.review, server, name).outcomes["disputed"] == 1
    third = f"{name[:40]}-third"
    one = check_recipe({"review": {"overlap": 1}}, "the test")
    assert push(store, one, server, third, QueueQuery(queue="disagreement")).sent == 1
    RemoteDataset(argilla_server, third).answer("cat", LONG.id, decision="drop")
    assert pull(store, one.review, server, third).outcomes["drop"] == 1


def test_annotator_time_and_blindness_of_an_answer_are_stored(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    response = dataset.answer("ann", LONG.id, decision="keep", note="fine")
    pull(store, ReviewSection(), server, name)
    with reading(store) as connection:
        row = connection.sql(
            "SELECT conversation, reviewer, response, record, blind, strftime(answered_at, '%Y') > '2025' FROM reviews"
        ).fetchall()[0]
        blind = connection.execute("SELECT blind FROM review_records WHERE conversation = ?", [LONG.id]).fetchall()
    assert row == (LONG.id, "ann", response, dataset.records[LONG.id]["id"], blind[0][0], True)


# failures ------------------------------------------------------------------------------------------------------


class Proxy:
    """A TCP proxy to the server that can be disconnected."""

    def __init__(self, url):
        self._target = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def disconnect(self):
        for end in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def proxy(argilla_server, monkeypatch):
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.api_key)
    connection = Proxy(argilla_server.url)
    yield connection
    connection.disconnect()


def test_a_push_interrupted_by_the_server_is_resumed_by_the_same_command(tmp_path, server, argilla_server, proxy, name):
    store = tmp_path / "many.duckdb"
    add(store, questions(600))
    with (
        connect(proxy.url, None) as unreliable,
        pytest.raises(ReviewError, match=r"does not answer: .* Sent 100 of 600 conversations") as raised,
    ):
        push(store, Recipe(), unreliable, name, QueueQuery(), progress=lambda *_: proxy.disconnect())
    assert "Run the same command again to resume." in raised.value.hint
    done = push(store, Recipe(), server, name, QueueQuery())  # the same server at another address
    assert (done.sent, done.unchanged) == (500, 100)
    assert len(RemoteDataset(argilla_server, name).records) == 600


def test_a_killed_push_is_resumed_by_the_same_command(tmp_path, curate, argilla_server, name):
    store = tmp_path / "curate.duckdb"
    add(store, questions(600))
    at = ["review", "push", name, "--home", str(argilla_server.home)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", *at],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    dataset = None
    while dataset is None or not dataset.count:
        assert process.poll() is None, "it ended before it could be killed"
        with contextlib.suppress(StopIteration):
            dataset = RemoteDataset(argilla_server, name)
    process.kill()
    process.wait()
    done = curate(*at, "--json")
    assert done.returncode == 0, done.stderr
    assert dataset.count == 600
    with reading(store) as connection:
        assert connection.sql("SELECT count(record), count(DISTINCT record) FROM review_records").fetchall() == [
            (600, 600)
        ]


def test_a_pull_interrupted_by_the_server_does_not_change_the_store(store, server, argilla_server, proxy, name):
    push(store, Recipe(), server, name, QueueQuery())
    RemoteDataset(argilla_server, name).answer("ann", LONG.id, decision="drop")
    with connect(proxy.url, None) as unreliable:
        proxy.disconnect()
        with pytest.raises(ReviewError, match="does not answer"):
            pull(store, ReviewSection(), unreliable, name)
    assert verdicts(store) == {}
    assert pull(store, ReviewSection(), server, name).verdicts == 1


def test_server_and_key_errors_are_explained(curate, store, argilla_server, tmp_path):
    def error(*options, **environment):
        ran = curate("review", "push", "desk", *options, **environment)
        assert ran.returncode == 1
        assert "Traceback" not in ran.stderr
        return ran.stderr

    free = socket.create_server(("127.0.0.1", 0))
    nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    free.close()
    assert "does not answer" in error("--url", nowhere, ARGILLA_API_KEY="k")
    assert "There is no key for" in error("--url", nowhere, ARGILLA_API_KEY="")
    assert "does not accept the key" in error("--url", argilla_server.url, ARGILLA_API_KEY="wrong")
    assert "No labelling server runs in" in error("--home", str(tmp_path / "nobody"))
    _, _, key = argilla_server.annotator("ann")
    refused = error("--url", argilla_server.url, ARGILLA_API_KEY=key)
    assert "with the role annotator, which is not sufficient" in refused
    assert key not in refused


def test_an_address_with_a_password_is_rejected_and_not_repeated(curate, store):
    for command in (("push", "desk"), ("users", "list")):
        ran = curate("review", *command, "--url", "https://bob:hunter2@labels.example", ARGILLA_API_KEY="k")
        assert (ran.returncode, "contains a user name or password" in ran.stderr) == (1, True), ran.stderr
        assert "hunter2" not in ran.stderr + ran.stdout
    assert b"hunter2" not in store.read_bytes()


def test_an_invalid_address_is_an_explained_error(curate, store):
    ran = curate("review", "push", "desk", "--url", "http://[::1", ARGILLA_API_KEY="k")
    assert (ran.returncode, "is not a valid address" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)


@pytest.mark.parametrize("key", ["secretkey123\n", "secret key123", "schlüssel-secret"])
def test_an_invalid_key_is_rejected_and_not_repeated(curate, store, key):
    for command in (("push", "desk"), ("users", "list")):
        ran = curate("review", *command, "--url", "http://127.0.0.1:9", ARGILLA_API_KEY=key)
        assert (ran.returncode, "The key in ARGILLA_API_KEY has" in ran.stderr) == (1, True), ran.stderr
        assert "secret" not in ran.stderr + ran.stdout


def test_after_the_account_is_deleted_during_a_push_the_sent_records_are_known(
    tmp_path, server, argilla_server, monkeypatch, name
):
    store = tmp_path / "many.duckdb"
    add(store, questions(300))
    body = {"first_name": "t", "username": "temporary", "role": "owner", "password": "12345678"}
    user = argilla_server.ask("POST", "users", body)
    monkeypatch.setenv("ARGILLA_API_KEY", user["api_key"])
    with (
        connect(argilla_server.url, None) as theirs,
        pytest.raises(ReviewError, match=r"no longer accepts the key.* Sent 100 of 300"),
    ):
        push(store, Recipe(), theirs, name, QueueQuery(),
             progress=lambda *_: argilla_server.ask("DELETE", f"users/{user['id']}"))  # fmt: skip
    assert push(store, Recipe(), server, name, QueueQuery()).sent == 200


def test_a_record_deleted_on_the_server_keeps_its_answers_and_is_pushed_again(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    dataset.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, name)
    dataset.delete(LONG.id)
    done = pull(store, ReviewSection(), server, name)
    assert (done.deleted, done.answers["withdrawn"], done.outcomes["drop"]) == (1, 0, 1)
    assert push(store, Recipe(), server, name, QueueQuery()).sent == 1
    assert LONG.id in dataset.records
    assert pull(store, ReviewSection(), server, name).deleted == 0
    assert verdicts(store) == {LONG.id: "drop"}


def test_a_question_with_another_title_on_the_server_is_the_same_question(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    questions_now = argilla_server.ask("GET", f"datasets/{dataset.id}/questions")["items"]
    decision = next(question["id"] for question in questions_now if question["name"] == "decision")
    argilla_server.ask("PATCH", f"questions/{decision}", {"title": "Keep it?"})
    dataset.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, name).outcomes["drop"] == 1


def test_a_set_created_again_with_a_renamed_question_is_an_error(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    dataset = RemoteDataset(argilla_server, name)
    dataset.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, name)
    argilla_server.ask("DELETE", f"datasets/{dataset.id}")
    with pytest.raises(ReviewError, match=r"no longer has the set"):
        pull(store, ReviewSection(), server, name)
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
    push(other, renamed, server, name, QueueQuery())
    with pytest.raises(ReviewError, match="lacks the question decision, has the additional question verdict"):
        pull(store, ReviewSection(), server, name)
    assert verdicts(store) == {LONG.id: "drop"}


def test_answers_to_records_that_were_not_pushed_are_ignored(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery(sample=2))
    dataset = RemoteDataset(argilla_server, name)
    message = {"role": "user", "content": "hello"}
    body = {"items": [{"fields": {"conversation": [message]}, "external_id": "theirs"}]}
    argilla_server.ask("POST", f"datasets/{dataset.id}/records/bulk", body)
    dataset.answer("ann", "theirs", decision="drop")
    done = pull(store, ReviewSection(), server, name)
    assert (done.unknown, done.answers["submitted"], done.verdicts) == (1, 0, 0)


def test_pulling_an_unknown_set_is_an_error(store, server):
    with pytest.raises(ReviewError, match="The store has no review set nobody"):
        pull(store, ReviewSection(), server, "nobody")


def test_the_key_is_not_stored(store, server, argilla_server, name):
    push(store, Recipe(), server, name, QueueQuery())
    assert argilla_server.api_key.encode() not in store.read_bytes()
    with pytest.raises(RefusedError):
        argilla_server.ask("GET", "me", key="no key at all")
