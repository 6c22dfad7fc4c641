"""Freezing a version: digests, leak-free splits, and the recipe that a version states."""

import json
from datetime import date

import polars as pl
import pytest
from support.stores import add, add_verdict, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.scorers.runner import score_store
from curate.selection import select_store
from curate.versions.freeze import freeze, list_versions
from curate.versions.placement import place_members
from curate.versions.split import group_members
from schemas.errors import RecipeError, VersionError
from schemas.recipe import check_recipe
from schemas.store import reading, writing
from schemas.version import find_version, read_members

RECIPE = check_recipe({"freeze": {"held_out": 0.2}}, "the test")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def freeze_store(store, name="support", recipe=RECIPE, **options):
    with writing(store) as connection:
        return freeze(connection, name, recipe, **options)


def read_splits(store, recipe=RECIPE):
    with reading(store) as connection:
        members = place_members(connection, recipe).members
    return dict(members.select("conversation", "split").iter_rows())


def test_a_version_has_a_number_counts_and_a_parent(store):
    add(store, questions(100))
    first = freeze_store(store).version
    add(store, questions(10, start=100), source="more.csv")
    second = freeze_store(store).version
    assert (first.label, first.parent, second.label, second.parent) == ("support@1", None, "support@2", "support@1")
    assert sum(first.counts.values()) == 100
    assert sum(second.counts.values()) == 110
    assert second.recipe == RECIPE.data_part()


def test_freezing_unchanged_data_adds_no_version(store):
    add(store, questions(20))
    first, again = freeze_store(store), freeze_store(store)
    assert (first.new, again.new) == (True, False)
    assert again.version == first.version
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM versions").fetchall() == [(1,)]
        assert connection.sql("SELECT count(*) FROM members").fetchall() == [(20,)]


def test_a_different_recipe_gives_a_different_digest_for_the_same_members(store):
    add(store, questions(20))
    recipe = check_recipe({"score": {"words": {}}, "freeze": {"held_out": 0.2}}, "the test")
    assert freeze_store(store).version.digest != freeze_store(store, recipe=recipe).version.digest


def test_the_digest_does_not_depend_on_the_order_of_import(tmp_path):
    talks = questions(30)
    near = [chat("What is question 3 ?", "Answer 3, nearly."), chat("So what is question 3?", "Answer 3, again.")]
    digests = set()
    for number, order in enumerate(([*talks, *near], [*near[::-1], *talks[::-1]])):
        store = tmp_path / f"{number}.duckdb"
        ids = add(store, order)
        group = [talk.id for talk in order if "question 3?" in talk.turns[0].value or talk in near]
        first = min(group, key=ids.index)
        with writing(store) as connection:
            connection.executemany(
                "INSERT INTO clusters (conversation, method, cluster) VALUES (?, 'minhash', ?)",
                [[one, first] for one in group],
            )
        digests.add(freeze_store(store).version.digest)
    assert len(digests) == 1


def test_conversations_with_the_same_question_are_in_the_same_split(store):
    groups = [[chat(f"Question {n}?", "A."), chat(f"  question  {n}? ", "B."), chat(f"QUESTION\n{n}?", "C.")]
             for n in range(60)]  # fmt: skip
    add(store, [talk for group in groups for talk in group])
    splits = read_splits(store)
    assert all(len({splits[talk.id] for talk in group}) == 1 for group in groups)
    assert set(splits.values()) == {"train", "held_out"}


def test_clusters_connected_by_a_shared_question_form_one_group(store):
    """a and b form a cluster, b and c share a question, c and d form a cluster of another method."""
    for n in range(40):
        a, b = chat(f"Alpha {n}", "1"), chat(f"Beta {n}", "2")
        c, d = chat(f"beta {n}", "3"), chat(f"Delta {n}", "4")
        add(store, [a, b, c, d], source=f"{n}.csv")
        with writing(store) as connection:
            pairs = [(a, "minhash", a), (b, "minhash", a), (c, "semantic", c), (d, "semantic", c)]
            rows = [[member.id, method, first.id] for member, method, first in pairs]
            connection.executemany("INSERT INTO clusters (conversation, method, cluster) VALUES (?, ?, ?)", rows)
    with reading(store) as connection:
        groups = place_members(connection, RECIPE).members.group_by("group").agg(pl.len(), pl.col("split").n_unique())
    assert groups.select("len", "split").rows() == [(4, 1)] * 40


def test_an_edit_is_in_the_split_of_the_original(store):
    before = questions(40)
    add(store, before)
    old = read_splits(store)
    for n, talk in enumerate(before):
        (edited,) = add(store, [chat(f"Rewritten entirely {n}", "Better.")], parent=talk.id)
        add_verdict(store, talk.id, "edit", by_whom="ada", edited_to=edited)
    new = read_splits(store)
    assert not set(old) & set(new)
    with reading(store) as connection:
        pairs = connection.sql("SELECT id, parent FROM conversations WHERE parent IS NOT NULL").fetchall()
    assert len(pairs) == 40
    assert all(new[edited] == old[parent] for edited, parent in pairs)


