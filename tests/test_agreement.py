"""How well people agree: known figures, and a store's answers."""

import polars as pl
import pytest
from support.stores import add, chat, questions
from test_verdicts import ask, said, take

from curate.review.agreement import alpha, survey_reviews
from schemas.errors import ReviewError
from schemas.recipe import ReviewSection
from schemas.store import reading

# The reliability data of Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), part C: four observers,
# twelve units, values 1 to 5; a 0 stands for no answer.
OBSERVERS = {
    "a": [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    "b": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    "c": [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    "d": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
}


def table(observers):
    rows = [
        {"conversation": str(unit), "reviewer": name, "value": str(value)}
        for name, values in observers.items()
        for unit, value in enumerate(values)
        if value
    ]
    return pl.DataFrame(rows, schema={"conversation": pl.String, "reviewer": pl.String, "value": pl.String})


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_the_published_one(level, published):
    assert alpha(table(OBSERVERS), level, list("12345")) == pytest.approx(published, abs=5e-4)


def test_alpha_is_one_when_all_agree_and_undefined_when_there_is_nothing_to_compare():
    assert alpha(table({"a": [1, 2, 3], "b": [1, 2, 3]}), "nominal", list("12345")) == 1.0
    assert alpha(table({"a": [1, 2, 0], "b": [0, 0, 3]}), "nominal", list("12345")) is None
    assert alpha(table({"a": [1, 1], "b": [1, 1]}), "nominal", list("12345")) is None


# a store's answers ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Twelve conversations in a set of which two people judge each; the last six are blind, and keep is suggested."""
    path = tmp_path / "x.duckdb"
    ids = add(path, questions(12))
    suggested(path, ids, blind=ids[6:])
    rows = []
    for place, one in enumerate(ids):
        decision = "keep" if place < 6 or place % 2 else "drop"
        rows.append(said("ann", one, quality=5 if decision == "keep" else 1, decision=decision))
        rows.append(said("bob", one, at=2, quality=4, decision="keep"))
    take(path, *rows)
    return path


def suggested(path, ids, blind):
    from curate.review.questions import questions_of
    from curate.review.sets import Entry, Place, Prepared, note_records, note_set
    from schemas.review import SetPlan, Suggestion, Task
    from schemas.store import writing

    guess = (Suggestion("decision", "keep", "rules"),)
    entries = [(Entry(Task(one, (), {}, ()), "random", one in blind, "d", guess), f"record of {one}") for one in ids]
    plan = SetPlan(questions_of(ReviewSection(), 2), 2, "", {})
    with writing(path) as connection:
        note_set(connection, Prepared("desk", plan, [], Place(), {}), Place("http://x", "remote"))
        note_records(connection, "desk", entries)


def surveyed(store, name=None):
    with reading(store) as connection:
        return survey_reviews(connection, ReviewSection(), name)


def test_a_set_says_how_many_are_done(store):
    (row,) = surveyed(store).sets
    told = {key: row[key] for key in ("set", "overlap", "conversations", "done", "begun", "untouched", "blind", "gone")}
    expected = {"set": "desk", "overlap": 2, "conversations": 12, "done": 12, "begun": 0, "untouched": 0}
    assert told == {**expected, "blind": 6, "gone": 0}


def test_people_are_told_with_what_they_answered(store):
    people = surveyed(store).people
    assert [(row["reviewer"], row["submitted"], row["discarded"], row["draft"]) for row in people] == [
        ("ann", 12, 0, 0),
        ("bob", 12, 0, 0),
    ]


def test_pace_leaves_pauses_out(tmp_path):
    from datetime import UTC, datetime, timedelta

    path = tmp_path / "p.duckdb"
    ids = add(path, questions(5))
    ask(path, ids)
    minutes = [0, 1, 3, 600, 601]  # gaps of 1, 2 and 1 minutes, and a night
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [said("ann", one, decision="keep") | {"answered_at": start + timedelta(minutes=at)}
            for one, at in zip(ids, minutes, strict=True)]  # fmt: skip
    take(path, *rows)
    (row,) = surveyed(path).people
    assert row["seconds_each"] == 60


def test_agreement_is_told_over_all_answers_and_over_the_blind_ones(store):
    rows = {row["question"]: row for row in surveyed(store).agreement}
    assert set(rows) == {"quality", "decision"}
    assert (rows["quality"]["level"], rows["decision"]["level"]) == ("ordinal", "nominal")
    assert rows["decision"]["answered_by_several"] == 12
    # 24 decisions, 3 of them drop, and all 3 disagree: 1 - 23 * 3 / (21 * 3), and of the 12 blind ones 1 - 11 * 3 / 27
    assert rows["decision"]["alpha"] == pytest.approx(1 - 23 * 3 / (21 * 3), abs=1e-4)
    assert rows["decision"]["alpha_blind"] == pytest.approx(1 - 11 * 3 / (9 * 3), abs=1e-4)


def test_anchoring_compares_those_who_saw_the_suggestion_with_those_who_did_not(store):
    (row,) = surveyed(store).anchoring
    assert (row["question"], row["seen"], row["blind"]) == ("decision", 12, 12)
    assert (row["as_suggested"], row["as_would_be_suggested"], row["difference"]) == (1.0, 0.75, 0.25)
    assert row["plus_minus"] == pytest.approx(1.96 * (0.75 * 0.25 / 12) ** 0.5, abs=1e-4)


def test_decisions_are_told_against_each_other(store):
    confusions = surveyed(store).confusions
    people = confusions["two people, by name (rows, columns)"]
    assert people == [
        {"": "keep", "keep": 9, "fix": 0, "drop": 0},
        {"": "fix", "keep": 0, "fix": 0, "drop": 0},
        {"": "drop", "keep": 3, "fix": 0, "drop": 0},
    ]
    assert confusions["rules (rows) and people (columns)"][0] == {"": "keep", "keep": 21, "fix": 0, "drop": 3}


def test_those_on_whom_people_differ_are_listed_with_what_they_say(store):
    rows = surveyed(store).disputed
    assert len(rows) == 3
    assert {row["said"] for row in rows} == {"ann: drop; bob: keep"}


def test_two_sets_that_offer_other_options_are_surveyed_together(tmp_path):
    from curate.review.sets import Entry, Place, Prepared, note_records, note_set
    from schemas.review import Question, SetPlan, Task
    from schemas.store import writing

    path = tmp_path / "x.duckdb"
    (one,) = add(path, questions(1))
    for name, options in (("a", ("warm", "cold", "harsh")), ("b", ("warm", "cold"))):
        plan = SetPlan((Question("tone", "choice", "?", options),), 2, "", {})
        with writing(path) as connection:
            note_set(connection, Prepared(name, plan, [], Place(), {}), Place("http://x", "remote"))
            note_records(connection, name, [(Entry(Task(one, (), {}, ()), "random", False, "d"), f"record of {one}")])
    take(
        path, said("ann", one, tone="harsh", decision="keep"), said("bob", one, tone="warm", decision="keep"), name="a"
    )
    (row,) = surveyed(path).agreement
    assert (row["question"], row["alpha"]) == ("tone", 0.0)


def test_a_rating_and_a_choice_of_one_name_are_two_questions(tmp_path):
    from curate.review.sets import Entry, Place, Prepared, note_records, note_set
    from schemas.review import Question, SetPlan, Task
    from schemas.store import writing

    path = tmp_path / "x.duckdb"
    (one,) = add(path, questions(1))
    for name, question, answers in (
        ("a", Question("tone", "rating", "?", (3, 1, 2)), (1, 3)),
        ("b", Question("tone", "choice", "?", ("warm", "cold")), ("warm", "warm")),
    ):
        with writing(path) as connection:
            note_set(connection, Prepared(name, SetPlan((question,), 2, "", {}), [], Place(), {}), Place("u", "r"))
            note_records(connection, name, [(Entry(Task(one, (), {}, ()), "random", False, "d"), f"record of {one}")])
        take(path, *(said(who, one, tone=tone) for who, tone in zip(("ann", "bob"), answers, strict=True)), name=name)
    rows = [(row["level"], row["alpha"], row["people"]) for row in surveyed(path).agreement]
    assert rows == [("ordinal", 0.0, 2), ("nominal", None, 2)]


def test_an_unknown_set_is_told_and_a_store_without_any_too(store, tmp_path):
    with pytest.raises(ReviewError, match="no review set more"):
        surveyed(store, "more")
    add(tmp_path / "y.duckdb", [chat("Q", "A")])
    with pytest.raises(ReviewError, match="Nothing was given to people yet"):
        surveyed(tmp_path / "y.duckdb")


def test_the_command_tells_the_same_in_words_and_as_json(curate, store):
    import json

    shown = curate("review", "status", "--store", str(store))
    assert shown.returncode == 0, shown.stderr
    assert "People differ on 3: curate review push NAME --queue disagreement." in shown.stdout
    told = json.loads(curate("review", "status", "desk", "--store", str(store), "--json").stdout)
    assert [row["reviewer"] for row in told["people"]] == ["ann", "bob"]


def test_the_command_fits_80_columns_and_says_what_each_table_is(curate, store):
    shown = curate("review", "status", "--store", str(store), COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    titles = ("Review sets:", "People:", "Agreement:", "Suggestions:", "Decisions: what the", "Decisions: two people")
    assert [title for title in titles if f"\n{title}" not in f"\n{shown}"] == []
    cells = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert cells["set"] == ["set", "conversations", "done", "begun", "untouched", "hidden", "deleted"]
    assert "decision   100% of 12   75% of 12      +25, give or take 24" in shown
    assert "desk is on http://x and waits for 2 answers each." in shown


def test_a_freeze_says_how_many_of_its_conversations_people_differ_on(curate, store):
    frozen = curate("freeze", "desk", "--set", "select.rules={}", "--store", str(store))
    assert frozen.returncode == 0, frozen.stderr
    assert "People differ on 3 of them" in frozen.stderr


def test_the_blind_share_is_met_to_the_nearest_conversation(store):
    from curate.review.queue import Wanted, choose
    from schemas.recipe import check_recipe
    from schemas.review import Task

    def shown(row):
        return Task(row["conversation"], (), {}, ())

    add(store, questions(40, start=100), source="more.csv")
    recipe = check_recipe({"review": {"blind": 0.25}, "select": {"rules": {}}}, "the test")
    with reading(store) as connection:
        for sample, blind in ((4, 1), (12, 3), (40, 10)):
            chosen = choose(connection, recipe, "new", Wanted(sample=sample), show=shown, unfit=lambda _: None)
            assert chosen.members["blind"].sum() == blind
