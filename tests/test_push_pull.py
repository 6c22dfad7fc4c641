"""Reviews in and out of the real labelling server: pushed, answered over its API, pulled, judged, trained on."""

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

from curate.review import push as pushing
from curate.review.agreement import survey_reviews
from curate.review.argilla import client
from curate.review.argilla.client import connect
from curate.review.pull import pull
from curate.review.push import push
from curate.review.questions import questions_of
from curate.review.queue import Wanted
from curate.review.sets import prepare
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
    """A set of the test's own: all tests share one server."""
    return request.node.name.replace("_", "-")[:60].lower().strip("-[]")


@pytest.fixture
def server(argilla_server):
    with connect(None, argilla_server.home) as connected:
        yield connected


class Desk:
    """A set on the server, as those see it who answer."""

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
        """Answer for a conversation, by a person's own key; a second time changes the first answer."""
        _, _, key = self.server.annotator(who)
        body = {"status": status, "values": {name: {"value": value} for name, value in values.items()} or None}
        record = self.records[conversation]["id"]
        me = self.server.ask("GET", "me", key=key)["id"]
        there = [one["id"] for one in self.records[conversation]["responses"] if one["user_id"] == me]
        if there:
            return self.server.ask("PUT", f"responses/{there[0]}", body, key=key)["id"]
        return self.server.ask("POST", f"records/{record}/responses", body, key=key)["id"]

    def delete(self, conversation):
        self.server.ask("DELETE", f"datasets/{self.id}/records?ids={self.records[conversation]['id']}")


def verdicts(store):
    with reading(store) as connection:
        return dict(connection.sql("SELECT conversation, verdict FROM verdicts ORDER BY rowid").fetchall())


# push ----------------------------------------------------------------------------------------------------------


def test_a_second_push_changes_nothing_on_the_server(store, server, argilla_server, name):
    first = push(store, Recipe(), server, name, Wanted(sample=5))
    before = Desk(argilla_server, name).records
    second = push(store, Recipe(), server, name, Wanted(sample=5))
    assert (first.sent, first.unchanged, second.sent, second.unchanged) == (5, 0, 0, 5)
    assert Desk(argilla_server, name).records == before


def test_a_larger_sample_adds_and_keeps_answers(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted(where="turns >= 4", order="turns desc"))
    Desk(argilla_server, name).answer("ann", LONG.id, decision="keep")
    assert push(store, Recipe(), server, name, Wanted(sample=8)).sent == 6
    assert Desk(argilla_server, name).records[LONG.id]["responses"][0]["status"] == "submitted"


def suggested_by(desk, agent):
    """Conversation -> what it is suggested by this agent, on the server now."""
    return {
        conversation: next((each["value"] for each in record["suggestions"] if each["agent"] == agent), None)
        for conversation, record in desk.records.items()
    }


def anchoring(store, name):
    with reading(store) as connection:
        rows = survey_reviews(connection, ReviewSection(), name).anchoring
    return {row["question"]: (row["as_suggested"], row["as_would_be_suggested"]) for row in rows}


def test_a_newcomer_to_a_cluster_changes_nothing_that_the_others_show(tmp_path, server, argilla_server, name):
    words = " ".join(f"word{number}" for number in range(60))
    add(tmp_path / "c.duckdb", [chat("Which?", f"{words} end{number}.") for number in range(5)])
    for sample, sent, unchanged in ((4, 4, 0), (5, 1, 4), (5, 0, 5)):
        done = push(tmp_path / "c.duckdb", Recipe(), server, name, Wanted(order="id desc", sample=sample))
        assert (done.sent, done.unchanged) == (sent, unchanged)
    records = Desk(argilla_server, name).records
    assert len({record["metadata"]["cluster"] for record in records.values()}) == 1


