"""`curate dedup`: who resembles whom, what a rule and a freeze make of it, and when it has to be done again."""

import json

import pytest
from support.stores import add, chat, questions

from curate.dedup.clusters import deduplicate_store
from curate.selection import select_store
from curate.versions.freeze import freeze
from schemas.errors import RecipeError, StoreError, VersionError
from schemas.recipe import check_recipe
from schemas.store import reading, writing

STORY = "The pump of the grey boat was left in the rain for a week and now it makes a noise like a kettle every night"
ADVICE = "Dry it for a day, then oil the valve with two drops, and it will be as quiet as it was on the first day."
RULE = {"select": {"rules": {"fresh": "not near_duplicate"}}}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "curate.duckdb"


def told(end="", **changes):
    return chat(STORY + end, ADVICE, **changes)


def recipe(**sections):
    return check_recipe(sections, "the test")


def clusters(store):
    with reading(store) as connection:
        return connection.sql("SELECT conversation, cluster, nearest, similarity FROM clusters").fetchall()


def test_of_alike_conversations_the_longest_stays_and_the_others_say_for_whom_they_go(store):
    short, long, other = add(store, [told(), told(" Thanks!"), *questions(1)])
    found = deduplicate_store(store, recipe())
    assert (found.conversations, found.clusters, found.near_duplicates, found.largest) == (3, 1, 1, 2)
    assert {row[:3] for row in clusters(store)} == {(long, long, None), (short, long, long)}
    assert found.examples[0]["conversation"] == short
    assert other not in {row[0] for row in clusters(store)}


def test_similarity_is_the_share_of_five_words_in_a_row(store):
    one = " ".join(f"w{n}" for n in range(20))
    add(store, [chat("?", one), chat("?", f"{one} w20 w21")])
    deduplicate_store(store, recipe())
    assert [row[3] for row in clusters(store) if row[2]] == [16 / 18]


def test_a_system_prompt_that_many_share_makes_nobody_alike(store):
    system = "You are a patient assistant of a boat shop and never promise what you cannot keep, whatever is asked."
    add(store, [chat(f"Question {n}, in a few words of its own {n}?", f"Answer {n}.", system=system) for n in range(9)])
    assert deduplicate_store(store, recipe()).clusters == 0


def test_case_and_punctuation_do_not_matter(store):
    add(store, [told("."), told(" !!"), chat(STORY.upper(), ADVICE.upper())])
    found = deduplicate_store(store, recipe())
    assert (found.near_duplicates, found.same_words) == (2, 2)


def test_the_recipe_says_whom_to_prefer(store):
    ids = add(store, [told(), told(" Thanks!")], metadata={"rating": "3"})
    (rated,) = add(store, [told(" Please?")], source="b.csv", metadata={"rating": "5"})
    deduplicate_store(store, recipe(dedup={"prefer": "meta.rating desc"}))
    assert {row[2] for row in clusters(store) if row[0] in ids} == {rated}


def test_what_is_preferred_may_not_follow_from_itself(store):
    add(store, [told()])
    with pytest.raises(RecipeError, match=r"dedup\.prefer reads near_duplicate"):
        deduplicate_store(store, recipe(dedup={"prefer": "near_duplicate desc"}))


@pytest.mark.parametrize("wrong", ["nonsense desc", "quality >", "1; drop table clusters"])
def test_an_order_that_cannot_be_applied_leaves_the_store_as_it_was(store, wrong):
    add(store, [told(), told(" Thanks!")])
    deduplicate_store(store, recipe())
    before = clusters(store)
    with pytest.raises(RecipeError):
        deduplicate_store(store, recipe(dedup={"prefer": wrong}))
    assert clusters(store) == before


def test_a_dry_run_counts_the_same_and_writes_nothing(store):
    add(store, [told(), told(" Thanks!")])
    dry = deduplicate_store(store, recipe(), dry_run=True)
    assert (dry.near_duplicates, dry.written, clusters(store)) == (1, False, [])


def test_doing_it_again_puts_the_new_clusters_in_the_place_of_the_old(store):
    add(store, [told(), told(" Thanks a lot for all of it, and greetings from the harbour!")])
    deduplicate_store(store, recipe(dedup={"similarity": 0.6}))
    assert len(clusters(store)) == 2
    deduplicate_store(store, recipe(dedup={"similarity": 0.99}))
    assert clusters(store) == []


