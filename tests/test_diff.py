"""Two versions: what was added, removed, edited or moved between them, why, and that the sums hold."""

import json

import polars as pl
import pytest
from support.stores import add, chat, questions, say
from typer.testing import CliRunner

from curate.cli.app import app
from curate.scorers.runner import score_store
from curate.selection import select_store
from curate.versions.diff import compare, turn_changes
from curate.versions.freeze import freeze
from schemas.conversation import Conversation, Turn
from schemas.errors import VersionError
from schemas.recipe import Recipe, check_recipe
from schemas.store import reading, writing


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def frozen(store, **keys):
    with writing(store) as connection:
        return freeze(connection, "support", check_recipe({"freeze": {"held_out": 0.2, **keys}}, "the test")).version


def compared(store, before="support@1", after="support@2"):
    with reading(store) as connection:
        return compare(connection, before, after)


def edit(store, talk, new, by_whom="ada", reason="wrong number"):
    (edited,) = add(store, [new], parent=talk.id)
    say(store, talk.id, "edit", by_whom=by_whom, reason=reason, edited_to=edited)
    return edited


def sums_hold(seen):
    counts = seen.counts
    stayed = counts["unchanged"] + counts["moved"] + counts["edited"]
    return (
        sum(seen.before.counts.values()) == stayed + counts["removed"]
        and sum(seen.after.counts.values()) == stayed + counts["added"]
    )


def test_added_removed_and_edited_conversations_are_told_apart_with_reasons(store):
    talks = questions(30)
    add(store, talks)
    frozen(store)
    say(store, talks[0].id, "drop", by_whom="rule", reason="quality >= 0.6")
    for talk in talks[1:]:
        say(store, talk.id, "keep", reason="no rules")
    say(store, talks[1].id, "drop", by_whom="ada", reason="names a customer")
    new = edit(store, talks[2], chat("What is question 2?", "A better answer."))
    (late,) = add(store, [chat("New?", "Yes.")], source="more.csv")
    say(store, late, "keep", by_whom="ada", reason="good")
    with writing(store) as connection:
        connection.execute("UPDATE sources SET imported_at = now() WHERE path = 'more.csv'")
    frozen(store)
    seen = compared(store)
    assert seen.counts == {"unchanged": 27, "added": 1, "removed": 2, "edited": 1, "moved": 0}
    assert sums_hold(seen)
    rows = {(row["change"], row["before"], row["after"]): row for row in seen.changes.to_dicts()}
    assert rows["removed", talks[0].id, None]["reason"] == "rule: quality >= 0.6"
    assert rows["removed", talks[1].id, None]["reason"] == "ada: names a customer"
    assert rows["edited", talks[2].id, new]["reason"] == "ada: wrong number"
    added = rows["added", None, late]
    assert (added["reason"], added["origin"]) == ("imported from more.csv", "more.csv:2")


def test_what_a_loosened_rule_lets_in_names_the_rule_that_kept_it_out(store):
    add(store, [*questions(3), chat("Tell me more?", "It is a long story, with many more words in it.")])
    score_store(store, Recipe(), ["words"])
    for least in (8, 3):
        written = {"first": "turns = 2", "long": f"words > {least}"}
        recipe = check_recipe({"select": {"rules": written}}, "the test")
        select_store(store, recipe)
        with writing(store) as connection:
            freeze(connection, "support", recipe)
    seen = compared(store)
    assert seen.counts["added"] == 3
    assert set(seen.changes["reason"]) == {"was in the store, no longer dropped by rule: long: words > 8"}


def test_an_edit_of_an_edit_is_one_edited_conversation(store):
    talks = questions(5)
    add(store, talks)
    frozen(store)
    middle = chat("What is question 0?", "Half right.")
    edit(store, talks[0], middle)
    last = edit(store, middle, chat("What is question 0?", "Right."), reason="still wrong")
    frozen(store)
    seen = compared(store)
    assert seen.counts["edited"] == 1
    assert seen.changes.select("before", "after").rows() == [(talks[0].id, last)]
    assert sums_hold(seen)


