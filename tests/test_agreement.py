"""Answers in the store → progress, agreement and suggestion bias; alpha against published figures."""

import polars as pl
import pytest
from support.stores import add, chat, questions
from test_verdicts import answer, make_set, submit

from curate.review.agreement import krippendorff_alpha, review_stats
from curate.review.questions import build_questions
from curate.review.queue import QueueQuery, select_members
from schemas.errors import ReviewError
from schemas.recipe import ReviewSection, check_recipe
from schemas.review import Question, Suggestion, Task
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
def test_alpha_equals_the_published_value(level, published):
    assert krippendorff_alpha(table(OBSERVERS), level, list("12345")) == pytest.approx(published, abs=5e-4)


def test_alpha_is_one_if_all_agree_and_undefined_without_shared_or_different_answers():
    assert krippendorff_alpha(table({"a": [1, 2, 3], "b": [1, 2, 3]}), "nominal", list("12345")) == 1.0
    assert krippendorff_alpha(table({"a": [1, 2, 0], "b": [0, 0, 3]}), "nominal", list("12345")) is None
    assert krippendorff_alpha(table({"a": [1, 1], "b": [1, 1]}), "nominal", list("12345")) is None


# a store's answers ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """A set of twelve conversations with two answers each; keep is suggested, the last six are blind."""
    path = tmp_path / "x.duckdb"
    ids = add(path, questions(12))
    make_set(path, ids, overlap=2, questions=build_questions(ReviewSection(), 2), blind=ids[6:],
             suggestions=(Suggestion("decision", "keep", "rules"),))  # fmt: skip
    rows = []
    for place, one in enumerate(ids):
        decision = "keep" if place < 6 or place % 2 else "drop"
        rows.append(answer("ann", one, quality=5 if decision == "keep" else 1, decision=decision))
        rows.append(answer("bob", one, at=2, quality=4, decision="keep"))
    submit(path, *rows)
    return path


def stats(store, name=None):
    with reading(store) as connection:
        return review_stats(connection, ReviewSection(), name)


def test_a_set_counts_the_conversations_that_are_done(store):
    (row,) = stats(store).sets
    expected = {"set": "desk", "overlap": 2, "conversations": 12, "done": 12, "partial": 0, "unanswered": 0}
    assert row == {**expected, "server": "http://x", "blind": 6, "deleted": 0}


def test_annotators_are_listed_with_their_answers_by_status(store):
    annotators = stats(store).annotators
    assert [(row["reviewer"], row["submitted"], row["discarded"], row["draft"]) for row in annotators] == [
        ("ann", 12, 0, 0),
        ("bob", 12, 0, 0),
    ]


def test_pace_excludes_breaks(tmp_path):
    from datetime import UTC, datetime, timedelta

    path = tmp_path / "p.duckdb"
    ids = add(path, questions(5))
    make_set(path, ids)
    minutes = [0, 1, 3, 600, 601]  # gaps of 1, 2 and 1 minutes, and a night
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [answer("ann", one, decision="keep") | {"answered_at": start + timedelta(minutes=at)}
            for one, at in zip(ids, minutes, strict=True)]  # fmt: skip
    submit(path, *rows)
    (row,) = stats(path).annotators
    assert row["seconds_each"] == 60


def test_agreement_is_measured_over_all_answers_and_over_the_blind_ones(store):
    rows = {row["question"]: row for row in stats(store).agreement}
    assert set(rows) == {"quality", "decision"}
    assert (rows["quality"]["level"], rows["decision"]["level"]) == ("ordinal", "nominal")
    assert rows["decision"]["shared"] == 12
    # 24 decisions, 3 of them drop, and all 3 disagree: 1 - 23 * 3 / (21 * 3), and of the 12 blind ones 1 - 11 * 3 / 27
    assert rows["decision"]["alpha"] == pytest.approx(1 - 23 * 3 / (21 * 3), abs=1e-4)
    assert rows["decision"]["alpha_blind"] == pytest.approx(1 - 11 * 3 / (9 * 3), abs=1e-4)


def test_suggestion_bias_compares_answers_with_and_without_a_visible_suggestion(store):
    (row,) = stats(store).suggestion_bias
    assert (row["question"], row["shown"], row["blind"]) == ("decision", 12, 12)
    assert (row["equal_if_shown"], row["equal_if_blind"], row["difference"]) == (1.0, 0.75, 0.25)
    assert row["margin"] == pytest.approx(1.96 * (0.75 * 0.25 / 12) ** 0.5, abs=1e-4)


