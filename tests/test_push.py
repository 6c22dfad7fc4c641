"""Review sets pushed to a real labelling server: tasks, suggestions, samples, overlap, questions."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
from support.review_sets import HOSTILE, LONG, TOOLS, RemoteDataset, add_reviewed
from support.stores import add, add_verdict, chat, questions
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
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection, check_recipe
from schemas.review import SetPlan
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path):
    return add_reviewed(tmp_path / "curate.duckdb")


def test_a_second_push_changes_nothing_on_the_server(store, server, argilla_server, set_name):
    first = push(store, Recipe(), server, set_name, QueueQuery(sample=5))
    before = RemoteDataset(argilla_server, set_name).records
    second = push(store, Recipe(), server, set_name, QueueQuery(sample=5))
    assert (first.sent, first.unchanged, second.sent, second.unchanged) == (5, 0, 0, 5)
    assert RemoteDataset(argilla_server, set_name).records == before


def test_a_larger_sample_adds_and_keeps_answers(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery(where="turns >= 4", order="turns desc"))
    RemoteDataset(argilla_server, set_name).answer("ann", LONG.id, decision="keep")
    assert push(store, Recipe(), server, set_name, QueueQuery(sample=8)).sent == 6
    assert RemoteDataset(argilla_server, set_name).records[LONG.id]["responses"][0]["status"] == "submitted"


def suggested_by(dataset, agent):
    """Conversation -> value currently suggested by this agent on the server."""
    return {
        conversation: next((each["value"] for each in record["suggestions"] if each["agent"] == agent), None)
        for conversation, record in dataset.records.items()
    }


def suggestion_bias(store, set_name):
    with reading(store) as connection:
        rows = review_stats(connection, ReviewSection(), set_name).suggestion_bias
    return {row["question"]: (row["equal_if_shown"], row["equal_if_blind"]) for row in rows}


def test_a_new_member_of_a_cluster_does_not_change_the_other_tasks(tmp_path, server, argilla_server, set_name):
    words = " ".join(f"word{number}" for number in range(60))
    add(tmp_path / "c.duckdb", [chat("Which?", f"{words} end{number}.") for number in range(5)])
    for sample, sent, unchanged in ((4, 4, 0), (5, 1, 4), (5, 0, 5)):
        done = push(tmp_path / "c.duckdb", Recipe(), server, set_name, QueueQuery(order="id desc", sample=sample))
        assert (done.sent, done.unchanged) == (sent, unchanged)
    records = RemoteDataset(argilla_server, set_name).records
    assert len({record["metadata"]["cluster"] for record in records.values()}) == 1


def test_a_later_push_does_not_change_the_recorded_suggestions_of_earlier_answers(
    store, server, argilla_server, set_name
):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    ids = [talk.id for talk in (LONG, HOSTILE, TOOLS, *questions(5))]
    for one in ids:
        add_verdict(store, one, "keep")
    push(store, recipe, server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    for one in ids[:-1]:
        dataset.answer("ann", one, decision="keep")
    pull(store, recipe.review, server, set_name)
    assert suggestion_bias(store, set_name) == {"decision": (1.0, 1.0)}
    dataset.answer("ann", ids[-1], decision="keep")  # pulled only after the next push
    for one in ids:
        add_verdict(store, one, "drop")
    push(store, recipe, server, set_name, QueueQuery())
    assert set(suggested_by(dataset, "rules").values()) == {"drop", None}
    pull(store, recipe.review, server, set_name)
    assert suggestion_bias(store, set_name) == {"decision": (1.0, 1.0)}


def test_obsolete_suggestions_are_removed_from_records_without_answers(store, server, argilla_server, set_name):
    recipe = check_recipe({"review": {"blind": 0, "overlap": 2}}, "the test")
    for talk in (LONG, HOSTILE):
        add_verdict(store, talk.id, "keep")
    push(store, recipe, server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="drop")
    with writing(store) as connection:
        connection.execute("DELETE FROM verdicts")  # as in a new store without a selection
    push(store, recipe, server, set_name, QueueQuery())
    found = suggested_by(dataset, "rules")
    assert (found[LONG.id], found[HOSTILE.id]) == ("keep", None)
    assert suggested_by(dataset, "original")[HOSTILE.id] == HOSTILE.turns[-1].value
    dataset.answer("bob", LONG.id, decision="keep")  # still sees the suggestion
    pull(store, recipe.review, server, set_name)
    with reading(store) as connection:
        rows = connection.sql("SELECT reviewer, suggestions::VARCHAR LIKE '%\"rules\"%' FROM reviews").fetchall()
    assert sorted(rows) == [("ann", True), ("bob", True)]


def test_html_in_a_conversation_is_escaped(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    shown = RemoteDataset(argilla_server, set_name).records[HOSTILE.id]["fields"]["conversation"]
    assert shown == [
        {"role": "user", "content": "&lt;img src=x onerror=alert(1)&gt;"},
        {
            "role": "answer 1",
            "content": "&lt;think&gt;hm &amp; so&lt;/think&gt;&lt;script&gt;alert(2)&lt;/script&gt;",
        },
    ]


def test_tools_calls_and_results_are_indented(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    shown = RemoteDataset(argilla_server, set_name).records[TOOLS.id]["fields"]["conversation"]
    assert [message["role"] for message in shown] == [
        "tools", "user", "answer 1 tool call", "tool result", "answer 2",
    ]  # fmt: skip
    assert shown[2]["content"].splitlines()[1] == '  "name": "find",'


def test_annotators_see_the_order_of_the_push_and_additions_behind_it(tmp_path, server, argilla_server, set_name):
    store = tmp_path / "curate.duckdb"
    ids = add(store, [chat("What is it? " * count, "This.") for count in range(1, 9)])
    score_store(store, Recipe())
    push(store, Recipe(), server, set_name, QueueQuery(order="words desc", sample=4))
    dataset = RemoteDataset(argilla_server, set_name)
    assert dataset.shown_to("ann") == ids[:3:-1]
    push(store, Recipe(), server, set_name, QueueQuery(order="words", sample=8))
    assert dataset.shown_to("ann") == ids[:3:-1] + ids[:4]
    assert dataset.shown_to("bob") == ids[:3:-1] + ids[:4]  # ann reads all of them: the order stays
    assert push(store, Recipe(), server, set_name, QueueQuery()).unchanged == 8


def test_annotators_of_an_ordered_set_get_records_that_nobody_else_is_reading(
    tmp_path, server, argilla_server, set_name
):
    store = tmp_path / "curate.duckdb"
    ids = add(store, [chat("What is it? " * count, "This.") for count in range(1, 9)])
    score_store(store, Recipe())
    push(store, Recipe(), server, set_name, QueueQuery(order="words"))
    dataset = RemoteDataset(argilla_server, set_name)
    assert dataset.shown_to("ann", limit=3) == ids[:3]
    assert dataset.shown_to("bob", limit=3) == ids[3:6]
    dataset.answer("ann", ids[0], decision="keep")
    assert dataset.shown_to("ann", limit=8) == [*ids[1:3], *ids[6:], *ids[3:6]]  # others' come last: none is lost
    twice = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, twice, server, f"{set_name}-2"[-50:], QueueQuery(order="words"))
    dataset = RemoteDataset(argilla_server, f"{set_name}-2"[-50:])
    shown = [dataset.shown_to(who, limit=3) for who in ("ann", "bob", "cyd")]
    assert shown == [ids[:3], ids[:3], ids[3:6]]  # two answers are wanted


def test_near_duplicates_are_shown_cluster_by_cluster_and_random_sets_in_different_orders(
    tmp_path, server, argilla_server, set_name
):
    store = tmp_path / "curate.duckdb"
    twins = [chat(f"Where is my parcel {n} today?", "It is on its way.") for n in range(3)]
    pairs = [chat(f"The pump of boat {end} is broken again", "We send another.") for end in ("Ann", "Bob")]
    add(store, [pairs[0], *twins, pairs[1], *questions(12)])
    score_store(store, Recipe())
    push(store, Recipe(), server, set_name, QueueQuery(queue="near-duplicates"))
    dataset = RemoteDataset(argilla_server, set_name)
    clusters = [dataset.records[one]["metadata"]["cluster"] for one in dataset.shown_to("ann")]
    assert clusters == sorted(clusters, key=clusters.index)
    push(store, Recipe(), server, f"{set_name}-r"[-50:], QueueQuery())
    mixed = RemoteDataset(argilla_server, f"{set_name}-r"[-50:])
    assert sorted(mixed.shown_to("ann")) == sorted(mixed.shown_to("bob"))
    assert mixed.shown_to("ann") != mixed.shown_to("bob")


def test_suggestions_name_their_score_and_are_not_shown_for_the_blind_share(store, server, argilla_server, set_name):
    recipe = check_recipe({"review": {"blind": 0.5}}, "the test")
    done = push(store, recipe, server, set_name, QueueQuery())
    records = RemoteDataset(argilla_server, set_name).records
    with reading(store) as connection:
        rows = connection.sql("SELECT conversation, blind, suggestions FROM review_records").fetchall()
        quality = dict(connection.sql("SELECT conversation, quality FROM scores").fetchall())
    blind = {conversation for conversation, hidden, _ in rows if hidden}
    assert 0 < len(blind) == done.blind < 8
    assert {suggestion["agent"] for one in blind for suggestion in records[one]["suggestions"]} == {"original"}
    assert all(json.loads(suggestions) for _, _, suggestions in rows)  # stored for comparison
    seen = next(one for one in records if one not in blind)
    rated = next(each for each in records[seen]["suggestions"] if each["agent"] == "quality")
    assert (rated["value"], rated["score"]) == (1 + round(4 * quality[seen]), pytest.approx(quality[seen], abs=1e-4))


def test_annotators_do_not_see_scores_in_the_metadata(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset, (_, _, key) = RemoteDataset(argilla_server, set_name), argilla_server.annotator("ann")
    found = argilla_server.ask("POST", f"me/datasets/{dataset.id}/records/search", {}, key=key)["items"]
    assert {tuple(sorted(item["record"]["metadata"])) for item in found} == {("line", "queue", "source")}
    assert "quality" in dataset.records[LONG.id]["metadata"]


def test_rejected_conversations_are_listed_with_reasons_and_the_others_are_sent(store, server, monkeypatch, set_name):
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    done = push(store, Recipe(), server, set_name, QueueQuery())
    reason = "the message of answer 1 has 24,000 characters, but Argilla accepts 20,000"
    assert done.rejected_by_server == [{"conversation": long, "reason": reason}]
    assert done.sent == 8
    monkeypatch.setattr(client, "MAX_CHARACTERS", 10**9)  # as on a server with lower limits
    again = push(store, Recipe(), server, f"{set_name[:50]}-again", QueueQuery())
    assert again.sent == 8
    assert "at most 20000 characters" in again.rejected_by_server[0]["reason"]


def test_a_conversation_with_more_answers_than_the_set_has_marks_is_rejected(store, server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery(sample=2))
    add(store, [chat(*["word"] * 40)], source="many.csv")
    score_store(store, Recipe())
    done = push(store, Recipe(), server, set_name, QueueQuery(sample=9))
    assert [row["reason"][:18] for row in done.rejected_by_server] == ["it has 20 answers,"]


def test_without_the_question_turns_long_conversations_are_not_rejected(store):
    add(store, [chat(*["word"] * 600)], source="many.csv")
    for names, count in ((("decision",), 0), (("decision", "turns"), 1)):
        recipe = Recipe(review=ReviewSection(questions=names))
        prepared = prepare_set(store, recipe, "long", QueueQuery(), rejection_reason=lambda task: None)
        assert [row["reason"][:19] for row in prepared.rejected] == ["it has 300 answers,"] * count


def test_a_dry_run_sends_nothing(store, server, argilla_server, set_name):
    done = push(store, Recipe(), server, set_name, QueueQuery(), dry_run=True)
    assert (done.conversations, done.sent) == (8, 0)
    with pytest.raises(StopIteration):
        RemoteDataset(argilla_server, set_name)


def test_a_dry_run_makes_no_workspace(store, argilla_server, monkeypatch, set_name):
    body = {"first_name": "a", "username": "admin-without-any", "role": "admin", "password": "12345678"}
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.ask("POST", "users", body)["api_key"])
    before = argilla_server.ask("GET", "me/workspaces")["items"]
    with connect(argilla_server.url, None) as theirs:  # an admin who is in no workspace, and may make none
        assert push(store, Recipe(), theirs, set_name, QueueQuery(), dry_run=True).conversations == 8
    assert argilla_server.ask("GET", "me/workspaces")["items"] == before


def test_after_a_killed_push_rejected_conversations_do_not_count_towards_the_sample(
    store, server, monkeypatch, set_name
):
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    score_store(store, Recipe())
    query = QueueQuery(order="characters desc", sample=3)
    with monkeypatch.context() as patched:
        patched.setattr(client, "MAX_CHARACTERS", 10**9)  # as on a server with lower limits
        patched.setattr(push_module, "_send", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            push(store, Recipe(), server, set_name, query)
    first, second = (push(store, Recipe(), server, set_name, query) for _ in range(2))
    assert (first.sent, [row["conversation"] for row in first.rejected_by_server]) == (2, [long])
    assert (second.sent, second.unchanged) == (1, 2)


def test_a_draft_that_no_push_created_is_not_deleted(store, server, argilla_server, set_name):
    body = {"name": set_name, "workspace_id": argilla_server.workspace}
    made = argilla_server.ask("POST", "datasets", body)["id"]
    question = {"name": "mine", "title": "Mine", "settings": {"type": "text"}}
    argilla_server.ask("POST", f"datasets/{made}/questions", question)
    with pytest.raises(ReviewError, match=f"has a draft {set_name} with the questions mine"):
        push(store, Recipe(), server, set_name, QueueQuery())
    assert argilla_server.ask("GET", f"datasets/{made}/questions")["items"][0]["name"] == "mine"


def test_conversations_that_cannot_be_shown_do_not_count_towards_the_sample(store, server, monkeypatch, set_name):
    recipe = check_recipe({"review": {"overlap": 2}}, "the test")
    (long,) = add(store, [chat("Q", "<" * 6000)], source="long.csv")
    score_store(store, Recipe())
    done = push(store, recipe, server, set_name, QueueQuery(order="characters desc", sample=3))
    assert (done.conversations, done.sent, [row["conversation"] for row in done.rejected_by_server]) == (3, 3, [long])
    monkeypatch.setattr(client, "MAX_CHARACTERS", 10**9)  # as on a server with lower limits
    again = push(store, recipe, server, set_name, QueueQuery(order="characters desc", sample=4))
    assert (again.sent, [row["conversation"] for row in again.rejected_by_server]) == (0, [long])
    with reading(store) as connection:
        (row,) = review_stats(connection, recipe.review, set_name).sets
    assert (row["conversations"], row["unanswered"]) == (3, 3)


def test_another_overlap_for_an_existing_set_is_an_error(curate, store, server, argilla_server, set_name):
    two = check_recipe({"review": {"overlap": 2}}, "the test")
    push(store, two, server, set_name, QueueQuery(overlap=2))
    assert push(store, two, server, set_name, QueueQuery(overlap=2)).overlap == 2
    assert push(store, Recipe(), server, set_name, QueueQuery()).overlap == 2
    refused = curate("review", "push", set_name, "--overlap", "3", "--home", str(argilla_server.home))
    assert refused.returncode == 1
    assert f"The set {set_name} asks for 2 answers per conversation, not 3." in refused.stderr


def test_the_overlap_is_read_from_the_server(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    distribution = {"distribution": {"strategy": "overlap", "min_submitted": 2}}
    argilla_server.ask("PATCH", f"datasets/{dataset.id}", distribution)
    dataset.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, set_name).outcomes["waiting"] == 1
    assert push(store, Recipe(), server, set_name, QueueQuery()).overlap == 2


def test_a_set_with_turn_numbers_keeps_them(store, server, argilla_server, set_name):
    """Sets of earlier releases offer the numbers of turns."""
    turn_numbers = tuple(
        replace(each, options=tuple("12345678")) if each.name == "turns" else each
        for each in build_questions(ReviewSection(), 2)
    )
    server.create_set(set_name, SetPlan(turn_numbers, 1, "", {"line": "integer", "source": "text", "queue": "text"}))
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    shown = dataset.records[TOOLS.id]["fields"]["conversation"]
    assert [each["role"] for each in shown][-2:] == ["3 tool result", "4 assistant"]
    dataset.answer("ann", LONG.id, decision="keep", turns=["2", "7"])
    pull(store, ReviewSection(), server, set_name)
    with reading(store) as connection:
        assert connection.sql("SELECT answers ->> 'turns' FROM reviews").fetchall() == [("[2,7]",)]


def test_a_set_with_titles_of_an_earlier_release_is_pushed_pulled_exported_and_imported(
    store, server, argilla_server, set_name, tmp_path
):
    push(store, Recipe(), server, set_name, QueueQuery(sample=2))
    former = {"decision": "Should a model learn from it?", "turns": "Which answers should not be learned from?"}
    dataset = RemoteDataset(argilla_server, set_name)
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
    assert push(store, Recipe(), server, set_name, QueueQuery(sample=8)).sent == 6
    dataset.answer("ann", LONG.id, decision="drop")
    assert pull(store, ReviewSection(), server, set_name).outcomes["drop"] == 1
    export_sheet(store, Recipe(), tmp_path / "s.csv", set_name, QueueQuery())
    fill(tmp_path / "s.csv", {HOSTILE.id: {"decision": "keep"}})
    imported = import_sheet(store, ReviewSection(), tmp_path / "s.csv", "ann")
    assert (imported.answered, imported.empty, imported.rejected) == (1, 7, [])
    with reading(store) as connection:
        assert connection.sql("SELECT questions ->> '$[1].title' FROM review_sets").fetchall() == [
            ("Should a model learn from it?",)
        ]


def test_the_page_offers_existing_answers_and_explains_the_questions(store, server, argilla_server, set_name):
    recipe = check_recipe({"review": {"overlap": 2, "guidelines": "Be kind."}}, "the test")
    push(store, recipe, server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    by_name = {each["name"]: each for each in argilla_server.ask("GET", f"datasets/{dataset.id}/questions")["items"]}
    offered = [option["text"] for option in by_name["turns"]["settings"]["options"]]
    assert offered == ["answer 1", "answer 2"]
    guidelines = argilla_server.ask("GET", f"datasets/{dataset.id}")["guidelines"]
    assert guidelines.startswith("Be kind.")
    assert all(f"**{each['title']}**" in guidelines for each in by_name.values())
    assert "Each conversation is answered by 2 annotators." in guidelines


def test_an_incomplete_set_is_created_again(store, server, argilla_server, set_name):
    argilla_server.ask("POST", "datasets", {"name": set_name, "workspace_id": argilla_server.workspace})
    assert push(store, Recipe(), server, set_name, QueueQuery()).sent == 8


def test_a_set_with_other_questions_is_an_error(store, server, set_name):
    few = check_recipe({"review": {"questions": ["decision", "note"]}}, "the test")
    push(store, few, server, set_name, QueueQuery())
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM review_sets").fetchall() == [(1,)]
    with pytest.raises(ReviewError, match="lacks the question answer"):
        push(store, Recipe(), server, set_name, QueueQuery())
    other = store.with_name("other.duckdb")  # a store without the set finds it on the server
    add(other, questions(2))
    with pytest.raises(ReviewError, match=f"The set {set_name} on the server lacks the question answer"):
        push(other, Recipe(), server, set_name, QueueQuery())
