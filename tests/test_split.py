"""The groups that a split must not separate: spellings and typos of a question, and what stays apart."""

import random

import pytest
from support.stores import add, chat
from support.variants import CHANGES, make_question, plant_variants

from curate.versions.placement import place_members
from curate.versions.split import group_members
from schemas.recipe import check_recipe
from schemas.store import reading


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def groups_of(store, *questions):
    """The number of groups of conversations with these first questions."""
    add(store, [chat(question, f"Answer {number}.") for number, question in enumerate(questions)])
    with reading(store) as connection:
        members = group_members(connection)
    assert members.height == len(questions)
    return members["group"].n_unique()


def test_no_variant_of_a_question_is_in_the_other_split(store):
    groups = plant_variants(seed=1, count=150)
    ids = add(store, [chat(question, f"A{n}.") for n, question in enumerate(q for group in groups for q in group)])
    planted = iter(ids)
    conversations = [[next(planted) for _ in group] for group in groups]
    for salt in map(str, range(10)):
        recipe = check_recipe({"freeze": {"held_out": 0.3, "salt": salt}}, "the test")
        with reading(store) as connection:
            splits = dict(place_members(connection, recipe).members.select("conversation", "split").iter_rows())
        assert [group for group in conversations if len({splits[one] for one in group}) > 1] == []
        assert set(splits.values()) == {"train", "held_out"}
    with reading(store) as connection:
        assert group_members(connection)["group"].n_unique() == 150


@pytest.mark.parametrize("change", CHANGES)
def test_a_variant_joins_the_group_of_its_question(store, change):
    rng = random.Random(change)
    questions = [make_question(rng, 9) for _ in range(100)]
    assert groups_of(store, *questions, *(CHANGES[change](rng, question) for question in questions)) == 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the weight of box 17 in the harbour?", "What is the weight of box 18 in the harbour?"),
        ("What is the weight of box 17 in the harbour?", "What is the weight of box 71 in the harbour?"),
        ("What is the weight of box 17 in the harbour?", "What is the weight of box 177 in the harbour?"),
        ("What is a cat?", "What is a car?"),
        ("What does 😀 mean?", "What does 🍎 mean?"),
        ("What is the symbol ∑ called?", "What is the symbol ∏ called?"),
        ("What are List<String> and such types used for?", "What are List<Integer> and such types used for?"),
        ("Is it true that a<b and c>d hold?", "Is it true that a<b and e>f hold?"),
        ("हिन्दी क्या है?", "हिन्द क्या है?"),
        ("他是谁？", "她是谁？"),
        ("请介绍北京大学的历史", "请介绍南京大学的历史"),
    ],
)  # fmt: skip
def test_different_questions_stay_apart(store, one, other):
    assert groups_of(store, one, other) == 2


def test_questions_without_letters_are_compared_as_they_are(store):
    assert groups_of(store, "?", "!", "...", "-", " ? ", "<br>", "&nbsp;", "***", "", "   ") == 9


def test_questions_of_a_template_form_pairs_and_no_chain(store):
    names = ["Nelson", "Neeson", "Jackson", "Johnson", "Robinson", "Robertson", "Thompson", "Simpson", "Sampson"]
    questions = [
        f"What are the treatments for the syndrome of {name} {n}?" for name in names for n in range(1_000, 1_040)
    ]
    assert groups_of(store, *questions) == 7 * 40


def test_another_conversation_adds_links_and_removes_none(store):
    groups = plant_variants(seed=2, count=40)
    rest = [question for group in groups for question in group]
    random.Random(3).shuffle(rest)
    before = {}
    for part in range(0, len(rest), 90):
        add(store, [chat(question, "A.") for question in rest[part : part + 90]], source=f"{part}.csv")
        with reading(store) as connection:
            after = dict(group_members(connection).select("conversation", "group").iter_rows())
        together = {}
        for conversation, group in before.items():
            together.setdefault(group, set()).add(after[conversation])
        assert all(len(groups) == 1 for groups in together.values())
        before = after