def test_two_conversations_edited_into_the_same_one_keep_the_sums(store):
    talks = questions(5)
    add(store, talks)
    frozen(store)
    same = chat("What is question 0?", "Both.")
    edit(store, talks[0], same)
    edit(store, talks[1], same)
    frozen(store)
    seen = compared(store)
    assert (seen.counts["edited"], seen.counts["removed"], seen.counts["added"]) == (1, 1, 0)
    assert sums_hold(seen)


def test_an_edit_that_was_taken_back_is_an_edit_again_the_other_way_round_or_an_addition(store):
    talks = questions(5)
    add(store, talks)
    edited = edit(store, talks[0], chat("What is question 0?", "Changed."))
    frozen(store)
    say(store, talks[0].id, "keep", by_whom="ada", reason="was right")
    frozen(store)
    seen = compared(store)
    assert sums_hold(seen)
    assert seen.counts["removed"] == 1
    assert seen.counts["added"] == 1
    rows = {row["change"]: row for row in seen.changes.to_dicts()}
    assert rows["removed"]["before"] == edited
    assert rows["added"]["reason"] == "was in the store, kept since: ada: was right"


def test_a_new_salt_moves_conversations_and_is_named_in_the_recipe(store):
    add(store, questions(100))
    frozen(store)
    frozen(store, salt="other")
    seen = compared(store)
    assert seen.counts["moved"] > 0
    assert sums_hold(seen)
    assert [(one.key, one.before, one.after) for one in seen.recipe] == [("freeze.salt", "", "other")]
    assert set(seen.changes["reason"]) == {"the split was drawn anew (freeze.* of the recipe)"}
    moved = seen.changes.select(pl.concat_list("split_before", "split_after").list.sort().unique())
    assert moved.to_series().to_list() == [["held_out", "train"]]


def test_a_version_against_itself_has_no_changes(store):
    add(store, questions(10))
    frozen(store)
    seen = compared(store, after="support@1")
    assert seen.counts == {"unchanged": 10, "added": 0, "removed": 0, "edited": 0, "moved": 0}
    assert seen.changes.is_empty()
    shown = CliRunner().invoke(app, ["diff", "support@1", "support@1", "--store", str(store)])
    assert shown.stdout.splitlines()[-1] == "10 unchanged, 0 added, 0 removed, 0 edited, 0 moved"


def test_the_difference_of_an_edit_is_shown_turn_by_turn():
    before = chat("How long?", "First line.\nTwo weeks.")
    after = Conversation((before.turns[0], Turn("gpt", "First line.\nThree weeks.", train=False)))
    (change,) = turn_changes(before, after)
    assert (change.position, change.role) == (1, "gpt")
    assert change.lines == ("-(gpt)", "+(gpt) (not learned)", " First line.", "-Two weeks.", "+Three weeks.")


def test_lines_that_look_like_the_signs_of_a_difference_are_shown():
    before = chat("SQL?", "-- old comment\n---\n@@ x\nSELECT 1")
    (change,) = turn_changes(before, chat("SQL?", "@@ x\nSELECT 1\n++new\n+++"))
    assert change.lines == (" (gpt)", "--- old comment", "----", " @@ x", " SELECT 1", "+++new", "++++")


def test_a_version_that_is_not_there_is_named(store):
    add(store, questions(3))
    frozen(store)
    with pytest.raises(VersionError, match="no version support@2"):
        compared(store)


def test_the_command_prints_counts_reasons_and_the_text_of_edits(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talks = questions(10)
    add(store, talks)
    frozen(store)
    edit(store, talks[0], chat("What is question 0?", "Better \x1b[31manswer."))
    say(store, talks[1].id, "drop", by_whom="ada", reason="too short")
    frozen(store)
    run, where = CliRunner(), ["--store", str(store)]
    shown = run.invoke(app, ["diff", "support@1", "support@2", "--list", *where])
    assert shown.exit_code == 0, shown.output
    assert "ada: too short" in shown.stdout
    assert "-Answer 0." in shown.stdout
    assert "+Better ␛[31manswer." in shown.stdout
    one = json.loads(run.invoke(app, ["diff", "support@1", "support", "--json", "--limit", "1", *where]).stdout)
    assert one["counts"]["edited"] == 1
    assert (len(one["changes"]), one["changes_in_all"]) == (1, 2)
