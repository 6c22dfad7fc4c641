"""Annotators and conversations that leave a review, and conversations offered to some annotators only."""

import json

import pytest
from support.argilla_server import RefusedError
from support.review_sets import HOSTILE, LONG, RemoteDataset, add_reviewed
from support.stores import add, questions
from test_spreadsheet import fill, rows_of

from curate.review.agreement import review_stats
from curate.review.pull import pull
from curate.review.push import push
from curate.review.queue import QueueQuery
from curate.review.removal import remove_annotator
from curate.review.spreadsheet import export_sheet, import_sheet
from schemas.errors import ReviewError
from schemas.recipe import Recipe, ReviewSection, check_recipe
from schemas.store import reading

TWO = check_recipe({"review": {"overlap": 2}}, "the test")


@pytest.fixture
def store(tmp_path):
    return add_reviewed(tmp_path / "curate.duckdb")


def current(store):
    """Conversation -> human verdict in force."""
    with reading(store) as connection:
        rows = connection.sql(
            """SELECT conversation, verdict FROM verdicts WHERE by_whom <> 'rule'
               QUALIFY row_number() OVER (PARTITION BY conversation ORDER BY seq DESC) = 1"""
        ).fetchall()
    return dict(rows)


def stored_answers(store):
    with reading(store) as connection:
        return connection.sql("SELECT reviewer, status FROM reviews ORDER BY seq").fetchall()


# annotators ------------------------------------------------------------------------------------------------------


def test_a_removed_annotator_is_locked_out_and_their_answers_stay_and_do_not_count(
    store, server, argilla_server, curate, set_name
):
    push(store, TWO, server, set_name, QueueQuery())
    dataset, (gone, _, key) = RemoteDataset(argilla_server, set_name), argilla_server.annotator("leaver")
    for who in ("ann", gone):
        dataset.answer(who, LONG.id, decision="drop")
        dataset.answer(who, HOSTILE.id, decision="keep")
    pull(store, TWO.review, server, set_name)
    dataset.answer(gone, HOSTILE.id, decision="drop")  # not pulled yet
    at = ("--home", str(argilla_server.home), "--store", str(store), "--json")
    planned = json.loads(curate("review", "users", "remove", gone, "--dry-run", *at).stdout)
    assert planned["sets"] == [{"set": set_name, "answers": 2}]
    assert {row["conversation"]: row["before"] for row in planned["verdicts"]} == {LONG.id: "drop", HOSTILE.id: "keep"}
    assert current(store) == {LONG.id: "drop", HOSTILE.id: "keep"}
    assert argilla_server.ask("GET", "me", key=key)["username"] == gone
    ran = curate("review", "users", "remove", gone, *at[:-1])
    assert ran.returncode == 0, ran.stderr
    assert "leaver: 2 answers no longer counted." in ran.stdout
    assert set(current(store).values()) == {"undecided"}
    with pytest.raises(RefusedError, match="401"):
        argilla_server.ask("GET", "me", key=key)
    assert stored_answers(store).count((gone, "submitted")) == 3, "with the answer that was changed before the removal"
    assert (gone, "withdrawn") not in stored_answers(store)
    again = pull(store, TWO.review, server, set_name, again=True)
    assert (again.answers["withdrawn"], again.verdicts) == (0, 0)
    argilla_server._annotators.pop(gone)


def test_records_of_a_removed_annotator_are_offered_again(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery(sample=3))
    dataset, (gone, *_) = RemoteDataset(argilla_server, set_name), argilla_server.annotator("leaver-two")
    first = next(iter(dataset.records))
    dataset.answer(gone, first, decision="keep")
    assert dataset.records[first]["status"] == "completed"
    remove_annotator(store, ReviewSection(), server, gone)
    assert dataset.records[first]["status"] == "pending"
    argilla_server._annotators.pop(gone)


def test_a_new_annotator_with_the_name_of_a_removed_one_counts(store, server, argilla_server, set_name):
    push(store, Recipe(), server, set_name, QueueQuery(sample=3))
    dataset, (gone, *_) = RemoteDataset(argilla_server, set_name), argilla_server.annotator("returner")
    first, second, _ = dataset.records
    dataset.answer(gone, first, decision="drop")
    remove_annotator(store, ReviewSection(), server, gone)
    argilla_server._annotators.pop(gone)
    dataset.answer(gone, second, decision="drop")
    pull(store, ReviewSection(), server, set_name)
    assert current(store) == {first: "undecided", second: "drop"}


def test_the_answers_of_an_account_deleted_elsewhere_count_and_are_reported(
    store, server, argilla_server, curate, set_name
):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset, (gone, _, key) = RemoteDataset(argilla_server, set_name), argilla_server.annotator("deleted")
    dataset.answer(gone, LONG.id, decision="drop")
    pull(store, ReviewSection(), server, set_name)
    argilla_server.ask("DELETE", f"users/{argilla_server.ask('GET', 'me', key=key)['id']}")
    argilla_server._annotators.pop(gone)
    for again in (False, True):
        done = pull(store, ReviewSection(), server, set_name, again=again)
        assert done.deleted_accounts == [{"annotator": gone, "answers": 1}]
        assert (done.answers.get("withdrawn", 0), current(store)) == (0, {LONG.id: "drop"})
    at = ("--home", str(argilla_server.home), "--store", str(store))
    assert f"curate review users remove {gone}" in curate("review", "pull", set_name, *at).stderr
    done = remove_annotator(store, ReviewSection(), server, gone)
    assert (done.account, done.verdicts) == (False, [{"conversation": LONG.id, "before": "drop", "after": None}])
    assert "no account" not in curate("review", "pull", set_name, *at).stderr