def test_a_conversation_stays_in_its_split_when_others_are_imported_or_dropped(store):
    ids = add(store, questions(200))
    before = read_splits(store)
    add(store, questions(200, start=200), source="more.csv")
    for id_ in ids[::2]:
        add_verdict(store, id_, "drop", by_whom="ada")
    after = read_splits(store)
    assert len(after) == 300
    assert all(before[one] == after[one] for one in set(before) & set(after))


def test_a_larger_share_only_moves_conversations_to_held_out(store):
    add(store, questions(300))
    small, large = read_splits(store), read_splits(store, check_recipe({"freeze": {"held_out": 0.5}}, "the test"))
    assert {one for one in small if small[one] == "held_out"} < {one for one in large if large[one] == "held_out"}
    assert 30 < sum(split == "held_out" for split in small.values()) < 90


def test_a_different_salt_gives_a_different_split_and_the_moves_are_counted(store):
    add(store, questions(100))
    freeze_store(store)
    again = freeze_store(store, recipe=check_recipe({"freeze": {"held_out": 0.2, "salt": "other"}}, "the test"))
    assert again.version.label == "support@2"
    assert again.moved > 0


def test_a_share_of_zero_leaves_held_out_empty(store):
    add(store, questions(50))
    assert freeze_store(store, recipe=check_recipe({"freeze": {"held_out": 0}}, "x")).version.counts["held_out"] == 0


def test_each_conversation_without_a_question_is_a_group(store):
    add(store, [chat("", f"A{n}") for n in range(20)])
    with reading(store) as connection:
        assert group_members(connection)["group"].n_unique() == 20


def test_only_kept_conversations_are_frozen(store):
    ids = add(store, questions(10))
    add_verdict(store, ids[0], "drop", by_whom="ada")
    version = freeze_store(store).version
    with reading(store) as connection:
        assert set(read_members(connection, version)["id"]) == set(ids[1:])


def test_an_empty_selection_and_an_empty_store_are_errors_with_the_next_command(store):
    with pytest.raises(VersionError, match="no conversations yet") as empty:
        freeze_store(store)
    assert "curate import" in empty.value.hint
    (only,) = add(store, questions(1))
    add_verdict(store, only, "drop", by_whom="ada")
    with pytest.raises(VersionError, match="None of the 1 ") as dropped:
        freeze_store(store)
    assert "curate select" in dropped.value.hint


@pytest.mark.parametrize("name", ["", "Support", "a b", "support@1", "-x", "a/b", "ä"])
def test_a_name_that_cannot_be_a_folder_or_label_is_an_error(store, name):
    add(store, questions(1))
    with pytest.raises(VersionError, match="is not a valid version name"):
        freeze_store(store, name=name)


def test_manually_changed_members_are_detected(store):
    ids = add(store, questions(10))
    label = freeze_store(store).version.label
    with writing(store) as connection:
        connection.execute("UPDATE members SET split = 'held_out' WHERE conversation = ?", [ids[0]])
        connection.execute("UPDATE members SET split = 'train' WHERE conversation = ?", [ids[1]])
        connection.execute("DELETE FROM members WHERE conversation = ?", [ids[2]])
    with reading(store) as connection, pytest.raises(VersionError, match="digest differs"):
        read_members(connection, find_version(connection, label))


def test_a_dry_run_shows_the_version_and_writes_nothing(store):
    add(store, questions(10))
    with reading(store) as connection:
        result = freeze(connection, "support", RECIPE, dry_run=True)
        assert list_versions(connection) == []
    assert (result.version.label, result.new, result.written) == ("support@1", True, False)
    assert freeze_store(store).version.digest == result.version.digest


def test_the_parent_can_be_another_dataset_or_none_and_must_exist(store):
    add(store, questions(10))
    freeze_store(store, name="base")
    assert freeze_store(store, name="branch", parent="base").version.parent == "base@1"
    add(store, questions(10, start=10), source="more.csv")
    assert freeze_store(store, name="branch", parent="none").version.parent is None
    with pytest.raises(VersionError, match="no version nothing@7"):
        freeze_store(store, name="other", parent="nothing@7")


def select(store, rules, where=None):
    select_store(store, check_recipe({"select": {"rules": rules}}, "the test"), where)


def test_a_version_states_the_rules_of_the_latest_selection(store):
    add(store, questions(20))
    rules = {"early": "turns < 10", "known": "prompt <> 'What is question 3?'"}
    recipe = check_recipe({"select": {"rules": rules}}, "the test")
    with pytest.raises(VersionError, match="no selection was made"):
        freeze_store(store, recipe=recipe)
    select_store(store, recipe, dry_run=True)
    with pytest.raises(VersionError, match="no selection was made"):
        freeze_store(store, recipe=recipe)
    select(store, rules)
    assert freeze_store(store, recipe=recipe).version.recipe["select"]["rules"] == rules
    with pytest.raises(VersionError, match="differ from those of the latest selection"):
        freeze_store(store)
    select(store, rules, where="prompt <> 'What is question 4?'")
    version = freeze_store(store, recipe=recipe).version
    assert version.recipe["select"]["rules"] == {**rules, "--where": "prompt <> 'What is question 4?'"}
    assert sum(version.counts.values()) == 18
    select(store, {})
    assert freeze_store(store).version.recipe["select"]["rules"] == {}
    with pytest.raises(VersionError, match="the latest selection: early is new"):
        freeze_store(store, recipe=recipe)


