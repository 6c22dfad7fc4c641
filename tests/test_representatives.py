"""`not near_duplicate` in a selection: each dropped conversation has a near-duplicate that rules and people keep."""

import itertools
from random import Random

import pytest
from support.similarity import near
from support.stores import add, add_verdict, chat

from curate.dedup.clusters import deduplicate_store
from curate.scorers.runner import score_store
from curate.selection import select_store
from curate.status import read_status
from curate.versions.freeze import freeze
from schemas.errors import VersionError
from schemas.recipe import check_recipe
from schemas.store import reading, writing

STORY = "The pump of the grey boat was left in the rain for a week and now it makes a noise like a kettle"
ONE = {"one": "not near_duplicate"}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "curate.duckdb"


def recipe(rules, **dedup):
    return check_recipe({"select": {"rules": rules}, "dedup": dedup, "freeze": {"held_out": 0}}, "the test")


def rows(store, query):
    with reading(store) as connection:
        return connection.sql(query).fetchall()


def kept(store):
    return {one for (one,) in rows(store, "SELECT conversation FROM current_verdicts WHERE kept")}


def freeze_store(store, rules):
    with writing(store) as connection:
        return freeze(connection, "x", rules)


def three(store):
    """The ids of three texts, all of them near-duplicates of each other; the longest is kept."""
    answers = ("Oil it, please, and thank you.", "Oil it, please, thank you.", "Oil it, please, thanks.")
    ids = add(store, [chat(STORY, answer) for answer in answers])
    deduplicate_store(store, recipe(ONE))
    return ids


def test_if_a_rule_drops_the_kept_one_another_one_is_kept(store):
    first, second, third = three(store)
    select_store(store, recipe(ONE))
    assert kept(store) == {first}
    for rules in ({"short": f"id <> '{first}'", **ONE}, {**ONE, "short": f"id <> '{first}'"}):
        report = select_store(store, recipe(rules))
        assert kept(store) == {second}
        assert {count.name: count.dropped for count in report.rules} == {"short": 1, "one": 1}
    assert [row[:2] for row in rows(store, "FROM near_duplicates")] == [(third, second)]


def test_a_condition_within_the_same_rule_counts_too(store):
    first, second, _ = three(store)
    select_store(store, recipe({"all": f"id <> '{first}' and not near_duplicate"}))
    assert kept(store) == {second}


def test_what_a_rule_keeps_anyway_comes_first(store):
    _, _, third = three(store)
    select_store(store, recipe({"all": f"id = '{third}' or not near_duplicate"}))
    assert kept(store) == {third}


def test_a_rule_can_select_the_near_duplicates(store):
    first, *others = three(store)
    select_store(store, recipe({"all": "near_duplicate"}))
    assert kept(store) == set(others)
    assert first not in kept(store)


@pytest.mark.parametrize(("verdicts", "expected"), [(["drop"], 1), ([None, "keep"], 1), (["drop", None, "keep"], 2)])
def test_people_decide_before_the_rule(store, verdicts, expected):
    ids = three(store)
    for one, verdict in zip(ids, verdicts, strict=False):
        if verdict:
            add_verdict(store, one, verdict, by_whom="ann")
    select_store(store, recipe(ONE))
    assert kept(store) == {ids[expected]}


def test_an_edit_stands_for_its_original(store):
    first, second, _ = three(store)
    (edited,) = add(store, [chat(STORY, "Replace the valve.")], parent=first)
    add_verdict(store, first, "edit", by_whom="ann", edited_to=edited)
    rules = recipe(ONE)
    select_store(store, rules)
    assert kept(store) == {edited}
    freeze_store(store, rules)
    add_verdict(store, edited, "drop", by_whom="bob")
    with pytest.raises(VersionError, match="people changed 1 verdict"):
        freeze_store(store, rules)
    select_store(store, rules)
    assert kept(store) == {second}


def test_verdicts_after_the_selection_require_another_one(store):
    first, second, third = three(store)
    score_store(store, recipe({}))
    rules = recipe(ONE)
    select_store(store, rules)
    add_verdict(store, third, "drop", by_whom="ann")  # as the rule: changes nothing
    freeze_store(store, rules)
    add_verdict(store, first, "drop", by_whom="ann")
    with pytest.raises(VersionError, match="people changed 1 verdict") as error:
        freeze_store(store, rules)
    assert error.value.hint == "curate select"
    with reading(store) as connection:
        assert read_status(connection)["next"] == "curate select"
    select_store(store, rules)
    assert kept(store) == {second}
    add_verdict(store, first, "undecided", by_whom="ann")
    with pytest.raises(VersionError, match="people changed 1 verdict"):
        freeze_store(store, rules)
    select_store(store, rules)
    assert freeze_store(store, rules).as_json()["conversations"] == 1