def test_an_account_with_answers_in_sets_of_another_store_is_not_deleted(
    tmp_path, store, server, argilla_server, set_name
):
    other = tmp_path / "other.duckdb"
    add(other, questions(2))
    push(other, Recipe(), server, set_name, QueueQuery())
    dataset, (who, *_) = RemoteDataset(argilla_server, set_name), argilla_server.annotator("busy")
    dataset.answer(who, next(iter(dataset.records)), decision="keep")
    push(store, Recipe(), server, f"{set_name[:50]}-own", QueueQuery())
    with pytest.raises(ReviewError, match=rf"sets that this store does not have.*{set_name} \(1 answer\)"):
        remove_annotator(store, ReviewSection(), server, who)
    assert who in server.accounts()


def test_an_annotator_of_spreadsheets_is_removed_without_a_server(store, tmp_path):
    export_sheet(store, Recipe(), tmp_path / "desk.csv", "desk", QueueQuery(sample=2))
    answer = {"decision": "drop", "reviewer": "ann"}
    fill(tmp_path / "desk.csv", {row["conversation"]: answer for row in rows_of(tmp_path / "desk.csv")})
    import_sheet(store, ReviewSection(), tmp_path / "desk.csv")
    assert len(current(store)) == 2
    done = remove_annotator(store, ReviewSection(), None, "ann")
    assert (done.sets, len(done.verdicts)) == ([{"set": "desk", "answers": 2}], 2)
    with pytest.raises(ReviewError, match="There is no annotator bob"):
        remove_annotator(store, ReviewSection(), None, "bob")


# members ---------------------------------------------------------------------------------------------------------


def test_removed_conversations_leave_the_queue_and_keep_their_answers(store, server, argilla_server, curate, set_name):
    push(store, Recipe(), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="drop")
    at = ("--home", str(argilla_server.home), "--store", str(store))
    arguments = ("review", "remove", set_name, "--where", "turns >= 2", *at)
    assert "8 conversations removed" in curate(*arguments, "--dry-run").stdout
    assert dataset.count == 8
    ids = [LONG.id[:12], HOSTILE.id[:12]]
    ran = curate("review", "remove", set_name, *ids, *at)
    assert "2 conversations removed: 1 answered, 0 with too few answers, 1 unanswered." in ran.stdout, ran.stderr
    assert set(dataset.records) & {LONG.id, HOSTILE.id} == set()
    assert current(store) == {LONG.id: "drop"}
    done = pull(store, ReviewSection(), server, set_name, again=True)
    assert (done.deleted, done.answers["withdrawn"], current(store)) == (0, 0, {LONG.id: "drop"})
    assert push(store, Recipe(), server, set_name, QueueQuery(sample=20)).sent == 0
    with reading(store) as connection:
        assert review_stats(connection, ReviewSection(), set_name).sets[0]["conversations"] == 6
    refused = curate("review", "remove", set_name, LONG.id, *at)
    assert "has no conversation whose id begins with" in refused.stderr


# assignment ------------------------------------------------------------------------------------------------------


def offered(argilla_server, dataset, who):
    """The conversations that an annotator finds, and the number of pending ones that the page shows."""
    key = argilla_server.annotator(who)[2]
    found = argilla_server.ask("POST", f"me/datasets/{dataset.id}/records/search?limit=1000", {}, key=key)["items"]
    metrics = argilla_server.ask("GET", f"me/datasets/{dataset.id}/metrics", key=key)["responses"]
    assert metrics["total"] == len(found)
    return {item["record"]["external_id"] for item in found}, metrics["pending"]


def test_assigned_conversations_are_offered_to_their_annotators_only(store, server, argilla_server, set_name):
    for who in ("ann", "bob", "cat"):
        argilla_server.annotator(who)
    push(store, Recipe(), server, set_name, QueueQuery(sample=3, assign=("ann", "bob")))
    dataset = RemoteDataset(argilla_server, set_name)
    first = set(dataset.records)
    assert [offered(argilla_server, dataset, who) for who in ("ann", "bob", "cat")] == [(first, 3)] * 2 + [(set(), 0)]
    push(store, Recipe(), server, set_name, QueueQuery(sample=8, assign=("cat",)))
    assert offered(argilla_server, dataset, "cat") == (set(dataset.records) - first, 5)
    assert push(store, Recipe(), server, set_name, QueueQuery()).unchanged == 8, "an assignment stays"
    dataset.answer("ann", min(first), decision="keep")
    pull(store, ReviewSection(), server, set_name)
    push(store, Recipe(), server, set_name, QueueQuery(assign=()))
    assert offered(argilla_server, dataset, "cat") == (set(dataset.records) - {min(first)}, 7)


def test_an_assignment_that_cannot_be_met_is_an_error(store, server, argilla_server, set_name, monkeypatch):
    argilla_server.annotator("ann")
    with pytest.raises(ReviewError, match="There is no account nobody"):
        push(store, Recipe(), server, set_name, QueueQuery(assign=("ann", "nobody")))
    with pytest.raises(ReviewError, match="asks for 2 answers per conversation, but --assign names 1 annotator"):
        push(store, TWO, server, set_name, QueueQuery(assign=("ann",)))
    monkeypatch.setattr(type(server), "can_assign", False)  # as of a server without this release
    with pytest.raises(ReviewError, match="offers every conversation to all annotators"):
        push(store, Recipe(), server, set_name, QueueQuery(assign=("ann",)))