def test_a_later_push_changes_nothing_about_what_earlier_answers_were_suggested(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    ids = [talk.id for talk in (LONG, HOSTILE, TOOLS, *questions(5))]
    for one in ids:
        add_verdict(store, one, "keep")
    push(store, recipe, server, name, Wanted())
    desk = Desk(argilla_server, name)
    for one in ids[:-1]:
        desk.answer("ann", one, decision="keep")
    pull(store, recipe.review, server, name)
    assert anchoring(store, name) == {"decision": (1.0, 1.0)}
    desk.answer("ann", ids[-1], decision="keep")  # pulled after the next push only
    for one in ids:
        add_verdict(store, one, "drop")
    push(store, recipe, server, name, Wanted())
    assert set(suggested_by(desk, "rules").values()) == {"drop", None}
    pull(store, recipe.review, server, name)
    assert anchoring(store, name) == {"decision": (1.0, 1.0)}


def test_what_is_suggested_no_more_is_taken_away_where_nobody_has_answered(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"blind": 0, "overlap": 2}}, "the test")
    for talk in (LONG, HOSTILE):
        add_verdict(store, talk.id, "keep")
    push(store, recipe, server, name, Wanted())
    desk = Desk(argilla_server, name)
    desk.answer("ann", LONG.id, decision="drop")
    with writing(store) as connection:
        connection.execute("DELETE FROM verdicts")  # as in a store made anew, before any selection
    push(store, recipe, server, name, Wanted())
    found = suggested_by(desk, "rules")
    assert (found[LONG.id], found[HOSTILE.id]) == ("keep", None)
    assert suggested_by(desk, "original")[HOSTILE.id] == HOSTILE.turns[-1].value
    desk.answer("bob", LONG.id, decision="keep")  # still sees what ann was suggested
    pull(store, recipe.review, server, name)
    with reading(store) as connection:
        rows = connection.sql("SELECT reviewer, suggestions::VARCHAR LIKE '%\"rules\"%' FROM reviews").fetchall()
    assert sorted(rows) == [("ann", True), ("bob", True)]


