"""`curate dedup`: near-duplicate clusters, their use in rules and versions, and when they must be computed again."""

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


def advice_chat(end="", **changes):
    return chat(STORY + end, ADVICE, **changes)


def recipe(**sections):
    return check_recipe(sections, "the test")


def clusters(store):
    with reading(store) as connection:
        return connection.sql("SELECT conversation, cluster, nearest, similarity FROM clusters").fetchall()


def test_the_longest_near_duplicate_is_kept_and_the_others_refer_to_it(store):
    short, long, other = add(store, [advice_chat(), advice_chat(" Thanks!"), *questions(1)])
    report = deduplicate_store(store, recipe())
    assert (report.conversations, report.clusters, report.near_duplicates, report.largest) == (3, 1, 1, 2)
    assert {row[:3] for row in clusters(store)} == {(long, long, None), (short, long, long)}
    assert report.examples[0]["conversation"] == short
    assert other not in {row[0] for row in clusters(store)}


def similarities(store, *answers):
    add(store, [chat("?", answer) for answer in answers])
    deduplicate_store(store, recipe())
    return [row[3] for row in clusters(store) if row[2]]


def text_of(words, **changed):
    """`w0 w1 …`, with some of them replaced, such as `w3="other"`."""
    return " ".join(changed.get(f"w{n}", f"w{n}") for n in range(words))


def test_similarity_is_the_jaccard_index_of_five_word_shingles(store):
    assert similarities(store, text_of(60), text_of(62)) == [56 / 58]


@pytest.mark.parametrize("words", [9, 10, 20, 48])
def test_one_changed_word_in_a_short_text_counts_once(store, words):
    assert similarities(store, text_of(words), text_of(words, w4="other")) == [(words - 1) / (words + 1)]


def test_a_short_and_a_long_text_are_compared_as_short_texts(store):
    assert similarities(store, text_of(49), text_of(51)) == [49 / 51]


def test_the_same_words_in_another_order_are_not_near_duplicates(store):
    assert similarities(store, "sort 3 1 2 as 1 2 3 please", "sort 2 1 3 as 1 2 3 please") == []
    assert similarities(store, "the cat sees the dog now", "the dog sees the cat now") == []


@pytest.mark.parametrize(
    "marked",
    [
        "<p>Dry the <b>pump</b> for a day,<br>then oil it &amp; &quot;test&quot; it &ndash; it&#39;s easy.</p>",
        "**Dry** the _pump_ for a day, then oil it & “test” it – it’s [easy](https://example.org/easy).",
        "Dry the pu\u00admp for a day, then oil it & «test» it - it's easy.",
        "<div class='answer'>Dry&nbsp;the `pump` for a day,</div><p>then oil it &amp; *test* it. It's easy.",
    ],
)
def test_markup_does_not_hide_a_duplicate(store, marked):
    assert similarities(store, 'Dry the pump for a day, then oil it & "test" it - it\'s easy.', marked) == [1.0]
    with reading(store) as connection:
        assert (marked,) in connection.sql("SELECT conversations[2].value FROM conversations").fetchall()


def test_a_shared_system_prompt_does_not_count(store):
    system = "You are a patient assistant of a boat shop and never promise what you cannot keep, whatever is asked."
    add(store, [chat(f"Question {n}, in a few words of its own {n}?", f"Answer {n}.", system=system) for n in range(9)])
    assert deduplicate_store(store, recipe()).clusters == 0


def test_case_and_punctuation_do_not_matter(store):
    add(store, [advice_chat("."), advice_chat(" !!"), chat(STORY.upper(), ADVICE.upper())])
    report = deduplicate_store(store, recipe())
    assert (report.near_duplicates, report.exact) == (2, 2)


def test_the_recipe_sets_the_order_of_preference(store):
    ids = add(store, [advice_chat(), advice_chat(" Thanks!")], metadata={"rating": "3"})
    (rated,) = add(store, [advice_chat(" Please?")], source="b.csv", metadata={"rating": "5"})
    deduplicate_store(store, recipe(dedup={"prefer": "meta.rating desc"}))
    assert {row[2] for row in clusters(store) if row[0] in ids} == {rated}


def test_the_preference_cannot_depend_on_near_duplicates(store):
    add(store, [advice_chat()])
    with pytest.raises(RecipeError, match=r"dedup\.prefer reads near_duplicate"):
        deduplicate_store(store, recipe(dedup={"prefer": "near_duplicate desc"}))


@pytest.mark.parametrize("order", ["nonsense desc", "quality >", "1; drop table clusters"])
def test_an_invalid_order_leaves_the_store_unchanged(store, order):
    add(store, [advice_chat(), advice_chat(" Thanks!")])
    deduplicate_store(store, recipe())
    before = clusters(store)
    with pytest.raises(RecipeError):
        deduplicate_store(store, recipe(dedup={"prefer": order}))
    assert clusters(store) == before


def test_a_dry_run_counts_the_same_and_writes_nothing(store):
    add(store, [advice_chat(), advice_chat(" Thanks!")])
    dry = deduplicate_store(store, recipe(), dry_run=True)
    assert (dry.near_duplicates, dry.written, clusters(store)) == (1, False, [])


def test_a_second_run_replaces_the_clusters(store):
    add(store, [advice_chat(), advice_chat(" Thanks a lot for all of it, and greetings from the harbour!")])
    deduplicate_store(store, recipe(dedup={"similarity": 0.6}))
    assert len(clusters(store)) == 2
    deduplicate_store(store, recipe(dedup={"similarity": 0.99}))
    assert clusters(store) == []


