"""Diffs of versions: conversations added, removed, edited and moved, with reasons and consistent counts."""

import json

import polars as pl
import pytest
from support.stores import add, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.scorers.runner import score_store
from curate.selection import select_store
from curate.versions.diff import diff_turns, diff_versions
from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn
from schemas.errors import VersionError
from schemas.recipe import Recipe, check_recipe
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def freeze_store(store, **keys):
    with writing(store) as connection:
        return freeze(connection, "support", check_recipe({"freeze": {"held_out": 0.2, **keys}}, "the test")).version


def diff_store(store, before="support@1", after="support@2"):
    with reading(store) as connection:
        return diff_versions(connection, before, after)


def edit(store, talk, new, by_whom="ada", reason="wrong number"):
    (edited,) = add(store, [new], parent=talk.id)
    add_verdict(store, talk.id, "edit", by_whom=by_whom, reason=reason, edited_to=edited)
    return edited


def counts_add_up(diff):
    counts = diff.counts
    shared = counts["unchanged"] + counts["moved"] + counts["edited"]
    return (
        sum(diff.before.counts.values()) == shared + counts["removed"]
        and sum(diff.after.counts.values()) == shared + counts["added"]
    )


def test_added_removed_and_edited_conversations_have_reasons(store):
    talks = questions(30)
    add(store, talks)
    freeze_store(store)
    add_verdict(store, talks[0].id, "drop", by_whom="rule", reason="quality >= 0.6")
    for talk in talks[1:]:
        add_verdict(store, talk.id, "keep", reason="no rules")
    add_verdict(store, talks[1].id, "drop", by_whom="ada", reason="names a customer")
    new = edit(store, talks[2], chat("What is question 2?", "A better answer."))
    (late,) = add(store, [chat("New?", "Yes.")], source="more.csv")
    add_verdict(store, late, "keep", by_whom="ada", reason="good")
    freeze_store(store)
    diff = diff_store(store)
    assert diff.counts == {"unchanged": 27, "added": 1, "removed": 2, "edited": 1, "moved": 0, "reweighted": 0}
    assert counts_add_up(diff)
    rows = {(row["change"], row["before"], row["after"]): row for row in diff.changes.to_dicts()}
    assert rows["removed", talks[0].id, None]["reason"] == "rule: quality >= 0.6"
    assert rows["removed", talks[1].id, None]["reason"] == "ada: names a customer"
    assert rows["edited", talks[2].id, new]["reason"] == "ada: wrong number"
    added = rows["added", None, late]
    assert (added["reason"], added["origin"]) == ("imported from more.csv", "more.csv:2")


def test_the_reason_of_an_addition_is_the_rule_that_dropped_it_before(store):
    add(store, [*questions(3), chat("Tell me more?", "It is a long story, with many more words in it.")])
    score_store(store, Recipe(), ["words"])
    for least in (8, 3):
        written = {"first": "turns = 2", "long": f"words > {least}"}
        recipe = check_recipe({"select": {"rules": written}}, "the test")
        select_store(store, recipe)
        with writing(store) as connection:
            freeze(connection, "support", recipe)
    diff = diff_store(store)
    assert diff.counts["added"] == 3
    assert set(diff.changes["reason"]) == {"already imported, no longer dropped by rule: long: words > 8"}


def test_an_edit_of_an_edit_is_one_edited_conversation(store):
    talks = questions(5)
    add(store, talks)
    freeze_store(store)
    middle = chat("What is question 0?", "Half right.")
    edit(store, talks[0], middle)
    last = edit(store, middle, chat("What is question 0?", "Right."), reason="still wrong")
    freeze_store(store)
    diff = diff_store(store)
    assert diff.counts["edited"] == 1
    assert diff.changes.select("before", "after").rows() == [(talks[0].id, last)]
    assert counts_add_up(diff)


def test_counts_add_up_when_two_conversations_are_edited_to_the_same_one(store):
    talks = questions(5)
    add(store, talks)
    freeze_store(store)
    same = chat("What is question 0?", "Both.")
    edit(store, talks[0], same)
    edit(store, talks[1], same)
    freeze_store(store)
    diff = diff_store(store)
    assert (diff.counts["edited"], diff.counts["removed"], diff.counts["added"]) == (1, 1, 0)
    assert counts_add_up(diff)


