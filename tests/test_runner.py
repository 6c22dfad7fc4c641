"""Scoring: only what is missing is computed, under columns that say by which parameters."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import polars as pl
import pytest
from support.stores import add, chat, questions
from typer.testing import CliRunner

from curate.cli.app import app
from curate.scorers import REVISIONS, SCORERS, runner
from curate.scorers.quality import quality
from curate.scorers.runner import describe_scorers, explain, plan, score_frame, score_store
from schemas.errors import RecipeError, StoreError, VersionError
from schemas.recipe import Recipe, check_recipe
from schemas.store import reading, writing

ALL = Recipe()


def recipe(**sections):
    return check_recipe({"score": sections}, "the test")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "x.duckdb"


def scores(store, columns="*"):
    with reading(store) as connection:
        return connection.sql(f"SELECT {columns} FROM scores ORDER BY conversation").pl()


def computed(report):
    return {column: count for column, count in report.computed.items() if count}


# --- what is computed ---


def test_every_scorer_fills_a_column(store):
    ids = add(store, questions(3))
    report = score_store(store, ALL)
    assert report.conversations == 3
    assert computed(report) == dict.fromkeys(SCORERS, 3)
    frame = scores(store)
    assert frame.columns == ["conversation", *SCORERS]
    assert frame["conversation"].to_list() == sorted(ids)
    assert frame.null_count().sum_horizontal().item() == 0


def test_a_second_time_computes_nothing(store):
    add(store, questions(3))
    score_store(store, ALL)
    before = scores(store)
    assert computed(score_store(store, ALL)) == {}
    assert scores(store).equals(before)


def test_only_new_conversations_are_computed(store):
    add(store, questions(3))
    score_store(store, ALL)
    add(store, questions(5, start=100), source="more.csv")
    assert computed(score_store(store, ALL)) == dict.fromkeys(SCORERS, 5)
    assert scores(store).height == 8


def test_values_do_not_depend_on_when_they_were_computed(tmp_path):
    step_by_step, at_once = tmp_path / "a.duckdb", tmp_path / "b.duckdb"
    for start in (0, 10):
        add(step_by_step, questions(10, start), source=f"{start}.csv")
        score_store(step_by_step, ALL, ["words"])
        score_store(step_by_step, ALL)
    add(at_once, questions(20))
    score_store(at_once, ALL)
    columns = ", ".join(["conversation", *SCORERS])
    assert scores(step_by_step, columns).equals(scores(at_once, columns))


def test_a_missing_cell_is_computed_into_its_row(store):
    first, *_ = add(store, questions(3))
    score_store(store, ALL)
    before = scores(store)
    with writing(store) as connection:
        connection.execute("UPDATE scores SET echo = NULL, words = NULL WHERE conversation = ?", [first])
    assert computed(score_store(store, ALL)) == {"echo": 1, "words": 1}
    assert scores(store).equals(before)


def test_only_runs_the_named_scorer_and_what_it_stands_on(store):
    add(store, questions(2))
    report = score_store(
        store, recipe(quality={"penalties": {"words": {"weight": 1, "fine": 9, "worst": 5}}}), ["quality"]
    )
    assert next(iter(computed(report))) == "words"
    assert scores(store).width == 3


def test_work_goes_slice_by_slice_and_tells_its_progress(store, monkeypatch):
    monkeypatch.setattr(runner, "SLICE", 4)
    monkeypatch.setattr(runner, "PART", 3)
    add(store, questions(10))
    seen = []
    score_store(store, ALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert scores(store).height == 10


def test_scoring_a_frame_is_pure(store):
    frame = pl.DataFrame({"id": ["a"], "conversations": [[t.as_row() for t in chat("Hi", "Hello").turns]]})
    frame = frame.with_columns(tools=pl.lit(None, pl.String))
    assert score_frame(frame, plan({}, ["words", "turns"])).rows() == [("a", 2, 2)]


# --- parameters and columns ---


def test_other_parameters_make_another_column_beside_the_first(store):
    add(store, questions(2))
    score_store(store, ALL)
    report = score_store(store, recipe(ngram_repetition={"n": 4}))
    one, two = computed(report)
    assert one.startswith("ngram_repetition__")
    assert two.startswith("quality__")  # it stands on the other column now
    assert {"ngram_repetition", one, "quality", two} < set(scores(store).columns)
    assert computed(score_store(store, ALL)) == {}


@pytest.mark.parametrize("scored_before", [[ALL], []], ids=["beside the default column", "without one"])
def test_quality_stands_on_the_column_that_the_recipe_asks_for(store, tmp_path, scored_before):
    talks = [chat("Hi", "one two three four five six seven one two three four five six seven"), *questions(2)]
    longer = {"ngram_repetition": {"n": 12}}
    wanted = recipe(**longer, quality={"penalties": {"ngram_repetition": {"weight": 1, "fine": 0, "worst": 1}}})
    for path in (store, tmp_path / "fresh.duckdb"):
        add(path, talks)
    for before in (*scored_before, recipe(**longer)):
        score_store(store, before)
    score_store(store, wanted)
    score_store(tmp_path / "fresh.duckdb", wanted)
    asked = plan(wanted.score, ["quality"])[-1].column
    assert scores(store, f'"{asked}"').rows() == scores(tmp_path / "fresh.duckdb", f'"{asked}"').rows()


def test_default_parameters_spelt_out_are_the_default_column():
    assert plan({"ngram_repetition": {"n": 5}}, ["ngram_repetition"])[0].column == "ngram_repetition"


def test_the_registry_says_what_filled_a_column(store):
    add(store, questions(1))
    score_store(store, recipe(word_repetition={"n": 1}), ["word_repetition"])
    with reading(store) as connection:
        row = connection.sql('SELECT "column", scorer, parameters, digest FROM scorers').fetchall()[0]
    assert row[0] == f"word_repetition__{row[3][:8]}"
    assert row[1:3] == ("word_repetition", '{"n":1}')


def test_a_changed_formula_is_computed_again(store, monkeypatch):
    add(store, questions(2))
    score_store(store, ALL)
    monkeypatch.setitem(REVISIONS, "echo", 2)
    assert computed(score_store(store, ALL)) == {"echo": 2, "quality": 2}


def test_again_computes_what_is_there(store):
    add(store, questions(2))
    score_store(store, ALL)
    assert computed(score_store(store, ALL, ["words"], again=True)) == {"words": 2}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"wrds": {}}, "There is no scorer wrds, did you mean words?"),
        ({"ngram_repetition": {"m": 3}}, "score.ngram_repetition.m is not a parameter of ngram_repetition."),
        ({"language": {"evidenc": 1}}, "did you mean evidence?"),
        ({"ngram_repetition": {"n": "five"}}, "score.ngram_repetition.n: Input should be a valid integer"),
        ({"ngram_repetition": {"n": 0}}, "score.ngram_repetition.n: Input should be greater than or equal to 1"),
        ({"ngram_repetition": {"n": 10**21}}, "score.ngram_repetition.n: Input should be less than or equal to 1000"),
        ({"echo": {"n": 1001}}, "score.echo.n: Input should be less than or equal to 1000"),
        ({"refusal": {"within": 10**21}}, "score.refusal.within: Input should be less than or equal to 1000000"),
        ({"language": {"within": 10**21}}, "score.language.within: Input should be less than or equal to 1000000"),
        ({"quality": {"penalties": {"words": {"wieght": 1}}}}, "score.quality.penalties.words.wieght"),
        ({"quality": {"penalties": {"wrds": {"weight": 1}}}}, "quality stands on wrds, which is no scorer"),
        ({"quality": {"penalties": {"language": {"weight": 1}}}}, "language"),
        ({"quality": {"penalties": {"quality": {"weight": 1}}}}, "circle"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_computed(store, sections, message):
    add(store, questions(1))
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        score_store(store, recipe(**sections))
    with reading(store) as connection:
        assert connection.sql("SELECT count(*) FROM scores").fetchall() == [(0,)]


def test_a_store_without_conversations_is_said_and_none_is_made(store):
    with pytest.raises(StoreError, match=r"The store .* does not exist"):
        score_store(store, ALL)
    assert not store.exists()
    with writing(store):
        pass
    with pytest.raises(StoreError, match="There are no conversations"):
        score_store(store, ALL)


# --- scorers of other packages ---


def shouting(*, least: int = 2) -> pl.Expr:
    """Exclamation marks in the answer."""
    return pl.col("answer").str.count_matches("!", literal=True) >= least


def crooked(frame: pl.DataFrame) -> pl.Series:
    """One value too many."""
    return pl.Series([1.0] * (frame.height + 1))


@pytest.fixture
def others(monkeypatch):
    points = {
        name: EntryPoint(name, f"{__name__}:{name}", "curate.scorers") for name in ("shouting", "crooked", "missing")
    }
    monkeypatch.setattr(runner, "_others", lambda: points)


@pytest.mark.usefixtures("others")
def test_a_scorer_of_another_package_runs_where_a_recipe_names_it(store):
    add(store, [chat("Hi", "Hello!!"), chat("Hi", "Hello!")])
    assert "shouting" not in score_store(store, ALL).computed
    score_store(store, recipe(shouting={}))
    assert sorted(scores(store)["shouting"]) == [False, True]


@pytest.mark.usefixtures("others")
def test_a_scorer_that_gives_too_many_values_or_cannot_be_loaded_is_named(store):
    add(store, questions(2))
    with pytest.raises(RecipeError, match="crooked gave 3 values for 2 rows"):
        score_store(store, ALL, ["crooked"])
    with pytest.raises(RecipeError, match=r"missing .* cannot be loaded"):
        score_store(store, ALL, ["missing"])


# --- what is shown ---


def test_the_list_has_parameters_with_their_defaults_and_the_first_sentence():
    listed = {row["scorer"]: row for row in describe_scorers()}
    assert listed["ngram_repetition"]["parameters"] == "n = 5"
    assert listed["turns"]["what"] == "Turns of any role."


def test_a_summary_names_the_extremes(store):
    ids = add(store, [chat("a", "b " * n) for n in (1, 2, 50)])
    summaries = {row["column"]: row for row in score_store(store, ALL).summaries}
    assert (summaries["answer_words"]["min"], summaries["answer_words"]["median"]) == (1, 2)
    assert summaries["answer_words"]["highest"][0] == ids[2]
    assert summaries["language"]["values"][0]["conversations"] == 3


def test_an_explanation_adds_up_to_the_quality(store):
    (conversation,) = add(store, [chat("Do it", "I'm sorry, but I can't help with that and the")])
    score_store(store, ALL)
    explained = explain(store, ALL, conversation[:8])
    taken = {row["score"]: row["taken"] for row in explained["penalties"] if row["taken"]}
    assert taken == {"refusal": 0.5, "unfinished": 0.3}
    assert explained["scores"]["quality"] == pytest.approx(1 - sum(taken.values()))


def test_an_explanation_of_nobody_or_of_many_is_refused(store):
    add(store, questions(40))
    score_store(store, ALL)
    with pytest.raises(VersionError, match="No scored conversation begins with zz"):
        explain(store, ALL, "zz")
    with reading(store) as connection:
        ids = [id_ for (id_,) in connection.sql("SELECT id FROM conversations").fetchall()]
    shared = next(digit for digit in "0123456789abcdef" if sum(id_[0] == digit for id_ in ids) > 1)  # 40 ids, 16 digits
    with pytest.raises(VersionError, match="More than one"):
        explain(store, ALL, shared)
    with pytest.raises(VersionError, match="The id is empty"):
        explain(store, ALL, "")


def test_the_command_prints_every_score_and_what_to_type_next(store):
    add(store, questions(3))
    result = CliRunner().invoke(app, ["score", "--store", str(store)])
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in SCORERS)
    assert "curate select" in result.stderr


# --- interruption ---


def test_killed_at_any_moment_the_same_command_finishes_the_work(tmp_path):
    store, calm = tmp_path / "killed.duckdb", tmp_path / "calm.duckdb"
    for path in (store, calm):
        add(path, questions(3000))
    score_store(calm, ALL)
    command = [sys.executable, "-P", "-c", "from curate.cli.app import main; main()", "score", "--store", str(store)]
    for delay in (0.4, 0.8, 1.1, 1.4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with reading(store) as connection:
            assert connection.sql("SELECT count(*) FROM scores").fetchall()[0][0] in (0, 3000)
    score_store(store, ALL)
    assert scores(store).equals(scores(calm))


def test_quality_reads_only_scores():
    needs = plan({}, ["quality"])[-1].needs
    assert set(needs) == set(quality().meta.root_names())