def test_an_empty_store_says_what_to_do_first(tmp_path):
    with pytest.raises(StoreError, match=r"The store .* does not exist"):
        deduplicate_store(tmp_path / "none.duckdb", recipe())


# rules and versions ---------------------------------------------------------------------------------------------


def test_a_rule_keeps_one_of_each(store):
    short = add(store, [told(), told(" Thanks!"), *questions(3)])[0]
    deduplicate_store(store, recipe())
    chosen = select_store(store, recipe(**RULE))
    assert (chosen.kept, chosen.rules[0].leaving, chosen.rules[0].examples[0]["id"]) == (4, 1, short)


def test_a_rule_is_refused_as_long_as_somebody_was_not_compared(store):
    add(store, [told()])
    with pytest.raises(RecipeError, match="near_duplicate, which is not known for any") as unknown:
        select_store(store, recipe(**RULE))
    assert unknown.value.hint == "curate dedup"
    deduplicate_store(store, recipe())
    add(store, [told(" Thanks!")], source="b.csv")
    with pytest.raises(RecipeError, match="not known for 1 conversation"):
        select_store(store, recipe(**RULE))


def frozen(store, settings):
    with writing(store) as connection:
        return freeze(connection, "support", settings)


def test_near_duplicates_sit_on_one_side_of_the_split(store):
    own = [" ".join(f"n{n}w{word}" for word in range(40)) for n in range(40)]
    add(store, [talk for words in own for talk in (chat(f"{words}?", "Yes!"), chat(f"So, {words}?", "Yes."))])
    settings = recipe(freeze={"held_out": 0.3})
    deduplicate_store(store, settings)
    frozen(store, settings)
    with reading(store) as connection:
        torn = connection.sql(
            """SELECT cluster FROM clusters JOIN members USING (conversation) GROUP BY cluster
               HAVING count(DISTINCT split) > 1"""
        ).fetchall()
        found = connection.sql("SELECT count(*) FROM clusters").fetchall()
    assert (torn, found) == ([], [(80,)])


def test_a_version_says_how_near_duplicates_were_found_and_one_without_them_is_as_before(store):
    add(store, [told(), told(" Thanks!"), *questions(5)])
    plain = frozen(store, recipe()).version
    assert "dedup" not in plain.recipe
    deduplicate_store(store, recipe())
    assert frozen(store, recipe()).version.recipe["dedup"] == {"similarity": 0.8, "prefer": None}


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (lambda store: add(store, questions(2, start=9), source="b.csv"), "does not cover 2 conversations"),
        (lambda store: deduplicate_store(store, recipe(dedup={"similarity": 0.9})), r"\[dedup\] .* differs from the"),
        (lambda store: deduplicate_store(store, recipe()), "uses near_duplicate, but curate dedup was run after it"),
    ],
    ids=["newcomers", "another limit", "selected before"],
)
def test_a_freeze_is_refused_where_what_it_would_say_is_not_so(store, between, said):
    add(store, [told(), told(" Thanks!")])
    settings = recipe(**RULE)
    deduplicate_store(store, settings)
    select_store(store, settings)
    between(store)
    with pytest.raises(VersionError, match=said):
        frozen(store, settings)


# the command ----------------------------------------------------------------------------------------------------


def test_the_command_tells_and_says_what_comes_next(curate, tmp_path, sample):
    assert curate("import", str(sample / "support_tickets.csv")).returncode == 0
    done = curate("dedup", "--json")
    assert (done.returncode, json.loads(done.stdout)["near_duplicates"]) == (0, 10)
    shown = curate("dedup")
    assert "10 of 380 conversations are near-duplicates" in " ".join(shown.stdout.split())
    assert "not near_duplicate" in shown.stderr
    ((one, other),) = [row[:2] for row in clusters(tmp_path / "curate.duckdb") if row[2]][:1]
    assert f"one of 2 in cluster {other}, near-duplicate of {other}, similarity 1.000" in curate("trace", one).stdout


def test_the_card_of_a_version_says_that_near_duplicates_are_not_torn_apart(curate, tmp_path, sample):
    for words in (
        ["import", str(sample / "support_tickets.csv")],
        ["dedup"],
        ["freeze", "a"],
        ["export", "a@1", "--to", "a@1"],
    ):
        assert curate(*words).returncode == 0
    card = (tmp_path / "a@1" / "README.md").read_text()
    assert "nor do near-duplicates (similarity 0.8 or more)." in card
    assert curate("restore", "a@1", "--store", "fresh.duckdb").returncode == 0