def test_confusion_tables_count_pairs_of_decisions(store):
    confusions = stats(store).confusions
    assert confusions["annotators_by_annotators"] == [
        {"": "keep", "keep": 9, "fix": 0, "drop": 0},
        {"": "fix", "keep": 0, "fix": 0, "drop": 0},
        {"": "drop", "keep": 3, "fix": 0, "drop": 0},
    ]
    assert confusions["rules_by_annotators"][0] == {"": "keep", "keep": 21, "fix": 0, "drop": 3}


def test_disputed_conversations_are_listed_with_their_answers(store):
    rows = stats(store).disputed
    assert len(rows) == 3
    assert {row["answers"] for row in rows} == {"ann: drop; bob: keep"}


def test_two_sets_with_different_options_are_measured_together(tmp_path):
    path = tmp_path / "x.duckdb"
    (one,) = add(path, questions(1))
    for name, options in (("a", ("warm", "cold", "harsh")), ("b", ("warm", "cold"))):
        make_set(path, [one], name, 2, questions=(Question("tone", "choice", "?", options),))
    rows = (answer(who, one, tone=tone, decision="keep") for who, tone in (("ann", "harsh"), ("bob", "warm")))
    submit(path, *rows, name="a")
    (row,) = stats(path).agreement
    assert (row["question"], row["alpha"]) == ("tone", 0.0)


def test_a_rating_and_a_choice_with_the_same_name_are_two_questions(tmp_path):
    path = tmp_path / "x.duckdb"
    (one,) = add(path, questions(1))
    for name, question, answers in (
        ("a", Question("tone", "rating", "?", (3, 1, 2)), (1, 3)),
        ("b", Question("tone", "choice", "?", ("warm", "cold")), ("warm", "warm")),
    ):
        make_set(path, [one], name, 2, questions=(question,))
        rows = (answer(who, one, tone=tone) for who, tone in zip(("ann", "bob"), answers, strict=True))
        submit(path, *rows, name=name)
    rows = [(row["level"], row["alpha"], row["annotators"]) for row in stats(path).agreement]
    assert rows == [("ordinal", 0.0, 2), ("nominal", None, 2)]


def test_an_unknown_set_and_a_store_without_sets_are_errors(store, tmp_path):
    with pytest.raises(ReviewError, match="no review set more"):
        stats(store, "more")
    add(tmp_path / "y.duckdb", [chat("Q", "A")])
    with pytest.raises(ReviewError, match="There is no review set"):
        stats(tmp_path / "y.duckdb")


def test_the_command_prints_text_or_json(curate, store):
    import json

    shown = curate("review", "status", "--store", str(store))
    assert shown.returncode == 0, shown.stderr
    assert "3 conversations disputed: curate review push NAME --queue disagreement" in shown.stdout
    printed = json.loads(curate("review", "status", "desk", "--store", str(store), "--json").stdout)
    assert [row["reviewer"] for row in printed["annotators"]] == ["ann", "bob"]


def test_the_tables_have_titles_and_fit_80_columns(curate, store):
    shown = curate("review", "status", "--store", str(store), COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    titles = (
        "Review sets",
        "Annotators",
        "Inter-annotator",
        "Suggestion",
        "Decisions: rules",
        "Decisions: pairs",
    )
    assert [title for title in titles if f"\n{title}" not in f"\n{shown}"] == []
    cells = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert cells["set"] == ["set", "conversations", "done", "partial", "unanswered", "blind", "deleted"]
    assert "decision  100% of 12  75% of 12  +25 ± 24" in shown
    assert "desk: on http://x, 2 answers per conversation." in shown


def test_a_freeze_prints_the_number_of_disputed_conversations(curate, store):
    frozen = curate("freeze", "desk", "--set", "select.rules={}", "--store", str(store))
    assert frozen.returncode == 0, frozen.stderr
    assert "3 conversations with disputed reviews, decided by rules" in frozen.stderr


def test_the_blind_share_is_met_to_the_nearest_conversation(store):
    add(store, questions(40, start=100), source="more.csv")
    recipe = check_recipe({"review": {"blind": 0.25}, "select": {"rules": {}}}, "the test")
    options = {
        "render": lambda row: Task(row["conversation"], (), {}, ()),
        "rejection_reason": lambda _: None,
    }
    with reading(store) as connection:
        for sample, blind in ((4, 1), (12, 3), (40, 10)):
            selection = select_members(connection, recipe, "new", QueueQuery(sample=sample), **options)
            assert selection.members["blind"].sum() == blind
