"""Labels of running sets: added, renamed and retired by the recipe, without repeated work."""

import json

import pytest
from support.argilla_server import RefusedError
from support.review_sets import HOSTILE, LONG, RemoteDataset, add_reviewed
from test_spreadsheet import fill, rows_of

from curate.review.agreement import review_stats
from curate.review.pull import pull
from curate.review.push import push
from curate.review.queue import QueueQuery
from curate.review.spreadsheet import export_sheet, import_sheet
from schemas.errors import RecipeError, ReviewError
from schemas.recipe import check_recipe
from schemas.store import reading

BEFORE = check_recipe({"review": {"labels": ["wrong", "rude", "style"]}}, "the test")
AFTER = check_recipe(
    {"review": {"labels": ["incorrect", "rude", "unsafe"], "renamed": {"wrong": "incorrect"}}}, "the test"
)


@pytest.fixture
def store(tmp_path):
    return add_reviewed(tmp_path / "curate.duckdb")


def options(argilla_server, dataset):
    """Value -> text of the labels that annotators see."""
    items = argilla_server.ask("GET", f"datasets/{dataset.id}/questions")["items"]
    [issues] = [item for item in items if item["name"] == "issues"]
    return {option["value"]: option["text"] for option in issues["settings"]["options"]}


def reasons(store):
    with reading(store) as connection:
        return dict(connection.sql("SELECT conversation, arg_max(reason, seq) FROM verdicts GROUP BY 1").fetchall())


def test_labels_of_a_running_set_are_added_renamed_and_retired(store, server, argilla_server, set_name):
    push(store, BEFORE, server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="drop", issues=["wrong", "style"])
    pull(store, BEFORE.review, server, set_name)
    planned = push(store, AFTER, server, set_name, QueueQuery(), dry_run=True)
    assert options(argilla_server, dataset) == {"wrong": "wrong", "rude": "rude", "style": "style"}
    done = push(store, AFTER, server, set_name, QueueQuery())
    change = {"question": "issues", "added": ["unsafe"], "renamed": {"wrong": "incorrect"}, "retired": ["style"]}
    assert planned.labels == done.labels == [change]
    assert (done.sent, done.unchanged) == (0, 8)
    assert options(argilla_server, dataset) == {"wrong": "incorrect", "rude": "rude", "unsafe": "unsafe"}
    assert push(store, AFTER, server, set_name, QueueQuery()).labels == []
    assert dataset.records[LONG.id]["responses"][0]["values"]["issues"]["value"] == ["wrong", "style"]
    dataset.answer("bob", HOSTILE.id, decision="drop", issues=["wrong", "unsafe"])
    with pytest.raises(RefusedError, match="not valid labels"):
        dataset.answer("cat", HOSTILE.id, decision="drop", issues=["style"])
    pull(store, AFTER.review, server, set_name)
    found = reasons(store)
    assert "issues incorrect, style" in found[LONG.id]
    assert "issues incorrect, unsafe" in found[HOSTILE.id]


def test_a_retired_label_can_be_offered_again(store, server, argilla_server, set_name):
    for recipe, expected in ((BEFORE, "style"), (AFTER, None), (BEFORE, "style")):
        push(store, recipe, server, set_name, QueueQuery())
        assert options(argilla_server, RemoteDataset(argilla_server, set_name)).get("style") == expected


def test_the_option_of_another_question_can_be_renamed_and_measured(store, server, argilla_server, set_name):
    def recipe(*names, **renamed):
        tone = {"kind": "choice", "title": "Tone?", "options": list(names)}
        return check_recipe({"review": {"overlap": 2, "more": {"tone": tone}, "renamed": renamed}}, "the test")

    push(store, recipe("warm", "cold"), server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    for who, one, other in (("ann", "warm", "cold"), ("bob", "warm", "warm")):
        dataset.answer(who, LONG.id, decision="keep", tone=one)
        dataset.answer(who, HOSTILE.id, decision="keep", tone=other)
    after = recipe("kind", "neutral", warm="kind")
    push(store, after, server, set_name, QueueQuery())
    pull(store, after.review, server, set_name)
    with reading(store) as connection:
        stats = review_stats(connection, after.review, set_name)
    [tone] = [row for row in stats.agreement if row["question"] == "tone"]
    assert (tone["shared"], tone["alpha"]) == (2, 0.0)
    chosen = {(row["label"], row["reviewer"]): row["answers"] for row in stats.labels if row["question"] == "tone"}
    assert chosen == {("kind", "ann"): 1, ("cold", "ann"): 1, ("kind", "bob"): 2}


def test_another_server_renames_labels_and_refuses_new_ones(store, server, set_name, monkeypatch):
    push(store, BEFORE, server, set_name, QueueQuery())
    request = server._api.request

    def ask(*arguments, **options):
        answer = request(*arguments, **options)
        server._api.is_curate = False  # as a server without this release
        return answer

    monkeypatch.setattr(server._api, "request", ask)
    with pytest.raises(ReviewError, match="cannot add or retire the labels unsafe, style"):
        push(store, AFTER, server, set_name, QueueQuery())
    renamed = {"labels": ["incorrect", "rude", "style"], "renamed": {"wrong": "incorrect"}}
    done = push(store, check_recipe({"review": renamed}, "the test"), server, set_name, QueueQuery())
    assert done.labels[0]["renamed"] == {"wrong": "incorrect"}


def test_a_spreadsheet_may_have_former_and_current_names(store, tmp_path):
    export_sheet(store, BEFORE, tmp_path / "desk.csv", "desk", QueueQuery(sample=2))
    first, second = (row["conversation"] for row in rows_of(tmp_path / "desk.csv"))
    answers = {"decision": "drop", "reviewer": "ann"}
    fill(tmp_path / "desk.csv", {first: answers | {"issues": "wrong"}, second: answers | {"issues": "incorrect"}})
    done = import_sheet(store, AFTER.review, tmp_path / "desk.csv")
    assert (done.answered, done.rejected) == (2, [])
    assert all("issues incorrect" in reason for reason in reasons(store).values())


def test_status_shows_the_answers_of_each_annotator_by_label(store, server, argilla_server, curate, set_name):
    push(store, BEFORE, server, set_name, QueueQuery())
    dataset = RemoteDataset(argilla_server, set_name)
    dataset.answer("ann", LONG.id, decision="drop", issues=["wrong", "rude"])
    dataset.answer("bob", LONG.id, decision="keep")
    pull(store, BEFORE.review, server, set_name)
    ran = curate("review", "status", set_name, "--store", str(store), "--json")
    assert json.loads(ran.stdout)["labels"] == [
        {"question": "decision", "label": "drop", "reviewer": "ann", "answers": 1},
        {"question": "decision", "label": "keep", "reviewer": "bob", "answers": 1},
        {"question": "issues", "label": "rude", "reviewer": "ann", "answers": 1},
        {"question": "issues", "label": "wrong", "reviewer": "ann", "answers": 1},
    ]
    assert "Answers to issues by annotator" in curate("review", "status", set_name, "--store", str(store)).stdout


@pytest.mark.parametrize(
    ("renamed", "error"),
    [({"rude": "wrong"}, "renamed.rude is a current label"), ({"old": "unknown"}, "current name unknown")],
)
def test_an_impossible_renaming_is_an_error(renamed, error):
    with pytest.raises(RecipeError, match=error):
        check_recipe({"review": {"labels": ["wrong", "rude"], "renamed": renamed}}, "the test")