def test_verdicts_do_not_matter_to_a_selection_without_the_rule(store):
    first, *_ = three(store)
    rules = recipe({"turns": "turns > 1"})
    select_store(store, rules)
    add_verdict(store, first, "drop", by_whom="ann")
    assert freeze_store(store, rules).as_json()["conversations"] == 2


def test_a_dry_run_counts_the_same_and_keeps_the_near_duplicates_of_the_last_selection(store):
    first, *_ = three(store)
    select_store(store, recipe(ONE))
    before = rows(store, "FROM near_duplicates ORDER BY ALL")
    assert select_store(store, recipe({**ONE, "other": f"id <> '{first}'"}), dry_run=True).kept == 1
    assert rows(store, "FROM near_duplicates ORDER BY ALL") == before


def test_trace_names_the_conversation_that_is_kept(store, curate):
    first, second, third = three(store)
    assert curate("select", "--where", f"id <> '{first}' and not near_duplicate").returncode == 0
    shown = " ".join(curate("trace", third).stdout.split())
    assert f"near-duplicate of {second} in the latest selection" in shown


# --- any rules, verdicts and texts ---


def random_chats(random):
    vocabulary = [f"w{number}" for number in range(40)]
    texts = []
    for _ in range(90):
        words = random.choice(texts).split() if texts and random.random() < 0.7 else random.choices(vocabulary, k=14)
        for _ in range(random.randint(0, 2)):
            words[random.randrange(len(words))] = random.choice(vocabulary)
        texts.append(" ".join(words))
    return [chat(*text.split(" ", 1)) for text in dict.fromkeys(texts)]


def random_rules(random, condition):
    return random.choice(
        [
            {"other": condition, **ONE},
            {**ONE, "other": condition},
            {"all": f"{condition} and not near_duplicate"},
            {"other": condition, "one": "not near_duplicate or substr(id, 2, 1) in ('1', '2')"},
        ]
    )


def decide(store, random, ids):
    """Ann and Bob keep or drop conversations, or withdraw what they decided."""
    verdicts = [
        (one, random.choice(["keep", "drop", "undecided"]), "because", random.choice(["ann", "bob"])) for one in ids
    ]
    with writing(store) as connection:
        connection.executemany(
            "INSERT INTO verdicts (conversation, verdict, reason, by_whom) VALUES (?, ?, ?, ?)", verdicts
        )


@pytest.mark.parametrize("seed", range(8))
def test_every_dropped_near_duplicate_has_a_kept_one_and_kept_ones_are_unlike(store, seed):
    random = Random(seed)
    chats = random_chats(random)
    ids = add(store, chats)
    texts = {one: " ".join(turn.value for turn in talk.turns) for one, talk in zip(ids, chats, strict=True)}
    prefer = random.choice([None, "length(answer) desc", "id"])
    deduplicate_store(store, recipe(ONE, prefer=prefer))
    for _ in range(3):
        decide(store, random, random.sample(ids, 12))
        letters = random.sample("0123456789abcdef", 5)
        rules = random_rules(random, f"left(id, 1) not in {tuple(letters)}")
        select_store(store, recipe(rules, prefer=prefer))
        human = dict(
            rows(store, "SELECT conversation, arg_max(verdict, seq) FROM verdicts WHERE by_whom <> 'rule' GROUP BY 1")
        )
        anyway = {one for one in ids if human.get(one) == "keep" or ("or" in str(rules) and one[1] in "12")}
        passing = {
            one for one in ids if human.get(one) == "keep" or (one[0] not in letters and human.get(one) != "drop")
        }
        now = kept(store)
        assert now <= passing
        for one in passing - now:
            assert any(near(texts[one], texts[other], 0.8) for other in now), one
        for one, other in itertools.combinations(now, 2):
            assert not near(texts[one], texts[other], 0.8) or (one in anyway and other in anyway), (one, other)
        for one, nearest, similarity in rows(store, "FROM near_duplicates"):
            assert nearest in now
            assert near(texts[one], texts[nearest], similarity)