def test_a_rule_added_after_the_selection_is_an_error_even_if_it_dropped_everything(store):
    ids = add(store, questions(5))
    select(store, {"none": "turns > 99"})
    add_verdict(store, ids[0], "keep", by_whom="ada")
    wider = {"select": {"rules": {"none": "turns > 99", "more": "turns > 1"}}}
    with pytest.raises(VersionError, match=r"differ from those of the latest selection: more is new \(turns > 1\)\.$"):
        freeze_store(store, recipe=check_recipe(wider, "the test"))


def test_an_error_lists_only_the_rules_that_differ_from_the_selection(store):
    add(store, questions(5))
    select(store, {"same": "turns > 0", "other": "turns > 1", "old": "turns > 0"}, where="turns < 9")
    rules = {"same": "turns > 0", "other": "turns > 2", "new": "turns < 5"}
    with pytest.raises(VersionError) as error:
        freeze_store(store, recipe=check_recipe({"select": {"rules": rules}}, "the test"))
    assert error.value.what == (
        "The recipe's rules differ from those of the latest selection: "
        "other is now turns > 2 and was turns > 1; new is new (turns < 5); old was removed (turns > 0)."
    )


def test_a_where_rule_that_drops_everything_is_stated(store):
    ids = add(store, questions(5))
    select(store, {}, where="turns > 5")
    add_verdict(store, ids[0], "keep", by_whom="ada")
    assert freeze_store(store).version.recipe["select"]["rules"] == {"--where": "turns > 5"}


def test_a_version_states_the_scorer_parameters_of_its_rules(store):
    add(store, questions(5))
    made = check_recipe({"score": {"ngram_repetition": {"n": 4}}, "select": {"rules": {"long": "words > 0"}}}, "x")
    score_store(store, made)
    select_store(store, made)
    other = check_recipe({"score": {"ngram_repetition": {"n": 12}}, "select": {"rules": {"long": "words > 0"}}}, "x")
    with pytest.raises(VersionError, match=r'"n":12.* differs from that of the latest selection .*"n":4'):
        freeze_store(store, recipe=other)
    assert freeze_store(store, recipe=made).version.recipe["score"] == {"ngram_repetition": {"n": 4}}


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"nope": {}}, "Unknown scorer nope"),
        ({"ngram_repetition": {"n": 0}}, "n: Input should be greater than or equal to 1"),
        ({"ngram_repetition": {"n": float("nan")}}, "n: Input should be a finite number"),
        ({"ngram_repetition": {"n": date(1979, 5, 27)}}, "n: Input should be a valid integer"),
        ({"quality": {"penalties": {"words": {"weight": 0.1, "fine": float("nan")}}}}, "fine: .* a finite number"),
    ],
    ids=str,
)
def test_invalid_scorer_parameters_are_an_error_in_select_and_freeze(store, score, message):
    add(store, questions(5))
    recipe = check_recipe({"score": score}, "the test")
    for dry_run in (False, True):
        with pytest.raises(RecipeError, match=message):
            select_store(store, recipe, dry_run=dry_run)
        with pytest.raises(RecipeError, match=message):
            freeze_store(store, recipe=recipe, dry_run=dry_run)
    with reading(store) as connection:
        assert connection.sql("SELECT * FROM selections").fetchall() == []


def test_a_human_verdict_keeps_a_conversation_that_every_rule_drops(store):
    ids = add(store, questions(5))
    rules = {"none": "turns > 99"}
    select(store, rules)
    add_verdict(store, ids[0], "keep", by_whom="ada")
    version = freeze_store(store, recipe=check_recipe({"select": {"rules": rules}}, "the test")).version
    assert sum(version.counts.values()) == 1


def test_the_commands_freeze_and_versions(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add(store, questions(100))
    run = CliRunner()
    output = run.invoke(app, ["freeze", "support", "--held-out", "10%", "--store", str(store), "--json"])
    assert output.exit_code == 0, output.output
    result = json.loads(output.stdout)
    assert (result["version"], result["conversations"], result["new"]) == ("support@1", 100, True)
    again = run.invoke(app, ["freeze", "support", "--held-out", "0.1", "--store", str(store)])
    assert "already exists, unchanged" in again.stdout
    (listed,) = json.loads(run.invoke(app, ["versions", "--store", str(store), "--json"]).stdout)
    assert listed["digest"] == result["digest"]
    assert "support@1" in run.invoke(app, ["versions", "support", "--store", str(store)]).stdout


def test_the_command_creates_no_store(curate, tmp_path):
    failed = curate("freeze", "a")
    assert failed.returncode == 1
    assert "The store curate.duckdb does not exist" in " ".join(failed.stderr.split())
    assert [*tmp_path.glob("*.duckdb")] == []