def test_a_withdrawn_edit_is_a_removal_and_an_addition(store):
    talks = questions(5)
    add(store, talks)
    edited = edit(store, talks[0], chat("What is question 0?", "Changed."))
    freeze_store(store)
    add_verdict(store, talks[0].id, "keep", by_whom="ada", reason="was right")
    freeze_store(store)
    diff = diff_store(store)
    assert counts_add_up(diff)
    assert diff.counts["removed"] == 1
    assert diff.counts["added"] == 1
    rows = {row["change"]: row for row in diff.changes.to_dicts()}
    assert rows["removed"]["before"] == edited
    assert rows["added"]["reason"] == "already imported, now kept by ada: was right"


def test_a_new_salt_moves_conversations_and_is_a_recipe_change(store):
    add(store, questions(100))
    freeze_store(store)
    freeze_store(store, salt="other")
    diff = diff_store(store)
    assert diff.counts["moved"] > 0
    assert counts_add_up(diff)
    assert [(change.key, change.before, change.after) for change in diff.recipe] == [("freeze.salt", "", "other")]
    assert set(diff.changes["reason"]) == {"freeze.* in the recipe changed"}
    moved = diff.changes.select(pl.concat_list("split_before", "split_after").list.sort().unique())
    assert moved.to_series().to_list() == [["held_out", "train"]]


def test_a_version_has_no_changes_to_itself(store):
    add(store, questions(10))
    freeze_store(store)
    diff = diff_store(store, after="support@1")
    assert diff.counts == {"unchanged": 10, "added": 0, "removed": 0, "edited": 0, "moved": 0, "reweighted": 0}
    assert diff.changes.is_empty()
    shown = CliRunner().invoke(app, ["diff", "support@1", "support@1", "--store", str(store)])
    assert shown.stdout.splitlines()[-1] == "10 unchanged, 0 added, 0 removed, 0 edited, 0 moved"


def test_an_edit_is_compared_turn_by_turn():
    before = chat("How long?", "First line.\nTwo weeks.")
    after = Conversation((before.turns[0], Turn("gpt", "First line.\nThree weeks.", train=False)))
    (change,) = diff_turns(before, after)
    assert (change.position, change.role) == (1, "gpt")
    assert change.lines == ("-(gpt)", "+(gpt) (no loss)", " First line.", "-Two weeks.", "+Three weeks.")


def test_lines_that_look_like_diff_signs_are_kept():
    before = chat("SQL?", "-- old comment\n---\n@@ x\nSELECT 1")
    (change,) = diff_turns(before, chat("SQL?", "@@ x\nSELECT 1\n++new\n+++"))
    assert change.lines == (" (gpt)", "--- old comment", "----", " @@ x", " SELECT 1", "+++new", "++++")


def test_a_missing_version_is_an_error(store):
    add(store, questions(3))
    freeze_store(store)
    with pytest.raises(VersionError, match="no version support@2"):
        diff_store(store)


def test_the_command_prints_counts_reasons_and_the_text_of_edits(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talks = questions(10)
    add(store, talks)
    freeze_store(store)
    edit(store, talks[0], chat("What is question 0?", "Better \x1b[31manswer."))
    add_verdict(store, talks[1].id, "drop", by_whom="ada", reason="too short")
    freeze_store(store)
    run, where = CliRunner(), ["--store", str(store)]
    shown = run.invoke(app, ["diff", "support@1", "support@2", "--list", *where])
    assert shown.exit_code == 0, shown.output
    assert "ada: too short" in shown.stdout
    assert "-Answer 0." in shown.stdout
    assert "+Better ␛[31manswer." in shown.stdout
    output = json.loads(run.invoke(app, ["diff", "support@1", "support", "--json", "--limit", "1", *where]).stdout)
    assert output["counts"]["edited"] == 1
    assert (len(output["changes"]), output["total_changes"]) == (1, 2)