def test_what_a_page_would_execute_or_swallow_is_shown_as_text(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    shown = Desk(argilla_server, name).records[HOSTILE.id]["fields"]["conversation"]
    assert shown == [
        {"role": "user", "content": "&lt;img src=x onerror=alert(1)&gt;"},
        {
            "role": "answer 1",
            "content": "&lt;think&gt;hm &amp; so&lt;/think&gt;&lt;script&gt;alert(2)&lt;/script&gt;",
        },
    ]


def test_tools_calls_and_results_are_laid_out(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    shown = Desk(argilla_server, name).records[TOOLS.id]["fields"]["conversation"]
    assert [message["role"] for message in shown] == [
        "tools", "user", "answer 1 tool call", "tool result", "answer 2",
    ]  # fmt: skip
    assert shown[2]["content"].splitlines()[1] == '  "name": "find",'


def test_scores_suggest_with_their_name_and_the_blind_share_shows_none(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    done = push(store, recipe, server, name, Wanted())
    records = Desk(argilla_server, name).records
    with reading(store) as connection:
        rows = connection.sql("SELECT conversation, blind, suggestions FROM review_records").fetchall()
        quality = dict(connection.sql("SELECT conversation, quality FROM scores").fetchall())
    blind = {conversation for conversation, hidden, _ in rows if hidden}
    assert 0 < len(blind) == done.blind < 8
    assert all(records[one]["suggestions"] == [] for one in blind)
    assert all(json.loads(suggestions) for _, _, suggestions in rows)  # kept here, to compare with
    seen = next(one for one in records if one not in blind)
    rated = next(each for each in records[seen]["suggestions"] if each["agent"] == "quality")
    assert (rated["value"], rated["score"]) == (1 + round(4 * quality[seen]), pytest.approx(quality[seen], abs=1e-4))


def test_reviewers_do_not_see_scores_beside_a_blind_conversation(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk, (_, _, key) = Desk(argilla_server, name), argilla_server.annotator("ann")
    found = argilla_server.ask("POST", f"me/datasets/{desk.id}/records/search", {}, key=key)["items"]
    assert {tuple(sorted(item["record"]["metadata"])) for item in found} == {("line", "queue", "source")}
    assert "quality" in desk.records[LONG.id]["metadata"]


def test_what_the_server_cannot_take_is_listed_with_the_reason_and_the_rest_arrives(store, server, monkeypatch, name):
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    done = push(store, Recipe(), server, name, Wanted())
    reason = "the message of answer 1 has 24,000 characters; Argilla takes 20,000"
    assert done.unfit == [{"conversation": long, "reason": reason}]
    assert done.sent == 8
    monkeypatch.setattr(client, "CHARACTERS", 10**9)  # as on a server with other limits than we know
    again = push(store, Recipe(), server, f"{name[:50]}-again", Wanted())
    assert again.sent == 8
    assert "at most 20000 characters" in again.unfit[0]["reason"]


def test_a_conversation_with_more_answers_than_the_set_numbers_is_listed(store, server, name):
    push(store, Recipe(), server, name, Wanted(sample=2))
    add(store, [chat(*["word"] * 40)], source="many.csv")
    score_store(store, Recipe())
    done = push(store, Recipe(), server, name, Wanted(sample=9))
    assert [row["reason"][:18] for row in done.unfit] == ["it has 20 answers,"]


def test_who_is_asked_about_no_marks_is_left_out_for_none(store):
    add(store, [chat(*["word"] * 600)], source="many.csv")
    for questions_asked, left_out in ((("decision",), 0), (("decision", "turns"), 1)):
        recipe = Recipe(review=ReviewSection(questions=questions_asked))
        prepared = prepare(store, recipe, "long", Wanted(), unfit=lambda task: None)
        assert [row["reason"][:19] for row in prepared.unfit] == ["it has 300 answers,"] * left_out


def test_a_dry_run_sends_nothing(store, server, argilla_server, name):
    done = push(store, Recipe(), server, name, Wanted(), dry_run=True)
    assert (done.conversations, done.sent) == (8, 0)
    with pytest.raises(StopIteration):
        Desk(argilla_server, name)


def test_a_dry_run_makes_no_workspace(store, argilla_server, monkeypatch, name):
    body = {"first_name": "a", "username": "admin-without-any", "role": "admin", "password": "12345678"}
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.ask("POST", "users", body)["api_key"])
    before = argilla_server.ask("GET", "me/workspaces")["items"]
    with connect(argilla_server.url, None) as theirs:  # an admin who is in no workspace, and may make none
        assert push(store, Recipe(), theirs, name, Wanted(), dry_run=True).conversations == 8
    assert argilla_server.ask("GET", "me/workspaces")["items"] == before


def test_after_a_push_that_was_killed_too_what_the_server_refuses_takes_no_room(store, server, monkeypatch, name):
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    score_store(store, Recipe())
    wanted = Wanted(order="characters desc", sample=3)
    with monkeypatch.context() as patched:
        patched.setattr(client, "CHARACTERS", 10**9)  # as on a server with other limits than we know
        patched.setattr(pushing, "_send", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            push(store, Recipe(), server, name, wanted)
    first, second = (push(store, Recipe(), server, name, wanted) for _ in range(2))
    assert (first.sent, [row["conversation"] for row in first.unfit]) == (2, [long])
    assert (second.sent, second.unchanged) == (1, 2)


def test_a_draft_that_no_push_began_is_left_alone(store, server, argilla_server, name):
    body = {"name": name, "workspace_id": argilla_server.workspace}
    made = argilla_server.ask("POST", "datasets", body)["id"]
    question = {"name": "mine", "title": "Mine", "settings": {"type": "text"}}
    argilla_server.ask("POST", f"datasets/{made}/questions", question)
    with pytest.raises(ReviewError, match=f"has a draft {name} that asks mine"):
        push(store, Recipe(), server, name, Wanted())
    assert argilla_server.ask("GET", f"datasets/{made}/questions")["items"][0]["name"] == "mine"


def test_what_cannot_be_shown_takes_no_room_and_holds_nothing_up(store, server, monkeypatch, name):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    score_store(store, Recipe())
    done = push(store, recipe, server, name, Wanted(order="characters desc", sample=3))
    assert (done.conversations, done.sent, [row["conversation"] for row in done.unfit]) == (3, 3, [long])
    monkeypatch.setattr(client, "CHARACTERS", 10**9)  # as on a server with other limits than we know
    again = push(store, recipe, server, name, Wanted(order="characters desc", sample=4))
    assert (again.sent, [row["conversation"] for row in again.unfit]) == (0, [long])
    with reading(store) as connection:
        (row,) = survey_reviews(connection, recipe.review, name).sets
    assert (row["conversations"], row["untouched"]) == (3, 3)


def test_another_overlap_for_a_set_that_is_there_is_refused(curate, store, server, argilla_server, name):
    two = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, two, server, name, Wanted(overlap=2))
    assert push(store, two, server, name, Wanted(overlap=2)).overlap == 2
    assert push(store, Recipe(), server, name, Wanted()).overlap == 2
    refused = curate("review", "push", name, "--overlap", "3", "--home", str(argilla_server.home))
    assert refused.returncode == 1
    assert f"The set {name} waits for 2 answers each, not for 3." in refused.stderr


def test_how_many_answers_a_set_waits_for_follows_its_server(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    distribution = {"distribution": {"strategy": "overlap", "min_submitted": 2}}
    argilla_server.ask("PATCH", f"datasets/{desk.id}", distribution)
    desk.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, name).outcomes["waiting"] == 1
    assert push(store, Recipe(), server, name, Wanted()).overlap == 2


def test_a_set_that_numbers_turns_goes_on_numbering_them(store, server, argilla_server, name):
    """As sets do that were made before answers were numbered."""
    asked = tuple(
        replace(each, options=tuple("12345678")) if each.name == "turns" else each
        for each in questions_of(ReviewSection(), 2)
    )
    server.make_set(name, SetPlan(asked, 1, "", {"line": "whole", "source": "text", "queue": "text"}))
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    shown = desk.records[TOOLS.id]["fields"]["conversation"]
    assert [each["role"] for each in shown][-2:] == ["3 tool result", "4 assistant"]
    desk.answer("ann", LONG.id, decision="keep", turns=["2", "7"])
    pull(store, ReviewSection(), server, name)
    with reading(store) as connection:
        assert connection.sql("SELECT answers ->> 'turns' FROM reviews").fetchall() == [("[2,7]",)]


def test_the_page_offers_the_answers_that_there_are_and_says_what_is_asked(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"overlap": 2, "guidelines": "Be kind."}}, "the test")
    push(store, recipe, server, name, Wanted())
    desk = Desk(argilla_server, name)
    asked = {each["name"]: each for each in argilla_server.ask("GET", f"datasets/{desk.id}/questions")["items"]}
    offered = [option["text"] for option in asked["turns"]["settings"]["options"]]
    assert offered == ["answer 1", "answer 2"]
    told = argilla_server.ask("GET", f"datasets/{desk.id}")["guidelines"]
    assert told.startswith("Be kind.")
    assert all(f"**{each['title']}**" in told for each in asked.values())
    assert "2 people answer for each conversation." in told


def test_a_set_that_was_left_half_made_is_made_whole(store, server, argilla_server, name):
    argilla_server.ask("POST", "datasets", {"name": name, "workspace_id": argilla_server.workspace})
    assert push(store, Recipe(), server, name, Wanted()).sent == 8


def test_a_set_that_asks_something_else_is_refused(store, server, name):
    push(store, check_recipe({"review": {"labels": ["rude", "long"]}}, "the test"), server, name, Wanted())
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM review_sets").fetchall() == [(1,)]
    with pytest.raises(ReviewError, match="has other options for issues"):
        push(store, Recipe(), server, name, Wanted())
    other = store.with_name("other.duckdb")  # a store that does not know the set meets it on the server
    add(other, questions(2))
    with pytest.raises(ReviewError, match=f"The set {name} on the server has other options for issues"):
        push(other, Recipe(), server, name, Wanted())


# pull ----------------------------------------------------------------------------------------------------------


def test_answers_become_verdicts_edits_and_train_flags_and_the_preview_shows_them(
    curate, store, argilla_server, name, tmp_path
):
    shutil.copytree(TINY, tmp_path / "tiny")
    at = ("--home", str(argilla_server.home))
    pushed = curate("review", "push", name, "--overlap", "2", "--blind", "0", *at)
    assert pushed.returncode == 0, pushed.stderr
    desk = Desk(argilla_server, name)
    one, two, _, _, _ = (talk.id for talk in questions(5))
    for who in ("ann", "bob"):
        desk.answer(who, LONG.id, quality=4, decision="keep", turns=["answer 1"])
        desk.answer(who, HOSTILE.id, quality=1, decision="drop", issues=["unsafe"])
        desk.answer(who, one, quality=3, decision="fix", answer="With <b>tags</b> & all.")
    desk.answer("ann", two, decision="drop")
    pulled = curate("review", "pull", name, *at, "--json")
    told = json.loads(pulled.stdout)
    assert told["answers"] == {"submitted": 7, "discarded": 0, "draft": 0, "withdrawn": 0}
    assert told["outcomes"] == {"keep": 0, "edit": 2, "drop": 1, "waiting": 1, "disputed": 0, "undecided": 0}
    assert curate("freeze", "desk", "--held-out", "0").returncode == 0
    shown = curate("preview", "desk@1", "--limit", "9", "--set", "train.model=tiny").stdout
    assert "⟦Since Monday." in shown
    assert "On its way." in shown
    assert "⟦On its way." not in shown
    assert "⟦With <b>tags</b> & all." in shown
    assert "alert" not in shown
    assert "Answer 1." in shown  # waits for a second answer, and stays


def test_the_same_answers_again_write_nothing_and_read_no_record(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    Desk(argilla_server, name).answer("ann", LONG.id, decision="drop")
    first = pull(store, ReviewSection(), server, name)
    second = pull(store, ReviewSection(), server, name)
    again = pull(store, ReviewSection(), server, name, again=True)
    assert (first.unchanged, first.verdicts) == (False, 1)
    assert (second.unchanged, second.verdicts) == (True, 0)
    assert (again.answers["submitted"], again.verdicts) == (0, 0)


def test_a_changed_and_a_withdrawn_answer_are_told(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    response = desk.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, name)
    desk.answer("ann", LONG.id, decision="keep")
    assert pull(store, ReviewSection(), server, name).answers["submitted"] == 1
    assert verdicts(store)[LONG.id] == "keep"
    argilla_server.ask("DELETE", f"responses/{response}", key=argilla_server.annotator("ann")[2])
    assert pull(store, ReviewSection(), server, name).answers["withdrawn"] == 1


def test_a_discard_of_an_empty_form_does_not_stop_a_pull(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    Desk(argilla_server, name).answer("ann", LONG.id, status="discarded")
    done = pull(store, ReviewSection(), server, name)
    assert (done.answers["discarded"], done.verdicts) == (1, 0)


def test_the_prefilled_answer_sent_back_as_it_was_is_no_edit(store, server, argilla_server, name):
    push(store, check_recipe({"review": {"blind": 0}}, "the test"), server, name, Wanted())
    desk = Desk(argilla_server, name)
    given = {each["agent"]: each["value"] for each in desk.records[HOSTILE.id]["suggestions"]}["original"]
    assert given == HOSTILE.turns[-1].value  # plain: the page's text box shows text, not HTML
    desk.answer("ann", HOSTILE.id, decision="keep", answer=given)
    assert pull(store, ReviewSection(), server, name).outcomes["keep"] == 1


def test_people_who_differ_are_brought_before_a_third(store, server, argilla_server, name):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, recipe, server, name, Wanted())
    desk = Desk(argilla_server, name)
    desk.answer("ann", LONG.id, decision="keep")
    desk.answer("bob", LONG.id, decision="drop")
    assert pull(store, recipe.review, server, name).outcomes["disputed"] == 1
    third = f"{name[:40]}-third"
    one = check_recipe({"review": {"overlap": 1}}, "the test")
    assert push(store, one, server, third, Wanted(queue="disagreement")).sent == 1
    Desk(argilla_server, third).answer("cat", LONG.id, decision="drop")
    assert pull(store, one.review, server, third).outcomes["drop"] == 1


def test_who_when_and_what_they_saw_is_kept(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    response = desk.answer("ann", LONG.id, decision="keep", note="fine")
    pull(store, ReviewSection(), server, name)
    with reading(store) as connection:
        row = connection.sql(
            "SELECT conversation, reviewer, response, record, blind, strftime(answered_at, '%Y') > '2025' FROM reviews"
        ).fetchall()[0]
        blind = connection.execute("SELECT blind FROM review_records WHERE conversation = ?", [LONG.id]).fetchall()
    assert row == (LONG.id, "ann", response, desk.records[LONG.id]["id"], blind[0][0], True)


# when things go wrong ------------------------------------------------------------------------------------------


class Line:
    """A wire to the server that can be cut."""

    def __init__(self, url):
        self._there = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._door.getsockname()[1]}"

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(self._there)
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def cut(self):
        for end in [self._door, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def line(argilla_server, monkeypatch):
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.api_key)
    wire = Line(argilla_server.url)
    yield wire
    wire.cut()


def test_a_server_that_goes_away_during_a_push_loses_nothing_and_the_same_command_goes_on(
    tmp_path, server, argilla_server, line, name
):
    store = tmp_path / "many.duckdb"
    add(store, questions(600))
    with (
        connect(line.url, None) as cut_off,
        pytest.raises(ReviewError, match=r"does not answer: .* 100 of 600 conversations had arrived") as told,
    ):
        push(store, Recipe(), cut_off, name, Wanted(), progress=lambda *_: line.cut())
    assert "The same command goes on from there." in told.value.hint
    done = push(store, Recipe(), server, name, Wanted())  # the same server, under another address
    assert (done.sent, done.unchanged) == (500, 100)
    assert len(Desk(argilla_server, name).records) == 600


def test_a_push_that_is_killed_goes_on_with_the_same_command(tmp_path, curate, argilla_server, name):
    store = tmp_path / "curate.duckdb"
    add(store, questions(600))
    at = ["review", "push", name, "--home", str(argilla_server.home)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", *at],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    desk = None
    while desk is None or not desk.count:
        assert process.poll() is None, "it was done before it could be killed"
        with contextlib.suppress(StopIteration):
            desk = Desk(argilla_server, name)
    process.kill()
    process.wait()
    done = curate(*at, "--json")
    assert done.returncode == 0, done.stderr
    assert desk.count == 600
    with reading(store) as connection:
        assert connection.sql("SELECT count(record), count(DISTINCT record) FROM review_records").fetchall() == [
            (600, 600)
        ]


def test_a_server_that_goes_away_during_a_pull_leaves_the_store_as_it_was(store, server, argilla_server, line, name):
    push(store, Recipe(), server, name, Wanted())
    Desk(argilla_server, name).answer("ann", LONG.id, decision="drop")
    with connect(line.url, None) as cut_off:
        line.cut()
        with pytest.raises(ReviewError, match="does not answer"):
            pull(store, ReviewSection(), cut_off, name)
    assert verdicts(store) == {}
    assert pull(store, ReviewSection(), server, name).verdicts == 1


def test_no_server_no_key_a_wrong_key_and_no_argilla_are_a_sentence_each(curate, store, argilla_server, tmp_path):
    def said(*options, **environment):
        ran = curate("review", "push", "desk", *options, **environment)
        assert ran.returncode == 1
        assert "Traceback" not in ran.stderr
        return ran.stderr

    free = socket.create_server(("127.0.0.1", 0))
    nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    free.close()
    assert "does not answer" in said("--url", nowhere, ARGILLA_API_KEY="k")
    assert "There is no key for" in said("--url", nowhere, ARGILLA_API_KEY="")
    assert "does not let the key in" in said("--url", argilla_server.url, ARGILLA_API_KEY="wrong")
    assert "No labelling server runs on" in said("--home", str(tmp_path / "nobody"))
    _, _, key = argilla_server.annotator("ann")
    refused = said("--url", argilla_server.url, ARGILLA_API_KEY=key)
    assert "who is annotator: too little for this" in refused
    assert key not in refused


def test_an_address_with_a_password_in_it_is_refused_and_not_repeated(curate, store):
    for command in (("push", "desk"), ("users", "list")):
        ran = curate("review", *command, "--url", "https://bob:hunter2@labels.example", ARGILLA_API_KEY="k")
        assert (ran.returncode, "a name or a password in its address" in ran.stderr) == (1, True), ran.stderr
        assert "hunter2" not in ran.stderr + ran.stdout
    assert b"hunter2" not in store.read_bytes()


def test_what_is_no_address_is_refused_in_a_sentence(curate, store):
    ran = curate("review", "push", "desk", "--url", "http://[::1", ARGILLA_API_KEY="k")
    assert (ran.returncode, "is no address of a server" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)


@pytest.mark.parametrize("key", ["secretkey123\n", "secret key123", "schlüssel-secret"])
def test_a_key_that_cannot_be_one_is_refused_and_not_repeated(curate, store, key):
    for command in (("push", "desk"), ("users", "list")):
        ran = curate("review", *command, "--url", "http://127.0.0.1:9", ARGILLA_API_KEY=key)
        assert (ran.returncode, "The key in ARGILLA_API_KEY has" in ran.stderr) == (1, True), ran.stderr
        assert "secret" not in ran.stderr + ran.stdout


def test_a_key_whose_account_is_deleted_during_a_push_is_told_and_what_arrived_is_known(
    tmp_path, server, argilla_server, monkeypatch, name
):
    store = tmp_path / "many.duckdb"
    add(store, questions(300))
    body = {"first_name": "t", "username": "temporary", "role": "owner", "password": "12345678"}
    user = argilla_server.ask("POST", "users", body)
    monkeypatch.setenv("ARGILLA_API_KEY", user["api_key"])
    with (
        connect(argilla_server.url, None) as theirs,
        pytest.raises(ReviewError, match=r"does not let the key in any more.* 100 of 300"),
    ):
        push(store, Recipe(), theirs, name, Wanted(),
             progress=lambda *_: argilla_server.ask("DELETE", f"users/{user['id']}"))  # fmt: skip
    assert push(store, Recipe(), server, name, Wanted()).sent == 200


def test_a_record_deleted_on_the_server_is_told_keeps_its_answers_and_comes_back(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    desk.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, name)
    desk.delete(LONG.id)
    done = pull(store, ReviewSection(), server, name)
    assert (done.gone, done.answers["withdrawn"], done.outcomes["drop"]) == (1, 0, 1)
    assert push(store, Recipe(), server, name, Wanted()).sent == 1
    assert LONG.id in desk.records
    assert pull(store, ReviewSection(), server, name).gone == 0
    assert verdicts(store) == {LONG.id: "drop"}


def test_a_question_with_another_title_on_the_server_is_the_same_question(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    asked = argilla_server.ask("GET", f"datasets/{desk.id}/questions")["items"]
    decision = next(question["id"] for question in asked if question["name"] == "decision")
    argilla_server.ask("PATCH", f"questions/{decision}", {"title": "Keep it?"})
    desk.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, name).outcomes["drop"] == 1


def test_a_set_made_anew_with_a_renamed_question_is_refused_and_nothing_is_lost(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    desk = Desk(argilla_server, name)
    desk.answer("ann", LONG.id, decision="drop")
    pull(store, ReviewSection(), server, name)
    argilla_server.ask("DELETE", f"datasets/{desk.id}")
    with pytest.raises(ReviewError, match=r"has no set .* any more"):
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
    push(other, renamed, server, name, Wanted())
    with pytest.raises(ReviewError, match="does not ask decision, asks verdict, which the recipe does not"):
        pull(store, ReviewSection(), server, name)
    assert verdicts(store) == {LONG.id: "drop"}


def test_answers_to_records_of_somebody_else_are_left_alone(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted(sample=2))
    desk = Desk(argilla_server, name)
    message = {"role": "user", "content": "hello"}
    body = {"items": [{"fields": {"conversation": [message]}, "external_id": "theirs"}]}
    argilla_server.ask("POST", f"datasets/{desk.id}/records/bulk", body)
    desk.answer("ann", "theirs", decision="drop")
    done = pull(store, ReviewSection(), server, name)
    assert (done.unknown, done.answers["submitted"], done.verdicts) == (1, 0, 0)


def test_a_set_that_was_never_pushed_is_told(store, server):
    with pytest.raises(ReviewError, match="The store knows no review set nobody"):
        pull(store, ReviewSection(), server, "nobody")


def test_the_key_stands_in_no_store(store, server, argilla_server, name):
    push(store, Recipe(), server, name, Wanted())
    assert argilla_server.api_key.encode() not in store.read_bytes()
    with pytest.raises(RefusedError):
        argilla_server.ask("GET", "me", key="no key at all")