@pytest.mark.parametrize("method", ["shingles", "shingles-2"])
def test_clusters_of_an_earlier_search_must_be_computed_again(store, method):
    add(store, [advice_chat(), advice_chat(" Thanks!"), *questions(20)])
    deduplicate_store(store, recipe())
    with writing(store) as connection:
        connection.execute("UPDATE clusters SET method = ?", [method])
        connection.execute("UPDATE clusterings SET method = ?", [method])
        with pytest.raises(VersionError, match=rf"found by an earlier search \({method}; now shingles-3\)") as error:
            freeze(connection, "chats", recipe(), dry_run=True)
    assert error.value.hint.startswith("Run curate dedup again")
    with pytest.raises(RecipeError, match=rf"by the present search \(shingles-3; the store has {method}\)") as error:
        select_store(store, recipe(**RULE))
    assert error.value.hint == "curate dedup"
    deduplicate_store(store, recipe())
    select_store(store, recipe(**RULE))
    with reading(store) as connection:
        freeze(connection, "chats", recipe(**RULE), dry_run=True)
        query = "SELECT method FROM clusters UNION SELECT method FROM clusterings"
        assert connection.sql(query).fetchall() == [("shingles-3",)]


def test_a_missing_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"The store .* does not exist"):
        deduplicate_store(tmp_path / "none.duckdb", recipe())


# --- rules and versions ---


def test_a_rule_keeps_one_conversation_per_cluster(store):
    short = add(store, [advice_chat(), advice_chat(" Thanks!"), *questions(3)])[0]
    deduplicate_store(store, recipe())
    selection = select_store(store, recipe(**RULE))
    assert (selection.kept, selection.rules[0].dropped, selection.rules[0].examples[0]["id"]) == (4, 1, short)


def test_a_rule_is_an_error_while_conversations_are_not_compared(store):
    add(store, [advice_chat()])
    with pytest.raises(RecipeError, match="near_duplicate, which is not computed for any") as error:
        select_store(store, recipe(**RULE))
    assert error.value.hint == "curate dedup"
    deduplicate_store(store, recipe())
    add(store, [advice_chat(" Thanks!")], source="b.csv")
    with pytest.raises(RecipeError, match="not computed for 1 conversation"):
        select_store(store, recipe(**RULE))


def freeze_store(store, settings):
    with writing(store) as connection:
        return freeze(connection, "support", settings)


def test_near_duplicates_are_in_the_same_split(store):
    own = [" ".join(f"n{n}w{word}" for word in range(40)) for n in range(40)]
    add(store, [talk for words in own for talk in (chat(f"{words}?", "Yes!"), chat(f"So, {words}?", "Yes."))])
    settings = recipe(freeze={"held_out": 0.3})
    deduplicate_store(store, settings)
    freeze_store(store, settings)
    with reading(store) as connection:
        separated = connection.sql(
            """SELECT cluster FROM clusters JOIN members USING (conversation) GROUP BY cluster
               HAVING count(DISTINCT split) > 1"""
        ).fetchall()
        members = connection.sql("SELECT count(*) FROM clusters").fetchall()
    assert (separated, members) == ([], [(80,)])


def test_a_version_states_the_dedup_section_if_dedup_was_run(store):
    add(store, [advice_chat(), advice_chat(" Thanks!"), *questions(5)])
    plain = freeze_store(store, recipe()).version
    assert "dedup" not in plain.recipe
    deduplicate_store(store, recipe())
    assert freeze_store(store, recipe()).version.recipe["dedup"] == {"similarity": 0.8, "prefer": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda store: add(store, questions(2, start=9), source="b.csv"), "does not cover 2 conversations"),
        (lambda store: deduplicate_store(store, recipe(dedup={"similarity": 0.9})), r"\[dedup\] .* differs from the"),
        (lambda store: deduplicate_store(store, recipe()), "uses near_duplicate, but curate dedup was run after it"),
    ],
    ids=["new conversations", "another limit", "selected before"],
)
def test_freezing_with_outdated_clusters_is_an_error(store, change, message):
    add(store, [advice_chat(), advice_chat(" Thanks!")])
    settings = recipe(**RULE)
    deduplicate_store(store, settings)
    select_store(store, settings)
    change(store)
    with pytest.raises(VersionError, match=message):
        freeze_store(store, settings)


# --- the command ---


def test_the_command_prints_counts_and_the_next_command(curate, tmp_path, sample):
    assert curate("import", str(sample / "support_tickets.csv")).returncode == 0
    done = curate("dedup", "--json")
    assert (done.returncode, json.loads(done.stdout)["near_duplicates"]) == (0, 99)
    shown = curate("dedup")
    assert "Found 99 near-duplicates (10 exact) in 59 clusters among 380 conversations" in " ".join(
        shown.stdout.split()
    )
    assert "not near_duplicate" in shown.stderr
    rows = [row for row in clusters(tmp_path / "curate.duckdb") if row[2]]
    one, other, nearest, similarity = rows[0]
    size = 1 + sum(row[1] == other for row in rows)
    line = f"one of {size} in cluster {other}, near-duplicate of {nearest}, similarity {similarity:.3f}"
    assert line in " ".join(curate("trace", one).stdout.split())


def test_the_dataset_card_states_that_near_duplicates_are_in_the_same_split(curate, tmp_path, sample):
    for command in (
        ["import", str(sample / "support_tickets.csv")],
        ["dedup"],
        ["freeze", "a"],
        ["export", "a@1", "--to", "a@1"],
    ):
        assert curate(*command).returncode == 0
    card = (tmp_path / "a@1" / "README.md").read_text()
    assert ", near-duplicates (similarity 0.8 or more) and edits of each other are always in the same split." in card
    assert curate("restore", "a@1", "--store", "fresh.duckdb").returncode == 0
